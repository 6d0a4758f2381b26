"""A page for blind votes between pictures of several programs, and the ranking. bench/README.md."""

import io
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import click
import numpy as np
from PIL import Image

from bench.panel import pairs

QUESTIONS = {
    "style": "Which one is painted more like the painting?",
    "content": "In which one is the photo easier to recognize?",
    "overall": "Which one do you like better?",
}
_RESAMPLES = 1000
_PICTURE_PX = 512  # long side of the pictures on the page

_PAGE = """<!doctype html><html lang=en><meta charset=utf-8><title>Which one?</title>
<style>
body{font:16px system-ui;margin:1rem auto;max-width:1100px;background:#222;color:#eee}
.row{display:flex;gap:1rem;margin-bottom:1rem}figure{flex:1;margin:0;text-align:center}
img{width:100%%}fieldset{border:0;padding:.3rem 0}
</style>
<form method=post action=/>
<div class=row>
<figure><img src=/%(number)d/photo alt=photo><figcaption>photo</figcaption></figure>
<figure><img src=/%(number)d/painting alt=painting><figcaption>painting</figcaption></figure>
</div><div class=row>
<figure><img src=/%(number)d/left alt=left><figcaption>left</figcaption></figure>
<figure><img src=/%(number)d/right alt=right><figcaption>right</figcaption></figure>
</div>%(questions)s
<input type=hidden name=number value=%(number)d><button>Next</button>
%(count)d votes so far</form>"""


@dataclass(frozen=True)
class Vote:
    """An answer to a question: one program's picture was preferred to another's."""

    question: str
    pair: str
    winner: str
    loser: str


def strengths(votes: Sequence[Vote], names: Sequence[str]) -> list[float]:
    """The strength of each program after Bradley and Terry 1952; they sum to 1.

    Found by Hunter's iteration (2004, eq. 3). One half vote each way between all programs keeps
    the strengths finite.
    """
    wins = np.full((len(names), len(names)), 0.5)
    np.fill_diagonal(wins, 0)
    for vote in votes:
        wins[names.index(vote.winner), names.index(vote.loser)] += 1
    games, strength = wins + wins.T, np.full(len(names), 1 / len(names))
    for _ in range(200):
        strength = wins.sum(1) / (games / (strength[:, None] + strength)).sum(1)
        strength /= strength.sum()
    return [float(one) for one in strength]


def intervals(votes: Sequence[Vote], names: Sequence[str]) -> list[tuple[float, float]]:
    """The 95 % interval of each strength: a bootstrap over the pairs of pictures."""
    generator = random.Random(0)  # noqa: S311 - no secret
    by_pair: dict[str, list[Vote]] = {}
    for vote in votes:
        by_pair.setdefault(vote.pair, []).append(vote)
    resampled = []
    for _ in range(_RESAMPLES):
        chosen = generator.choices(list(by_pair), k=len(by_pair))
        resampled.append(strengths([vote for pair in chosen for vote in by_pair[pair]], names))
    low, high = np.percentile(np.array(resampled), [2.5, 97.5], axis=0)
    return [(float(one), float(other)) for one, other in zip(low, high, strict=True)]


class _Page(BaseHTTPRequestHandler):
    """Shows a random pair of pictures, without saying whose they are, and stores the answers."""

    folders: Sequence[Path]
    file: Path
    inputs: dict[str, tuple[Image.Image, Image.Image]]
    # Of each page that was shown, by its number: the pair, and the folders of left and right. They
    # stay here, because an address could tell whose picture it is.
    shown: list[tuple[str, dict[str, Path]]]

    def do_GET(self) -> None:
        if self.path == "/":
            self._answer(self._page().encode(), "text/html; charset=utf-8")
            return
        number, _, name = self.path[1:].partition("/")
        if not number.isdecimal() or int(number) >= len(self.shown):
            self.send_error(404)
            return
        pair, folders = self.shown[int(number)]
        if name in folders:
            with Image.open(folders[name] / f"{pair}.png") as picture:
                self._answer_picture(picture)
        else:
            self._answer_picture(self.inputs[pair][name == "painting"])

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        fields = {name: values[0] for name, values in parse_qs(body).items()}
        pair, folders = self.shown[int(fields["number"])]
        with self.file.open("a") as file:
            for question in QUESTIONS:
                if question not in fields:
                    continue
                loser = "right" if fields[question] == "left" else "left"
                vote = Vote(question, pair, folders[fields[question]].name, folders[loser].name)
                file.write(json.dumps(asdict(vote)) + "\n")
        self.send_response(303)
        self.send_header("Location", "/")
        self.end_headers()

    def _page(self) -> str:
        pair = random.choice(list(self.inputs))  # noqa: S311 - no secret
        left, right = random.sample(self.folders, 2)
        self.shown.append((pair, {"left": left, "right": right}))
        questions = "".join(
            f"<fieldset><legend>{text}</legend>"
            f"<label><input type=radio required name={name} value=left> left</label> "
            f"<label><input type=radio required name={name} value=right> right</label></fieldset>"
            for name, text in QUESTIONS.items()
        )
        return _PAGE % {
            "number": len(self.shown) - 1,
            "questions": questions,
            "count": len(read_votes(self.file)) // len(QUESTIONS),
        }

    def _answer_picture(self, picture: Image.Image) -> None:
        small, buffer = picture.convert("RGB"), io.BytesIO()
        small.thumbnail((_PICTURE_PX, _PICTURE_PX))
        small.save(buffer, "PNG")
        self._answer(buffer.getvalue(), "image/png")

    def _answer(self, body: bytes, media_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


def read_votes(file: Path) -> list[Vote]:
    """The votes of a file; none if it does not exist."""
    if not file.exists():
        return []
    return [Vote(**json.loads(line)) for line in file.read_text().splitlines()]


def make_server(
    file: Path,
    folders: Sequence[Path],
    inputs: dict[str, tuple[Image.Image, Image.Image]],
    port: int,
) -> ThreadingHTTPServer:
    """A server of the page, on loopback. inputs: photo and painting, by pair."""
    _Page.folders, _Page.file, _Page.inputs, _Page.shown = folders, file, inputs, []
    return ThreadingHTTPServer(("127.0.0.1", port), _Page)


@click.group()
def main() -> None:
    """Collect blind votes, and rank the programs."""


@main.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.argument(
    "folders",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    nargs=-1,
    required=True,
)
@click.option("--port", default=8100, show_default=True)
@click.option("--pictures", type=click.Path(exists=True, file_okay=False, path_type=Path))
def serve(file: Path, folders: tuple[Path, ...], port: int, pictures: Path | None) -> None:
    """Show the pairs that all FOLDERS of `bench/panel.py paint` hold; append votes to FILE."""
    if len(folders) < 2:
        raise click.UsageError("Give the folders of at least two programs.")
    if len({folder.name for folder in folders}) < len(folders):
        raise click.UsageError("The folders need different names.")
    inputs = {
        name: sources
        for name, sources in pairs(pictures).items()
        if all((folder / f"{name}.png").exists() for folder in folders)
    }
    if not inputs:
        raise click.UsageError("There is no pair that all folders hold.")
    server = make_server(file, folders, inputs, port)
    click.echo(f"Vote at http://127.0.0.1:{server.server_port}; Ctrl-C ends.")
    server.serve_forever()


@main.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def report(file: Path) -> None:
    """Print the ranking for each question: strengths that sum to 1, with 95 % intervals."""
    votes = read_votes(file)
    if not votes:
        raise click.ClickException(f"{file} has no votes yet.")
    names = sorted({name for vote in votes for name in (vote.winner, vote.loser)})
    click.echo(
        "| question | votes | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 2) + "|"
    )
    for question in QUESTIONS:
        asked = [vote for vote in votes if vote.question == question]
        ranking = (
            zip(strengths(asked, names), intervals(asked, names), strict=True) if asked else ()
        )
        cells = [f"{strength:.2f} ({low:.2f} to {high:.2f})" for strength, (low, high) in ranking]
        cells = cells or ["–"] * len(names)
        click.echo(f"| {question} | {len(asked)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

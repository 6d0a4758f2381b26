import io
import json
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from bench.vote import Vote, intervals, main, make_server, read_votes, strengths

COLORS = {"ours": (255, 0, 0), "peer": (0, 0, 255)}  # of each program's pictures


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A running page with one pair; the votes go to votes.jsonl."""
    for name, color in COLORS.items():
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), color).save(tmp_path / name / "a b.png")
    inputs = {"a b": (Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), "black"))}
    folders = [tmp_path / name for name in COLORS]
    server = make_server(tmp_path / "votes.jsonl", folders, inputs, port=0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def _color_at(address: str) -> tuple[int, ...]:
    with (
        urllib.request.urlopen(address) as answer,
        Image.open(io.BytesIO(answer.read())) as picture,
    ):
        color = picture.convert("RGB").getpixel((0, 0))
    assert isinstance(color, tuple)
    return color


def test_a_vote_counts_for_the_program_whose_picture_was_shown(
    address: str, tmp_path: Path
) -> None:
    wanted = []
    for number in range(8):  # the sides are random
        with urllib.request.urlopen(f"{address}/") as page:
            text = page.read().decode()
        assert not any(name in text for name in COLORS)
        shown = {side: _color_at(f"{address}/{number}/{side}") for side in ("left", "right")}
        by_color = {color: name for name, color in COLORS.items()}
        left, right = by_color[shown["left"]], by_color[shown["right"]]
        answers = {"number": number, "style": "left", "content": "right", "overall": "left"}
        body = urllib.parse.urlencode(answers).encode()
        with urllib.request.urlopen(f"{address}/", body) as answer:
            assert answer.status == 200  # the next page
        wanted += [("style", left, right), ("content", right, left), ("overall", left, right)]
    votes = read_votes(tmp_path / "votes.jsonl")
    assert [(vote.question, vote.winner, vote.loser) for vote in votes] == wanted
    assert {vote.pair for vote in votes} == {"a b"}


def test_the_page_shows_photo_and_painting(address: str) -> None:
    with urllib.request.urlopen(f"{address}/") as page:
        page.read()
    assert _color_at(f"{address}/0/photo") == (255, 255, 255)
    assert _color_at(f"{address}/0/painting") == (0, 0, 0)


def test_strengths_of_two_programs_have_the_ratio_of_their_votes() -> None:
    votes = [Vote("style", "pair", "a", "b")] * 9 + [Vote("style", "pair", "b", "a")] * 3
    first, second = strengths(votes, ["a", "b"])
    assert first + second == pytest.approx(1)
    assert first / second == pytest.approx(9.5 / 3.5, rel=1e-6)  # with half a vote each way


def test_intervals_are_wide_if_pairs_of_pictures_disagree() -> None:
    same = [Vote("style", str(pair), "a", "b") for pair in range(20) for _ in range(2)]
    mixed = [
        Vote("style", str(pair), *(("a", "b") if pair % 2 else ("b", "a")))
        for pair in range(20)
        for _ in range(2)
    ]
    (low, high), (mixed_low, mixed_high) = (
        intervals(votes, ["a", "b"])[0] for votes in (same, mixed)
    )
    assert low > 0.9
    assert mixed_low < 0.5 < mixed_high
    assert mixed_high - mixed_low > 2 * (high - low)


def test_a_report_ranks_only_for_questions_that_have_votes(tmp_path: Path) -> None:
    votes = tmp_path / "votes.jsonl"
    votes.touch()
    result = CliRunner().invoke(main, ["report", str(votes)])
    assert result.exit_code == 1
    assert "no votes yet" in result.output

    vote = {"question": "overall", "pair": "a b", "winner": "ours", "loser": "peer"}
    votes.write_text(json.dumps(vote) + "\n")
    result = CliRunner().invoke(main, ["report", str(votes)])
    rows = [row.split(" | ") for row in result.output.splitlines()[2:]]
    assert [row[1] for row in rows] == ["0", "0", "1"]
    assert rows[0][2] == "–"
    assert rows[2][2].startswith("0.75")

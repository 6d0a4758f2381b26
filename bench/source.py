"""Figures of the source itself: lengths, densities, and words that the style guide rules out.

`python bench/source.py [FOLDER]` prints one table. Tests are not counted, except for old words.
"""

import ast
import io
import re
import statistics
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import click

PACKAGES = ("api", "cli", "core", "impasto", "worker")
# Words of the project's former private vocabulary, as whole words.
OLD_WORDS = [
    "mourner",
    "warden",
    "lookout",
    "darkroom",
    "forecaster",
    "courier",
    "taker",
    "harvest",
    "doorbell",
    "bell",
    "bells",
    "janitor",
    "knob",
    "knobs",
    "easel",
    "borne",
    "whoever",
    "stranger",
    "strangers",
    "steerable",
    "steered",
    "steering",
    "vigil",
]


def list_tracked(folder: Path, *suffixes: str) -> list[Path]:
    """Tracked files with one of the suffixes."""
    command = ["git", "-C", str(folder), "ls-files"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    return [folder / name for name in names if name.endswith(suffixes)]


def function_lengths(tree: ast.AST) -> Iterator[int]:
    """Lines of each function, its signature and docstring included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None, "the tree was parsed from text"
            yield node.end_lineno - node.lineno + 1


def comment_lines(text: str) -> int:
    """Lines that hold nothing but a comment."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(
        token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip()
        for token in tokens
    )


def count_words(folder: Path) -> int:
    """Occurrences of old words in code, tests and docs; the changelog and this file excepted."""
    pattern = re.compile(rf"\b({'|'.join(OLD_WORDS)})\b", re.IGNORECASE)
    files = list_tracked(folder, ".py", ".lua", ".js", ".html", ".md", ".toml", ".yml")
    skipped = {"CHANGELOG.md", Path(__file__).name}
    texts = (file.read_text(errors="replace") for file in files if file.name not in skipped)
    return sum(len(pattern.findall(text)) for text in texts)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=".")
def main(folder: Path) -> None:
    """Print the table."""
    python = [
        file
        for file in list_tracked(folder, ".py")
        if file.relative_to(folder).parts[0] in PACKAGES
    ]
    texts = [file.read_text() for file in python]
    lines = [line for text in texts for line in text.splitlines()]
    code = [line for line in lines if line.strip()]
    trees = [ast.parse(text) for text in texts]
    functions = [length for tree in trees for length in function_lengths(tree)]
    ternaries = sum(isinstance(node, ast.IfExp) for tree in trees for node in ast.walk(tree))
    widths = sorted(map(len, code))
    prose = [
        line
        for file in list_tracked(folder, ".md")
        for line in file.read_text().splitlines()
        if not line.startswith("|")
    ]
    modules = [len(text.splitlines()) for text in texts]
    rows: list[tuple[str, object]] = [
        ("lines of Python", len(lines)),
        (
            "lines of Python in tests",
            sum(
                len(file.read_text().splitlines())
                for file in list_tracked(folder, ".py")
                if file.relative_to(folder).parts[0] == "tests"
            ),
        ),
        (
            "lines of Lua",
            sum(len(file.read_text().splitlines()) for file in list_tracked(folder, ".lua")),
        ),
        (
            "lines of JavaScript",
            sum(len(file.read_text().splitlines()) for file in list_tracked(folder, ".js")),
        ),
        (
            "modules; median, largest (lines)",
            (f"{len(modules)}; {statistics.median(modules):g}, {max(modules)}"),
        ),
        ("functions: median length (lines)", statistics.median(functions)),
        ("comment lines per 100 lines", f"{100 * sum(map(comment_lines, texts)) / len(lines):.1f}"),
        ("ternaries per 1,000 lines", f"{1000 * ternaries / len(lines):.1f}"),
        (
            "line length: median, 90th percentile, longest",
            (f"{statistics.median(widths):g}, {widths[9 * len(widths) // 10]}, {widths[-1]}"),
        ),
        (
            "Markdown lines over 110 characters, tables excepted",
            sum(len(line) > 110 for line in prose),
        ),
        ("old words", count_words(folder)),
    ]
    click.echo("| | |\n|---|---|")
    for name, value in rows:
        click.echo(f"| {name} | {value} |")


if __name__ == "__main__":
    main()

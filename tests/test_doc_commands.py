"""Every command that the documentation shows exists, whether or not a machine can run it here.

Options against the command line's own parser, files and targets against the tree, addresses against
the OpenAPI document, messages against the code. `tests/e2e/test_how_to.py` and
`tests/impasto/test_curl.py` run what can be run; blocks of `sh` need a card, a cluster, a container
engine or minutes, so they are checked here only.
"""

import ast
import re
import shlex
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import standardwebhooks
import yaml

from api.app import create_app
from api.settings import ApiSettings
from cli.commands import impasto
from core.config import Settings
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "bench/*.md", "integrations/**/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"  # it also names what was removed
)
EXAMPLE_URL = "http://127.0.0.1:8000"
KUBERNETES = ROOT / "deploy" / "kubernetes"
OWN_OVERLAY = "deploy/kubernetes/overlays/mine"  # the reader writes it: docs/how-to/kubernetes.md
PLACEHOLDER = re.compile(r"…|\$|^[A-Z_]+$")
SYSTEM = {
    *("cat", "cd", "date", "echo", "export", "grep", "head", "ln", "ls", "openssl", "rm", "sleep"),
    *("sort", "test", "torchrun", "wc", "npm", "node"),
}
KEYWORDS = {"do", "done", "then", "fi", "else", "if", "while", "until", "!", "{", "}"}


def _fenced(page: Path, languages: str) -> Iterator[str]:
    """The blocks of these languages, without the indentation of lists."""
    text = page.read_text(encoding="utf-8")
    for indent, block in re.findall(
        rf"^( *)```(?:{languages})\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL
    ):
        yield re.sub(rf"^{indent}", "", block, flags=re.MULTILINE)


def _scripts(page: Path) -> list[str]:
    """The commands of a page, without what they print: lines after a command without `$`."""
    scripts = []
    for block in _fenced(page, "console|sh|bash"):
        for line in block.splitlines():
            if line.startswith("$ "):
                scripts.append(line.removeprefix("$ "))
            elif scripts and (scripts[-1].endswith("\\") or _is_open_loop(scripts[-1])):
                scripts[-1] += f"\n{line}"
    return scripts


def _is_open_loop(script: str) -> bool:
    return bool(re.match(r"(until|while|for) ", script)) and not re.search(r"\bdone\b", script)


def _split(script: str) -> Iterator[list[str]]:
    """The simple commands of a script, those of its $(…), too."""
    substitution = re.compile(r"\$\(((?:[^()]|\([^()]*\))*)\)")
    for inner in substitution.findall(script):
        yield from _split(inner)
    script = substitution.sub("$X", script)
    script = re.sub(r"\s#\s.*$", "", script.replace("\\\n", " "), flags=re.MULTILINE)
    lexer = shlex.shlex(script, posix=True, punctuation_chars="();&|<>\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    words: list[str] = []
    is_file = False  # after a redirection
    for token in [*lexer, ";"]:
        if set(token) <= set("();&|\n"):
            yield _strip(words)
            words = []
        elif set(token) <= set("<>"):
            is_file = True
        elif not is_file:
            words.append(token)
        else:
            is_file = False


def _strip(words: list[str]) -> list[str]:
    """The words of a command without keywords and assignments before it."""
    while words and (words[0] in KEYWORDS or re.match(r"\w+=", words[0])):
        words = words[1:]
    return [] if words[:1] == ["for"] else words


def _commands(page: Path) -> list[list[str]]:
    return [words for script in _scripts(page) for words in _split(script) if words]


def _inline(page: Path) -> list[list[str]]:
    """The commands between backticks in the prose that begin with a program of the project."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = re.findall(r"`((?:impasto|make|kubectl|docker compose|bench/\w+\.py) [^`]+)`", text)
    return [words for one in found for words in _split(" ".join(one.split())) if words]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_exists(page: Path) -> None:
    script = "\n".join(_scripts(page))
    ran = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    for words in _commands(page):
        _check(words, is_whole=True)
    for words in _inline(page):
        _check(words, is_whole=False)


def _check(words: list[str], *, is_whole: bool) -> None:
    """Check one command. is_whole: its arguments are there, too."""
    program, arguments = words[0], words[1:]
    check = {
        "impasto": _check_impasto,
        "make": _check_make,
        "python": _check_python,
        ".venv/bin/python": _check_python,
        "docker": _check_docker,
        "kubectl": _check_kubectl,
        "curl": _check_curl,
        "pip": _check_pip,
    }.get(program)
    if program.startswith("bench/"):
        _check_python(words)
    elif program == "impasto":
        _check_impasto(arguments, is_whole=is_whole)
    elif check is not None:
        check(arguments)
    else:
        assert program in SYSTEM or program == ".", f"add a check of {program}: {words}"


def _check_impasto(arguments: list[str], *, is_whole: bool = True) -> None:
    command: click.Command = impasto
    rest = arguments
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        if PLACEHOLDER.search(rest[0]):
            return
        assert rest[0] in command.commands, f"there is no such command: {arguments}"
        command, rest = command.commands[rest[0]], rest[1:]
    known = {name for parameter in command.params for name in parameter.opts}
    known |= {name for parameter in command.params for name in parameter.secondary_opts}
    for word in rest:
        name = word.partition("=")[0]
        if name.startswith("-") and not PLACEHOLDER.search(name):
            assert name in known | {"--help", "-h", "--version"}, f"no such option: {arguments}"
    if not is_whole or isinstance(command, click.Group) or "…" in rest:
        return
    context = click.Context(command)
    values, _, _ = command.make_parser(context).parse_args(list(rest))
    for parameter in command.params:
        value = values.get(parameter.name or "")
        is_file = isinstance(parameter.type, click.Path)
        if isinstance(value, str) and not is_file and not PLACEHOLDER.search(value):
            parameter.type.convert(value, parameter, context)
        if isinstance(parameter, click.Argument) and parameter.required:
            assert isinstance(value, str | tuple), f"{parameter.name} is missing: {arguments}"


def _check_make(arguments: list[str]) -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    for word in arguments:
        name, is_set, value = word.partition("=")
        if is_set:
            assert re.search(rf"^{name} (?:\?|:)=", text, re.MULTILINE), f"no variable {name}"
            assert name != "GPU" or value == "legacy"
        else:
            assert word in targets, f"no target {word}"


def _check_python(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        assert arguments[1] in ("pytest", "api", "worker", "worker.webhooks", "cli"), arguments
        return
    if arguments[0].startswith("~"):  # another program's
        return
    file = ROOT / arguments[0]
    assert file.is_file(), f"no file {arguments[0]}"
    text = file.read_text(encoding="utf-8")
    if "parse_run" in text or "campaigns" in arguments[0]:  # options that all campaigns share
        text += "".join(one.read_text() for one in (ROOT / "tests/campaigns").glob("*.py"))
    for word in arguments[1:]:
        if word.startswith("-") and len(word) > 2:
            name = word.removeprefix("--").partition("=")[0]
            assert re.search(rf"[\"'](?:--)?{name}[\"']|\b{name.replace('-', '_')}\b", text), word


@cache
def _services() -> set[str]:
    return set(
        yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    )


def _check_docker(arguments: list[str]) -> None:
    if arguments[0] in ("build", "push"):
        if "-f" in arguments:
            assert (ROOT / arguments[arguments.index("-f") + 1]).is_file(), arguments
        return
    assert arguments[0] == "compose", arguments
    rest = arguments[1:]
    while rest[0] == "-f":
        assert (ROOT / rest[1]).is_file(), f"no file {rest[1]}"
        rest = rest[2:]
    if rest[0] in ("up", "down"):
        assert set(rest[1:]) <= {"--build", "--detach", "-d"}, arguments
        return
    assert rest[0] in ("run", "exec"), arguments
    rest = rest[1:]
    while rest[0].startswith("-"):
        rest = rest[2:] if rest[0] == "-v" else rest[1:]
    assert rest[0] in _services(), f"no service {rest[0]}"
    _check(rest[1:], is_whole=True)


@cache
def _objects() -> tuple[dict[str, Any], ...]:
    """All objects of the manifests, also of the components."""
    files = [path for path in KUBERNETES.rglob("*.yaml") if path.name != "kustomization.yaml"]
    found = [one for path in files for one in yaml.safe_load_all(path.read_text(encoding="utf-8"))]
    return tuple(one for one in found if one)


def _check_kubectl(arguments: list[str]) -> None:
    rest = arguments
    if rest[0] == "-n":
        assert rest[1] in {one["metadata"]["name"] for one in _objects()}, arguments
        rest = rest[2:]
    verbs = ("apply", "create", "exec", "get", "kustomize", "logs", "patch", "port-forward")
    assert rest[0] in (*verbs, "rollout"), arguments
    text = "".join(path.read_text(encoding="utf-8") for path in KUBERNETES.rglob("*.yaml"))
    for word, following in zip(rest, [*rest[1:], ""], strict=True):
        if word in ("-k", "kustomize"):
            folder = ROOT / following
            assert following == OWN_OVERLAY or (folder / "kustomization.yaml").is_file(), following
        elif word == "-f":
            assert (ROOT / following).is_file(), following
        elif match := re.fullmatch(r"(deploy|service)/(\w+)", word):
            kind = {"deploy": "Deployment", "service": "Service"}[match[1]]
            assert _has_object(kind, match[2]), word
        elif word == "scaledobject":
            assert _has_object("ScaledObject", following), arguments
        elif match := re.match(r"--from-literal=([\w-]+)=", word):
            assert f"key: {match[1]}" in text, word
        elif word == "--selector":
            assert following.replace("=", ": ") in text, following
        elif word == "--patch":
            (key,) = re.findall(r'"([\w-]+)\\?": \\?"\$', following)
            assert f"key: {key}" in text, following
        elif word.startswith("-") and word not in ("-n", "--", "--previous", "--watch"):
            pytest.fail(f"add a check of {word}: {arguments}")
    if "--" in rest:
        _check(rest[rest.index("--") + 1 :], is_whole=True)


def _has_object(kind: str, name: str) -> bool:
    return any((one["kind"], one["metadata"]["name"]) == (kind, name) for one in _objects())


@cache
def _paths() -> list[re.Pattern[str]]:
    shared = Settings(redis_url="redis://127.0.0.1:1/0", data_dir=ROOT)
    paths = create_app(shared, ApiSettings()).openapi()["paths"]
    return [re.compile(re.sub(r"\{\w+\}", "[^/]+", path)) for path in paths]


def _check_curl(arguments: list[str]) -> None:
    for word in arguments:
        if match := re.match(rf"(?:{EXAMPLE_URL}|\$URL|\$\{{URL\}})(/[^?]*)", word):
            path = match[1]
            assert any(one.fullmatch(path) for one in _paths()) or path == "/v1/jobs/", word


def _check_pip(arguments: list[str]) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert arguments[0] == "install", arguments
    for word, before in zip(arguments[1:], arguments, strict=False):
        if before == "-c":
            assert (ROOT / word).is_file(), word
        elif word.startswith("./"):
            assert (ROOT / word / "pyproject.toml").is_file(), word
        for extra in re.findall(r"\[(\w+)\]", word):
            assert re.search(rf"^{extra} = \[", project, re.MULTILINE), word


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_variable_in_a_block_is_a_setting(page: Path) -> None:
    kinds = [Settings, ApiSettings, WorkerSettings]
    known = {
        f"{kind.model_config['env_prefix']}{name.upper()}"
        for kind in kinds
        for name in kind.model_fields
    }
    blocks = "\n".join(_fenced(page, r"\w+"))
    named = set(re.findall(r"\bIMPASTO_[A-Z_]+[A-Z]\b", blocks))

    assert named <= known | {"IMPASTO_REDIS_PASSWORD"}


@cache
def _texts_of_the_code() -> list[str]:
    """Each string literal, also joined ones; … stands for what is filled in."""
    files = [
        path
        for folder in ("api", "core", "cli", "worker", "impasto")
        for path in (ROOT / folder).rglob("*.py")
    ]
    files += [*Path(standardwebhooks.__file__).parent.rglob("*.py")]
    texts = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"%[sd]", "…", node.value))
            elif isinstance(node, ast.JoinedStr):
                parts = [one.value if isinstance(one, ast.Constant) else "…" for one in node.values]
                texts.append("".join(map(str, parts)))
    return [" ".join(text.split()) for text in texts]


def _messages(page: Path) -> Iterable[str]:
    """The first cells of the tables whose head is `message`."""
    for table in re.findall(
        r"^\| message \|.*\n\|---.*\n((?:\|.*\n?)+)", page.read_text(encoding="utf-8"), re.MULTILINE
    ):
        for row in table.splitlines():
            cell = re.match(r"\| `(.+?)` \|", row)
            assert cell, f"not a message between backticks: {row}"
            yield cell[1]


@pytest.mark.parametrize(
    ("page", "message"),
    [(page, message) for page in PAGES for message in _messages(page)],
    ids=lambda value: value.stem if isinstance(value, Path) else value[:40],
)
def test_every_message_of_a_guide_is_one_of_the_code(page: Path, message: str) -> None:
    parts = [part for part in (one.strip(" ;:") for one in message.split("…")) if part]
    pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)

    assert any(map(pattern.search, _texts_of_the_code()))

"""The documentation covers every parameter, setting, error code and route, and no others."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from api.app import create_app
from api.http.problems import REFUSALS
from api.settings import ApiSettings
from core import errors
from core.config import Settings
from core.jobs.models import SubmissionOptions
from core.style.presets import PRESETS
from core.style.spec import PARAMETERS, StyleSpec
from core.training.config import TrainingConfig
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SETTINGS: list[type[BaseSettings]] = [Settings, ApiSettings, WorkerSettings]


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _setting_names() -> set[str]:
    return {
        kind.model_config["env_prefix"] + name.upper()
        for kind in SETTINGS
        for name in kind.model_fields
    }


def test_every_parameter_is_in_the_table_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", _read("docs/api.md"), re.MULTILINE))

    assert set(rows) == {*PARAMETERS, *SubmissionOptions.model_fields}
    for name, field in StyleSpec.model_fields.items():
        if isinstance(field.default, int | float | str):
            is_number = not isinstance(field.default, str | bool)
            shown = f"{field.default:g}" if is_number else f"`{str(field.default).lower()}`"
            assert shown == rows[name].split(" ")[0], name


def test_every_preset_is_in_the_table_with_its_parameters() -> None:
    rows = [
        f"| {name} | {preset.description} | {_assignments(preset.parameters)} |"
        for name, preset in PRESETS.items()
    ]

    assert "\n".join(["|---|---|---|", *rows, ""]) in _read("docs/api.md")


def _assignments(parameters: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {_shown(value)}" for name, value in parameters.items())


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}={share}" for name, share in value.items())
    return str(value)


@pytest.mark.parametrize("page", ["docs/operations.md", ".env.example"])
def test_every_setting_is_documented_and_no_other(page: str) -> None:
    named = set(re.findall(r"\bIMPASTO_[A-Z_]+[A-Z]", _read(page)))

    assert named == _setting_names() | {"IMPASTO_REDIS_PASSWORD"}


def test_every_error_code_is_documented() -> None:
    def walk(kind: type[errors.ImpastoError]) -> set[str]:
        return {kind.code}.union(*(walk(child) for child in kind.__subclasses__()))

    assert all(
        f"`{code}`" in _read("docs/api.md") for code in walk(errors.ImpastoError) | set(REFUSALS)
    )


def test_every_training_parameter_is_in_the_table_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", _read("docs/training.md"), re.MULTILINE))

    assert set(rows) == {*TrainingConfig.model_fields}
    for name, field in TrainingConfig.model_fields.items():
        is_number = isinstance(field.default, int | float) and not isinstance(field.default, bool)
        shown = f"{field.default:g}" if is_number else str(field.default).lower()
        assert shown == rows[name].strip("`"), name


def test_every_route_is_documented_and_no_other(tmp_path: Path) -> None:
    app = create_app(Settings(redis_url="redis://127.0.0.1:1/0", data_dir=tmp_path), ApiSettings())
    routes = {
        f"{method.upper()} {path}"
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    }
    named = set(re.findall(r"`((?:GET|POST|HEAD|DELETE|PUT|PATCH) /[^`?]*)`", _read("docs/api.md")))

    assert named == routes


def test_every_link_between_pages_has_a_target() -> None:
    for page in [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "bench").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_file_that_a_page_names_exists() -> None:
    for page in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(
            r"`((?:core|api|worker|cli|bench|tests|docs|samples)/[\w./-]*\.\w+)`", text
        ):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_the_readmes_tree_names_every_top_level_folder() -> None:
    tree = _read("README.md")
    tracked = {path.parent.name for path in ROOT.glob("*/*") if path.suffix in (".py", ".md")}

    assert all(f"\n{folder}/" in tree for folder in tracked if not folder.startswith("."))


def test_the_documentation_of_the_page_names_every_module_of_the_page() -> None:
    named = set(re.findall(r"`([a-z-]+\.js)`", _read("docs/page.md")))

    assert named == {module.name for module in (ROOT / "api" / "web").glob("*.js")}


def test_no_file_names_the_host_of_a_registry_or_a_home_folder() -> None:
    tracked = [
        path
        for path in ROOT.rglob("*")
        if path.suffix in (".py", ".md", ".toml", ".yml", ".lua", ".txt")
    ]
    for path in tracked:
        if ".venv" not in path.parts and path != Path(__file__):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"pypi\.org|pythonhosted|registry\.npmjs|/home/\w|/root/", text), (
                path
            )


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")]), ids=lambda page: page.name
)
def test_every_block_of_code_begins_and_ends_on_lines_of_its_own(page: Path) -> None:
    """Wrapping the prose must not wrap the commands."""
    is_open = False
    for line in page.read_text(encoding="utf-8").splitlines():
        if "```" not in line:
            continue
        fence = re.fullmatch(r"\s*(?:> )?```(\w*)", line)
        assert fence, f"not alone on its line: {line}"
        assert not (is_open and fence[1]), f"the block before is not closed: {line}"
        is_open = not is_open
    assert not is_open, "the last block is not closed"


def test_the_api_page_names_every_reason_of_an_error() -> None:
    sources = "".join(
        path.read_text(encoding="utf-8")
        for part in ("core", "api")
        for path in (ROOT / part).rglob("*.py")
    )
    reasons = {*re.findall(r'\breason="(\w+)"', sources)}

    assert len(reasons) > 10
    assert {name for name in reasons if f"`{name}`" not in _read("docs/api.md")} == set()

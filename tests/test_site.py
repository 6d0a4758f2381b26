"""The documentation's site: built without a warning, complete, searchable, and from one host."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import quote, urlsplit

import pytest
from page_actions import CHROMIUM, needs_chromium
from playwright.sync_api import sync_playwright
from pydantic_settings import BaseSettings

from api.settings import ApiSettings
from core.config import Settings
from core.style.spec import PARAMETERS
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs" / "site"


@pytest.fixture(scope="module")
def llms() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SITE))
        import llms  # a module beside those of the site

        yield llms


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(SITE / "build.py"), str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout + ran.stderr
    return folder


def test_llms_txt_is_in_step_with_the_pages(llms: ModuleType) -> None:
    """`python docs/site/llms.py` writes it."""
    text = llms.TARGET.read_text(encoding="utf-8")

    assert text == llms.render()
    for target in re.findall(r"^- \[.+\]\((.+?)\): \S", text, re.MULTILINE):
        assert (llms.TARGET.parent / target).exists(), target
    assert len(re.findall(r"^- ", text, re.MULTILINE)) == len(llms.list_pages()) - 1  # no index


def test_the_site_has_every_page_and_what_llms_txt_names(site: Path, llms: ModuleType) -> None:
    for place in llms.list_pages().values():
        assert (site / place).with_suffix(".html").exists(), place
    for target in re.findall(r"\]\(([^)]+)\): ", (site / "llms.txt").read_text(encoding="utf-8")):
        assert (site / target).exists(), target


def test_the_reference_has_every_parameter_setting_command_and_metric(site: Path) -> None:
    kinds: list[type[BaseSettings]] = [Settings, ApiSettings, WorkerSettings]
    settings = {
        kind.model_config["env_prefix"] + name.upper()
        for kind in kinds
        for name in kind.model_fields
    }
    for page, names in (
        ("settings", settings),
        ("parameters", {*PARAMETERS}),
        ("commands", {"impasto submit", "impasto keys create"}),
        ("errors", {"store_unsafe", "uri_too_long"}),
        ("metrics", {"impasto_jobs_queued", "impasto_worker_utilization", "process_open_fds"}),
        ("routes", {"POST /v1/operator/jobs/{job_id}/move", "pinned"}),
    ):
        text = _Text.of(site / "reference" / f"{page}.html")
        assert not {name for name in names if name not in text}, page


def test_the_search_knows_words_of_all_parts(site: Path) -> None:
    script = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(script.removeprefix("Search.setIndex(").removesuffix(")"))

    words = {*index["terms"], *index["titleterms"]}
    assert {"checkpoint", "webhook", "impasto_redis_url"} <= words


@pytest.fixture(scope="module")
def search(site: Path) -> Iterator[Callable[[str], set[str]]]:
    """A function that searches the site in a browser, and returns the pages that it finds."""
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page()

        def ask(words: str) -> set[str]:
            page.goto(f"{(site / 'search.html').as_uri()}?q={quote(words)}")
            page.wait_for_function("document.querySelector('.search-summary')?.innerText")
            links = page.locator("ul.search a").evaluate_all(
                "(links) => links.map((one) => one.href)"
            )
            return {Path(urlsplit(link).path).stem for link in links}

        yield ask
        chromium.close()


@needs_chromium
@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("checkpoints", {"architecture", "guarantees"}),
        ("画风图", {"README.zh-CN", "first-picture.zh-CN"}),  # inside sentences
        ("模型权重", {"README.zh-CN", "first-picture.zh-CN"}),
        ("显卡实测", {"README.zh-CN"}),
        ("图格风", set()),
    ],
    ids=["english", "word", "phrase", "of-one-page", "absent"],
)
def test_the_search_finds_words_in_both_languages(
    search: Callable[[str], set[str]], words: str, found: set[str]
) -> None:
    pages = search(words)

    assert found <= pages
    if not words.isascii():
        assert pages <= {"README.zh-CN", "first-picture.zh-CN"} if found else not pages


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    for page in site.rglob("*.html"):
        loads = re.findall(
            r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="([^"]+)"',
            page.read_text(encoding="utf-8"),
        )
        assert not [one for one in loads if re.match(r"(https?:)?//", one)], page


class _Text(HTMLParser):
    """The text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    @classmethod
    def of(cls, page: Path) -> str:
        parser = cls()
        parser.feed(page.read_text(encoding="utf-8"))
        return "".join(parser.parts)

"""The dictionaries of the page: complete, with the same keys and values, and used everywhere."""

import re
from html.parser import HTMLParser
from pathlib import Path

from api.http.problems import REFUSALS
from core import errors
from core.images.validation import REASONS

ROOT = Path(__file__).parents[2]
WEB = ROOT / "api" / "web"
_ENTRY = re.compile(r'^  (?:"([^"]+)"|(\w+)): "(.*)",$', re.MULTILINE)
# Keys that exist only where the service's own words are in another language.
_TRANSLATED = re.compile(
    r"(code|reason)\.\w+|(parameter|preset)\.[\w-]+\.hint|sample\.\w+(\.words)?"
)

# Errors that the page does not cause, or that a text of its own replaces.
_FOR_PROGRAMS = {
    "admin_required", "bad_backup", "bad_dataset", "bad_settings", "headers_too_large",
    "method_not_allowed",
    "range_not_satisfiable", "service_unreachable", "unsupported_encoding", "uri_too_long",
    "worker_not_found",
}  # fmt: skip


def _read(language: str) -> dict[str, str]:
    text = (WEB / f"text-{language}.js").read_text()
    entries = {quoted or bare: value for quoted, bare, value in _ENTRY.findall(text)}
    assert len(entries) == len(re.findall(r"^  \S+: ", text, re.MULTILINE)), "an entry per line"
    return entries


ENGLISH, CHINESE = _read("en"), _read("zh")
SCRIPTS = "".join(
    path.read_text() for path in WEB.glob("*.js") if not path.name.startswith(("text-", "operator"))
)


def test_both_dictionaries_have_the_same_keys_and_values() -> None:
    assert ENGLISH.keys() <= CHINESE.keys()
    assert {
        key for key in CHINESE.keys() - ENGLISH.keys() if not _TRANSLATED.fullmatch(key)
    } == set()
    for key, text in ENGLISH.items():
        values = sorted({*re.findall(r"\{\w+\}", text)})
        assert sorted({*re.findall(r"\{\w+\}", CHINESE[key])}) == values, key


def test_every_chinese_text_is_chinese() -> None:
    without = {key: re.sub(r"\{\w+\}|Gatys 2016|L-BFGS|Adam", "", CHINESE[key]) for key in CHINESE}
    left = {
        key: text
        for key, text in without.items()
        if re.search("[A-Za-z]", text) and not re.search("[一-鿿]", text)
    }

    assert left == {}


def test_every_error_that_the_page_may_show_is_in_chinese() -> None:
    def walk(kind: type[errors.ImpastoError]) -> set[str]:
        return {kind.code}.union(*(walk(child) for child in kind.__subclasses__()))

    translated = {key.removeprefix("code.") for key in CHINESE if key.startswith("code.")}
    assert translated == (walk(errors.ImpastoError) | set(REFUSALS)) - _FOR_PROGRAMS


def test_every_reason_of_an_error_is_in_chinese() -> None:
    sources = [path.read_text() for part in ("core", "api") for path in (ROOT / part).rglob("*.py")]
    reasons = set(re.findall(r'\breason="(\w+)"', "".join(sources)))

    assert reasons > REASONS
    translated = {key.removeprefix("reason.") for key in CHINESE if key.startswith("reason.")}
    assert translated == reasons


def test_no_chinese_text_quotes_the_service_but_that_of_an_unknown_error() -> None:
    assert [key for key, text in CHINESE.items() if "{detail}" in text] == ["serviceSays"]
    assert CHINESE["serviceSays"].endswith("\\n\\n{detail}"), "the page folds what follows"


def test_every_key_of_the_page_is_in_the_dictionary() -> None:
    html = (WEB / "index.html").read_text()
    used = {
        *re.findall(r'\bt\("([\w.-]+)"', SCRIPTS),
        *re.findall(r'data-(?:text|label|tip)="([^"]+)"', html),
    }

    assert len(used) > 100
    assert used - ENGLISH.keys() == set()


def test_no_text_is_outside_of_the_dictionaries() -> None:
    found = set()

    class Texts(HTMLParser):
        def handle_data(self, data: str) -> None:
            found.add(data.strip())

    Texts().feed((WEB / "index.html").read_text())
    assert found - {"", "−", "+", "✕", "⋯", "↶", "↷"} == {
        "Impasto", "PNG", "JPEG", "WebP", "This page needs JavaScript. 此页面需要 JavaScript。",
    }  # fmt: skip
    sentences = re.findall(r'(?:textContent|title|placeholder|alt): "[A-Z]\w+', SCRIPTS)
    assert sentences == []
    assert re.findall(r'(?:new Error|setText|announce|showToast)\([^)]*"[A-Z]\w+ ', SCRIPTS) == []


def test_the_operators_page_is_in_chinese() -> None:
    """There, the English text is the key."""
    source = (WEB / "operator-text.js").read_text()
    entries = dict(re.findall(r'^  "(.+)":\s+"(.+)",$', source, re.MULTILINE))
    script, html = ((WEB / f"operator.{suffix}").read_text() for suffix in ("js", "html"))
    shown: set[str] = set(re.findall(r'\btr\(\s*"([^"]+)"', script))
    # The functions that translate the texts that they get.
    shown |= {*re.findall(r'(?:createButton|createSafeButton)\("([^"]+)"', script)}
    shown |= {*re.findall(r'^    \["([A-Z][^"]+)", ', script, re.MULTILINE)}

    class Texts(HTMLParser):
        def handle_data(self, data: str) -> None:
            shown.add(data.strip())

        def handle_starttag(self, _tag: str, attrs: list[tuple[str, str | None]]) -> None:
            labels = (value for name, value in attrs if name in ("aria-label", "placeholder"))
            shown.update(label for label in labels if label)

    Texts().feed(html)
    names = {"", "Impasto", "This page needs JavaScript.", "impasto keys create NAME --admin"}
    assert len(entries) > 70
    assert shown - names - entries.keys() == set()
    assert {key for key in entries.keys() - shown if key not in ("low", "normal", "high")} == set()
    for english, chinese in entries.items():
        assert sorted(re.findall(r"\{\w+\}", english)) == sorted(re.findall(r"\{\w+\}", chinese))
        assert re.search("[一-鿿]", chinese), english

"""The Chinese pages of the documentation stay in step with the English ones."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUFFIX = ".zh-CN.md"
CHINESE = sorted([*ROOT.glob(f"*{SUFFIX}"), *(ROOT / "docs").rglob(f"*{SUFFIX}")])
TUTORIAL = ROOT / "docs" / "first-picture.md"
ID = "job_编号"  # where the English page has job_…, for the reader to replace
_BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _find_original(page: Path) -> Path:
    return page.with_name(page.name.removesuffix(SUFFIX) + ".md")


TRANSLATIONS = {_find_original(page): page for page in CHINESE}


def _read(page: Path) -> str:
    return page.read_text(encoding="utf-8").replace(ID, "job_…")


def _list_blocks(page: Path) -> list[list[str]]:
    """The lines of each block of code, without their comments: in a comment, languages differ."""
    return [
        [re.split(r"\s{2,}|\s#\s", line.strip())[0] for line in block.splitlines()]
        for block in _BLOCK.findall(_read(page))
    ]


def _read_prose(page: Path) -> str:
    return _BLOCK.sub("", _read(page))


def _list_links(page: Path) -> list[str]:
    return re.findall(r"(?:\]\(|<)([^)>\s]+)[)>]", _read_prose(page))


def _translate_link(page: Path, target: str) -> str:
    """The link that the Chinese page has for one of the English page: to Chinese, if there is."""
    if (picture := page.parent / target).suffix == ".jpg":
        own = picture.with_stem(f"{picture.stem}.zh-CN")
        return own.name if own.exists() else target
    linked = (page.parent / target).resolve()
    if linked == TRANSLATIONS[page]:
        return page.name  # the switch of the language
    return target.removesuffix(".md") + SUFFIX if linked in TRANSLATIONS else target


def _outline(page: Path) -> list[str]:
    """The level of each heading, the pictures, steps and items, and the cells of each row."""
    lines = re.findall(r"^(#+ |\d+\. |- |!\[|\|.*)", _read_prose(page), re.MULTILINE)
    return ["|" * line.count("|") or line for line in lines]


@pytest.mark.parametrize("page", TRANSLATIONS, ids=lambda page: page.name)
def test_the_chinese_page_has_the_headings_commands_and_links_of_the_english_one(
    page: Path,
) -> None:
    chinese = TRANSLATIONS[page]

    assert _outline(chinese) == _outline(page)
    assert _list_blocks(chinese) == _list_blocks(page)
    named = [sorted(re.findall(r"`([^`]+)`", _read_prose(each))) for each in (chinese, page)]
    assert named[0] == named[1]
    links = _list_links(page)
    assert chinese.name in links
    assert sorted(_list_links(chinese)) == sorted(_translate_link(page, link) for link in links)


def test_the_readme_and_the_tutorial_are_translated_and_linked() -> None:
    assert {ROOT / "README.md", TUTORIAL} <= set(TRANSLATIONS)
    assert "docs/first-picture.md" in _list_links(ROOT / "README.md")


def test_both_tutorials_name_the_same_parts_of_the_page_as_it_does() -> None:
    keys = []
    for language, page in [("en", TUTORIAL), ("zh", TRANSLATIONS[TUTORIAL])]:
        texts = (ROOT / "api" / "web" / f"text-{language}.js").read_text(encoding="utf-8")
        labels = re.findall(r"\*\*(.+?)\*\*", _read_prose(page))
        keys.append(
            [set(re.findall(rf'^  (.+): "{label}",$', texts, re.MULTILINE)) for label in labels]
        )

    english, chinese = keys
    assert len(english) == len(chinese) == 9
    assert all(shown & translated for shown, translated in zip(english, chinese, strict=True))

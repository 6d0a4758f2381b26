"""llms.txt: the pages for a program that reads, one line each, from docs/index.md and the pages.

python docs/site/llms.py writes docs/llms.txt.
"""

import re

from pages import DOCS, ROOT, list_contents, list_pages

TARGET = DOCS / "llms.txt"


def render(prefix: str = "") -> str:
    """Return the file. prefix: what stands before the path of a page in the site."""
    title, summary = describe((ROOT / "README.md").read_text(encoding="utf-8"))
    sources = {place: path for path, place in list_pages().items()}
    lines = [f"# {title}", "", f"> {summary}"]
    for section, places in list_contents():
        lines += ["", f"## {section}", ""]
        for place in places:
            if place in sources:
                title, summary = describe(sources[place].read_text(encoding="utf-8"))
                path = f"{prefix}{place}" if prefix else _from_docs(place)
                lines.append(f"- [{title}]({path}): {summary}")
    return "\n".join(lines) + "\n"


def _from_docs(place: str) -> str:
    return place.replace("project/", "../") if place.startswith("project/") else place


def describe(text: str) -> tuple[str, str]:
    """Return the title of a page, and the first sentence of its first paragraph."""
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    assert title is not None
    paragraphs = re.split(r"\n\s*\n", text[title.end() :].strip())
    prose = next(one for one in paragraphs if re.match(r"(?!```)[\w`*<]", one))
    sentence = re.split(r"(?<=[.。])\s", " ".join(prose.split()))[0]
    return title[1], re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", sentence)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")

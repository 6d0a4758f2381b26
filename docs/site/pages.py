"""Which pages the site has, where each lies in it, and how links between them are written.

docs/index.md is the table of contents, also of llms.txt.
"""

import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# Pages outside docs/ lie under project/ in the site.
OTHER_PAGES = (
    "README.md",
    "README.zh-CN.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "bench/README.md",
    "integrations/README.md",
    "integrations/client/README.md",
    "integrations/comfyui/README.md",
    "integrations/mcp/README.md",
    "integrations/typescript/README.md",
)
SECTION = re.compile(r"^## (?P<title>.+?)\n(?P<body>.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
TOCTREE = re.compile(r"^:::\{toctree\}\n(?P<body>.*?)^:::$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?P<text>\[[^\]]*\])\((?P<target>[^)#:\s]+)(?P<anchor>#[^)]*)?\)")


def list_pages() -> dict[Path, str]:
    """Return each written page with its path in the site."""
    own = {path: path.relative_to(DOCS).as_posix() for path in sorted(DOCS.rglob("*.md"))}
    return own | {ROOT / name: f"project/{name}" for name in OTHER_PAGES}


def list_contents() -> list[tuple[str, list[str]]]:
    """Return the sections of docs/index.md: a title, and the paths of its pages in the site."""
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    sections = []
    for section in SECTION.finditer(text):
        trees = TOCTREE.findall(section["body"])
        lines = "\n".join(trees).splitlines()
        sections.append((section["title"], [line for line in lines if line.endswith(".md")]))
    return sections


def rewrite_links(page: Path, text: str) -> str:
    """Return the page's text with links that hold in the site.

    A link to a file that is no page of the site, such as a source file, becomes its text.
    """
    places = list_pages()

    def rewrite(link: re.Match[str]) -> str:
        target = (page.parent / link["target"]).resolve()
        if target.suffix == ".md" and target not in places:
            return link[0]  # a generated page
        if target not in places:
            is_picture = target.is_relative_to(DOCS) and target.suffix in (".jpg", ".svg")
            return link[0] if is_picture else link["text"][1:-1]
        path = os.path.relpath(places[target], Path(places[page]).parent)
        return f"{link['text']}({path}{link['anchor'] or ''})"

    return _LINK.sub(rewrite, text)

"""Sphinx reads this. docs/site/build.py assembles the pages and runs it."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))
from chinese import SearchEnglishAndChinese

project = "Impasto"
version = release = installed_version("impasto")
copyright = "the Impasto authors, MIT license"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["site"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4  # links to headings, checked
nitpicky = True
highlight_language = "none"
html_theme = "furo"
html_title = "Impasto"
html_extra_path = ["llms.txt"]
html_sourcelink_suffix = ""  # _sources/api.md, which llms.txt names
html_static_path: list[str] = []
html_show_sphinx = False
html_search_language = SearchEnglishAndChinese.lang


def setup(app: Sphinx) -> None:
    """Add the search."""
    app.add_search_language(SearchEnglishAndChinese)

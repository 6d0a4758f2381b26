"""Sphinx reads this. docs/site/build.py assembles the pages and runs it."""

from importlib.metadata import version as installed_version

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

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
# The diagrams stay as their source: the library that draws them would come from another host.
suppress_warnings = ["misc.highlighting_failure"]


def setup(app: Sphinx) -> None:
    """Let blocks of code have the language `mermaid`."""
    app.add_lexer("mermaid", TextLexer)

"""Builds the documentation's site: python docs/site/build.py FOLDER

The pages are those of docs/ and of the project, and a reference that is generated from the code. A
warning, such as a link without a target, ends the build.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import llms
import reference
from pages import DOCS, list_pages, rewrite_links

HERE = Path(__file__).parent


def build(target: Path) -> None:
    """Write the site to the folder. Raises CalledProcessError; Sphinx prints the reason."""
    with tempfile.TemporaryDirectory() as folder:
        sources = Path(folder)
        for name in ("conf.py", "chinese.py"):
            shutil.copy(HERE / name, sources)
        for picture in (*DOCS.rglob("*.jpg"), *DOCS.rglob("*.svg")):
            copy = sources / picture.relative_to(DOCS)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(picture, copy)
            (sources / "project" / "docs").mkdir(parents=True, exist_ok=True)
            shutil.copy(picture, sources / "project" / "docs")  # as the README names it
        for page, place in list_pages().items():
            text = rewrite_links(page, page.read_text(encoding="utf-8"))
            _write(sources / place, text)
        for place, text in reference.render_all().items():
            _write(sources / place, text)
        _write(sources / "llms.txt", llms.render("_sources/"))
        sphinx = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-E"]
        subprocess.run([*sphinx, folder, str(target)], check=True)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    try:
        build(Path(sys.argv[1]))
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)

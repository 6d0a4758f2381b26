"""Draws the icons of the installed page from api/web/icon.svg, with Chromium: api/web/icons/.

    python samples/icons.py

A maskable icon is cut to any shape by the system, so its drawing is smaller, on a full ground.
"""

import io
import re
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

WEB = Path(__file__).parents[1] / "api" / "web"
ICONS = WEB / "icons"
SAFE_ZONE = 0.75  # of a maskable icon; the specification promises a circle of 0.8
COLORS = 64  # of the palette: flat colors and their edges need no more
FAVICON_SIZES = (16, 32, 48)


def main() -> None:
    """Draw all icons."""
    svg = (WEB / "icon.svg").read_text(encoding="utf-8")
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    ICONS.mkdir(exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        for size in (192, 512):
            save_png(draw(browser, svg, size), ICONS / f"icon-{size}.png")
        save_png(draw(browser, svg, 512, share=SAFE_ZONE), ICONS / "maskable-512.png")
        sizes = [draw(browser, svg, size) for size in FAVICON_SIZES]
        browser.close()
    sizes[-1].save(
        ICONS / "favicon.ico",
        sizes=[(size, size) for size in FAVICON_SIZES],
        append_images=sizes[:-1],
    )
    for path in sorted(ICONS.iterdir()):
        sys.stdout.write(f"{path.name}: {path.stat().st_size} bytes\n")


def draw(browser: Browser, svg: str, size: int, share: float = 1) -> Image.Image:
    """Draw the icon in a square of this size. share: of the square; below 1: on its ground."""
    ground = re.search(r'<rect[^>]*fill="(#\w+)"', svg)
    assert ground is not None
    color = ground[1] if share < 1 else "transparent"
    side = round(size * share)
    page = browser.new_page(viewport={"width": size, "height": size})
    page.set_content(
        f"<style>body{{margin:0;height:100vh;display:grid;place-items:center;background:{color}}}"
        f"svg{{width:{side}px;height:{side}px}}</style>{svg}"
    )
    data = page.screenshot(omit_background=True)
    page.close()
    return Image.open(io.BytesIO(data)).convert("RGBA")


def save_png(picture: Image.Image, path: Path) -> None:
    """Save with a palette, which keeps transparent corners."""
    picture.quantize(COLORS, method=Image.Quantize.FASTOCTREE).save(path, optimize=True)


if __name__ == "__main__":
    main()

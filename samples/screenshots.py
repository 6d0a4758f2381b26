"""Takes the pictures of docs/page.md from a running service, with Chromium.

PYTHONPATH=. python samples/screenshots.py http://127.0.0.1:8000
"""

import io
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parents[1] / "docs"
DESKTOP, PHONE = (1280, 800), (375, 812)


def main() -> None:
    """Take all pictures; one job is submitted."""
    url = sys.argv[1]
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = _open(chromium, url, DESKTOP)
        _save(page, "page")
        page.select_option("#parameter-size", "384")
        page.select_option("#parameter-quality", "draft")
        page.click("#submit-job")
        page.wait_for_selector("#result-controls:visible", timeout=600_000)
        page.wait_for_selector("#frames:visible")
        page.locator("#divider").fill("40")
        page.wait_for_timeout(1000)
        _save(page, "page-result")
        phone = _open(chromium, url, PHONE)
        phone.click("#tabs [data-tab=style]")
        _save(phone, "page-phone")
        chromium.close()


def _open(chromium: Any, url: str, size: tuple[int, int]) -> Any:
    width, height = size
    page = chromium.new_page(
        viewport={"width": width, "height": height}, reduced_motion="reduce", color_scheme="light"
    )
    page.goto(url)
    page.wait_for_selector("#presets button", state="attached")
    page.wait_for_selector("#stage img.after[src]")
    page.wait_for_timeout(1500)
    return page


def _save(page: Any, name: str) -> None:
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.save(DOCS / f"{name}.jpg", quality=86, optimize=True)


if __name__ == "__main__":
    main()

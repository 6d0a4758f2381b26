"""Takes the pictures of docs/page.md and the tutorials from a running service, with Chromium.

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
MAX_BYTES = 150_000
# Names a job as this browser would have, had it submitted the job.
NAME_JOB = """(id) => {
  const [content, style] = [...document.querySelectorAll("[aria-pressed=true] .name")]
    .map(({ textContent }) => textContent);
  const names = { content, styles: [style] };
  localStorage.setItem("impasto history", JSON.stringify([{ id, names }]));
}"""


def main() -> None:
    """Take all pictures, in both languages; one job is submitted."""
    url, address = sys.argv[1], ""
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for language, suffix in (("en", ""), ("zh-CN", ".zh-CN")):
            page = _open(chromium, url, DESKTOP, language)
            _save(page, f"page{suffix}")
            if not address:
                page.select_option("#parameter-size", "384")
                page.click("#submit-job")
                page.wait_for_url("**/j/*")
                address = page.url
            else:
                page.evaluate(NAME_JOB, address.rpartition("/")[2])
                page.goto(address)
            page.wait_for_selector("#result-controls:visible", timeout=1_800_000)
            page.wait_for_selector("#frames:visible")
            page.locator("#divider").fill("40")
            page.wait_for_timeout(1000)
            _save(page, f"page-result{suffix}")
        phone = _open(chromium, url, PHONE, "en")
        phone.click("#tabs [data-tab=style]")
        _save(phone, "page-phone")
        chromium.close()


def _open(chromium: Any, url: str, size: tuple[int, int], language: str) -> Any:
    page = chromium.new_page(
        viewport=dict(zip(("width", "height"), size, strict=True)),
        reduced_motion="reduce",
        color_scheme="light",
        locale=language,
    )
    page.goto(url)
    page.wait_for_selector("#presets button", state="attached")
    page.wait_for_selector("#stage img.after[src]")
    page.wait_for_timeout(1500)
    return page


def _save(page: Any, name: str) -> None:
    """Save the picture with the highest quality at which it has less than MAX_BYTES."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    for quality in range(88, 40, -4):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True, progressive=True)
        if len(file.getvalue()) < MAX_BYTES:
            break
    (DOCS / f"{name}.jpg").write_bytes(file.getvalue())


if __name__ == "__main__":
    main()

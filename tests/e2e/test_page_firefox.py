"""The main path of the page in Firefox, with the real service."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from firefox import Firefox, needs_firefox, run_firefox

pytestmark = [pytest.mark.e2e, needs_firefox]

RESULT = "document.querySelector('#stage img.after')"


@pytest.fixture(scope="module")
def firefox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firefox]:
    with run_firefox(tmp_path_factory.mktemp("firefox")) as browser:
        yield browser


def _text(selector: str) -> str:
    return f"document.querySelector('{selector}')?.textContent"


def _is_shown(selector: str) -> str:
    return f"document.querySelector('{selector}')?.checkVisibility()"


def test_a_photo_becomes_a_painting_that_is_compared_and_downloaded(
    firefox: Firefox, shared_service: Any, image_files: dict[str, Path]
) -> None:
    firefox.open(shared_service.url)
    firefox.wait_for(_is_shown("#presets button"))
    firefox.wait_for(f"{RESULT}.naturalWidth > 0")
    assert firefox.evaluate("document.fonts.check('500 20px Impasto')")
    firefox.set_files("#photo input.files", image_files["rotated.jpg"])
    firefox.set_files("#style input.files", image_files["painting.png"])
    firefox.wait_for(f"{_text('#photo .status')} === '72 × 96 px'")
    firefox.wait_for(f"{_text('#style .status')} === '96 × 75 px'")
    firefox.click("#open-mask")
    firefox.click("#mask-layer")
    firefox.click("#mask-done")
    firefox.wait_for(_is_shown("#mask-chip"))
    firefox.click("#remove-mask")
    firefox.click("#group-start summary")
    firefox.evaluate(
        "(() => { const size = document.querySelector('#parameter-size'); size.value = 'other';"
        " size.dispatchEvent(new Event('change', { bubbles: true })); })()"
    )
    for name, value in {"size-px": "64", "iterations": "9"}.items():
        firefox.click(f"#parameter-{name}")
        firefox.evaluate(f"document.querySelector('#parameter-{name}').select()")
        firefox.press(*value)
        shown = firefox.evaluate(f"document.querySelector('#parameter-{name}').value")
        assert shown == value
    firefox.click("#submit-job")
    firefox.wait_for("location.pathname.startsWith('/j/job_')")
    firefox.wait_for(f"{_text('#status')} === 'Done'")
    firefox.wait_for(f"{RESULT}.src.startsWith('blob:') && {RESULT}.naturalWidth === 48")
    assert firefox.evaluate(_text("#canvas-title")) == "rotated × painting"
    firefox.evaluate("document.querySelector('#divider').focus()")
    firefox.press("Home", "ArrowRight", "ArrowRight")
    assert firefox.evaluate("document.querySelector('#divider').value") == "2"
    firefox.wait_for(_is_shown("#frame"))
    firefox.evaluate("document.querySelector('#frame').focus()")
    firefox.press("Home")
    firefox.wait_for(f"{_text('output[for=frame]')} .startsWith('1/')")

    firefox.click("#select")
    firefox.click("#history-list a")
    firefox.evaluate(
        "(URL.createObjectURL = new Proxy(URL.createObjectURL, { apply(real, self, [blob]) {"
        " if (blob.type.endsWith('zip')) globalThis.archive = blob;"
        " return real.call(self, blob); } })) && null"
    )
    firefox.click("#selection-zip")
    firefox.wait_for("globalThis.archive?.size > 1000")
    # Not location.reload(): what follows would still see the old document.
    firefox.open(firefox.evaluate("location.href"))
    firefox.wait_for(_is_shown("#history-list img[src]"))
    assert firefox.errors == []


@pytest.mark.parametrize("width", [375, 320])
def test_the_page_fits_a_phone(firefox: Firefox, shared_service: Any, width: int) -> None:
    firefox.open(shared_service.url, width)
    firefox.wait_for("document.querySelector('#presets button')")
    for part in ("photo", "style", "adjust"):
        firefox.click(f"#tabs [data-tab={part}]")
        assert firefox.evaluate("document.documentElement.scrollWidth") <= width
        assert firefox.evaluate(_is_shown("#submit-job"))
    assert firefox.errors == []

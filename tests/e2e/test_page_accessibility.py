"""The page in a real browser with the real service: keyboard, narrow screens, accessibility."""

from pathlib import Path
from typing import Any

import pytest
from page_actions import (
    OpenPage,
    choose_examples,
    choose_files,
    expect,
    expect_end,
    needs_chromium,
    respond_with_error,
    submit_job,
)

pytestmark = [pytest.mark.e2e, needs_chromium]

WIDTHS = {"desktop": 1280, "phone": 375, "small phone": 320}


def test_the_keyboard_alone_suffices_from_the_gallery_to_a_deleted_job(open_page: OpenPage) -> None:
    page = open_page()
    expect(page.locator("#main-parameters select").first).to_be_visible()

    def press_at(selector: str, key: str = "Enter") -> None:
        for _ in range(150):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                page.keyboard.press(key)
                return
        raise AssertionError(f"Tab does not reach {selector}")

    press_at("#gallery-photos li:first-child button")
    press_at("#gallery-paintings li:first-child button")
    press_at("#parameter-size", "End")
    press_at("#parameter-size-px", "Control+a")
    page.keyboard.type("64")
    press_at("summary")
    press_at("#parameter-iterations", "Control+a")
    page.keyboard.type("5")
    press_at("#submit-job")
    expect_end(page)
    assert page.evaluate("document.activeElement.id") == "status"
    press_at("#zoom")
    assert page.get_attribute("#zoom", "aria-pressed") == "true"
    press_at("#delete")
    expect(page.locator("#submit-view")).to_be_visible()
    assert page.locator("#history-list li").count() == 0


def test_an_invalid_address_is_not_found_and_the_skip_link_stays_on_the_screen(
    open_page: OpenPage, unusual_job: Any
) -> None:
    page = open_page("/j/%25")
    expect(page.locator("#status")).to_have_text("Not found")
    page.goto(f"/j/{unusual_job.id}")
    expect_end(page)
    page.focus(".skip")
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)

    expect(page.locator("#compare-controls")).to_be_visible()
    assert page.evaluate("document.activeElement.id") == "main"


@pytest.mark.parametrize("device", WIDTHS)
def test_no_screen_overflows_or_has_accessibility_violations(
    open_page: OpenPage, device: str
) -> None:
    """axe-core finds no violation in any state, in both color schemes.

    At no width does the page scroll sideways.
    """
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(
        width=WIDTHS[device],
        color_scheme="dark",
        has_touch=device != "desktop",
        reduced_motion="reduce",
    )

    def check_screen(state: str) -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[device], state
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            violations = [
                f"{rule['id']}: {node['html'][:120]}"
                for rule in axe.run(page).response["violations"]
                for node in rule["nodes"]
            ]
            assert not violations, (state, scheme, violations)

    expect(page.locator("#main-parameters select").first).to_be_visible()
    check_screen("empty")
    choose_examples(page)
    expect(page.locator("#painting .images")).to_be_visible()
    page.check("#mix-paintings")
    page.locator("#gallery-paintings button").nth(1).click()
    submit_job(page, size=96, iterations=3000)
    expect(page.locator("#chart")).to_be_visible()
    check_screen("running")
    page.click("#stop")
    expect_end(page, "Stopped")
    check_screen("ended")
    page.click("#show-command")
    check_screen("curl")
    page.click("#close-command")
    page.click("#zoom")
    expect(page.locator("#stage")).to_have_attribute("tabindex", "0")
    page.route(
        "**/v1/jobs/*", respond_with_error("store_unavailable", "The store does not answer.")
    )
    page.click("#pin")
    expect(page.locator("#job-error")).to_be_visible()
    check_screen("zoomed and refused")
    page.unroute_all()
    page.click("text=Paint another")
    page.locator("#history-list li").scroll_into_view_if_needed()
    expect(page.locator("#history-list img")).to_have_count(1)
    check_screen("history")
    page.click("#open-mask")
    expect(page.locator("#mask-layer canvas")).to_be_visible()
    check_screen("mask")
    page.click("#mask-done")
    page.set_input_files(
        "#photo input.files",
        {"name": "broken.png", "mimeType": "image/png", "buffer": b"not an image"},
    )
    expect(page.locator("#photo .error")).to_be_visible()
    check_screen("refused")


def test_the_camera_button_is_shown_on_touch_screens_only(
    open_page: OpenPage, image_files: dict[str, Path]
) -> None:
    assert open_page().locator("button.camera:visible").count() == 0
    page = open_page(width=360, has_touch=True, is_mobile=True)
    camera = page.locator("#photo button.camera")
    box = camera.bounding_box()
    assert box["height"] >= 44
    with page.expect_file_chooser() as chooser:
        camera.tap()
    assert chooser.value.element.get_attribute("capture") == "environment"
    chooser.value.set_files(image_files["rotated.jpg"])

    expect(page.locator("#photo .status")).to_have_text("72 × 96")


def test_on_a_phone_pickers_are_full_width_and_sliders_are_at_least_44_px_high(
    open_page: OpenPage, image_files: dict[str, Path]
) -> None:
    page = open_page(width=360, has_touch=True, is_mobile=True)
    expect(page.locator("#presets button").first).to_be_visible()
    choose_files(page, image_files["rotated.jpg"], *[image_files["painting.png"]] * 3)
    expect(page.locator("#style-weights input")).to_have_count(3)
    widths = [
        page.locator(f"#{picker}").bounding_box()["width"] for picker in ("photo", "painting")
    ]
    heights = [
        slider.bounding_box()["height"]
        for slider in page.locator("input[type=range]:visible").all()
    ]

    assert widths == [328, 328]
    assert min(heights) >= 44

"""The page in a real browser with the real service: keyboard, narrow screens, accessibility."""

import re
from collections.abc import Callable
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
    open_part,
    respond_with_error,
    submit_job,
    tile_of,
)

pytestmark = [pytest.mark.e2e, needs_chromium]

# That of the page, and the English one.
READ_MANIFESTS = """() => {
    const { href } = document.querySelector("link[rel=manifest]");
    const addresses = [href, href.replace(".zh-CN", "")];
    return Promise.all(addresses.map(async (address) => (await fetch(address)).json()));
}"""
WIDTHS = {"desktop": 1280, "phone": 375, "small phone": 320}


def test_the_keyboard_alone_suffices_from_the_gallery_to_a_deleted_job(open_page: OpenPage) -> None:
    page = open_page()
    expect(page.locator("#presets button").first).to_be_visible()

    def press_at(selector: str, key: str = "Enter") -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                page.keyboard.press(key)
                return
        raise AssertionError(f"Tab does not reach {selector}")

    def press_arrows_to(selector: str) -> None:
        for _ in range(20):
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                page.keyboard.press("Enter")
                return
            page.keyboard.press("ArrowRight")
        raise AssertionError(f"The arrow keys do not reach {selector}")

    press_at("#photo .tiles button", "Home")
    press_arrows_to("#photo .sample:last-child button")
    press_at("#style .tiles button", "Home")
    press_arrows_to("#style .sample:last-child button")
    assert page.locator("[aria-pressed=true] .name").all_text_contents() == ["Pears", "Marbling"]
    press_at("#parameter-size", "End")
    press_at("#parameter-size-px", "Control+a")
    page.keyboard.type("64")
    press_at("#group-start summary")
    press_at("#parameter-iterations", "Control+a")
    page.keyboard.type("5")
    page.locator("#estimate").evaluate("() => document.querySelector('.skip').focus()")
    press_at("#submit-job")
    expect_end(page)
    assert page.evaluate("document.activeElement.id") == "status"
    press_at(".menu summary")
    press_at("#delete")
    expect(page.locator("#submit-view")).to_be_visible()
    assert page.evaluate("document.activeElement.id") == "main"


def test_paint_is_at_most_12_tabs_away(open_page: OpenPage) -> None:
    page = open_page()
    expect(page.locator("#presets button").first).to_be_visible()
    stops = []
    while "submit-job" not in stops:
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.id || document.activeElement.title"))
        assert len(stops) <= 12, stops
    assert {"Harbor", "Brush strokes", "Balanced. A good place to start."} <= {*stops}


def test_an_invalid_address_is_not_found_and_the_skip_link_stays_on_the_screen(
    open_page: OpenPage, unusual_job: Any
) -> None:
    page = open_page("/j/%25")
    expect(page.locator("#status")).to_have_text("We can’t find this painting")
    page.goto(f"/j/{unusual_job.id}")
    expect_end(page)
    page.focus(".skip")
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)

    expect(page.locator("#result-controls")).to_be_visible()
    assert page.evaluate("document.activeElement.id") == "main"


@pytest.mark.parametrize(
    ("device", "language"), [("desktop", "en"), ("phone", "zh-CN"), ("small phone", "en")]
)
def test_no_screen_overflows_or_has_accessibility_violations(
    open_page: OpenPage, unusual_job: Any, gatys_job: Any, device: str, language: str
) -> None:
    """axe-core finds no violation in any state, in both color schemes and languages.

    At no width does the page scroll sideways.
    """
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(
        width=WIDTHS[device],
        color_scheme="dark",
        has_touch=device != "desktop",
        reduced_motion="reduce",
        locale=language,
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

    expect(page.locator("#presets button").first).to_be_attached()
    for part in ("photo", "style", "adjust"):
        open_part(page, part)
        check_screen(f"first visit, {part}")
    for group in page.locator("#more-parameters summary").all():
        group.click()
    check_screen("advanced")
    choose_examples(page)
    page.click("#mix-styles")
    page.locator("#style .sample button").nth(1).click()
    check_screen("blend")
    submit_job(page, size=96, iterations=3000)
    expect(page.locator("#chart")).to_be_visible()
    check_screen("running")
    page.click("#stop")
    expect_end(page, {"en": "Finished early", "zh-CN": "提前结束"}[language])
    page.locator("#chart summary").click()
    page.locator(".menu summary").click()
    check_screen("ended")
    page.click("#show-command")
    check_screen("curl")
    page.click("#close-command")
    page.click("#zoom-in")
    expect(page.locator("#stage")).to_have_class(re.compile("zoomed"))
    page.route(
        "**/v1/jobs/*", respond_with_error("store_unavailable", "The store does not answer.")
    )
    page.locator(".menu summary").click()
    page.click("#pin")
    expect(page.locator("#job-error")).to_be_visible()
    check_screen("zoomed and refused")
    page.unroute_all()
    page.click("#job-view .new")
    _show_history(page, check_screen)
    _compare(page, [unusual_job.id, gatys_job.id], check_screen)
    page.wait_for_timeout(600)  # until a tap near the last one counts
    open_part(page, "style")
    page.click("#open-mask")
    page.locator("#mask-layer").click()
    check_screen("mask")
    page.click("#mask-done")
    open_part(page, "photo")
    page.set_input_files(
        "#photo input.files",
        {"name": "broken.png", "mimeType": "image/png", "buffer": b"not an image"},
    )
    expect(page.locator("#photo .error")).to_be_visible()
    check_screen("refused")


def _show_history(page: Any, check_screen: Callable[[str], None]) -> None:
    first = page.locator("#history-list li").first
    first.scroll_into_view_if_needed()
    expect(first.locator("img")).to_have_count(1)
    check_screen("history")


def _compare(page: Any, job_ids: list[str], check_screen: Callable[[str], None]) -> None:
    page.click("#select")
    for job_id in job_ids:
        tile_of(page, job_id).locator("a").click()
    check_screen("selected")
    page.click("#selection-compare")
    expect(page.locator("#compared")).to_be_visible()
    page.click("#side-by-side")
    check_screen("compared")
    page.click("#side-by-side")
    page.click("#compare-view .new")


def test_the_chinese_page_is_chinese_and_fits_a_small_phone(
    open_page: OpenPage, unusual_job: Any
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(width=320, locale="zh-CN", has_touch=True, reduced_motion="reduce")
    expect(page.locator("#presets button").first).to_be_attached()
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    description = page.locator("meta[name=description]").get_attribute("content")
    assert description == "选一种画风，把照片变成画"
    chinese, english = page.evaluate(READ_MANIFESTS)
    differing = {name for name in chinese if chinese[name] != english[name]}
    assert (chinese.keys(), differing) == (english.keys(), {"lang", "description"})
    assert (chinese["lang"], chinese["description"]) == ("zh-CN", f"{description}。")
    words: set[str] = set()

    def check_screen(state: str) -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= 320, state
        assert not axe.run(page).response["violations"], state
        words.update(re.findall(r"[A-Za-z]{3,}", page.inner_text("body")))

    for part in ("photo", "style", "adjust"):
        open_part(page, part)
        check_screen(part)
    for group in page.locator("#more-parameters summary").all():
        group.click()
    codes = page.locator("#more-parameters code").all_text_contents()
    page.locator("code").evaluate_all("all => all.forEach((code) => code.remove())")
    check_screen("advanced")
    page.goto(f"/j/{unusual_job.id}")
    expect_end(page, "已完成")
    expect(page.locator("#retention")).to_have_text(re.compile(r"^保存至\d{4}年\d+月\d+日"))
    check_screen("result")
    assert len(codes) > 15
    assert words - {"Impasto", "API", "PNG", "JPEG", "WebP", "English", "Gatys", "BFGS"} <= {
        "Adam", "Webhook", "auto", "white", "black", "relu", "https", "painting", "png",
        "team",
    }  # fmt: skip

    page.click("#language")
    expect(page.locator("#status")).to_have_text("Done")
    assert page.evaluate("document.documentElement.lang") == "en"


def test_the_camera_button_is_shown_on_touch_screens_only(
    open_page: OpenPage, image_files: dict[str, Path]
) -> None:
    assert open_page().locator(".tile.camera:visible").count() == 0
    page = open_page(width=360, has_touch=True, is_mobile=True)
    expect(page.locator("#photo .sample").first).to_be_visible()
    camera = page.locator("#photo .camera button")
    box = camera.bounding_box()
    assert box["height"] >= 44
    with page.expect_file_chooser() as chooser:
        camera.tap()
    assert chooser.value.element.get_attribute("capture") == "environment"
    chooser.value.set_files(image_files["rotated.jpg"])

    expect(page.locator("#photo .status")).to_have_text("72 × 96 px")


def test_on_a_phone_controls_are_at_least_44_px_high_or_wide_apart(
    open_page: OpenPage, image_files: dict[str, Path]
) -> None:
    page = open_page(width=360, has_touch=True, is_mobile=True)
    expect(page.locator("#photo .sample").first).to_be_visible()
    choose_files(page, image_files["rotated.jpg"], *[image_files["painting.png"]] * 3)
    open_part(page, "style")
    expect(page.locator("#style-weights input")).to_have_count(3)
    tiles = page.locator("#style .tile > button:first-child").all()
    assert min(tile.bounding_box()["height"] for tile in tiles) >= 44
    heights = []
    for part in ("style", "adjust"):
        open_part(page, part)
        heights += [
            slider.bounding_box()["height"]
            for slider in page.locator("input[type=range]:visible:not(#divider)").all()
        ]
    assert len(heights) == 5
    assert min(heights) >= 44
    assert page.locator("#submit-job").bounding_box()["height"] >= 44


def test_forced_colors_keep_what_is_chosen_visible(open_page: OpenPage, unusual_job: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(forced_colors="active", reduced_motion="reduce")
    choose_examples(page)
    page.click("#open-mask")

    def style(selector: str, name: str) -> str:
        script = "(one, name) => getComputedStyle(one)[name]"
        return str(page.locator(selector).first.evaluate(script, name))

    for selector in ("#photo [aria-pressed=true]", "#presets [aria-pressed=true]", "#open-mask"):
        assert style(selector, "outlineStyle") == "solid", selector
        assert style(selector, "outlineWidth") == "2px", selector
    assert style("#parameter-strength", "appearance") == "auto"
    assert style(".swatch", "backgroundColor") == "rgb(240, 20, 154)", "the color of the mask"
    assert not axe.run(page).response["violations"]
    page.goto(f"/j/{unusual_job.id}")
    expect_end(page)
    assert style("[aria-current] a, a[aria-current]", "outlineStyle") == "solid"


@pytest.mark.parametrize("kind", ["page", "text"])
def test_at_200_percent_nothing_overflows_and_paint_is_in_view(
    open_page: OpenPage, kind: str
) -> None:
    """Of the page: as a browser zooms it. Of the text: as a user sets the font size."""
    page = open_page(device_scale_factor=2)
    if kind == "page":
        page.set_viewport_size({"width": 640, "height": 400})
    else:
        page.evaluate("document.documentElement.style.fontSize = '200%'")
    expect(page.locator("#presets button").first).to_be_attached()
    width, height = page.evaluate("[innerWidth, innerHeight]")
    for part in ("photo", "style", "adjust"):
        open_part(page, part)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, part
        box = page.locator("#submit-job").bounding_box()
        assert box["y"] + box["height"] <= height, part
        assert box["x"] + box["width"] <= width, part
    assert page.locator("#stage").bounding_box()["height"] >= 160


def test_under_reduced_motion_nothing_moves(open_page: OpenPage) -> None:
    record = """
        globalThis.positions = new Set();
        addEventListener("DOMContentLoaded", () => setInterval(() =>
            positions.add(document.querySelector("#divider").value), 20));
    """

    def watch(motion: str) -> int:
        page = open_page("/docs", reduced_motion=motion)
        page.add_init_script(record)
        page.goto("/")
        expect(page.locator("#stage img.after")).to_have_attribute("src", re.compile("harbor"))
        page.wait_for_timeout(600)
        assert page.evaluate("document.getAnimations().length") == 0
        return int(page.evaluate("positions.size"))

    # At first, and where both pictures are seen.
    assert (watch("reduce"), watch("no-preference") > 3) == (2, True)


def test_a_finger_moves_the_divider(open_page: OpenPage, unusual_job: Any) -> None:
    page = open_page(f"/j/{unusual_job.id}", width=375, has_touch=True, is_mobile=True)
    expect_end(page)
    expect(page.locator(".handle")).to_be_visible()  # the photo is loaded
    handle, picture = (
        page.locator(selector).bounding_box() for selector in (".handle", "#stage img.after")
    )
    touch = page.context.new_cdp_session(page)
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    end = picture["x"] + picture["width"] / 2
    for kind, points in [
        ("touchStart", [{"x": x, "y": y}]),
        *(("touchMove", [{"x": x + share * (end - x), "y": y}]) for share in (0.3, 0.6, 1)),
        ("touchEnd", []),
    ]:
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    assert float(page.input_value("#divider")) == pytest.approx(50, abs=2)
    assert page.evaluate("scrollX + scrollY") == 0

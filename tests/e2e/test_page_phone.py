"""The page on a phone, in the hands of an impatient user: swipes, second taps, slow networks."""

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from page_actions import (
    OpenPage,
    PausedRequests,
    choose_files,
    expect,
    expect_end,
    needs_chromium,
    open_part,
    set_parameters,
)
from PIL import Image

pytestmark = [pytest.mark.e2e, needs_chromium]

# Counts what the page hears of a slider; the value of its label.
COUNT_CHANGES = """(slider) => {
    window.changes = 0;
    for (const type of ["input", "change"]) addEventListener(type, () => { window.changes++; });
}"""
# The buttons whose text is cut off.
CLIPPED = """() => [...document.querySelectorAll("button, select")]
    .filter((one) => one.checkVisibility() && one.scrollWidth > one.clientWidth)
    .map(({ id }) => id)"""
# The tests are slower than fingers.
STOP_TIME = "() => { const now = performance.now(); performance.now = () => now; }"
ID_AT = """([x, y]) => document.elementFromPoint(x, y).closest("[id], .remove").id"""


class Fingers:
    """Touches of the page, by the protocol of the browser's tools."""

    def __init__(self, page: Any) -> None:
        self._page, self._session = page, page.context.new_cdp_session(page)

    def send(self, kind: str, *points: tuple[float, float]) -> None:
        touches = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        self._session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

    def swipe(self, start: tuple[float, float], dx: float, dy: float) -> None:
        """Move one finger, as slowly as a browser needs to see that it is a scroll."""
        x, y = start
        self.send("touchStart", start)
        for step in range(1, 9):
            self.send("touchMove", (x + dx * step / 8, y + dy * step / 8))
            self._page.wait_for_timeout(16)
        self.send("touchEnd")
        self._page.wait_for_timeout(100)


def center(page: Any, selector: str) -> tuple[float, float]:
    box = page.locator(selector).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


@pytest.fixture
def open_phone(open_page: OpenPage) -> OpenPage:
    def visit(address: str = "/", size: tuple[int, int] = (375, 667), **options: Any) -> Any:
        page = open_page("/livez", has_touch=True, is_mobile=True, **options)
        page.set_viewport_size({"width": size[0], "height": size[1]})
        page.goto(address)
        if address == "/":
            expect(page.locator("#presets button").first).to_be_attached()
        return page

    return visit


@pytest.fixture
def submit_from(shared_service: Any, image_files: dict[str, Path]) -> Iterator[Callable[..., str]]:
    """A function that submits a small job and returns its id; the jobs end with the test."""
    client, ids = shared_service.client, []

    def submit(**parameters: int) -> str:
        pictures = image_files["rotated.jpg"], [image_files["painting.png"]]
        job = client.submit(*pictures, **{"size": 64, "iterations": 2, "scales": 1, **parameters})
        ids.append(job.id)
        return str(job.id)

    yield submit
    for job_id in {*ids} & {job.id for job in client.jobs()}:
        client.delete(job_id)


@pytest.mark.parametrize("slider", ["blend", "frame", "parameter-strength"])
def test_a_scroll_that_begins_on_a_slider_changes_nothing(
    open_phone: OpenPage, unusual_job: Any, slider: str
) -> None:
    if slider == "parameter-strength":
        page = open_phone()
        open_part(page, "adjust")
    else:
        page = open_phone(f"/j/{unusual_job.id}", (375, 500))
        expect_end(page)
        expect(page.locator("#frames")).to_be_visible()
    one, fingers = page.locator(f"#{slider}"), Fingers(page)
    one.evaluate("(slider) => slider.scrollIntoView({ block: 'center' })")
    one.evaluate(COUNT_CHANGES)
    before = one.evaluate("(slider) => [slider.value, slider.style.cssText, scrollY]")
    box = one.bounding_box()
    x, y = box["x"] + box["width"] * 0.2, box["y"] + box["height"] / 2
    for dx in (0, 25):
        fingers.swipe((x, y), dx, 60 if before[2] > 60 else -60)
        value, style, top = one.evaluate(
            "(slider) => [slider.value, slider.style.cssText, scrollY]"
        )
        assert [value, style] == before[:2]
        assert abs(top - before[2]) > 20, "it was a scroll"
        page.evaluate("(top) => scrollTo(0, top)", before[2])
    assert page.evaluate("changes") == 0

    fingers.swipe((x, y), box["width"] / 4, 3)
    moved = one.input_value()
    assert moved != before[0]
    assert page.evaluate("changes") > 1
    page.touchscreen.tap(x, y)
    assert one.input_value() != moved
    assert page.evaluate("scrollY") == before[2]

    fingers.send("touchStart", (x, y))
    fingers.send("touchCancel")
    page.wait_for_timeout(100)
    count = page.evaluate("changes")
    one.press("ArrowRight")
    assert page.evaluate("changes") > count, "another device moves it"


def test_a_result_is_shown_before_the_photo_and_first_as_a_small_copy(
    open_phone: OpenPage, unusual_job: Any
) -> None:
    content = unusual_job.input.content
    page = open_phone("/livez", device_scale_factor=2)
    photo = PausedRequests(page, re.compile(f"/{content}([?]width=(?!256).*)?$"), "GET")
    result = PausedRequests(page, "**/result", "GET")
    page.goto(f"/j/{unusual_job.id}")
    after, stage = page.locator("#stage img.after"), page.locator("#stage")
    expect(after).to_have_attribute("src", re.compile("^blob:"))
    expect(stage).to_have_attribute("aria-busy", "true")
    expect(page.locator("#canvas-progress")).to_be_visible()
    result.wait_for(page, 1)
    small = after.get_attribute("src")
    assert after.get_attribute("alt") == page.text_content("#canvas-title")
    result.routes[0].continue_()
    expect(stage).not_to_have_attribute("aria-busy", "true")
    expect(page.locator("#canvas-progress")).to_be_hidden()
    shown = after.get_attribute("src")
    assert shown != small
    photo.wait_for(page, 1)
    assert photo.routes[0].request.url.endswith("?width=750"), "a copy as wide as the screen"
    expect(stage).not_to_have_class(re.compile("comparing"))
    photo.routes[0].continue_()
    expect(stage).to_have_class(re.compile("comparing"))
    assert after.get_attribute("src") == shown


def test_a_second_tap_does_not_press_what_has_replaced_the_first_button(
    open_phone: OpenPage, submit_from: Callable[..., str]
) -> None:
    page = open_phone(f"/j/{submit_from(iterations=4000)}")
    sent: list[Any] = []

    def refuse(route: Any) -> None:
        if route.request.method == "POST":
            sent.append(route.request)
            route.fulfill(status=422, json={"code": "bad_spec", "detail": "Not now."})
        else:
            route.fallback()

    page.route("**/v1/jobs", refuse)
    expect(page.locator("#cancel")).to_be_enabled()
    place = center(page, "#cancel")
    page.evaluate(STOP_TIME)
    page.touchscreen.tap(*place)
    expect(page.locator("#submit-view")).to_be_visible()
    assert page.evaluate(ID_AT, place) == "submit-job"
    for _ in range(3):
        page.touchscreen.tap(*place)
        page.wait_for_timeout(150)
    assert sent == []
    page.focus("#submit-job")
    page.keyboard.press("Enter")
    expect(page.locator("#submit-error")).to_have_text("Not now.")
    page.evaluate("delete performance.now")
    page.wait_for_timeout(600)
    with page.expect_response("**/v1/jobs"):
        page.touchscreen.tap(*place)
    assert len(sent) == 2


def test_two_taps_on_the_language_are_one(open_phone: OpenPage) -> None:
    page = open_phone()
    # As if the page came late: its start then is later than any tap.
    page.add_init_script("performance.now = () => 1e6")
    place = center(page, "#language")
    with page.expect_navigation():
        page.touchscreen.tap(*place)
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    page.touchscreen.tap(*place)
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.lang") == "zh-CN"


def test_paint_during_an_upload_shows_its_progress_and_can_be_canceled(
    open_phone: OpenPage,
) -> None:
    page = open_phone()
    jobs = PausedRequests(page, "**/v1/jobs", "POST")
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    speed = {"offline": False, "latency": 0, "downloadThroughput": -1}
    emulate = "Network.emulateNetworkConditions"
    network.send(emulate, {**speed, "uploadThroughput": 100_000})
    file = io.BytesIO()
    Image.effect_noise((1200, 600), 200).save(file, "PNG")
    content = {"name": "large.png", "mimeType": "image/png", "buffer": file.getvalue()}
    page.set_input_files("#photo input.files", content)
    open_part(page, "adjust")
    page.tap("#submit-job")
    expect(page.locator("#sending")).to_have_text(re.compile(r"^\s*Sending, \d+ %\s+Cancel\s*$"))
    state = page.locator("#sending-state")
    expect(state).to_have_text(re.compile(rf"^(?!{state.text_content()})Sending, \d+ %$"))
    expect(page.locator("#submit-job")).to_be_disabled()
    page.tap("#cancel-submit")
    expect(page.locator("#submit-job")).to_be_enabled()
    expect(page.locator("#submit-job")).to_be_focused()
    expect(page.locator("#sending")).to_be_hidden()
    network.send(emulate, {**speed, "uploadThroughput": -1})
    expect(page.locator("#photo .status")).to_have_text("1200 × 600 px", timeout=20_000)
    page.wait_for_timeout(200)
    assert not jobs.routes
    page.tap("#submit-job")
    jobs.wait_for(page, 1)
    with page.expect_event("dialog") as dialog:
        page.close(run_before_unload=True)
    assert dialog.value.type == "beforeunload"


@pytest.mark.parametrize("change", ["photo", "setting"])
def test_another_choice_ends_the_submission_that_waits(
    open_phone: OpenPage, image_files: dict[str, Path], change: str
) -> None:
    page = open_phone()
    jobs: list[str] = []
    page.on("request", lambda one: jobs.append(one.url) if one.url.endswith("/v1/jobs") else None)
    page.context.set_offline(True)
    page.tap("#submit-job")
    expect(page.locator("#submit-error")).to_contain_text("offline")
    if change == "photo":
        page.set_input_files("#photo input.files", image_files["rotated.jpg"])
    else:
        open_part(page, "adjust")
        page.select_option("#parameter-quality", "draft")
    expect(page.locator("#submit-job")).to_be_enabled()
    expect(page.locator("#submit-error")).to_be_hidden()
    page.context.set_offline(False)
    if change == "photo":
        expect(page.locator("#photo .status")).to_have_text("72 × 96 px")
    page.wait_for_timeout(1000)
    assert jobs == []
    assert page.locator("#submit-view").is_visible()


def test_a_job_whose_submission_is_canceled_meanwhile_is_canceled(
    open_phone: OpenPage, shared_service: Any
) -> None:
    page = open_phone()
    set_parameters(page, iterations=4000)
    requests = PausedRequests(page, "**/v1/jobs", "POST")
    page.tap("#submit-job")
    requests.wait_for(page, 1)
    page.tap("#cancel-submit")
    with page.expect_response("**/cancel") as response:
        requests.routes[0].continue_()
    assert shared_service.client.wait(response.value.json()["id"]).status == "canceled"
    assert page.url.endswith("/")


@pytest.mark.parametrize("size", [(667, 375), (844, 390)])
def test_on_its_side_nothing_overlaps_and_all_tools_can_be_reached(
    open_phone: OpenPage, unusual_job: Any, size: tuple[int, int]
) -> None:
    covered = """() => ["#history-list li", "#history h2"].filter((selector) => {
        const place = document.querySelector(selector).getBoundingClientRect();
        const { left, top, width, height } = place;
        const shown = document.elementFromPoint(left + width / 2, top + height / 2);
        return !shown.closest("#history"); })"""
    page = open_phone("/", size)
    expect(page.locator("#welcome")).to_have_css("background-color", "rgba(0, 0, 0, 0)")
    for address in ("/", f"/j/{unusual_job.id}"):
        page.goto(address)
        expect(page.locator("#history-list li").first).to_be_attached()
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        assert page.evaluate(covered) == []
    expect(page.locator("#frames")).to_be_visible()
    page.evaluate("scrollTo(0, 60)")
    expect(page.locator("#timelapse")).to_be_in_viewport(ratio=0.9)
    page.goto("/")
    open_part(page, "style")
    page.tap("#mix-styles")
    page.locator("#style .sample button").nth(1).tap()
    page.tap("#open-mask")
    page.evaluate("scrollTo(0, 60)")
    expect(page.locator("#mask-done")).to_be_in_viewport(ratio=0.9)


def test_a_photo_is_not_removed_by_a_slip_and_returns_with_its_mask(
    open_phone: OpenPage, image_files: dict[str, Path]
) -> None:
    page = open_phone()
    choose_files(page, image_files["rotated.jpg"], image_files["painting.png"])
    expect(page.locator("#photo .status")).to_have_text("72 × 96 px")
    open_part(page, "style")
    page.tap("#open-mask")
    page.locator("#mask-layer").tap()
    page.tap("#mask-done")
    expect(page.locator("#mask-chip")).to_be_visible()
    open_part(page, "photo")
    remove = page.locator("#photo .own .remove")
    page.locator("#photo .sample button").first.tap()
    expect(remove).to_be_hidden()
    expect(page.locator("#mask-overlay")).to_be_hidden()
    page.locator("#photo .own button").first.tap()
    expect(page.locator("#mask-overlay")).to_be_visible()
    x, y = center(page, "#photo .own .remove")
    assert {page.evaluate(ID_AT, [x + dx, y + dy]) for dx in (-22, 12) for dy in (-12, 22)} == {""}

    uploads: list[str] = []
    page.on("request", lambda one: uploads.append(one.url) if one.method == "POST" else None)
    page.touchscreen.tap(x - 20, y + 20)
    expect(page.locator("#photo .own")).to_have_count(0)
    expect(page.locator("#toast")).to_contain_text("rotated is removed.")
    page.tap("#toast button")
    expect(page.locator("#photo [aria-pressed=true] .name")).to_have_text("rotated")
    expect(page.locator("#photo .status")).to_have_text("72 × 96 px")
    expect(page.locator("#mask-overlay")).to_be_visible()
    assert not [url for url in uploads if url.endswith("/v1/images")], "it is still there"


def test_back_after_a_deletion_shows_no_painting_and_undo_brings_it_back(
    open_phone: OpenPage, shared_service: Any, submit_from: Callable[..., str]
) -> None:
    job_id = submit_from()
    shared_service.client.wait(job_id)
    page = open_phone(f"/j/{job_id}")
    expect_end(page)
    page.tap(".menu summary")
    page.tap("header")  # it takes no focus
    expect(page.locator("#delete")).to_be_hidden()
    page.tap(".menu summary")
    page.tap("#delete")
    expect(page.locator("#submit-view")).to_be_visible()
    page.go_back()
    expect(page.locator("#status")).to_have_text("Painting deleted.")
    expect(page.locator("#result-controls")).to_be_hidden()
    expect(page.locator("#stage")).to_be_hidden()
    page.wait_for_timeout(600)  # where Delete was, a tap counts after a rest
    page.tap("#toast button")
    expect_end(page)
    assert shared_service.client.job(job_id).status == "succeeded"


def test_an_upright_painting_is_large_and_a_tap_makes_it_larger(
    open_phone: OpenPage, unusual_job: Any
) -> None:
    def width() -> float:
        return float(page.locator("#stage img.after").bounding_box()["width"])

    page = open_phone(f"/j/{unusual_job.id}")
    expect_end(page)
    page.evaluate("delete Element.prototype.requestFullscreen")  # as on an iPhone
    assert width() > 0.8 * 375
    for leave in (page.go_back, lambda: page.touchscreen.tap(*center(page, "#stage"))):
        page.touchscreen.tap(*center(page, "#stage"))
        expect(page.locator("#canvas")).to_have_class("large")
        expect(page.locator("#canvas-title")).to_have_css("padding-left", "16px")
        assert width() == pytest.approx(375, abs=1)
        page.wait_for_timeout(600)  # a second tap would be a double tap
        leave()
        expect(page.locator("#canvas")).not_to_have_class("large")
    for _ in range(2):
        page.touchscreen.tap(*center(page, "#stage"))
    expect(page.locator("#stage")).to_have_class(re.compile("zoomed"))
    page.wait_for_timeout(400)
    assert page.locator("#canvas").get_attribute("class") == ""


@pytest.mark.parametrize("size", [(375, 667), (344, 882), (320, 568), (667, 375), (568, 320)])
def test_the_main_actions_are_in_view_and_fields_are_not_zoomed(
    open_phone: OpenPage, unusual_job: Any, submit_from: Callable[..., str], size: tuple[int, int]
) -> None:
    small = """() => [...document.querySelectorAll("main :is(input, select)")]
        .filter((one) => one.checkVisibility() && parseFloat(getComputedStyle(one).fontSize) < 16)
        .map(({ id }) => id)"""
    margin = """(button) => {
        const text = document.createRange();
        text.selectNodeContents(button);
        return button.getBoundingClientRect().right - text.getBoundingClientRect().right; }"""
    page = open_phone(f"/j/{unusual_job.id}", size)
    expect_end(page)
    for selector in ("#download", "#share"):
        expect(page.locator(selector)).to_be_in_viewport(ratio=0.99)
        assert page.locator(selector).evaluate(margin) > 5
    page.tap(".menu summary")
    box = page.locator(".menu div").bounding_box()
    assert 0 <= box["x"] <= size[0] - box["width"]
    assert abs(center(page, "#reuse")[1] - center(page, ".menu summary")[1]) < 2, "one row"
    page.tap(".menu summary")
    expect(page.locator("#frames")).to_be_visible()
    assert page.evaluate(CLIPPED) == []
    assert page.evaluate(small) == []
    page.goto(f"/j/{submit_from(iterations=4000)}")
    for selector in ("#stop", "#cancel"):
        expect(page.locator(selector)).to_be_in_viewport(ratio=0.99)
    page.goto("/")
    expect(page.locator("#presets button").first).to_be_attached()
    expect(page.locator("#submit-job")).to_be_in_viewport(ratio=0.99)
    open_part(page, "adjust")
    assert page.evaluate(small) == []


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_on_a_tablet_the_time_lapse_does_not_lie_under_the_panel(
    open_page: OpenPage, unusual_job: Any, locale: str
) -> None:
    page = open_page(f"/j/{unusual_job.id}", width=900, locale=locale)
    expect(page.locator("#frames")).to_be_visible()
    for width in (900, 1024, 1060):
        page.set_viewport_size({"width": width, "height": 768})
        box, canvas = (page.locator(name).bounding_box() for name in ("#timelapse", "#canvas"))
        assert box["x"] + box["width"] <= canvas["x"] + canvas["width"]


def test_a_download_is_busy_until_it_is_saved(open_phone: OpenPage, unusual_job: Any) -> None:
    page = open_phone(f"/j/{unusual_job.id}")
    expect_end(page)
    requests = PausedRequests(page, "**/result?format=jpeg", "GET")
    page.select_option("#format", "jpeg")
    page.tap("#download")
    requests.wait_for(page, 1)
    expect(page.locator("#download")).to_have_attribute("aria-busy", "true")
    page.tap("#download")
    with page.expect_download():
        requests.routes[0].continue_()
    expect(page.locator("#toast")).to_have_text("Saved.")
    expect(page.locator("#download")).not_to_have_attribute("aria-busy", "true")
    assert len(requests.routes) == 1

    # A screen reader hears the same message again.
    page.evaluate("""() => new MutationObserver(() => { window.isAnnounced = true; })
        .observe(document.querySelector("#announcement"), { childList: true })""")
    page.select_option("#format", "png")
    with page.expect_download():
        page.tap("#download")
    page.wait_for_function("() => window.isAnnounced")


def test_two_fingers_zoom_a_photo_and_do_not_paint_a_mask(open_phone: OpenPage) -> None:
    page = open_phone()
    open_part(page, "style")
    page.tap("#open-mask")
    fingers, (x, y) = Fingers(page), center(page, "#stage")
    fingers.send("touchStart", (x - 20, y))
    fingers.send("touchStart", (x - 20, y), (x + 20, y))
    for distance in (30, 50, 80):
        fingers.send("touchMove", (x - distance, y), (x + distance, y))
    fingers.send("touchEnd", (x - 80, y))
    fingers.send("touchMove", (x - 80, y + 40))
    fingers.send("touchEnd")
    expect(page.locator("#stage")).to_have_class(re.compile("zoomed"))
    expect(page.locator("#mask-overlay")).to_be_hidden()
    expect(page.locator("#mask-undo")).to_be_disabled()
    fingers.swipe((x, y), 30, 30)
    expect(page.locator("#mask-overlay")).to_be_visible()
    expect(page.locator("#mask-undo")).to_be_enabled()


def test_a_tap_on_original_shows_it_until_the_next(open_phone: OpenPage, unusual_job: Any) -> None:
    page = open_phone(f"/j/{unusual_job.id}")
    expect_end(page)
    hold, curtain = page.locator("#hold"), page.locator(".curtain")
    hold.tap()
    expect(curtain).to_be_hidden()
    expect(hold).to_have_attribute("aria-pressed", "true")
    hold.tap()
    expect(curtain).to_be_visible()
    hold.tap()
    place = page.locator("#side-by-side").bounding_box()
    page.tap("#side-by-side")
    expect(curtain).to_be_visible()
    assert page.locator("#side-by-side").bounding_box() == place
    page.tap("#side-by-side")
    expect(hold).to_be_enabled()


def test_a_reload_shows_no_sample_before_the_users_photo(
    open_phone: OpenPage, image_files: dict[str, Path], until: Any
) -> None:
    page = open_phone()
    page.set_input_files("#photo input.files", image_files["rotated.jpg"])
    load = """async () => {
        const { loadDraft } = await import("./web/drafts.js");
        return (await loadDraft("own"))?.[0][0]?.digest; }"""
    until(lambda: page.evaluate(load), "the draft is saved")
    page.add_init_script("""
        window.seen = [];
        new MutationObserver((changes) => {
          for (const { target } of changes) {
            if (target.matches("#stage img")) seen.push(target.src);
          }
        }).observe(document, { subtree: true, attributeFilter: ["src"] });
    """)
    page.reload()
    expect(page.locator("#stage img.before")).to_have_js_property("naturalWidth", 72)
    assert [source for source in page.evaluate("seen") if "gallery" in source] == []

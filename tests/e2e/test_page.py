"""The page, in a real browser before the real service: what people do with it."""

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from core.images import codec, validation

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="no Chromium here; `make browser` installs it where apt and root are",
    ),
]

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect
WIDTHS = {"desktop": 1280, "phone": 375, "small phone": 320}
SECONDS = 60_000  # milliseconds: a machine may be busy

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    expect.set_options(timeout=SECONDS)
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any, shared_service: Any) -> Iterator[Open]:
    """A page in a browser that knows nothing yet. Whatever it breaks of its policy, or of itself, fails the test."""
    contexts, wrong = [], []

    def heard(message: Any) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:
            wrong.append(message.text)

    def start(
        address: str = "/", width: int = 1280, url: str = shared_service.url, **more: Any
    ) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 800}, base_url=url, **more
        )
        context.set_default_timeout(SECONDS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", heard)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: dialog.accept())
        page.goto(address)
        return page

    yield start
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory, photo: Image.Image, painting: Image.Image
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    exif = Image.Exif()
    exif[0x0112] = 6  # as a phone lies that is held upright
    photo.save(folder / "lying.jpg", exif=exif, quality=95)
    painting.save(folder / "painting.png")
    photo.save(folder / "<img src=x onerror=document.title='hurt'>.png")
    (folder / "no picture.png").write_text("<script>alert(1)</script>")
    return {path.name: path for path in folder.iterdir()}


def choose(page: Any, photo: Any, *paintings: Any) -> None:
    page.set_input_files("#photo input.files", photo)
    page.set_input_files("#painting input.files", [*paintings])


def ours(page: Any) -> None:
    page.locator("#photos button").first.click()
    page.locator("#paintings button").first.click()


def set_parameters(page: Any, size: int = 64, iterations: int = 6) -> None:
    page.select_option("#parameter-size", "other")
    page.fill("#parameter-size-px", str(size))
    page.locator("summary").click()
    page.fill("#parameter-iterations", str(iterations))
    page.fill("#parameter-scales", "1")


def paint(page: Any, **parameters: int) -> str:
    """Its address."""
    set_parameters(page, **parameters)
    page.click("#paint")
    page.wait_for_url(re.compile("/j/job_"))
    return str(page.url)


def ended(page: Any, title: str = "Done") -> None:
    expect(page.locator("#state")).to_have_text(title)
    expect(page.locator("#stage img.after")).to_have_js_property("complete", True)
    expect(page.locator("#comparing")).to_be_visible()


def test_from_two_files_to_a_picture_that_is_compared_and_downloaded(
    open_page: Open, files: dict[str, Path]
) -> None:
    page = open_page()
    choose(page, files["lying.jpg"], files["painting.png"])
    shown = page.locator("#photo .chosen img")
    expect(page.locator("#photo .about")).to_have_text("72 × 96")
    assert tuple(shown.evaluate("image => [image.naturalWidth, image.naturalHeight]")) == (72, 96)

    paint(page, size=96, iterations=60)
    expect(page.locator("#progress")).to_have_attribute("value", re.compile(r"\d+"))
    expect(page.locator("#stage img.after")).to_have_attribute("src", re.compile("^blob:"))
    assert not page.locator("#comparing").is_visible(), "a live picture while it is painted"
    expect(page.locator("#chart polyline").first).to_be_visible()
    assert re.match(r"\d+ % · Impasto", page.title())
    ended(page)

    assert tuple(
        page.locator("#stage img.after").evaluate("it => [it.naturalWidth, it.naturalHeight]")
    ) == (72, 96)
    page.focus("#curtain")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert (
        page.locator(".sheet").evaluate("sheet => sheet.style.getPropertyValue('--curtain')")
        == "1%"
    )
    with page.expect_download() as whole:
        page.click("#download")
    page.select_option("#format", "jpeg")
    page.locator("#blend").fill("40")
    with page.expect_download() as mixed:
        page.click("#download")
    pictures = [Image.open(download.value.path()).convert("RGB") for download in (whole, mixed)]
    assert [picture.size for picture in pictures] == [(72, 96)] * 2
    assert pictures[1].tobytes() != pictures[0].tobytes()


GIVEN = """async ([kind, names]) => {
    const transfer = new DataTransfer();
    for (const name of names) {
        const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 48 });
        const pen = canvas.getContext("2d");
        pen.fillStyle = name === "one.png" ? "red" : "blue";
        pen.fillRect(0, 0, 40, 30);
        const bytes = await new Promise((done) => canvas.toBlob(done));
        transfer.items.add(new File([bytes], name, { type: "image/png" }));
    }
    const more = { bubbles: true, cancelable: true, dataTransfer: transfer, clipboardData: transfer };
    document.body.dispatchEvent(kind === "drop" ? new DragEvent(kind, more) : new ClipboardEvent(kind, more));
}"""


@pytest.mark.parametrize(
    "given", [[["drop", ["one.png", "two.png"]]], [["paste", ["one.png"]], ["paste", ["two.png"]]]]
)
def test_what_is_dropped_or_pasted_anywhere_is_photo_and_painting_and_masked_by_hand(
    open_page: Open, shared_service: Any, given: list[Any]
) -> None:
    page = open_page()
    for one in given:
        page.evaluate(GIVEN, one)
    expect(page.locator("#photo .name")).to_have_text("one.png")
    expect(page.locator("#painting .name")).to_have_text("two.png")

    page.click("#mask")
    page.locator("#over").hover(position={"x": 20, "y": 20})
    page.mouse.down()
    page.locator("#over").hover(position={"x": 40, "y": 20})
    page.mouse.up()
    page.click("#masked")
    address = paint(page)
    ended(page)
    (mask,) = shared_service.client.job(address.rpartition("/")[2]).input.masks
    with page.expect_response(f"**/v1/images/{mask}") as answer:
        page.evaluate("address => fetch(address).then(() => null)", f"/v1/images/{mask}")
    drawn = codec.decode_mask(answer.value.body())
    assert (drawn.size, drawn.getpixel((48, 32)), drawn.getpixel((400, 300))) == (
        (512, 384),
        255,
        0,
    )


def test_a_job_is_found_again_after_a_reload_and_in_a_new_tab_and_stopped_with_what_it_has(
    open_page: Open,
) -> None:
    page = open_page()
    ours(page)
    address = paint(page, size=128, iterations=3000)
    expect(page.locator("#stage img.after")).to_have_attribute("src", re.compile("^blob:"))
    page.reload()
    expect(page.locator("#state")).to_have_text("Painting")
    expect(page.locator("#stage img.after")).to_have_attribute("src", re.compile("^blob:"))
    page.close()
    page = page.context.new_page()
    page.goto("/")
    page.locator("#paintings-kept a").first.click()
    assert page.url == address

    page.get_by_role("button", name="Stop and keep this one").click()
    ended(page, "Stopped")
    expect(page.locator("#download")).to_be_visible()
    page.go_back()
    expect(page.locator("#paintings-kept .about")).to_have_text("Stopped")


def test_the_page_goes_on_when_the_api_was_killed_meanwhile(
    open_page: Open, shared_service: Any
) -> None:
    page = open_page()
    ours(page)
    paint(page, size=96, iterations=150)
    expect(page.locator("#progress")).to_have_attribute("value", re.compile(r"\d+"))
    (api,) = shared_service.find("-m", "api")
    api.kill()
    api.wait()

    ended(page)
    expect(page.locator("#trouble")).to_be_hidden()


def test_what_is_no_picture_is_refused_in_words_and_a_hostile_name_is_a_name(
    open_page: Open, files: dict[str, Path]
) -> None:
    page = open_page()
    hostile = next(path for name, path in files.items() if "onerror" in name)
    page.set_input_files("#painting input.files", files["no picture.png"])
    expect(page.locator("#painting .refusal")).to_contain_text(
        "no picture.png: Only JPEG, PNG and WebP"
    )
    expect(page.locator("#painting .name")).to_have_count(0)
    page.click("#paint")
    expect(page.locator("#photo .refusal")).to_contain_text("Choose a photo first")

    choose(page, hostile, hostile)
    expect(page.locator("#photo .name")).to_have_text(hostile.name)
    paint(page)
    ended(page)
    page.click("text=Paint another")
    expect(page.locator("#paintings-kept .caption")).to_contain_text(hostile.name)
    assert page.locator("img[src=x]").count() == 0
    assert "hurt" not in page.title()


def test_with_a_keyboard_alone_from_the_gallery_to_a_deleted_picture(open_page: Open) -> None:
    page = open_page()
    expect(page.locator("#plain select").first).to_be_visible()

    def press_at(target: str, key: str = "Enter") -> None:
        for _ in range(150):
            page.keyboard.press("Tab")
            if page.evaluate("target => document.activeElement.matches(target)", target):
                page.keyboard.press(key)
                return
        raise AssertionError(f"no way to {target} by Tab")

    press_at("#photos li:first-child button")
    press_at("#paintings li:first-child button")
    press_at("#parameter-size", "End")
    press_at("#parameter-size-px", "Control+a")
    page.keyboard.type("64")
    press_at("summary")
    press_at("#parameter-iterations", "Control+a")
    page.keyboard.type("5")
    press_at("#paint")
    ended(page)
    assert page.evaluate("document.activeElement.id") == "state"
    press_at("#zoom")
    assert page.get_attribute("#zoom", "aria-pressed") == "true"
    press_at("#forget")
    expect(page.locator("#studio")).to_be_visible()
    assert page.locator("#paintings-kept li").count() == 0


def test_again_with_others_and_the_result_as_a_painting(
    open_page: Open, files: dict[str, Path]
) -> None:
    page = open_page()
    choose(page, files["lying.jpg"], files["painting.png"])
    page.check("#mixing")
    page.locator("#paintings button").first.click()
    page.locator("#shares input").first.fill("25")
    expect(page.locator("#shares output").first).to_have_text("33 %")
    page.locator("#parameter-strength").fill("0.8")
    paint(page)
    ended(page)

    page.click("#again")
    expect(page.locator("#painting .name")).to_have_count(2)
    assert page.locator("#shares output").all_text_contents() == ["33 %", "67 %"]
    assert tuple(
        page.input_value(f"#parameter-{name}") for name in ("strength", "iterations", "size-px")
    ) == ("0.8", "6", "64")
    page.click("#paint")
    page.wait_for_url(re.compile("/j/job_"))
    ended(page)
    page.click("#as-painting")
    expect(page.locator("#studio")).to_be_visible()
    expect(page.locator("#painting .name")).to_have_text("my painting")


def shelve(page: Any, *job_ids: str) -> None:
    kept = json.dumps(
        [{"id": job_id, "names": {"content": "a", "styles": ["b"]}} for job_id in job_ids]
    )
    page.evaluate("kept => localStorage.setItem('impasto shelf', kept)", kept)
    page.reload()


def refusing(code: str, detail: str, status: int = 503) -> Callable[[Any], None]:
    """A route's answer."""
    body = {"status": status, "code": code, "detail": detail}
    return lambda route: route.fulfill(status=status, json=body, headers={"Retry-After": "1"})


class Held:
    """Requests of one kind, until they are let go; the rest passes."""

    def __init__(self, page: Any, pattern: str, method: str) -> None:
        self.routes: list[Any] = []
        page.route(
            pattern,
            lambda route: self._take(route) if route.request.method == method else route.fallback(),
        )

    def _take(self, route: Any) -> None:
        self.routes.append(route)

    def until(self, page: Any, count: int) -> None:
        for _ in range(SECONDS // 50):
            if len(self.routes) >= count:
                return
            page.wait_for_timeout(50)
        raise AssertionError(f"{len(self.routes)} requests, not {count}")


LOST = "job_" + "a" * 26


def test_the_shelf_forgets_nothing_that_nobody_deleted(open_page: Open) -> None:
    """Neither what the service does not know under this key, nor what it could not delete just now."""
    page = open_page()
    shelve(page, LOST)
    card = page.locator("#paintings-kept li")
    expect(card.locator(".about")).to_have_text("No longer kept")
    page.goto(f"/j/{LOST}")
    expect(page.locator("#state")).to_have_text("Not here any more")
    expect(page.locator("#said")).to_have_text("Not here any more")
    page.route(f"**/{LOST}", refusing("store_unavailable", "The store is away."))
    page.goto("/")
    expect(card.locator(".about")).to_have_text("The store is away.")
    card.locator(".remove").click()
    page.wait_for_load_state("networkidle")
    expect(card.locator(".about")).to_have_text("The store is away.")

    page.unroute(f"**/{LOST}")
    page.reload()
    card.locator(".remove").click()
    expect(card).to_have_count(0)
    assert page.evaluate("localStorage.getItem('impasto shelf')") == "[]"


def test_a_knob_that_is_out_of_range_is_shown_and_one_that_is_not_seen_bars_nobody(
    open_page: Open,
) -> None:
    page = open_page()
    ours(page)
    set_parameters(page, size=9000, iterations=9999)
    page.select_option("#parameter-size", "256")
    page.locator("summary").click()
    expect(page.locator("#more")).to_be_hidden()
    page.click("#paint")
    expect(page.locator("#parameter-iterations")).to_be_focused()

    page.fill("#parameter-iterations", "2")
    page.click("#paint")
    page.wait_for_url(re.compile("/j/job_"))
    ended(page)


def test_what_fails_as_the_page_opens_is_fetched_again_and_put_up_once(open_page: Open) -> None:
    """Also where the browser forbids to store anything."""
    page = open_page("/livez")
    page.add_init_script(
        "for (const name of ['localStorage', 'sessionStorage'])"
        "  Object.defineProperty(window, name, { get() { throw new DOMException('no', 'SecurityError'); } });"
    )
    page.route("**/gallery/index.json", lambda route: route.abort(), times=2)
    page.goto("/")
    expect(page.locator("#down")).to_contain_text("keeps trying")
    expect(page.locator("#presets button").first).to_be_visible()
    expect(page.locator("#down")).to_be_hidden()

    assert [
        page.locator(found).count() for found in ("#parameter-size", "#photos li", "#paintings li")
    ] == [1, 2, 8]
    ours(page)
    paint(page)
    ended(page)


def test_a_submission_whose_answer_was_lost_is_one_job(
    open_page: Open, shared_service: Any
) -> None:
    def loses(route: Any) -> None:
        route.fetch()
        route.abort()

    page = open_page()
    ours(page)
    expect(page.locator("#painting .about")).to_contain_text("×")
    expect(page.locator("#forecast")).to_contain_text("of painting")
    before = {job.id for job in shared_service.client.jobs()}
    page.route("**/v1/jobs", loses, times=1)
    address = paint(page)
    ended(page)

    assert {job.id for job in shared_service.client.jobs()} - before == {address.rpartition("/")[2]}


def test_an_upload_waits_for_the_service_and_a_late_painting_replaces_no_newer_one(
    open_page: Open,
) -> None:
    page = open_page()
    late = Held(page, "**/gallery/strokes.jpg", "GET")
    page.locator("#paintings button").nth(0).click()
    late.until(page, 1)
    page.locator("#paintings button").nth(1).click()
    expect(page.locator("#painting .about")).to_contain_text("×")
    late.routes[0].continue_()
    page.route("**/v1/images", lambda route: route.abort(), times=1)
    page.route("**/v1/images", refusing("storage_full", "The disk is full."), times=1)
    page.locator("#photos button").first.click()
    expect(page.locator("#photo .about")).to_contain_text(
        "The disk is full. This page keeps trying."
    )
    page.locator("#photo .remove").focus()
    expect(page.locator("#photo .about")).to_have_text(re.compile(r"\d+ × \d+"))

    expect(page.locator("#photo .remove")).to_be_focused()
    expect(page.locator("#painting .name")).to_have_text("Watercolor")


def test_several_pictures_at_once_are_mixed(open_page: Open, files: dict[str, Path]) -> None:
    page = open_page()
    choose(page, files["lying.jpg"], files["painting.png"], files["lying.jpg"])

    expect(page.locator("#mixing")).to_be_checked()
    expect(page.locator("#shares input")).to_have_count(2)


def test_a_preset_sets_the_knobs_and_is_what_is_painted(
    open_page: Open, shared_service: Any
) -> None:
    page = open_page()
    ours(page)
    page.get_by_role("button", name="brushwork").click()
    assert page.locator("#plain output").all_text_contents() == ["75 %", "1.6×"]
    expect(page.locator("#presets [aria-pressed=true]")).to_have_text("Brushwork")
    assert page.locator("#parameter-preset").count() == 0
    address = paint(page)
    expect(page.locator("#presets [aria-pressed=true]")).to_have_count(0)
    ended(page)

    spec = shared_service.client.job(address.rpartition("/")[2]).input.spec
    assert (spec["strength"], spec["style_scale"]) == (0.75, 1.6)


@pytest.fixture(scope="module")
def odd_job(shared_service: Any, files: dict[str, Path]) -> Any:
    """Ended; with masks, a first image, zeros, and parameters that no slider of the page can stand at."""
    client, mask = shared_service.client, io.BytesIO()
    Image.linear_gradient("L").save(mask, "PNG")
    pictures = {"masks": [mask.getvalue()], "init": "picture", "init_image": files["painting.png"]}
    parameters = {
        "strength": 0.33,
        "style_scale": 1.6,
        "content_weight": 0,
        "size": 80,
        "iterations": 40,
        "scales": 1,
    }
    job = client.submit(files["lying.jpg"], [files["painting.png"]], **pictures, **parameters)
    return client.wait(job.id)


def test_again_is_the_same_again_and_so_is_the_command(
    open_page: Open, shared_service: Any, odd_job: Any
) -> None:
    page = open_page(f"/j/{odd_job.id}")
    ended(page)
    page.click("#curl")
    expect(page.locator("#command")).to_contain_text("curl")
    command = shlex.split(page.locator("#command").text_content().replace("\\\n", " "))
    by_curl = json.loads(subprocess.run([*command, "-s"], capture_output=True, check=True).stdout)
    page.click("#close")
    page.click("#again")
    expect(page.locator("#photo .name")).to_have_count(1)
    page.click("#paint")
    page.wait_for_url(lambda url: "/j/job_" in url and odd_job.id not in url)
    ended(page)

    again = shared_service.client.job(page.url.rpartition("/")[2])
    assert [again.input, shared_service.client.job(by_curl["id"]).input] == [odd_job.input] * 2


@pytest.fixture
def long_job(shared_service: Any, files: dict[str, Path]) -> Iterator[Any]:
    client = shared_service.client
    job = client.submit(
        files["lying.jpg"], [files["painting.png"]], size=96, iterations=4000, scales=1
    )
    yield job
    client.cancel(job.id)
    client.wait(job.id)


def test_a_slow_line_shows_an_older_picture_and_no_two_downloads(
    open_page: Open, shared_service: Any, long_job: Any, until: Any
) -> None:
    page = open_page("/livez")
    slow = Held(page, "**/preview", "GET")
    page.goto(f"/j/{long_job.id}")
    slow.until(page, 1)
    first = shared_service.client.job(long_job.id).preview
    until(lambda: shared_service.client.job(long_job.id).preview != first, "another picture")
    page.wait_for_timeout(500)
    assert len(slow.routes) == 1
    slow.routes[0].continue_()

    expect(page.locator("#stage img.after")).to_have_js_property("complete", True)
    assert page.locator("#stage img.after").evaluate("image => image.naturalWidth") > 0
    slow.until(page, 2)


def test_an_answer_about_one_job_is_not_shown_at_another(
    open_page: Open, shared_service: Any, odd_job: Any, long_job: Any, until: Any
) -> None:
    until(
        lambda: shared_service.client.job(long_job.id).version > odd_job.version + 5,
        "a later version of the one",
    )
    page = open_page(f"/j/{long_job.id}")
    expect(page.locator("#stop")).to_have_text("Stop and keep this one")
    slow = Held(page, "**/cancel", "POST")
    page.click("#stop")
    slow.until(page, 1)
    address = f"/j/{odd_job.id}"
    page.evaluate(
        "address => { history.pushState(null, '', address); dispatchEvent(new Event('popstate')); }",
        address,
    )
    ended(page)
    with page.expect_response("**/cancel"):
        slow.routes[0].continue_()
    page.wait_for_timeout(300)

    assert (page.locator("#state").text_content(), page.title()) == ("Done", "Done · Impasto")
    expect(page.locator("#actions")).to_be_visible()


def test_steering_goes_through_a_cut_line_and_a_kill_of_the_api_one_request_at_a_time(
    open_page: Open, shared_service: Any, long_job: Any, until: Any
) -> None:
    def strength() -> float:
        return float(shared_service.client.job(long_job.id).input.spec["strength"])

    page = open_page(f"/j/{long_job.id}")
    slow = Held(page, f"**/{long_job.id}", "PATCH")
    expect(page.locator("#steer")).to_be_visible()
    page.focus("#steering")
    page.keyboard.press("ArrowRight")
    slow.until(page, 1)
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    slow.routes[0].abort()
    expect(page.locator("#trouble")).to_contain_text("keeps trying")
    slow.until(page, 2)
    slow.routes[1].continue_()
    until(lambda: strength() == 0.75, "the last of five")
    expect(page.locator("#trouble")).to_be_hidden()
    assert len(slow.routes) == 2

    page.unroute_all()
    (api,) = shared_service.find("-m", "api")
    api.kill()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#trouble")).to_contain_text("keeps trying")
    until(lambda: strength() == 0.7, "spec_updates after the kill")
    expect(page.locator("#trouble")).to_be_hidden()
    expect(page.locator("#steer")).to_be_visible()
    page.reload()
    expect(page.locator("#steering")).to_have_value("0.7")
    expect(page.locator("#chart")).to_be_visible()


def test_a_picture_and_its_film_come_though_the_line_is_cut(open_page: Open, odd_job: Any) -> None:
    page = open_page("/livez")
    for part in ("result", "frames"):
        page.route(f"**/{part}", lambda route: route.abort(), times=2)
    page.goto(f"/j/{odd_job.id}")
    expect(page.locator("#trouble")).to_contain_text("keeps trying")
    ended(page)
    expect(page.locator("#trouble")).to_be_hidden()
    page.locator("#frame").fill("0")
    expect(page.locator("output[for=frame]")).to_contain_text("iteration")
    page.locator("#blend").fill("40")
    with page.expect_download() as mixed:
        page.click("#download")
    page.route("**/timelapse", refusing("store_unavailable", "The store is away."), times=1)
    page.click("#timelapse")
    expect(page.locator("#trouble")).to_have_text("The store is away.")
    with page.expect_download() as film:
        page.click("#timelapse")
    expect(page.locator("#trouble")).to_be_hidden()

    assert codec.decode(Path(mixed.value.path()).read_bytes()).size == (60, 80)
    assert validation.detect_format(Path(film.value.path()).read_bytes()) == "webp"
    assert film.value.suggested_filename.endswith(".webp")


def test_a_film_that_comes_before_its_picture_is_no_trouble(open_page: Open, odd_job: Any) -> None:
    page = open_page("/livez")
    slow = Held(page, "**/result", "GET")
    page.goto(f"/j/{odd_job.id}")
    slow.until(page, 1)
    expect(page.locator("#reel")).to_be_visible()
    expect(page.locator("output[for=frame]")).to_have_text("the end")
    page.wait_for_timeout(300)
    assert page.locator("#trouble").is_hidden()
    slow.routes[0].continue_()
    ended(page)


def test_a_tab_that_nobody_sees_holds_no_stream_and_comes_back(
    open_page: Open, long_job: Any
) -> None:
    hide = """hidden => {
        Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page = open_page("/livez")
    with page.expect_request("**/events"):
        page.goto(f"/j/{long_job.id}")
    expect(page.locator("#pace")).to_contain_text("Iteration")
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/events")):
        page.evaluate(hide, True)
    with page.expect_request("**/events"):
        page.evaluate(hide, False)


def test_a_strange_address_is_no_job_and_the_skip_link_stays_where_it_is(
    open_page: Open, odd_job: Any
) -> None:
    page = open_page("/j/%25")
    expect(page.locator("#state")).to_have_text("Not here any more")
    page.goto(f"/j/{odd_job.id}")
    ended(page)
    page.focus(".skip")
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)

    expect(page.locator("#comparing")).to_be_visible()
    assert page.evaluate("document.activeElement.id") == "main"


@pytest.mark.parametrize("device", WIDTHS)
def test_nothing_sticks_out_and_nothing_bars_anybody(open_page: Open, device: str) -> None:
    """axe-core finds nothing in any state, in neither color scheme; at no width does the page scroll sideways."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(
        width=WIDTHS[device],
        color_scheme="dark",
        has_touch=device != "desktop",
        reduced_motion="reduce",
    )

    def looks_right(state: str) -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[device], state
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            found = axe.run(page).response["violations"]
            told = [f"{one['id']}: {node['html'][:120]}" for one in found for node in one["nodes"]]
            assert not told, (state, scheme, told)

    expect(page.locator("#plain select").first).to_be_visible()
    looks_right("empty")
    ours(page)
    expect(page.locator("#painting .chosen")).to_be_visible()
    page.check("#mixing")
    page.locator("#paintings button").nth(1).click()
    paint(page, size=96, iterations=3000)
    expect(page.locator("#chart")).to_be_visible()
    looks_right("painting")
    page.click("#stop")
    ended(page, "Stopped")
    looks_right("ended")
    page.click("#curl")
    looks_right("curl")
    page.click("#close")
    page.click("#zoom")
    expect(page.locator("#stage")).to_have_attribute("tabindex", "0")
    page.route("**/v1/jobs/*", refusing("store_unavailable", "The store is away."))
    page.click("#pin")
    expect(page.locator("#trouble")).to_be_visible()
    looks_right("zoomed and refused")
    page.unroute_all()
    page.click("text=Paint another")
    page.locator("#paintings-kept li").scroll_into_view_if_needed()
    expect(page.locator("#paintings-kept img")).to_have_count(1)
    looks_right("filled")
    page.click("#mask")
    expect(page.locator("#over canvas")).to_be_visible()
    looks_right("mask")
    page.click("#masked")
    page.set_input_files(
        "#photo input.files", {"name": "no.png", "mimeType": "image/png", "buffer": b"no picture"}
    )
    expect(page.locator("#photo .refusal")).to_be_visible()
    looks_right("refused")


def test_a_camera_is_offered_to_fingers_and_not_to_a_mouse(
    open_page: Open, files: dict[str, Path]
) -> None:
    assert open_page().locator("button.camera:visible").count() == 0
    page = open_page(width=360, has_touch=True, is_mobile=True)
    camera = page.locator("#photo button.camera")
    box = camera.bounding_box()
    assert box["height"] >= 44
    with page.expect_file_chooser() as chooser:
        camera.tap()
    assert chooser.value.element.get_attribute("capture") == "environment"
    chooser.value.set_files(files["lying.jpg"])

    expect(page.locator("#photo .about")).to_have_text("72 × 96")


def test_on_a_phone_mixed_paintings_have_the_width_and_sliders_are_as_high_as_a_finger(
    open_page: Open, files: dict[str, Path]
) -> None:
    page = open_page(width=360, has_touch=True, is_mobile=True)
    expect(page.locator("#presets button").first).to_be_visible()
    choose(page, files["lying.jpg"], *[files["painting.png"]] * 3)
    expect(page.locator("#shares input")).to_have_count(3)
    widths = [page.locator(f"#{well}").bounding_box()["width"] for well in ("photo", "painting")]
    heights = [
        slider.bounding_box()["height"]
        for slider in page.locator("input[type=range]:visible").all()
    ]

    assert widths == [328, 328]
    assert min(heights) >= 44


def test_too_many_paintings_are_not_left_out_silently(
    open_page: Open, files: dict[str, Path]
) -> None:
    """How many there may be, the service says."""
    page = open_page()
    expect(page.locator("#presets button").first).to_be_visible()
    choose(page, files["lying.jpg"], *[files["painting.png"]] * 12)

    expect(page.locator("#painting .refusal")).to_have_text(
        "No more than 8: the rest was left out."
    )
    expect(page.locator("#shares input")).to_have_count(8)


def test_a_file_that_is_gone_is_refused_in_words_and_not_tried_for_ever(
    open_page: Open, files: dict[str, Path], tmp_path: Path
) -> None:
    """As is a folder that was dropped: the browser gives it as a file that cannot be read."""
    moved = tmp_path / "moved.png"
    shutil.copy(files["painting.png"], moved)
    page = open_page()
    page.route("**/v1/images", lambda route: route.abort(), times=1)
    page.set_input_files("#photo input.files", moved)
    expect(page.locator("#photo .about")).to_contain_text("keeps trying")
    moved.unlink()

    expect(page.locator("#photo .refusal")).to_contain_text("moved.png: It cannot be read.")
    expect(page.locator("#photo .name")).to_have_count(0)


def test_a_second_click_paints_nothing_more_and_what_is_deleted_elsewhere_leaves_no_buttons(
    open_page: Open, shared_service: Any
) -> None:
    page = open_page()
    ours(page)
    set_parameters(page, size=96, iterations=3000)
    before = {job.id for job in shared_service.client.jobs()}
    page.dblclick("#paint")
    page.wait_for_url(re.compile("/j/job_"))
    expect(page.locator("#progress")).to_have_attribute("value", re.compile(r"\d+"))
    (job_id,) = {job.id for job in shared_service.client.jobs()} - before
    shared_service.client.delete(job_id)

    expect(page.locator("#state")).to_have_text("Not here any more")
    for part in ("stop", "progress", "steer", "chart", "stage"):
        expect(page.locator(f"#{part}")).to_be_hidden()
    assert page.title() == "Impasto"


def test_what_was_deleted_elsewhere_can_be_deleted_here(
    open_page: Open, shared_service: Any, files: dict[str, Path]
) -> None:
    client = shared_service.client
    job = client.submit(
        files["lying.jpg"], [files["painting.png"]], size=64, iterations=2, scales=1
    )
    client.wait(job.id)
    page = open_page(f"/j/{job.id}")
    ended(page)
    client.delete(job.id)
    page.click("#forget")

    expect(page.locator("#studio")).to_be_visible()
    assert page.locator("#paintings-kept li").count() == 0


def test_where_a_key_is_needed_the_page_asks_for_it_and_keeps_it_in_the_tab(
    keyed_service: Any, open_page: Open
) -> None:
    """Pictures and events are fetched with it."""
    service = keyed_service
    command = [sys.executable, "-m", "cli", "keys", "create", "Ada"]
    secret = subprocess.run(
        command, env=service.environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    page = open_page(url=service.url)
    ours(page)
    page.fill("#key", "impasto_wrong")
    page.click("text=Use this key")
    expect(page.locator("#key-words")).to_contain_text("not known here")
    page.fill("#key", secret)
    page.click("text=Use this key")
    expect(page.locator("#photo .about")).to_have_text(re.compile(r"\d+ × \d+"))
    paint(page)
    ended(page)
    page.reload()
    ended(page)

    assert secret not in page.content()
    kept = [f"{where}Storage.getItem('impasto key')" for where in ("local", "session")]
    assert [page.evaluate(one) for one in kept] == [None, secret]
    page.click("text=Forget my key")
    expect(page.locator("#lock")).to_be_visible()
    assert [page.evaluate(one) for one in kept] == [None, None]

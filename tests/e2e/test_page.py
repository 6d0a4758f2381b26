"""The page, in a real browser before the real service: what people do with it."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from core import images

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; `make browser` installs it where apt and root are"),
]

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect
WIDTHS = {"desktop": 1280, "phone": 375, "small phone": 320}
SECONDS = 20_000  # milliseconds: a machine may be busy

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

    def start(address: str = "/", width: int = 1280, url: str = shared_service.url, **more: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, base_url=url, **more)
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
def files(tmp_path_factory: pytest.TempPathFactory, photo: Image.Image, painting: Image.Image) -> dict[str, Path]:
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


def set_knobs(page: Any, size: int = 64, iterations: int = 6) -> None:
    page.select_option("#knob-size", "other")
    page.fill("#knob-size-px", str(size))
    page.locator("summary").click()
    page.fill("#knob-iterations", str(iterations))
    page.fill("#knob-scales", "1")


def paint(page: Any, **knobs: int) -> str:
    """Its address."""
    set_knobs(page, **knobs)
    page.click("#paint")
    page.wait_for_url(re.compile("/j/job_"))
    return str(page.url)


def ended(page: Any, title: str = "Done") -> None:
    expect(page.locator("#state")).to_have_text(title)
    expect(page.locator("#stage img.after")).to_have_js_property("complete", True)
    expect(page.locator("#comparing")).to_be_visible()


def test_from_two_files_to_a_picture_that_is_compared_and_downloaded(open_page: Open, files: dict[str, Path]) -> None:
    page = open_page()
    choose(page, files["lying.jpg"], files["painting.png"])
    shown = page.locator("#photo .chosen img")
    expect(page.locator("#photo .about")).to_have_text("72 × 96")
    assert (72, 96) == tuple(shown.evaluate("image => [image.naturalWidth, image.naturalHeight]"))

    paint(page, size=96, iterations=60)
    expect(page.locator("#progress")).to_have_attribute("value", re.compile(r"\d+"))
    expect(page.locator("#stage img.after")).to_have_attribute("src", re.compile("^blob:"))
    assert not page.locator("#comparing").is_visible(), "a live picture while it is painted"
    expect(page.locator("#chart polyline").first).to_be_visible()
    assert re.match(r"\d+ % · Impasto", page.title())
    ended(page)

    assert (72, 96) == tuple(page.locator("#stage img.after").evaluate("it => [it.naturalWidth, it.naturalHeight]"))
    page.focus("#curtain")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert "1%" == page.locator(".sheet").evaluate("sheet => sheet.style.getPropertyValue('--curtain')")
    with page.expect_download() as whole:
        page.click("#download")
    page.select_option("#format", "jpeg")
    page.locator("#blend").fill("40")
    with page.expect_download() as mixed:
        page.click("#download")
    pictures = [Image.open(download.value.path()).convert("RGB") for download in (whole, mixed)]
    assert [(72, 96)] * 2 == [picture.size for picture in pictures]
    assert pictures[0].tobytes() != pictures[1].tobytes()


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
    drawn = images.decode_mask(answer.value.body())
    assert ((512, 384), 255, 0) == (drawn.size, drawn.getpixel((48, 32)), drawn.getpixel((400, 300)))


def test_a_job_is_found_again_after_a_reload_and_in_a_new_tab_and_stopped_with_what_it_has(open_page: Open) -> None:
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
    assert address == page.url

    page.get_by_role("button", name="Stop and keep this one").click()
    ended(page, "Stopped")
    expect(page.locator("#download")).to_be_visible()
    page.go_back()
    expect(page.locator("#paintings-kept .about")).to_have_text("Stopped")


def test_the_page_goes_on_when_the_api_was_killed_meanwhile(open_page: Open, shared_service: Any) -> None:
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
    expect(page.locator("#painting .refusal")).to_contain_text("no picture.png: Only JPEG, PNG and WebP")
    expect(page.locator("#painting .name")).to_have_count(0)
    page.click("#paint")
    expect(page.locator("#photo .refusal")).to_contain_text("Choose a photo first")

    choose(page, hostile, hostile)
    expect(page.locator("#photo .name")).to_have_text(hostile.name)
    paint(page)
    ended(page)
    page.click("text=Paint another")
    expect(page.locator("#paintings-kept .caption")).to_contain_text(hostile.name)
    assert 0 == page.locator("img[src=x]").count()
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
    press_at("#knob-size", "End")
    press_at("#knob-size-px", "Control+a")
    page.keyboard.type("64")
    press_at("summary")
    press_at("#knob-iterations", "Control+a")
    page.keyboard.type("5")
    press_at("#paint")
    ended(page)
    assert "state" == page.evaluate("document.activeElement.id")
    press_at("#zoom")
    assert "true" == page.get_attribute("#zoom", "aria-pressed")
    press_at("#forget")
    expect(page.locator("#studio")).to_be_visible()
    assert 0 == page.locator("#paintings-kept li").count()


def test_again_with_others_and_the_result_as_a_painting(open_page: Open, files: dict[str, Path]) -> None:
    page = open_page()
    choose(page, files["lying.jpg"], files["painting.png"])
    page.check("#mixing")
    page.locator("#paintings button").first.click()
    page.locator("#shares input").first.fill("25")
    expect(page.locator("#shares output").first).to_have_text("33 %")
    page.locator("#knob-strength").fill("0.8")
    paint(page)
    ended(page)

    page.click("#again")
    expect(page.locator("#painting .name")).to_have_count(2)
    assert ["33 %", "67 %"] == page.locator("#shares output").all_text_contents()
    assert ("0.8", "6", "64") == tuple(
        page.input_value(f"#knob-{name}") for name in ("strength", "iterations", "size-px")
    )
    page.click("#paint")
    page.wait_for_url(re.compile("/j/job_"))
    ended(page)
    page.click("#as-painting")
    expect(page.locator("#studio")).to_be_visible()
    expect(page.locator("#painting .name")).to_have_text("my painting")


@pytest.mark.parametrize("device", WIDTHS)
def test_nothing_sticks_out_and_nothing_bars_anybody(open_page: Open, device: str) -> None:
    """axe-core finds nothing in any state, in neither color scheme; at no width does the page scroll sideways."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(width=WIDTHS[device], color_scheme="dark", has_touch=device != "desktop", reduced_motion="reduce")

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
    page.click("text=Paint another")
    page.locator("#paintings-kept li").scroll_into_view_if_needed()
    expect(page.locator("#paintings-kept img")).to_have_count(1)
    looks_right("filled")


@pytest.fixture
def settings() -> dict[str, str]:
    """Of `service`, which only the last test uses."""
    return {"IMPASTO_API_KEYS": "required"}


def test_where_a_key_is_needed_the_page_asks_for_it_and_keeps_it_in_the_tab(service: Any, open_page: Open) -> None:
    """Pictures and events are fetched with it."""
    command = [sys.executable, "-m", "cli", "keys", "create", "Ada"]
    secret = subprocess.run(command, env=service.environment, capture_output=True, text=True, check=True).stdout.strip()
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
    assert [None, secret] == [page.evaluate(f"{where}Storage.getItem('impasto key')") for where in ("local", "session")]

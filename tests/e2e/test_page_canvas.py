"""The page in a real browser with the real service: canvas, masks, filmstrip, drafts.

Each test guards something that was wrong once, or that is easily broken.
"""

import base64
import io
import json
import re
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from page_actions import (
    OpenPage,
    PausedRequests,
    change_form,
    choose_examples,
    choose_files,
    end_toasts,
    expect,
    expect_end,
    needs_chromium,
    open_group,
    open_part,
    respond_with_error,
    set_parameters,
    submit_job,
    tile_of,
)
from PIL import Image

from core.images import codec

pytestmark = [pytest.mark.e2e, needs_chromium]

WATCH_SHIFTS = """
    window.shifts = 0;
    window.shifted = [];
    new PerformanceObserver((list) => {
        for (const { hadRecentInput, value, sources } of list.getEntries()) {
            if (hadRecentInput) continue;
            window.shifts += value;
            window.shifted.push([value, ...sources.map(({ node, previousRect, currentRect }) =>
                [node?.outerHTML?.slice(0, 80), previousRect.y, currentRect.y])]);
        }
    }).observe({ type: "layout-shift", buffered: true });
"""
# How many pixels of the overlay have a color.
COUNT_MASKED = """() => {
    const canvas = document.querySelector("#mask-overlay");
    if (canvas.hidden) return 0;
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return data.filter((value, i) => i % 4 === 3 && value > 0).length;
}"""
# The overlay's colors at the top and at the bottom, and the picture that it lies on.
READ_OVERLAY = """() => {
    const { width, height } = document.querySelector("#mask-overlay");
    const context = document.querySelector("#mask-overlay").getContext("2d");
    const at = (y) => [...context.getImageData(width / 2, y, 1, 1).data].slice(0, 3).join();
    return [at(0), at(height - 1), document.querySelector("#stage img.before").alt];
}"""
# Notes the names of what is saved in the browser's database, and whether it has files.
WATCH_SAVES = """
    window.saved = [];
    const hasFile = (value) => value instanceof Blob
        || Object(value) === value && Object.values(value).some(hasFile);
    const { put } = IDBObjectStore.prototype;
    IDBObjectStore.prototype.put = function (value, key) {
        saved.push([key, hasFile(value)]);
        return put.call(this, value, key);
    };
"""
DROP = """async ([name, type, content, selector]) => {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, { type }));
    document.querySelector(selector).dispatchEvent(new DragEvent("drop", {
        bubbles: true, cancelable: true, dataTransfer: transfer }));
}"""

# The end of a ZIP of three pictures that claim this size, and where it begins.
CREATE_LARGE_ZIP = """async (size) => {
    const { src } = document.querySelector("script[type=module]");
    const { createZip } = await import(new URL("zip.js", src));
    const files = [0, 1, 2].map((i) => ({
        name: `${i}.png`, date: 0,
        blob: Object.defineProperty(new Blob(), "size", { value: size }) }));
    const local = 3 * (30 + "0.png".length), end = (await createZip(files)).slice(local);
    return [[...new Uint8Array(await end.arrayBuffer())], local + 3 * size];
}"""


def drop(page: Any, name: str, content: bytes, selector: str = "#stage") -> None:
    page.evaluate(DROP, [name, "image/png", base64.b64encode(content).decode(), selector])


def encode(picture: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


@pytest.fixture
def short_job(shared_service: Any, image_files: dict[str, Path]) -> Iterator[Any]:
    """A job of a few seconds, of which the browser knows nothing."""
    client = shared_service.client
    job = client.submit(
        image_files["rotated.jpg"], [image_files["painting.png"]], size=96, iterations=60, scales=1
    )
    yield job
    client.delete(job.id)


# ---------------------------------------------------------------------- masks


def test_one_click_or_space_paints_a_dot_and_every_step_can_be_undone(
    open_page: OpenPage, until: Any
) -> None:
    page = open_page()
    choose_examples(page)
    page.click("#open-mask")
    page.locator("#mask-layer").click()
    dot = page.evaluate(COUNT_MASKED)
    assert 1000 < dot < 6000
    page.click("#mask-undo")
    assert page.evaluate(COUNT_MASKED) == 0
    page.click("#mask-redo")
    assert page.evaluate(COUNT_MASKED) == dot
    page.focus("#mask-layer")
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    page.keyboard.press(" ")
    assert dot < page.evaluate(COUNT_MASKED)
    expect(page.locator("#announcement")).to_have_text(re.compile(r"\d+ % of the photo"))
    page.click("#mask-invert")
    inverted = page.evaluate(COUNT_MASKED)
    page.click("#mask-fill")
    assert dot < inverted < page.evaluate(COUNT_MASKED) == 512 * 384
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    assert page.evaluate(COUNT_MASKED) == dot

    mask = Image.new("L", (64, 48), 0)
    mask.paste(255, (0, 0, 32, 48))
    page.set_input_files(
        "#mask-file", {"name": "mask.png", "mimeType": "image/png", "buffer": encode(mask)}
    )
    expect(page.locator("#mask-undo")).to_be_enabled()
    until(lambda: page.evaluate(COUNT_MASKED) > 0.45 * 512 * 384, "half of the photo")


def test_a_mask_stays_visible_with_a_chip_and_is_not_submitted_after_it_is_removed(
    open_page: OpenPage, shared_service: Any
) -> None:
    def masks_of(address: str) -> list[str]:
        return list(shared_service.client.job(address.rpartition("/")[2]).input.masks)

    def paint(i: int) -> None:
        page.click("#open-mask")
        page.locator("#mask-styles button").nth(i).click()
        box = page.locator("#mask-layer").bounding_box()
        x = box["x"] + box["width"] * (0.25 + i / 2)
        page.mouse.click(x, box["y"] + box["height"] / 2)
        page.click("#mask-done")

    page = open_page()
    choose_examples(page)
    page.click("#mix-styles")
    page.locator("#style .sample button").nth(1).click()
    paint(0)
    assert len(masks_of(submit_job(page))) == 2, "the other one is white"
    expect_end(page)
    page.click("#reuse")
    expect(page.locator("#mask-state")).to_have_text("Mask: Brush strokes")
    paint(1)
    expect(page.locator("#mask-overlay")).to_be_visible()
    expect(page.locator("#mask-chip")).to_have_text(
        re.compile("Mask: Brush strokes and Watercolor")
    )
    colors = page.evaluate(
        """() => [0.25, 0.75].map((x) => [...document.querySelector("#mask-overlay")
            .getContext("2d").getImageData(512 * x, 192, 1, 1).data].join())"""
    )
    assert len({*colors}) == 2, "one color per style"
    assert len(masks_of(submit_job(page))) == 2
    page.click("text=New painting")
    expect(page.locator("#mask-overlay")).to_be_visible()
    page.click("#remove-mask")
    expect(page.locator("#mask-overlay")).to_be_hidden()
    page.click("#submit-job")
    page.wait_for_url(re.compile("/j/job_"))
    assert masks_of(page.url) == []


def test_masks_of_a_repeated_job_are_shown_and_edited_on_the_photo_and_on_the_style(
    open_page: OpenPage, shared_service: Any, unusual_job: Any, until: Any
) -> None:
    def shown() -> list[str]:
        """The colors of the overlay at the top and at the bottom, and what it lies on."""
        return list(page.evaluate(READ_OVERLAY))

    page = open_page(f"/j/{unusual_job.id}")
    expect_end(page)
    page.click("#reuse")
    expect(page.locator("#mask-chip")).to_be_visible()
    light, dark = "240,20,154", "0,0,0"  # the gradient is white at the bottom
    until(lambda: shown() == [dark, light, "Photo: Photo"], "the mask is shown")
    page.click("#open-mask")
    expect(page.locator("#mask-undo")).to_be_disabled()
    page.click("#mask-on-style")
    until(lambda: shown() == [dark, light, "Style: Style 1"], "that of the style is shown")
    expect(page.locator("#canvas-title")).to_contain_text("Brush the parts of “Style 1”")
    page.click("#mask-invert")
    assert shown()[:2] == [light, dark]
    page.click("#mask-fill")
    page.click("#mask-undo")
    assert shown()[:2] == [light, dark]
    page.click("#mask-done")
    until(lambda: shown() == [dark, light, "Photo: Photo"], "the photo is back")
    page.click("#submit-job")
    page.wait_for_url(lambda url: "/j/job_" in url and unusual_job.id not in url)

    client, old = shared_service.client, unusual_job.input
    new = client.job(page.url.rpartition("/")[2]).input
    assert new.masks == old.masks, "what was not edited is what it was"
    (inverted,), (first,) = new.style_masks, old.style_masks
    before, after = (
        codec.decode(client.image(digest), mask=True)
        .convert("L")
        .resize((1, 2), Image.Resampling.BOX)
        for digest in (first, inverted)
    )
    assert [*after.tobytes()] == pytest.approx([255 - value for value in before.tobytes()], abs=3)


def test_a_mask_of_the_editor_is_not_drawn_over_the_painting_of_a_job(
    open_page: OpenPage, unusual_job: Any, image_files: dict[str, Path]
) -> None:
    page = open_page()
    choose_examples(page)
    page.click("#open-mask")
    page.locator("#mask-layer").click()
    page.click("#mask-done")
    page.click("#mix-styles")
    uploads = PausedRequests(page, "**/v1/images", "POST")
    page.set_input_files("#style input.files", image_files["painting.png"])
    uploads.wait_for(page, 1)
    page.evaluate("(id) => history.pushState(null, '', `/j/${id}`)", unusual_job.id)
    page.evaluate("dispatchEvent(new Event('popstate'))")
    expect_end(page)
    respond_with_error("bad_image", "It is damaged.", 422)(uploads.routes[0])
    expect(page.locator("#style .own")).to_have_count(0)
    expect(page.locator("#mask-overlay")).to_be_hidden()
    page.go_back()
    expect(page.locator("#mask-overlay")).to_be_visible()


def test_undo_brings_back_the_masks_and_settings_that_a_repeated_job_has_replaced(
    open_page: OpenPage, unusual_job: Any
) -> None:
    page = open_page()
    choose_examples(page)
    page.locator(f"#history-list a[href*={unusual_job.id}]").first.click()
    expect_end(page)
    page.click("#reuse")
    expect(page.locator("#mask-chip")).to_be_visible()
    expect(page.locator("#toast")).to_be_empty()  # the user had chosen samples only
    page.locator("#style .sample button").nth(2).click()
    page.locator("#parameter-strength").fill("0.9")
    page.click("#open-mask")
    page.click("#mask-invert")
    page.click("#mask-done")
    masked = page.evaluate(COUNT_MASKED)
    page.go_back()
    expect_end(page)
    page.click("#reuse")
    expect(page.locator("#mask-state")).to_have_text("Mask: Style 1")

    expect(page.locator("#toast")).to_contain_text("Your masks and settings were replaced.")
    page.click("#toast button")
    expect(page.locator("#mask-state")).to_have_text("Mask: Woodcut")
    expect(page.locator("#style .sample [aria-pressed=true]")).to_have_text("Woodcut")
    expect(page.locator("#parameter-strength")).to_have_value("0.9")
    assert page.evaluate(COUNT_MASKED) == masked


# ---------------------------------------------------------------------- filmstrip


def test_a_tile_follows_its_job_to_the_end_without_a_reload(
    open_page: OpenPage, short_job: Any
) -> None:
    page = open_page()
    tile = tile_of(page, short_job.id)
    expect(tile).to_have_attribute("data-status", re.compile("queued|running"))

    expect(tile).to_have_attribute("data-status", "succeeded")
    expect(tile.locator(".status")).to_have_text(re.compile("^Until "))
    expect(tile.locator("img")).to_have_js_property("complete", True)


def test_a_fresh_browser_shows_the_jobs_of_the_service_page_by_page(open_page: OpenPage) -> None:
    def list_jobs(route: Any) -> None:
        answer = route.fetch(url=re.sub(r"[?].*", "?limit=1", route.request.url))
        (job,) = answer.json()["jobs"]
        first = int(re.findall(r"cursor=(\d+)|$", route.request.url)[0] or 0)
        letters = "abcdefghijklmnopqrstuvwxyz234567"
        jobs = [
            {**job, "id": f"job_{letters[n // 32]}{letters[n % 32]}{'a' * 24}", "version": 1}
            for n in range(first, first + 20)
        ]
        after = f"/v1/jobs?limit=20&cursor={first + 20}" if first < 40 else None
        route.fulfill(json={"jobs": jobs, "next": after})

    page = open_page("/livez")
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.route(re.compile(r"/v1/jobs\?"), list_jobs)
    page.goto("/")
    films = page.locator("#history-list")
    expect(films).to_have_css("--count", "20")
    films.locator("li").last.scroll_into_view_if_needed()
    expect(films).to_have_css("--count", "40")
    page.locator("#history-more").scroll_into_view_if_needed()
    expect(films).to_have_css("--count", "60")
    expect(films.locator("li").last).to_have_attribute("aria-setsize", "60")
    expect(page.locator("#history-more")).to_be_hidden()
    page.select_option("#history-filter", "active")
    expect(films).to_have_css("--count", "20")

    assert any("status=queued&status=running" in url for url in requests)
    page.unroute_all(behavior="ignoreErrors")


# Shows a message.
DROP_NOTHING = "() => dispatchEvent(new DragEvent('drop', { dataTransfer: new DataTransfer() }))"


def test_a_deleted_painting_returns_with_undo_and_goes_when_the_time_is_over(
    open_page: OpenPage, shared_service: Any, unusual_job: Any, short_job: Any
) -> None:
    def ids() -> set[str]:
        return {job.id for job in shared_service.client.jobs()}

    page = open_page(f"/j/{unusual_job.id}")
    page.on("dialog", lambda dialog: pytest.fail("the page must not use confirm()"))
    expect_end(page)
    page.click(".menu summary")
    page.click("#delete")
    expect(page.locator("#toast")).to_contain_text("Painting deleted.")
    expect(page.locator("#submit-view")).to_be_visible()
    expect(tile_of(page, unusual_job.id)).to_have_count(0)
    page.evaluate(DROP_NOTHING)
    expect(page.locator("#toast > *")).to_have_text([re.compile("deleted"), re.compile("not an")])
    assert unusual_job.id in ids()
    page.click("#toast button")
    expect(tile_of(page, unusual_job.id)).to_have_count(1)

    shared_service.client.wait(short_job.id)
    tile_of(page, short_job.id).locator("a").focus()
    page.keyboard.press("Delete")
    expect(tile_of(page, short_job.id)).to_have_count(0)
    page.focus("#toast button")
    with page.expect_response(lambda response: response.request.method == "DELETE"):
        end_toasts(page)
    assert ids() & {unusual_job.id, short_job.id} == {unusual_job.id}
    expect(page.locator("#main")).to_be_focused()


def test_several_paintings_are_downloaded_as_a_zip_and_compared(
    open_page: OpenPage, shared_service: Any, unusual_job: Any, gatys_job: Any
) -> None:
    page = open_page()
    place = page.locator("#stage").bounding_box()
    page.click("#select")
    assert page.locator("#stage").bounding_box() == place
    background = "(button) => getComputedStyle(button).backgroundColor"
    pressed = page.locator("#presets [aria-pressed=true]").first.evaluate(background)
    expect(page.locator("#select")).to_have_css("background-color", pressed)
    expect(page.locator("#selection-compare")).to_be_disabled()
    for job in (gatys_job, unusual_job):
        tile_of(page, job.id).locator("a").click()
    expect(page.locator("#selection-count")).to_have_text("2 selected")
    assert page.url.endswith("/"), "a tile is marked, not opened"
    with page.expect_download() as download:
        page.click("#selection-zip")
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.testzip() is None
        contents = {archive.read(name) for name in archive.namelist()}
        dates = {info.date_time[0] for info in archive.infolist()}
    client = shared_service.client
    assert contents == {client.result(job.id) for job in (gatys_job, unusual_job)}
    assert dates <= {datetime.now(UTC).year, datetime.now(UTC).year - 1}

    page.click("#selection-compare")
    expect(page.locator("#compared")).to_contain_text("Gatys 2016")
    assert not re.search(r"\w_\w|\d=", page.inner_text("#compared")), "words, no program text"
    compared = re.findall(r"job_\w+", page.url)
    assert {*compared} == {unusual_job.id, gatys_job.id}
    links = page.locator("#compared a")
    titles = "all => all.map(({ href }) => href.split('/').pop())"
    assert links.evaluate_all(titles) == compared
    page.reload()
    expect(links).to_have_count(2)
    page.click("#swap")
    assert links.evaluate_all(titles) == compared[::-1]
    before, after = (page.locator(f"#stage img.{name}") for name in ("before", "after"))
    assert before.bounding_box() == after.bounding_box()
    assert page.input_value("#divider") == "50"
    page.click("#side-by-side")
    stage = page.locator("#stage").bounding_box()
    middle = stage["x"] + stage["width"] / 2
    left, right = before.bounding_box(), after.bounding_box()
    assert left["x"] + left["width"] <= middle + 1
    assert middle - 1 <= right["x"]
    assert left["width"] == pytest.approx(right["width"])
    links.first.click()
    expect_end(page)


def test_a_zip_of_more_than_4_gb_names_where_its_pictures_are(
    open_page: OpenPage, tmp_path: Path
) -> None:
    """Blobs that claim a size stand for large pictures: the rest of the file is as it would be."""
    size = 3 << 30
    tail, rest = open_page().evaluate(CREATE_LARGE_ZIP, size)
    path = tmp_path / "large.zip"
    with path.open("wb") as file:  # sparse: it has holes in place of the pictures
        file.seek(rest)
        file.write(bytes(tail))
    with zipfile.ZipFile(path) as archive:
        offsets = [info.header_offset for info in archive.infolist()]
        assert [info.file_size for info in archive.infolist()] == [size] * 3
        assert archive.namelist() == ["0.png", "1.png", "2.png"]
    assert offsets == [i * (size + len("0.png") + 30) for i in range(3)]


def test_several_deleted_paintings_return_in_their_places(
    open_page: OpenPage, shared_service: Any, image_files: dict[str, Path], until: Any
) -> None:
    client = shared_service.client
    pictures = image_files["rotated.jpg"], [image_files["painting.png"]]
    ids = [client.cancel(client.submit(*pictures, size=64).id).id for _ in range(3)]
    page = open_page()
    order = "all => all.map(({ dataset }) => dataset.job)"
    tiles = page.locator("#history-list li")
    expect(tile_of(page, ids[0])).to_have_count(1)
    before = tiles.evaluate_all(order)
    page.click("#select")
    for job_id in ids[1:]:
        tile_of(page, job_id).locator("input").check()
    page.click("#selection-delete")
    expect(page.locator("#toast")).to_contain_text("2 paintings deleted.")
    expect(tile_of(page, ids[1])).to_have_count(0)
    page.click("#toast button")
    assert tiles.evaluate_all(order) == before
    page.click("#selection-delete")
    end_toasts(page)

    until(lambda: {*ids} & {job.id for job in client.jobs()} == {ids[0]}, "two are deleted")
    client.delete(ids[0])


# ---------------------------------------------------------------------- a run


def test_the_picture_keeps_its_place_from_the_photo_to_the_result(open_page: OpenPage) -> None:
    page = open_page("/livez")
    page.add_init_script(WATCH_SHIFTS)
    page.goto("/")
    expect(page.locator("#stage img.after")).to_have_attribute("src", re.compile("webp"))
    choose_examples(page)
    set_parameters(page, size=96, iterations=60)
    place = page.locator("#stage").bounding_box()
    photo = page.locator("#stage img.before").bounding_box()
    page.click("#submit-job")
    page.wait_for_url(re.compile("/j/job_"))
    expect(page.locator("#stage img.before")).to_be_visible()
    assert page.locator("#stage").bounding_box() == place
    assert page.locator("#stage img.before").bounding_box() == pytest.approx(photo, abs=1)
    expect_end(page)
    assert page.locator("#stage").bounding_box() == place
    assert page.locator("#stage img.after").bounding_box() == pytest.approx(photo, abs=1)

    assert page.evaluate("window.shifts") < 0.05, page.evaluate("window.shifted")


def test_on_a_phone_nothing_jumps_from_the_first_visit_to_the_result(open_page: OpenPage) -> None:
    page = open_page("/livez", width=375, has_touch=True, is_mobile=True)
    page.add_init_script(WATCH_SHIFTS)
    page.goto("/")
    expect(page.locator("#stage img.after")).to_have_attribute("src", re.compile("webp"))
    submit_job(page, size=96, iterations=60)
    expect_end(page)
    expect(page.locator("#frames")).to_be_visible()

    assert page.evaluate("window.shifts") < 0.05, page.evaluate("window.shifted")


@pytest.mark.parametrize("language", ["en", "zh-CN"])
def test_nothing_moves_when_the_page_loads_slowly(open_page: OpenPage, language: str) -> None:
    page = open_page("/livez", width=375, locale=language)
    page.add_init_script(WATCH_SHIFTS)
    scripts = PausedRequests(page, "**/text-*", "GET")
    page.goto("/", wait_until="commit")
    scripts.wait_for(page, 1)
    expect(page.locator("#stage")).to_be_visible()
    page.wait_for_timeout(100)  # it is painted
    scripts.routes[0].continue_()
    expect(page.locator("#submit-job")).to_be_visible()
    expect(page.locator("#stage img.after")).to_have_attribute("src", re.compile("webp"))
    assert page.evaluate("window.shifts") < 0.05, page.evaluate("window.shifted")


def test_finish_now_states_the_size_and_continue_paints_on(
    open_page: OpenPage, shared_service: Any
) -> None:
    page = open_page()
    choose_examples(page)
    page.select_option("#parameter-size", "768")
    page.click("#submit-job")
    page.wait_for_url(re.compile("/j/job_"))
    first = page.url.rpartition("/")[2]
    expect(page.locator("#stop")).to_be_enabled()
    expect(page.locator("#stop-hint")).to_have_text(re.compile("at .+ px"))
    assert shared_service.client.job(first).progress.scale == 1
    page.click("#stop")
    expect_end(page, "Finished early")
    output = shared_service.client.job(first).outputs[0]
    size = f"{output.width} × {output.height} px"
    instead = "" if output.width == 768 else " instead of 768 × 576 px"
    expect(page.locator("#stop-hint")).to_have_text(
        f"“Finish now” keeps the painting so far, at {size}{instead}."
    )
    assert output.width >= 512
    rest = "Continue to paint it on." if output.width == 768 else "up to 768 px."
    expect(page.locator("#continue-hint")).to_have_text(re.compile(f"{rest}$"))

    page.click("#continue")
    page.wait_for_url(lambda url: "/j/job_" in url and first not in url)
    second = shared_service.client.job(page.url.rpartition("/")[2])
    shared_service.client.cancel(second.id)
    assert (second.input.init_image, second.input.spec["size"]) == (output.id, 768)


def test_another_one_is_the_same_painting_with_another_seed(
    open_page: OpenPage, shared_service: Any, unusual_job: Any
) -> None:
    page = open_page(f"/j/{unusual_job.id}")
    expect_end(page)
    page.click("#another")
    page.wait_for_url(lambda url: "/j/job_" in url and unusual_job.id not in url)
    spec = shared_service.client.job(page.url.rpartition("/")[2]).input.spec

    assert spec["seed"] != 0
    assert {**spec, "seed": 0} == unusual_job.input.spec


def test_the_editor_leads_to_the_job_that_runs_and_a_draft_to_the_full_painting(
    open_page: OpenPage, shared_service: Any
) -> None:
    page = open_page()
    open_group(page, "start")
    page.select_option("#parameter-quality", "draft")
    address = submit_job(page, size=64, iterations=1500)
    expect(page.locator("#cancel")).to_be_enabled()
    page.go_back()
    link = page.locator("#active-job")
    expect(link).to_contain_text("Harbor × Brush strokes")
    link.click()
    assert page.url == address
    page.click("#stop")
    expect_end(page, "Finished early")
    page.click("text=New painting")
    expect(link).to_be_hidden()

    submit_job(page, size=64, iterations=4)
    expect_end(page)
    sent: list[Any] = []

    def record(route: Any) -> None:
        sent.append(route.request.post_data_json)
        route.abort()

    page.route("**/retry", record)
    page.click("text=Paint it large")
    expect(page.locator("#job-error")).to_contain_text("keeps trying")
    assert sent[0] == {"spec": {"quality": "standard", "size": 512}}


def test_many_clicks_are_one_job(open_page: OpenPage, shared_service: Any) -> None:
    page = open_page()
    choose_examples(page)
    set_parameters(page)
    before = {job.id for job in shared_service.client.jobs()}
    page.evaluate(
        "() => { for (let i = 0; i < 100; i++) document.querySelector('#submit-job').click(); }"
    )
    page.wait_for_url(re.compile("/j/job_"))
    expect_end(page)

    assert len({job.id for job in shared_service.client.jobs()} - before) == 1


# ---------------------------------------------------------------------- viewer


def test_the_result_is_whole_until_the_handle_is_dragged_and_can_be_saved(
    open_page: OpenPage, unusual_job: Any
) -> None:
    top_element = """() => {
        const stage = document.querySelector("#stage"), place = stage.getBoundingClientRect();
        const { left, top, width, height } = place;
        return document.elementFromPoint(left + width / 2, top + height / 2).className;
    }"""
    page = open_page(f"/j/{unusual_job.id}")
    expect_end(page)
    assert page.input_value("#divider") == "0"
    assert page.text_content("output[for=strength]") == "33 %", "between two steps of the slider"
    assert page.evaluate(top_element) == "layer after", "the browser's menu saves the result"
    again = """async (image) => {
        const copy = new Image();
        copy.src = image.src;
        await copy.decode();
        return [copy.naturalWidth, copy.naturalHeight];
    }"""
    assert page.locator("#stage img.after").evaluate(again) == [60, 80], "its address stays valid"

    handle, picture = (
        page.locator(selector).bounding_box() for selector in (".handle", "#stage img.after")
    )
    page.mouse.move(handle["x"] + 22, handle["y"] + handle["height"] / 2)
    page.mouse.down()
    page.mouse.move(picture["x"] + picture["width"] * 0.75, handle["y"] + 50, steps=4)
    page.mouse.up()
    assert float(page.input_value("#divider")) == pytest.approx(75, abs=1)
    assert page.evaluate(top_element) == "layer before"


def test_wheel_drag_and_double_click_zoom_and_pan_also_behind_the_curtain(
    open_page: OpenPage, unusual_job: Any
) -> None:
    def place() -> dict[str, float]:
        return dict(page.locator("#stage img.after").bounding_box())

    page = open_page(f"/j/{unusual_job.id}")
    expect_end(page)
    stage = page.locator("#stage").bounding_box()
    x, y = stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2
    fitted = place()
    page.mouse.move(x, y)
    page.mouse.wheel(0, -400)
    expect(page.locator("#stage")).to_have_class(re.compile("zoomed"))
    zoomed = place()
    assert zoomed["width"] > 1.2 * fitted["width"]
    page.mouse.down()
    page.mouse.move(x, y + 40, steps=4)
    page.mouse.up()
    assert place()["y"] - zoomed["y"] == pytest.approx(40, abs=2)
    page.locator("#divider").fill("50")
    half = page.locator(".curtain").evaluate("(e) => getComputedStyle(e).clipPath")
    page.locator("#divider").fill("80")
    assert page.locator(".curtain").evaluate("(e) => getComputedStyle(e).clipPath") != half
    page.locator("#divider").fill("0")
    page.mouse.dblclick(x, y)
    assert place() == pytest.approx(fitted, abs=1)
    page.mouse.dblclick(x, y)
    assert place()["width"] > 1.2 * fitted["width"]
    page.focus("#zoom-in")
    page.keyboard.press("0")
    assert place() == pytest.approx(fitted, abs=1)


def test_two_fingers_zoom_and_a_double_tap_fits_again(
    open_page: OpenPage, unusual_job: Any
) -> None:
    page = open_page(f"/j/{unusual_job.id}", width=375, has_touch=True, is_mobile=True)
    expect_end(page)
    box = page.locator("#stage img.after").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch = page.context.new_cdp_session(page)

    def send(kind: str, *distances: int) -> None:
        points = [{"x": x + distance, "y": y, "id": i} for i, distance in enumerate(distances)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    send("touchStart", -20, 20)
    for distance in (30, 40, 50, 60):
        send("touchMove", -distance, distance)
    send("touchEnd")
    expect(page.locator("#stage")).to_have_class(re.compile("zoomed"))
    assert page.locator("#stage img.after").bounding_box()["width"] > 1.5 * box["width"]
    for _ in range(2):
        page.touchscreen.tap(x, y)
    expect(page.locator("#stage")).not_to_have_class(re.compile("zoomed"))


def test_share_hands_over_the_file_and_a_notification_comes_when_it_is_done(
    open_page: OpenPage, shared_service: Any, unusual_job: Any, image_files: dict[str, Path]
) -> None:
    page = open_page("/livez")
    page.add_init_script("""
        window.shared = [];
        window.notified = [];
        navigator.canShare = () => true;
        navigator.share = async ({ files }) => { window.shared.push(files[0].name); };
        window.Notification = class {
            static permission = "default";
            static async requestPermission() { return "granted"; }
            constructor(title) { window.notified.push(title); }
        };
    """)
    page.goto(f"/j/{unusual_job.id}")
    expect_end(page)
    # A request would take longer than the browser lets a page share after a click.
    page.route("**/result*", lambda route: route.abort())
    page.click("#share")
    page.wait_for_timeout(200)
    assert page.evaluate("window.shared") == [f"impasto-{unusual_job.id[4:12]}.png"]
    page.unroute_all()

    job = shared_service.client.submit(
        image_files["rotated.jpg"], [image_files["painting.png"]], size=96, iterations=60, scales=1
    )
    page.goto(f"/j/{job.id}")
    page.click("#notify")
    expect(page.locator("#notify")).to_have_attribute("aria-pressed", "true")
    page.evaluate("Object.defineProperty(document, 'hidden', { get: () => true })")
    expect_end(page)
    assert page.evaluate("window.notified") == ["Done"]

    job = shared_service.client.submit(
        image_files["rotated.jpg"], [image_files["painting.png"]], size=96, iterations=60, scales=1
    )
    page.goto(f"/j/{job.id}")
    page.click("#notify")
    page.click(".brand")
    expect(page.locator("#submit-view")).to_be_visible()
    page.evaluate("Object.defineProperty(document, 'hidden', { get: () => true })")
    shared_service.client.wait(job.id)
    page.evaluate("dispatchEvent(new Event('online'))")  # it looks at once
    page.wait_for_function("() => window.notified[0] === 'Done'")


def test_press_and_hold_shows_the_original_and_so_does_a_button(
    open_page: OpenPage, unusual_job: Any
) -> None:
    page = open_page(f"/j/{unusual_job.id}")
    expect_end(page)
    curtain = page.locator(".curtain")
    page.locator("#stage img.after").hover()
    page.mouse.down()
    expect(curtain).to_be_hidden()
    page.mouse.up()
    expect(curtain).to_be_visible()
    for press in (lambda: page.click("#hold"), lambda: page.keyboard.press(" ")):
        press()
        expect(curtain).to_be_hidden()
        press()
        expect(curtain).to_be_visible()
    page.press("#hold", "Meta+=")  # the browser's own zoom
    expect(page.locator("#zoom-level")).to_have_text("Fit")
    page.press("#hold", "+")
    expect(page.locator("#stage")).to_have_class(re.compile("zoomed"))
    page.click("#hold")
    page.locator("#stage img.before").hover()
    page.mouse.down()
    page.mouse.move(300, 300, steps=4)
    page.mouse.up()
    expect(page.locator("#hold")).to_have_attribute("aria-pressed", "true")
    expect(curtain).to_be_hidden()


def test_the_time_lapse_plays_on_the_canvas(open_page: OpenPage, unusual_job: Any) -> None:
    page = open_page(f"/j/{unusual_job.id}")
    expect_end(page)
    expect(page.locator("#frames")).to_be_visible()
    # Each frame is shown for a tenth of a second, so the page itself has to note it.
    shown = page.evaluate_handle(
        """() => {
          const output = document.querySelector("output[for=frame]"), shown = [];
          new MutationObserver(() => shown.push(output.textContent))
            .observe(output, { childList: true, characterData: true, subtree: true });
          return shown;
        }"""
    )
    page.click("#play")
    page.wait_for_function("(shown) => shown.at(-1) === 'result'", arg=shown)
    first, *others = shown.json_value()
    assert re.fullmatch(r"1/\d+", first)
    assert sum("/" in text for text in others) >= 2
    expect(page.locator("#play")).to_have_accessible_name("Time-lapse")
    with page.expect_download() as video:
        page.click("#timelapse")
    assert re.fullmatch(r"impasto-\w+-time-lapse\.(mp4|webp)", video.value.suggested_filename)


# ---------------------------------------------------------------------- the editor


def test_another_language_loses_nothing_that_was_just_chosen(open_page: OpenPage) -> None:
    page = open_page("/", locale="en-US")
    expect(page.locator("#stage img.after")).to_have_attribute("src", re.compile("webp"))
    with page.expect_navigation():
        page.locator("#parameter-strength").fill("0.8")
        page.click("#language")
    expect(page.locator("#parameter-strength")).to_have_value("0.8")


def test_a_reload_keeps_photo_style_settings_and_mask(
    open_page: OpenPage, image_files: dict[str, Path], until: Any
) -> None:
    page = open_page()
    choose_files(page, image_files["rotated.jpg"], image_files["painting.png"])
    expect(page.locator("#style .status")).to_have_text("96 × 75 px")
    page.locator("#parameter-strength").fill("0.8")
    page.click("#open-mask")
    page.locator("#mask-layer").click()
    page.click("#mask-done")
    load = """async () => (await import("./web/drafts.js")
        .then(({ loadDraft }) => loadDraft("current")))
        ?.masks.photo.some(Boolean)"""
    until(lambda: page.evaluate(load), "the draft is saved")
    page.reload()

    expect(page.locator("#photo [aria-pressed=true] .name")).to_have_text("rotated")
    expect(page.locator("#style [aria-pressed=true] .name")).to_have_text("painting")
    expect(page.locator("#parameter-strength")).to_have_value("0.8")
    expect(page.locator("#mask-overlay")).to_be_visible()
    expect(page.locator("#photo .status")).to_have_text("72 × 96 px")


def test_a_changed_setting_does_not_write_the_pictures_again(
    open_page: OpenPage, image_files: dict[str, Path]
) -> None:
    """A photo has megabytes, and a slider changes with each pixel."""
    page = open_page("/livez")
    page.add_init_script(WATCH_SAVES)
    page.goto("/")
    choose_files(page, image_files["rotated.jpg"], image_files["painting.png"])
    expect(page.locator("#photo .status")).to_have_text("72 × 96 px")
    expect(page.locator("#style .status")).to_have_text("96 × 75 px")
    page.wait_for_function("() => saved.some(([, hasFile]) => hasFile)")
    page.wait_for_timeout(400)
    page.evaluate("saved.length = 0")
    page.locator("#parameter-strength").fill("0.8")
    page.wait_for_function("() => saved.length")
    assert page.evaluate("saved") == [["current", False]]


def test_two_tabs_keep_their_choices_and_the_pictures_of_each_other(
    open_page: OpenPage, image_files: dict[str, Path], until: Any
) -> None:
    page = open_page()
    other = page.context.new_page()
    other.goto("/")
    for tab, name in ((page, "rotated.jpg"), (other, "painting.png")):
        expect(tab.locator("#presets button").first).to_be_visible()
        tab.set_input_files("#photo input.files", image_files[name])
        expect(tab.locator("#photo .status")).to_have_text(re.compile(r"\d+ × \d+ px"))
    load = """async () => (await import("./web/drafts.js")
        .then(({ loadDraft }) => loadDraft("own")))[0].length"""
    until(lambda: page.evaluate(load) == 2, "both are saved")
    with page.expect_navigation():
        page.click("#language")

    expect(page.locator("#photo .own")).to_have_count(2)
    expect(page.locator("#photo [aria-pressed=true] .name")).to_have_text("rotated")


def test_without_space_for_the_pictures_a_reload_keeps_the_settings(
    open_page: OpenPage, image_files: dict[str, Path], until: Any
) -> None:
    def evaluate(code: str) -> Any:
        imported = 'const { loadDraft, saveDraft } = await import("./web/drafts.js");'
        return page.evaluate(f"async () => {{ {imported} {code} }}")

    page = open_page()
    expect(page.locator("#presets button").first).to_be_visible()
    page.set_input_files("#photo input.files", image_files["rotated.jpg"])
    expect(page.locator("#photo .status")).to_have_text("72 × 96 px")
    page.locator("#parameter-strength").fill("0.8")
    load = 'return (await loadDraft("current"))?.changes.spec.strength'
    until(lambda: evaluate(load) == 0.8, "the draft is saved")
    evaluate('await saveDraft("own", () => [[], []])')
    page.reload()

    expect(page.locator("#parameter-strength")).to_have_value("0.8")
    expect(page.locator("#photo [aria-pressed=true]")).to_have_text("Harbor")


@pytest.mark.parametrize("size", [(400, 768), (900, 300)])
def test_a_chosen_photo_is_shown_whole(open_page: OpenPage, size: tuple[int, int]) -> None:
    page = open_page()
    content = encode(Image.new("RGB", size, "teal"))
    page.set_input_files(
        "#photo input.files", {"name": "tall.png", "mimeType": "image/png", "buffer": content}
    )
    expect(page.locator("#photo .status")).to_have_text(f"{size[0]} × {size[1]} px")
    photo, stage = (
        page.locator(selector).bounding_box() for selector in ("#stage img.before", "#stage")
    )

    assert photo["width"] / photo["height"] == pytest.approx(size[0] / size[1], rel=0.01)
    assert photo["width"] <= stage["width"] + 1
    assert photo["height"] <= stage["height"] + 1
    fit = page.locator("#photo .own img").evaluate("(image) => getComputedStyle(image).objectFit")
    assert fit == "contain"


def test_shares_of_styles_are_what_the_sliders_show_and_sum_to_100(open_page: OpenPage) -> None:
    def shares() -> list[int]:
        texts = page.locator("#style-weights output").all_text_contents()
        return [int(text.removesuffix(" %")) for text in texts]

    page = open_page()
    choose_examples(page)
    page.click("#mix-styles")
    for i in range(1, 8):
        page.locator("#style .sample button").nth(i).click()
    expect(page.locator("#style-weights input")).to_have_count(8)
    assert sum(shares()) == 100
    for i in range(8):
        page.locator("#style-weights input").nth(i).fill("0")
        assert sum(shares()) == 100
    page.locator("#style-weights input").first.fill("40")
    values = page.locator("#style-weights input").evaluate_all(
        "all => all.map((one) => +one.value)"
    )
    assert shares()[0] == 40
    assert values == pytest.approx(shares(), abs=1)


def test_presets_and_main_settings_are_in_view_on_a_small_laptop(open_page: OpenPage) -> None:
    page = open_page()
    expect(page.locator("#presets button").first).to_be_visible()
    bar = page.locator(".action-bar").bounding_box()
    selectors = [
        "#presets .chips",
        *(f"#parameter-{name}" for name in ("strength", "style_scale", "quality", "size")),
    ]
    for selector in selectors:
        box = page.locator(selector).bounding_box()
        assert box["y"] + box["height"] <= bar["y"], selector
    assert bar["y"] + bar["height"] <= 800


def test_advanced_parameters_have_plain_labels_and_the_phone_page_is_short(
    open_page: OpenPage,
) -> None:
    page = open_page(width=375)
    expect(page.locator("#presets button").first).to_be_attached()
    open_part(page, "adjust")
    labels = page.locator("#more-parameters label").evaluate_all(
        "all => all.map((label) => [label.firstChild.textContent,"
        " label.querySelector('code').textContent])"
    )

    assert len(labels) > 15
    assert [name for label, name in labels if label == name] == []
    assert page.evaluate("document.documentElement.scrollHeight") < 1700


@pytest.mark.parametrize("path", ["images", "jobs"])
def test_paint_waits_for_a_service_that_cannot_take_it_yet(open_page: OpenPage, path: str) -> None:
    page = open_page()
    choose_examples(page)
    set_parameters(page)
    refuse = respond_with_error("storage_full", "The disk is full.")
    page.route(f"**/v1/{path}", refuse, times=2)
    page.click("#submit-job")
    expect(page.locator("#submit-error")).to_have_text("The disk is full. This page keeps trying.")
    page.wait_for_url(re.compile("/j/job_"))
    expect_end(page)


def test_a_large_picture_is_reduced_and_the_page_says_so_and_shows_the_progress(
    open_page: OpenPage, image_files: dict[str, Path]
) -> None:
    def lower(form: dict[str, Any]) -> None:
        form["limits"]["max_file_bytes"] = 1_000_000

    page = open_page("/livez")
    change_form(page, lower)
    page.goto("/")
    expect(page.locator("#photo .sample")).to_have_count(2)
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    network.send(
        "Network.emulateNetworkConditions",
        {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 150_000},
    )
    content = encode(Image.effect_noise((5000, 600), 200))
    page.set_input_files(
        "#photo input.files", {"name": "large.png", "mimeType": "image/png", "buffer": content}
    )
    expect(page.locator("#photo .status")).to_have_text(re.compile(r"^Sending, \d+ %$"))
    expect(page.locator("#photo .status")).to_have_text("Reduced to 4096 × 492 px")
    content = encode(Image.new("RGB", (120, 90)), "BMP")
    page.set_input_files(
        "#photo input.files", {"name": "small.bmp", "mimeType": "image/bmp", "buffer": content}
    )
    expect(page.locator("#photo .status")).to_have_text("120 × 90 px")


@pytest.mark.parametrize(
    ("start", "words"),
    [(150.0, "Ready in about 3 min (15 ahead of you)"), (None, "15 ahead of you.")],
    ids=["known", "unknown"],
)
def test_the_estimate_says_when_the_painting_is_ready(
    open_page: OpenPage, start: float | None, words: str
) -> None:
    def estimate(route: Any) -> None:
        queue = {"position": 15, "start_seconds": start}
        route.fulfill(json={"seconds": 30, "queue": queue, "refused": None})

    page = open_page("/livez")
    page.route("**/v1/estimate", estimate)
    page.goto("/")
    page.hover("#submit-job")

    expect(page.locator("#estimate")).to_have_text(words)


def test_a_drop_on_a_result_begins_a_new_painting_and_a_painted_png_restores_its_settings(
    open_page: OpenPage, shared_service: Any, unusual_job: Any, image_files: dict[str, Path]
) -> None:
    page = open_page(f"/j/{unusual_job.id}")
    expect_end(page)
    page.route("**/v1/images/*", lambda route: route.abort())
    drop(page, "painted.png", shared_service.client.result(unusual_job.id))
    expect(page.locator("#toast")).to_contain_text("The service does not answer.")
    page.unroute_all()
    page.go_back()
    expect_end(page)
    drop(page, "dropped.png", image_files["painting.png"].read_bytes())
    expect(page.locator("#submit-view")).to_be_visible()
    expect(page.locator("#photo [aria-pressed=true] .name")).to_have_text("dropped")
    expect(page.locator("#toast")).to_contain_text("Added as photo.")
    drop(page, "wrong.png", b"wrong")
    expect(page.locator("#photo .error")).to_contain_text("wrong.png: ")
    expect(page.locator("#photo [aria-pressed=true] .name")).to_have_text("dropped")
    assert "Added as photo." not in page.locator("#toast").text_content()

    drop(page, "painted.png", shared_service.client.result(unusual_job.id))
    expect(page.locator("#toast")).to_contain_text("settings of this painting are restored")
    expect(page.locator("#parameter-strength")).to_have_attribute("aria-valuetext", "33 %")
    page.click("#submit-job")
    page.wait_for_url(lambda url: "/j/job_" in url and unusual_job.id not in url)
    repeated = shared_service.client.job(page.url.rpartition("/")[2])
    assert repeated.input == unusual_job.input


def test_a_file_over_the_page_shows_where_it_may_be_dropped(open_page: OpenPage) -> None:
    page = open_page()
    script = """(selector) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File(["x"], "x.png", { type: "image/png" }));
        document.querySelector(selector).dispatchEvent(new DragEvent("dragover", {
            bubbles: true, cancelable: true, dataTransfer: transfer }));
    }"""
    page.evaluate(script, "#stage")
    expect(page.locator(".drop-note")).to_be_visible()
    page.evaluate(script, "#style h2")
    outline = page.locator("#style").evaluate("(part) => getComputedStyle(part).outlineStyle")
    assert outline == "dashed"


def test_every_style_shows_its_own_painting_and_all_can_be_tried_at_once(
    open_page: OpenPage, image_files: dict[str, Path]
) -> None:
    page = open_page()
    page.locator("#style .sample button").nth(2).click()
    expect(page.locator("#stage img.after")).to_have_attribute("src", re.compile("harbor-woodcut"))
    page.locator("#photo .sample button").nth(1).click()
    expect(page.locator("#stage img.after")).to_have_attribute("src", re.compile("pears-woodcut"))

    sent: list[Any] = []

    def record(route: Any) -> None:
        body = route.request.post_data_json
        sent.append(body)
        body["spec"] |= {"size": 64, "iterations": 2, "scales": 1}
        route.continue_(post_data=json.dumps(body))

    page.route("**/v1/batches", record)
    expect(page.locator("#style-card")).to_be_hidden()
    page.set_input_files("#photo input.files", image_files["rotated.jpg"])
    expect(page.locator("#style-card img")).to_have_count(1)
    expect(page.locator("#stage img.after")).not_to_have_attribute("src", re.compile("."))
    page.click("#try-all")
    expect(page.locator("#batch-tiles .painted")).to_have_count(8)
    expect(page.locator("#batch-status")).to_contain_text("Pick the one you like")
    assert (len(sent[0]["styles"]), sent[0]["spec"]["quality"]) == (8, "draft")
    page.locator("#batch-tiles button").nth(4).click()
    expect(page.locator("#batch")).to_be_hidden()
    expect(page.locator("#stage img.after")).to_have_attribute("src", re.compile("^blob:"))
    expect(page.locator("#style [aria-pressed=true] .name")).to_have_text("Ink")

    page.click("#try-all")
    page.set_input_files("#photo input.files", image_files["painting.png"])
    expect(page.locator("#photo .status")).to_have_text("96 × 75 px")
    page.locator("#batch-tiles button").nth(4).click()
    expect(page.locator("#stage img.before")).to_have_js_property("naturalWidth", 96)
    expect(page.locator("#stage img.after")).not_to_have_attribute("src", re.compile("."))


def test_a_draft_that_is_deleted_meanwhile_moves_no_other(open_page: OpenPage) -> None:
    page = open_page()
    page.route(
        "**/v1/images",
        lambda route: route.fulfill(
            status=201, json={"id": f"sha256:{0:064}", "width": 640, "height": 480}
        ),
    )
    states = ["failed", "canceled", *["expired"] * 6]
    jobs = [
        {"id": f"job_{i}", "status": status, "outputs": [], "links": {}}
        for i, status in enumerate(states)
    ]
    answers = [[{**job, "status": "queued"} for job in jobs], jobs[1:]]
    page.route(
        "**/v1/batches*",
        lambda route: route.fulfill(
            status=201, json={"jobs": answers.pop(0), "links": {"self": "v1/batches?id"}}
        ),
    )
    page.click("#try-all")
    status = page.locator("#batch-tiles .status")
    expect(status).to_have_text(["Waiting", "Canceled", *["Expired"] * 6])
    page.press("#batch-close", "Enter")
    expect(page.locator("#try-all")).to_be_focused()


def test_dates_are_in_the_language_of_the_page(open_page: OpenPage, unusual_job: Any) -> None:
    page = open_page(f"/j/{unusual_job.id}", locale="de-DE")
    expect_end(page)

    expect(page.locator("#retention")).to_have_text(re.compile(r"^Kept until \w+ \d+, \d{4} at "))

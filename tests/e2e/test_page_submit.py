"""The page in a real browser with the real service: images, parameters, submission."""

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from page_actions import (
    OpenPage,
    PausedRequests,
    change_form,
    choose_examples,
    choose_files,
    expect,
    expect_end,
    needs_chromium,
    open_group,
    respond_with_error,
    set_parameters,
    submit_job,
)
from PIL import Image

from core.images import codec

pytestmark = [pytest.mark.e2e, needs_chromium]


def test_two_files_become_a_result_that_is_compared_and_downloaded(
    open_page: OpenPage, image_files: dict[str, Path]
) -> None:
    page = open_page()
    choose_files(page, image_files["rotated.jpg"], image_files["painting.png"])
    image = page.locator("#stage img.before")
    expect(page.locator("#photo .status")).to_have_text("72 × 96 px")
    assert tuple(image.evaluate("image => [image.naturalWidth, image.naturalHeight]")) == (72, 96)

    with page.expect_request(re.compile(r"/result\?format=webp&width=256$")):  # of the tile
        submit_job(page, size=96, iterations=60)
        expect(page.locator("#progress")).to_have_attribute("value", re.compile(r"\d+"))
        expect(page.locator("#stage img.after")).to_have_attribute("src", re.compile("^blob:"))
        page.locator("#chart summary").click()
        expect(page.locator("#chart path").first).to_be_visible()
        assert re.match(r"\d+ % · Impasto", page.title())
        expect_end(page)

    assert tuple(
        page.locator("#stage img.after").evaluate(
            "image => [image.naturalWidth, image.naturalHeight]"
        )
    ) == (72, 96)
    page.focus("#divider")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.input_value("#divider") == "1"
    with page.expect_download() as result:
        page.click("#download")
    page.select_option("#format", "jpeg")
    page.locator("#blend").fill("40")
    with page.expect_download() as blend:
        page.click("#download")
    pictures = [Image.open(download.value.path()).convert("RGB") for download in (result, blend)]
    assert [picture.size for picture in pictures] == [(72, 96)] * 2
    assert pictures[1].tobytes() != pictures[0].tobytes()


SEND_FILES = """async ([kind, names]) => {
    const transfer = new DataTransfer();
    for (const name of names) {
        const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 48 });
        const context = canvas.getContext("2d");
        context.fillStyle = name === "one.png" ? "red" : "blue";
        context.fillRect(0, 0, 40, 30);
        const blob = await new Promise((done) => canvas.toBlob(done));
        transfer.items.add(new File([blob], name, { type: "image/png" }));
    }
    const options = { bubbles: true, cancelable: true };
    document.body.dispatchEvent(kind === "drop"
        ? new DragEvent(kind, { ...options, dataTransfer: transfer })
        : new ClipboardEvent(kind, { ...options, clipboardData: transfer }));
}"""


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_dropped_or_pasted_files_become_photo_and_style_with_a_painted_mask(
    open_page: OpenPage, shared_service: Any, kind: str
) -> None:
    page = open_page()
    expect(page.locator("#style .sample")).to_have_count(8)
    if kind == "drop":
        page.evaluate(SEND_FILES, [kind, ["one.png", "two.png"]])
    else:
        page.evaluate(SEND_FILES, [kind, ["two.png"]])
        page.click("#toast button")
        page.evaluate(SEND_FILES, [kind, ["one.png"]])
    expect(page.locator("#photo [aria-pressed=true] .name")).to_have_text("one")
    expect(page.locator("#style [aria-pressed=true] .name")).to_have_text("two")

    page.click("#open-mask")
    box = page.locator("#mask-layer").bounding_box()
    x, y = box["x"] + box["width"] / 10, box["y"] + box["height"] / 10
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 30, y)
    page.mouse.up()
    page.click("#mask-done")
    address = submit_job(page)
    expect_end(page)
    (mask,) = shared_service.client.job(address.rpartition("/")[2]).input.masks
    drawn = codec.decode(shared_service.client.image(mask), mask=True).convert("L")
    assert (drawn.size, drawn.getpixel((52, 38)), drawn.getpixel((400, 300))) == (
        (512, 384),
        255,
        0,
    )


def test_a_file_that_is_no_image_is_refused_and_a_hostile_file_name_is_shown_as_text(
    open_page: OpenPage, image_files: dict[str, Path]
) -> None:
    page = open_page()
    hostile = next(path for name, path in image_files.items() if "onerror" in name)
    page.set_input_files("#style input.files", image_files["not an image.png"])
    expect(page.locator("#style .error")).to_contain_text(
        "not an image.png: This isn’t a JPEG, PNG"
    )
    expect(page.locator("#style .own")).to_have_count(0)
    expect(page.locator("#style [aria-pressed=true] .name")).to_have_text("Brush strokes")
    page.set_viewport_size({"width": 375, "height": 667})
    page.set_input_files("#photo input.files", image_files["not an image.png"])
    error = page.locator("#photo .error")
    expect(error).to_be_visible()
    box = error.bounding_box()
    assert box["y"] + box["height"] <= page.locator(".action-bar").bounding_box()["y"]
    page.set_viewport_size({"width": 1280, "height": 800})

    choose_files(page, hostile, hostile)
    expect(page.locator("#photo .own .name")).to_have_text(hostile.stem)
    submit_job(page)
    expect(page.locator("#canvas-title")).to_contain_text(hostile.stem)
    expect_end(page)
    page.click("text=New painting")
    expect(page.locator("#history-list .caption").first).to_contain_text(hostile.stem)
    assert page.locator("img[src=x]").count() == 0
    assert "hurt" not in page.title()


def test_a_picture_that_the_browser_cannot_read_is_shown_all_the_same(
    open_page: OpenPage, photo: Image.Image, shared_service: Any
) -> None:
    """As the service's copy: in the tile, on the canvas, and on the page of the job."""
    file = io.BytesIO()
    photo.save(file, "TIFF")
    page = open_page()
    expect(page.locator("#presets button").first).to_be_visible()
    upload = {"name": "scan.tiff", "mimeType": "image/tiff", "buffer": file.getvalue()}
    page.route("**/v1/images", lambda route: route.abort(), times=1)
    copies = PausedRequests(page, re.compile("width=(?!256$)"), "GET")
    page.set_input_files("#photo input.files", upload)
    copies.wait_for(page, 1)
    job_id = submit_job(page).rpartition("/")[2]
    copies.wait_for(page, 2)
    for route in copies.routes:
        route.continue_()
    page.unroute_all()
    expect(page.locator("#stage img.before")).to_have_js_property("naturalWidth", 96)
    page.go_back()
    for image in ("#stage img.before", "#photo .own img"):
        expect(page.locator(image)).to_have_js_property("naturalWidth", 96)
    page.go_forward()
    page.reload()
    expect(page.locator("#stage img.before")).to_have_js_property("naturalWidth", 96)
    shared_service.client.wait(job_id)


def test_a_parameter_out_of_range_is_shown_and_a_hidden_field_does_not_block_the_form(
    open_page: OpenPage,
) -> None:
    page = open_page()
    choose_examples(page)
    set_parameters(page, size=9000, iterations=9999)
    page.select_option("#parameter-size", "256")
    page.locator("#group-start summary").click()
    expect(page.locator("#parameter-iterations")).to_be_hidden()
    page.click("#submit-job")
    expect(page.locator("#parameter-iterations")).to_be_focused()

    page.fill("#parameter-iterations", "2")
    page.click("#submit-job")
    page.wait_for_url(re.compile("/j/job_"))
    expect_end(page)


def test_a_submission_whose_response_is_lost_is_one_job(
    open_page: OpenPage, shared_service: Any
) -> None:
    def lose_response(route: Any) -> None:
        route.fetch()
        route.abort()

    page = open_page()
    choose_examples(page)
    expect(page.locator("#estimate")).to_contain_text("Ready in about")
    before = {job.id for job in shared_service.client.jobs()}
    page.route("**/v1/jobs", lose_response, times=1)
    address = submit_job(page)
    expect_end(page)

    assert {job.id for job in shared_service.client.jobs()} - before == {address.rpartition("/")[2]}


def test_an_upload_is_retried_and_shows_why(
    open_page: OpenPage, image_files: dict[str, Path]
) -> None:
    page = open_page()
    page.route("**/v1/images", lambda route: route.abort(), times=1)
    page.route("**/v1/images", respond_with_error("storage_full", "The disk is full."), times=1)
    page.set_input_files("#photo input.files", image_files["rotated.jpg"])
    expect(page.locator("#photo .status")).to_have_text("The disk is full. This page keeps trying.")
    page.locator("#photo .own .remove").focus()
    expect(page.locator("#photo .status")).to_have_text("72 × 96 px")

    expect(page.locator("#photo .own .remove")).to_be_focused()


@pytest.mark.parametrize("connection", [{"effectiveType": "3g"}, {"saveData": True}, None])
def test_a_large_photo_is_reduced_for_a_slow_connection_only(
    open_page: OpenPage, shared_service: Any, connection: dict[str, Any] | None
) -> None:
    """Upright as it was, and whole for a painting that is larger than the copy."""

    def choose(kind: str, size: tuple[int, int], **options: Any) -> str:
        file = io.BytesIO()
        Image.effect_noise(size, 60).convert("RGB").save(file, kind, **options)
        content = {"name": "a", "mimeType": f"image/{kind.lower()}", "buffer": file.getvalue()}
        page.set_input_files("#photo input.files", content)
        expect(page.locator("#photo .status")).to_have_text(re.compile(r"\d+ × \d+ px"))
        return str(page.locator("#photo .status").text_content())

    page = open_page("/livez")
    page.add_init_script(
        "Object.defineProperty(navigator, 'connection', { configurable: true, value: "
        f"{json.dumps(connection or {'effectiveType': '4g', 'saveData': False})} }})"
    )
    page.goto("/")
    expect(page.locator("#presets button").first).to_be_attached()
    exif = Image.Exif()
    exif[0x0112] = 6
    status = choose("JPEG", (2400, 1200), exif=exif, quality=95)
    if connection is None:
        assert status == "1200 × 2400 px"
        return
    assert status == "Reduced to 1024 × 2048 px to save data"
    sent: list[Any] = []

    def record(route: Any) -> None:
        sent.append(route.request.post_data_json["content"])
        route.fulfill(status=422, json={"code": "bad_spec", "detail": "Not now."})

    page.route("**/v1/jobs", record)
    page.click("#submit-job")
    expect(page.locator("#submit-error")).to_have_text("Not now.")
    set_parameters(page, size=2200)
    page.click("#submit-job")
    expect(page.locator("#photo .status")).to_have_text("1200 × 2400 px")
    expect(page.locator("#submit-error")).to_have_text("Not now.")
    sizes = [codec.decode(shared_service.client.image(digest)).size for digest in sent]
    assert sizes == [(1024, 2048), (1200, 2400)]
    assert choose("PNG", (2100, 400)) == "2100 × 400 px"
    assert choose("JPEG", (2000, 400)) == "2000 × 400 px"


def test_several_files_at_once_are_mixed(open_page: OpenPage, image_files: dict[str, Path]) -> None:
    page = open_page()
    choose_files(
        page, image_files["rotated.jpg"], image_files["painting.png"], image_files["rotated.jpg"]
    )

    expect(page.locator("#mix-styles")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#style-weights input")).to_have_count(2)


def test_a_preset_sets_the_parameters_of_the_job(open_page: OpenPage, shared_service: Any) -> None:
    page = open_page()
    choose_examples(page)
    page.get_by_role("button", name="Brushwork").click()
    assert page.locator("#main-parameters output").all_text_contents() == ["75 %", "1.6×"]
    expect(page.locator("#presets [aria-pressed=true]")).to_have_text("Brushwork")
    assert page.locator("#parameter-preset").count() == 0
    address = submit_job(page)
    expect(page.locator("#presets [aria-pressed=true]")).to_have_count(0)
    expect_end(page)

    spec = shared_service.client.job(address.rpartition("/")[2]).input.spec
    assert (spec["strength"], spec["style_scale"]) == (0.75, 1.6)


def test_another_objective_has_its_own_defaults_and_keeps_what_the_user_chose(
    open_page: OpenPage,
) -> None:
    page = open_page()
    expect(page.locator("#group-network")).to_be_visible()
    open_group(page, "network")
    names = ("style_weight", "content_layers", "pooling")

    def values() -> list[str]:
        return [page.input_value(f"#parameter-{name}") for name in names]

    page.select_option("#parameter-objective", "gatys")
    assert values() == ["1000000", "relu4_2=1", "max"]
    page.select_option("#parameter-pooling", "average")
    page.select_option("#parameter-objective", "relative")
    assert values() == ["26", "relu2_1=1,relu4_2=1", "average"]


def test_too_many_styles_cause_a_message(open_page: OpenPage, image_files: dict[str, Path]) -> None:
    """The service reports the maximum."""
    page = open_page()
    expect(page.locator("#presets button").first).to_be_visible()
    choose_files(page, image_files["rotated.jpg"], *[image_files["painting.png"]] * 12)

    expect(page.locator("#style .error")).to_have_text("At most 8: the rest was left out.")
    expect(page.locator("#style-weights input")).to_have_count(8)


def test_a_deleted_file_is_refused_and_not_retried_forever(
    open_page: OpenPage, image_files: dict[str, Path], tmp_path: Path
) -> None:
    """The same holds for a dropped folder: the browser gives it as a file that cannot be read."""
    moved = tmp_path / "moved.png"
    shutil.copy(image_files["painting.png"], moved)
    page = open_page()
    page.route("**/v1/images", lambda route: route.abort(), times=1)
    page.set_input_files("#photo input.files", moved)
    expect(page.locator("#photo .status")).to_contain_text("keeps trying")
    moved.unlink()

    expect(page.locator("#photo .error")).to_contain_text("moved.png: It cannot be read.")
    expect(page.locator("#photo .own")).to_have_count(0)


def test_the_operators_limits_are_shown_with_the_time(open_page: OpenPage) -> None:
    def lower(form: dict[str, Any]) -> None:
        form["limits"] |= {"max_size": 768, "max_iterations": 90, "max_job_seconds": 120}

    page = open_page("/livez")
    change_form(page, lower)
    page.goto("/")
    expect(page.locator("#job-limits")).to_have_text(
        "At most 768 px, 90 iterations at one size, 2 min."
    )

"""What the canvas shows, and when: never a flash, never another job's picture, sharp samples."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from page_actions import (
    OpenPage,
    choose_files,
    end_toasts,
    expect,
    expect_end,
    needs_chromium,
    submit_job,
    tile_of,
)

pytestmark = [pytest.mark.e2e, needs_chromium]

# Notes every change of the painting's address at which the image has no pixels, and the addresses.
WATCH_PAINTING = """() => {
    const image = document.querySelector("#stage img.after");
    window.empty = 0;
    window.shown = new Set();
    new MutationObserver(() => {
        window.shown.add(image.src);
        if (!image.naturalWidth) window.empty++;
    }).observe(image, { attributeFilter: ["src"] });
}"""
WATCH_OBJECT_URLS = """
    window.urls = new Set();
    const { createObjectURL, revokeObjectURL } = URL;
    URL.createObjectURL = (blob) => {
        const url = createObjectURL(blob);
        urls.add(url);
        return url;
    };
    URL.revokeObjectURL = (url) => { urls.delete(url); revokeObjectURL(url); };
"""
# Object URLs that no image of the document shows.
COUNT_UNUSED_URLS = """() => [...urls]
    .filter((url) => !document.querySelector(`img[src="${url}"]`)).length"""
# Notes the greatest value that the divider has had.
WATCH_DIVIDER = """
    window.furthest = 0;
    const note = () => {
        const { value } = document.querySelector("#divider") ?? { value: 0 };
        window.furthest = Math.max(window.furthest, value);
        requestAnimationFrame(note);
    };
    note();
"""


def test_previews_and_frames_replace_each_other_without_an_empty_canvas(
    open_page: OpenPage, unusual_job: Any
) -> None:
    """The bare photo between them would flash, as often as there are pictures."""
    page = open_page()
    submit_job(page, size=96, iterations=1000)
    expect(page.locator("#stage img.after")).to_have_attribute("src", re.compile("^blob:"))
    page.evaluate(WATCH_PAINTING)
    page.wait_for_function("() => window.shown.size > 3")
    assert page.evaluate("window.empty") == 0
    page.click("#cancel")
    expect(page.locator("#toast")).to_contain_text("The painting is canceled.")

    page.goto(f"/j/{unusual_job.id}")
    expect_end(page)
    expect(page.locator("#frames")).to_be_visible()
    page.evaluate(WATCH_PAINTING)
    start = page.evaluate("performance.now()")
    page.click("#play")
    expect(page.locator("#play")).to_have_accessible_name("Pause")
    expect(page.locator("#play")).to_have_accessible_name("Time-lapse")
    frames = int(page.get_attribute("#frame", "max"))
    assert page.evaluate("window.shown.size") >= frames, "it shows each frame"
    assert page.evaluate("window.empty") == 0
    took = page.evaluate("performance.now()") - start
    assert took / frames > 200 or took > 3000, "slow enough to be seen"


@pytest.mark.parametrize("answer", ["none", "404"])
def test_a_job_whose_pictures_do_not_come_shows_none_of_another(
    open_page: OpenPage, unusual_job: Any, answer: str
) -> None:
    page = open_page()
    expect(page.locator("#stage img.after")).to_have_attribute("src", re.compile("harbor"))
    page.route(
        "**/v1/images/*",
        lambda route: route.abort() if answer == "none" else route.fulfill(status=404, json={}),
    )
    page.evaluate("(id) => history.pushState(null, '', `/j/${id}`)", unusual_job.id)
    page.evaluate("dispatchEvent(new Event('popstate'))")
    expect(page.locator("#status")).to_have_text("Done")

    images = page.locator("#stage img")
    assert not [
        src for src in images.evaluate_all("all => all.map(({ src }) => src)") if "harbor" in src
    ]


def test_the_bar_of_a_job_that_waits_moves(open_page: OpenPage, unusual_job: Any) -> None:
    page = open_page(f"/j/{unusual_job.id}")
    expect_end(page)
    bar = page.locator("#progress")
    bar.evaluate("(bar) => { bar.hidden = false; bar.removeAttribute('value'); }")
    first = bar.screenshot()
    page.wait_for_timeout(300)
    assert bar.screenshot() != first


def test_a_watched_painting_appears_whole_and_nothing_moves_then(open_page: OpenPage) -> None:
    page = open_page()
    submit_job(page, size=64, iterations=40)
    expect(page.locator("#status")).not_to_have_text("Loading")  # until then the sample is shown
    page.evaluate(WATCH_DIVIDER)
    expect_end(page)
    expect(page.locator("#stage")).not_to_have_attribute("aria-busy", "true")
    page.wait_for_timeout(300)
    assert page.evaluate("window.furthest") == 0


def test_the_sample_becomes_sharp_where_the_screen_has_the_pixels(open_page: OpenPage) -> None:
    """The small file comes first; after it, one with at least the pixels of the screen."""
    page = open_page()
    painting = page.locator("#stage img.after")
    expect(painting).to_have_attribute("src", re.compile("harbor-strokes-large.webp"))
    expect(page.locator("#stage img.before")).to_have_attribute("src", re.compile("photo-large"))
    assert painting.evaluate("(image) => image.naturalWidth / image.clientWidth") > 1.5
    page.wait_for_function("() => document.querySelector('#divider').value === '35'")

    requests: list[str] = []
    page = open_page("/livez", width=900)  # its canvas has fewer pixels than the small file
    page.on("request", lambda request: requests.append(request.url))
    page.goto("/")
    expect(painting_of(page)).to_have_js_property("naturalWidth", 512)
    page.wait_for_load_state("networkidle")
    assert not [url for url in requests if "large" in url]


def painting_of(page: Any) -> Any:
    return page.locator("#stage img.after")


# ---------------------------------------------------------------------- the user's pictures


def test_a_reload_keeps_all_pictures_of_the_user(
    open_page: OpenPage, unusual_job: Any, image_files: dict[str, Path], until: Any
) -> None:
    page = open_page()
    choose_files(page, image_files["rotated.jpg"], image_files["painting.png"])
    page.set_input_files("#photo input.files", image_files["painting.png"])
    page.locator("#style .sample button").first.click()
    expect(page.locator("#photo .own")).to_have_count(2)
    expect(page.locator("#photo .uploading, #style .uploading")).to_have_count(0)
    load = """async () => JSON.stringify(
        await import("./web/drafts.js").then(({ loadDraft }) => loadDraft("own")) ?? null)"""
    until(lambda: page.evaluate(load).count("sha256:") == 3, "the pictures are saved")
    choice = load.replace('"own"', '"current"')
    until(lambda: '"id":"strokes"' in page.evaluate(choice), "the choice is saved")
    page.reload()

    names = page.locator("#photo .own .name")
    expect(names).to_have_text(["painting", "rotated"])
    expect(page.locator("#style .own .name")).to_have_text(["painting"])
    expect(page.locator("#photo [aria-pressed=true] .name")).to_have_text("painting")
    expect(page.locator("#style [aria-pressed=true] .name")).to_have_text("Brush strokes")
    page.locator("#photo .own").nth(1).locator("button").first.click()
    page.locator("#photo .own").first.locator(".remove").click(force=True)
    page.click("#toast button")
    expect(names).to_have_text(["rotated", "painting"])
    expect(page.locator("#photo [aria-pressed=true] .name")).to_have_text("rotated")
    page.locator("#photo .own").nth(1).locator(".remove").click(force=True)
    until(lambda: page.evaluate(load).count("sha256:") == 2, "what is removed is removed")
    page.reload()
    expect(names).to_have_text(["rotated"])

    page.goto(f"/j/{unusual_job.id}")
    expect_end(page)
    page.click("#reuse")
    expect(page.locator("#submit-view")).to_be_visible()
    expect(names).to_have_text(["rotated"])
    expect(page.locator("#style .own .name")).to_have_text(["painting"])


def test_a_picture_that_is_removed_is_not_kept_in_memory(
    open_page: OpenPage, image_files: dict[str, Path], until: Any
) -> None:
    page = open_page("/livez")
    page.add_init_script(WATCH_OBJECT_URLS)
    page.goto("/")
    page.set_input_files("#photo input.files", image_files["rotated.jpg"])
    expect(page.locator("#photo .status")).to_have_text("72 × 96 px")
    page.locator("#photo .own .remove").click(force=True)
    until(lambda: page.evaluate(COUNT_UNUSED_URLS) == 0, "its address is gone")
    page.click("#toast button")
    expect(page.locator("#photo .own img")).to_have_js_property("naturalWidth", 72)
    expect(page.locator("#stage img.before")).to_have_js_property("naturalWidth", 72)


# ---------------------------------------------------------------------- names and places


def test_a_browser_that_knows_no_names_names_jobs_by_samples_and_date(
    open_page: OpenPage, unusual_job: Any
) -> None:
    page = open_page()
    page.locator("#style .sample button").nth(2).click()
    job_id = submit_job(page, size=64, iterations=2).rpartition("/")[2]
    expect_end(page)
    date = re.compile(r"^\w{3} \d+, \d+:\d\d.(A|P)M$")
    for name, title in ((unusual_job.id, date), (job_id, "Harbor × Woodcut")):
        page = open_page(f"/j/{name}")
        expect(page.locator("#canvas-title")).to_have_text(title)
    page.click("#reuse")
    expect(page.locator("#style .sample [aria-pressed=true]")).to_have_text("Woodcut")
    expect(page.locator(".tile.own")).to_have_count(0)


def test_cancel_returns_to_the_painting_where_the_job_was_begun(
    open_page: OpenPage, unusual_job: Any
) -> None:
    page = open_page(f"/j/{unusual_job.id}")
    expect_end(page)
    page.fill("#blend", "40")
    page.click("#another")
    page.wait_for_url(lambda url: "/j/" in url and unusual_job.id not in url)
    expect(page.locator("#status")).not_to_have_text("Loading")
    expect(page.locator("#blend")).to_have_value("100")
    page.click("#cancel")
    page.wait_for_url(f"**/j/{unusual_job.id}")
    expect(page.locator("#toast")).to_contain_text("The painting is canceled.")
    expect_end(page)


def test_the_style_is_shown_beside_a_photo_also_when_it_comes_late(
    open_page: OpenPage, unusual_job: Any, image_files: dict[str, Path]
) -> None:
    def expect_card() -> None:
        expect(page.locator("#style-card img")).to_have_js_property("complete", True)
        expect(page.locator("#style-card img")).not_to_have_js_property("naturalWidth", 0)

    page = open_page(f"/j/{unusual_job.id}")
    expect_end(page)
    page.click("#reuse")
    expect_card()
    page.goto("/")
    page.set_input_files("#style input.files", image_files["painting.png"])
    expect_card()
    page.wait_for_timeout(600)  # the draft is saved
    page.reload()
    expect_card()


def test_canceled_paintings_leave_the_strip_unless_the_user_keeps_them(
    open_page: OpenPage, shared_service: Any
) -> None:
    page, client = open_page(), shared_service.client
    jobs = []
    for keeps in (False, True):
        submit_job(page, size=64, iterations=4000)
        jobs.append(page.url.rpartition("/")[2])
        expect(page.locator("#stop")).to_be_enabled()
        page.click("text=New painting")
        page.locator("#parameter-strength").fill("0.9")
        page.go_back()
        expect(page.locator("#stop")).to_be_enabled()
        page.click("#cancel")
        expect(page.locator("#toast")).to_contain_text("The painting is canceled.")
        expect(page.locator("#submit-view")).to_be_visible()
        expect(page.locator("#parameter-strength")).to_have_value("0.9")
        expect(tile_of(page, jobs[-1])).to_have_count(0)
        if keeps:
            page.click("#toast button")
            expect_end(page, "Finished early")
            expect(tile_of(page, jobs[-1]).locator(".status")).to_have_text("Finished early")
        else:
            end_toasts(page)
    assert client.job(jobs[1]).status == "canceled"
    assert jobs[0] not in [job.id for job in client.jobs()]

    for name, is_there in (("done", True), ("ended", False), ("all", True)):
        page.select_option("#history-filter", name)
        expect(tile_of(page, jobs[1])).to_have_count(int(is_there))
    client.delete(jobs[1])


def test_drafts_in_all_styles_are_shown_again_until_something_changes(
    open_page: OpenPage, shared_service: Any
) -> None:
    page, client = open_page(), shared_service.client
    batches: list[Any] = []

    def record(route: Any) -> None:
        body = route.request.post_data_json
        body["spec"] |= {"size": 64, "iterations": 2, "scales": 1}
        answer = route.fetch(post_data=json.dumps(body))
        batches.append(answer.json())
        route.fulfill(response=answer)

    page.route("**/v1/batches", record)
    for start in (page.locator("#style .sample button").nth(3), page.locator("#try-all")):
        with page.expect_response("**/v1/estimate"):  # it tells what is ahead
            start.click()
    for close in (page.go_back, page.locator("#batch-tiles button").nth(2).click, page.go_back):
        expect(page.locator("#batch-status")).to_contain_text("Pick the one you like")
        expect(page.locator("#batch-tiles .painted")).to_have_count(8)
        close()
        expect(page.locator("#batch")).to_be_hidden()
        page.click("#try-all")
    expect(page.locator("#batch-tiles .painted")).to_have_count(8)
    assert len(batches) == 1
    page.go_back()

    client.delete(batches[0]["jobs"][3]["id"])
    page.click("#try-all")
    expect(page.locator("#batch-status")).to_contain_text("Pick the one you like")
    assert len(batches) == 2, "one is missing, so all are painted again"
    for batch in batches:
        client.delete_batch(batch["id"])


def test_a_preview_that_comes_while_its_photo_is_decoded_has_the_right_shape(
    open_page: OpenPage,
) -> None:
    page = open_page()
    expect(painting_of(page)).to_have_js_property("complete", True)
    show_both = """async () => {
        const { src } = document.querySelector("script[type=module]");
        const { Viewer } = await import(new URL("viewer.js", src));
        const viewer = new Viewer(), canvas = new OffscreenCanvas(72, 96);
        canvas.getContext("2d");
        const photo = await canvas.convertToBlob(), preview = await canvas.convertToBlob();
        viewer.showPhoto(photo, "");
        await viewer.showPainting(preview, "", { isFinal: false });
        return viewer.ratio;
    }"""
    assert page.evaluate(show_both) == 0.75

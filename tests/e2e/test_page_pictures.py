"""What the canvas shows, and when: never a flash, never another job's picture, sharp samples."""

import re
from pathlib import Path
from typing import Any

import pytest
from page_actions import (
    OpenPage,
    choose_files,
    expect,
    expect_end,
    needs_chromium,
    submit_job,
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
    expect(page.locator("#toast")).to_have_text("The painting is canceled.")

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


def test_a_watched_job_ends_with_one_look_back_at_the_photo(open_page: OpenPage) -> None:
    for motion, is_seen in (("no-preference", True), ("reduce", False)):
        page = open_page(reduced_motion=motion)
        submit_job(page, size=64, iterations=40)
        page.evaluate(WATCH_DIVIDER)
        expect_end(page)
        if is_seen:
            page.wait_for_function("() => window.furthest > 50")
        page.wait_for_function("() => document.querySelector('#divider').value === '0'")
        assert (page.evaluate("window.furthest") > 50) == is_seen

    page.evaluate("window.furthest = 0")
    own = page.url
    page.locator("#history-list li a").nth(1).click()
    page.wait_for_url(lambda url: "/j/" in url and url != own)
    expect(page.locator("#status")).to_have_text("Done")
    expect(page.locator("#stage img.after")).to_have_attribute("src", re.compile("^blob:"))
    assert page.evaluate("window.furthest") == 0, "only the end of a run is a moment"


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
    until(lambda: '"source":"strokes"' in page.evaluate(choice), "the choice is saved")
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


# ---------------------------------------------------------------------- names and places


def test_a_browser_that_knows_no_names_names_jobs_by_samples_and_date(
    open_page: OpenPage, unusual_job: Any
) -> None:
    page = open_page()
    page.locator("#style .sample button").nth(2).click()
    job_id = submit_job(page, size=64, iterations=2).rpartition("/")[2]
    expect_end(page)
    date = re.compile(r"^\w{3} \d+, \d+:\d\d.(A|P)M$")
    for name, title in ((job_id, "Harbor × Woodcut"), (unusual_job.id, date)):
        expect(open_page(f"/j/{name}").locator("#canvas-title")).to_have_text(title)


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
    expect(page.locator("#toast")).to_have_text("The painting is canceled.")
    expect_end(page)

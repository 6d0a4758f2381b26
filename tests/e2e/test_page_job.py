"""The page in a real browser with the real service: a job's page, the history, the API key."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_actions import (
    OpenPage,
    PausedRequests,
    choose_examples,
    choose_files,
    end_toasts,
    expect,
    expect_end,
    needs_chromium,
    respond_with_error,
    set_parameters,
    submit_job,
    tile_of,
)

from core.images import codec, validation

pytestmark = [pytest.mark.e2e, needs_chromium]


def test_a_running_job_survives_a_reload_and_a_new_tab_and_can_be_stopped(
    open_page: OpenPage,
) -> None:
    page = open_page()
    choose_examples(page)
    address = submit_job(page, size=128, iterations=3000)
    expect(page.locator("#stage img.after")).to_have_attribute("src", re.compile("^blob:"))
    page.reload()
    expect(page.locator("#status")).to_have_text("In progress")
    expect(page.locator("#stage img.after")).to_have_attribute("src", re.compile("^blob:"))
    page.close()
    page = page.context.new_page()
    page.goto("/")
    job_id = address.rpartition("/")[2]
    tile_of(page, job_id).locator("a").click()
    assert page.url == address

    page.click("#stop")
    expect_end(page, "Finished early")
    expect(page.locator("#download")).to_be_visible()
    page.go_back()
    expect(tile_of(page, job_id).locator(".status")).to_have_text("Finished early")


def test_the_page_follows_a_job_through_a_kill_of_the_api(
    open_page: OpenPage, shared_service: Any
) -> None:
    page = open_page()
    choose_examples(page)
    submit_job(page, size=96, iterations=150)
    expect(page.locator("#progress")).to_have_attribute("value", re.compile(r"\d+"))
    (api,) = shared_service.find("-m", "api")
    api.kill()
    api.wait()

    expect_end(page)
    expect(page.locator("#job-error")).to_be_hidden()


def test_a_job_is_repeated_with_its_mixture_and_its_result_becomes_a_style(
    open_page: OpenPage, image_files: dict[str, Path]
) -> None:
    page = open_page()
    choose_files(page, image_files["rotated.jpg"], image_files["painting.png"])
    page.click("#mix-styles")
    page.locator("#style .sample button").first.click()
    page.locator("#style-weights input").first.fill("25")
    expect(page.locator("#style-weights output").first).to_have_text("25 %")
    page.locator("#parameter-strength").fill("0.8")
    submit_job(page)
    expect_end(page)

    page.click("#reuse")
    expect(page.locator("#style [aria-pressed=true] .name")).to_have_count(2)
    assert page.locator("#style-weights output").all_text_contents() == ["25 %", "75 %"]
    assert tuple(
        page.input_value(f"#parameter-{name}") for name in ("strength", "iterations", "size-px")
    ) == ("0.8", "6", "64")
    page.click("#submit-job")
    page.wait_for_url(re.compile("/j/job_"))
    expect_end(page)
    page.click(".menu summary")
    page.click("#as-style")
    expect(page.locator("#submit-view")).to_be_visible()
    expect(page.locator("#style [aria-pressed=true] .name")).to_have_text("My painting")


MISSING_ID = "job_" + "a" * 26


def test_a_job_that_is_not_found_says_what_may_be_the_reason(open_page: OpenPage) -> None:
    page = open_page(f"/j/{MISSING_ID}")

    expect(page.locator("#status")).to_have_text("We can’t find this painting")
    expect(page.locator("#details")).to_contain_text("deleted, expired, or belong to another key")
    expect(page.locator("#announcement")).to_have_text("We can’t find this painting")
    expect(page.locator("#ended-controls")).to_be_hidden()


@pytest.mark.parametrize("fixture", ["unusual_job", "gatys_job"])
def test_a_repeated_job_and_the_curl_command_have_the_same_input(
    open_page: OpenPage, shared_service: Any, fixture: str, request: pytest.FixtureRequest
) -> None:
    first = request.getfixturevalue(fixture)
    page = open_page(f"/j/{first.id}")
    expect_end(page)
    page.click(".menu summary")
    page.click("#show-command")
    expect(page.locator("#command")).to_contain_text("curl")
    command = shlex.split(page.locator("#command").text_content().replace("\\\n", " "))
    by_curl = json.loads(subprocess.run([*command, "-s"], capture_output=True, check=True).stdout)
    page.click("#close-command")
    expect(page.locator(".menu summary")).to_be_focused()
    page.click("#reuse")
    expect(page.locator("#submit-view")).to_be_visible()
    page.click("#submit-job")
    page.wait_for_url(lambda url: "/j/job_" in url and first.id not in url)
    expect_end(page)

    repeated = shared_service.client.job(page.url.rpartition("/")[2])
    by_command = shared_service.client.job(by_curl["id"])
    assert [repeated.input, by_command.input] == [first.input] * 2


def test_edit_and_repaint_changes_nothing_once_the_user_has_gone_elsewhere(
    open_page: OpenPage, unusual_job: Any
) -> None:
    page = open_page(f"/j/{unusual_job.id}")
    expect_end(page)
    requests = PausedRequests(page, re.compile(r"/v1/images/[^?]+$"), "GET")
    page.click("#reuse")
    requests.wait_for(page, 2)
    page.click(".brand")
    page.locator("#parameter-strength").fill("0.9")
    for route in requests.routes:
        with page.expect_event("requestfinished"):
            route.continue_()
    page.wait_for_timeout(300)
    expect(page.locator("#parameter-strength")).to_have_value("0.9")
    expect(page.locator("#photo [aria-pressed=true]")).to_have_text("Harbor")


@pytest.fixture
def long_job(shared_service: Any, image_files: dict[str, Path]) -> Iterator[Any]:
    """A job that runs for as long as a test."""
    client = shared_service.client
    job = client.submit(
        image_files["rotated.jpg"],
        [image_files["painting.png"]],
        size=96,
        iterations=4000,
        scales=1,
    )
    yield job
    client.cancel(job.id)
    client.wait(job.id)


def test_on_a_slow_connection_previews_are_downloaded_one_at_a_time(
    open_page: OpenPage, shared_service: Any, long_job: Any, until: Any
) -> None:
    page = open_page("/livez")
    requests = PausedRequests(page, "**/preview", "GET")
    page.goto(f"/j/{long_job.id}")
    requests.wait_for(page, 1)
    first = shared_service.client.job(long_job.id).preview
    until(lambda: shared_service.client.job(long_job.id).preview != first, "another picture")
    page.wait_for_timeout(500)
    assert len(requests.routes) == 1
    requests.routes[0].continue_()

    expect(page.locator("#stage img.after")).to_have_js_property("complete", True)
    assert page.locator("#stage img.after").evaluate("image => image.naturalWidth") > 0
    requests.wait_for(page, 2)


@pytest.mark.parametrize("button", ["stop", "cancel"])
def test_a_response_about_one_job_does_not_change_the_page_of_another(
    open_page: OpenPage,
    shared_service: Any,
    unusual_job: Any,
    long_job: Any,
    until: Any,
    button: str,
) -> None:
    until(
        lambda: shared_service.client.job(long_job.id).version > unusual_job.version + 5,
        "a later version of the running job",
    )
    page = open_page(f"/j/{long_job.id}")
    expect(page.locator("#stop")).to_be_visible()
    requests = PausedRequests(page, "**/cancel", "POST")
    page.click(f"#{button}")
    requests.wait_for(page, 1)
    address = f"/j/{unusual_job.id}"
    page.evaluate(
        "address => {"
        "  history.pushState(null, '', address); dispatchEvent(new Event('popstate')); }",
        address,
    )
    expect_end(page)
    with page.expect_response("**/cancel"):
        requests.routes[0].continue_()
    if button == "cancel":
        expect(page.locator("#toast")).to_contain_text("The painting is canceled.")
    page.wait_for_timeout(300)

    assert (page.locator("#status").text_content(), page.title()) == ("Done", "Done · Impasto")
    expect(page.locator("#ended-controls")).to_be_visible()


def test_strength_updates_survive_failures_and_are_sent_one_at_a_time(
    open_page: OpenPage, shared_service: Any, long_job: Any, until: Any
) -> None:
    def strength() -> float:
        return float(shared_service.client.job(long_job.id).input.spec["strength"])

    page = open_page(f"/j/{long_job.id}")
    requests = PausedRequests(page, f"**/{long_job.id}", "PATCH")
    expect(page.locator("#strength-control")).to_be_visible()
    page.focus("#strength")
    page.keyboard.press("ArrowRight")
    requests.wait_for(page, 1)
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    requests.routes[0].abort()
    expect(page.locator("#job-error")).to_contain_text("keeps trying")
    requests.wait_for(page, 2)
    requests.routes[1].continue_()
    until(lambda: strength() == 0.75, "the last of five values")
    expect(page.locator("#job-error")).to_be_hidden()
    assert len(requests.routes) == 2

    page.unroute_all()
    (api,) = shared_service.find("-m", "api")
    api.kill()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#job-error")).to_contain_text("keeps trying")
    until(lambda: strength() == 0.7, "an update after the kill")
    expect(page.locator("#job-error")).to_be_hidden()
    expect(page.locator("#strength-control")).to_be_visible()
    page.reload()
    expect(page.locator("#strength")).to_have_value("0.7")
    expect(page.locator("#chart")).to_be_visible()


def test_result_frames_and_timelapse_are_fetched_again_after_failures(
    open_page: OpenPage, unusual_job: Any
) -> None:
    page = open_page("/livez")
    page.add_init_script("delete window.MediaRecorder")  # then the service makes the video
    for part in ("result", "frames"):
        page.route(f"**/{part}", lambda route: route.abort(), times=2)
    page.goto(f"/j/{unusual_job.id}")
    expect(page.locator("#job-error")).to_contain_text("keeps trying")
    expect_end(page)
    expect(page.locator("#job-error")).to_be_hidden()
    page.route(re.compile(r"/frames/\d+"), lambda route: route.abort(), times=1)
    page.click("#play")
    expect(page.locator("#play")).to_have_accessible_name("Pause")
    expect(page.locator("#play")).to_have_accessible_name("Time-lapse")
    expect(page.locator("#job-error")).to_be_hidden()
    page.locator("#frame").fill("0")
    expect(page.locator("output[for=frame]")).to_contain_text("/40")
    page.locator("#blend").fill("40")
    with page.expect_download() as blend:
        page.click("#download")
    page.route(
        "**/timelapse",
        respond_with_error("store_unavailable", "The store does not answer."),
        times=1,
    )
    page.click("#timelapse")
    expect(page.locator("#job-error")).to_have_text("The store does not answer.")
    with page.expect_download() as timelapse:
        page.click("#timelapse")
    expect(page.locator("#job-error")).to_be_hidden()

    assert codec.decode(Path(blend.value.path()).read_bytes()).size == (60, 80)
    assert validation.detect_format(Path(timelapse.value.path()).read_bytes()) == "webp"
    names = [blend.value.suggested_filename, timelapse.value.suggested_filename]
    assert re.fullmatch(r"impasto-\w+\.png", names[0])
    assert re.fullmatch(r"impasto-\w+-time-lapse\.webp", names[1]), "never the name of the still"


def test_frames_that_arrive_before_the_result_cause_no_error(
    open_page: OpenPage, unusual_job: Any
) -> None:
    page = open_page("/livez")
    requests = PausedRequests(page, "**/result", "GET")
    page.goto(f"/j/{unusual_job.id}")
    requests.wait_for(page, 1)
    expect(page.locator("#frames")).to_be_visible()
    expect(page.locator("output[for=frame]")).to_have_text("result")
    page.wait_for_timeout(300)
    assert page.locator("#job-error").is_hidden()
    requests.routes[0].continue_()
    expect_end(page)


def test_a_hidden_tab_closes_its_event_stream_and_opens_it_again(
    open_page: OpenPage, long_job: Any
) -> None:
    set_hidden = """hidden => {
        Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page = open_page("/livez")
    with page.expect_request("**/events"):
        page.goto(f"/j/{long_job.id}")
    expect(page.locator("#progress-text")).to_contain_text("iteration")
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/events")):
        page.evaluate(set_hidden, True)
    with page.expect_request("**/events"):
        page.evaluate(set_hidden, False)


def test_a_double_click_submits_once_and_a_job_deleted_elsewhere_shows_no_controls(
    open_page: OpenPage, shared_service: Any
) -> None:
    page = open_page()
    choose_examples(page)
    set_parameters(page, size=96, iterations=3000)
    before = {job.id for job in shared_service.client.jobs()}
    page.dblclick("#submit-job")
    page.wait_for_url(re.compile("/j/job_"))
    expect(page.locator("#progress")).to_have_attribute("value", re.compile(r"\d+"))
    (job_id,) = {job.id for job in shared_service.client.jobs()} - before
    shared_service.client.delete(job_id)

    expect(page.locator("#status")).to_have_text("We can’t find this painting")
    for part in ("running-controls", "progress", "canvas-progress", "chart", "viewer-tools"):
        expect(page.locator(f"#{part}")).to_be_hidden()
    assert page.title() == "We can’t find this painting · Impasto"


def test_a_job_deleted_elsewhere_can_be_deleted_here(
    open_page: OpenPage, shared_service: Any, image_files: dict[str, Path]
) -> None:
    client = shared_service.client
    job = client.submit(
        image_files["rotated.jpg"], [image_files["painting.png"]], size=64, iterations=2, scales=1
    )
    client.wait(job.id)
    page = open_page(f"/j/{job.id}")
    expect_end(page)
    expect(tile_of(page, job.id)).to_be_visible()
    client.delete(job.id)
    page.click(".menu summary")
    with page.expect_request(lambda request: request.method == "DELETE"):
        page.click("#delete")
        end_toasts(page)

    expect(page.locator("#submit-view")).to_be_visible()
    expect(tile_of(page, job.id)).to_have_count(0)
    expect(page.locator("#toast")).to_be_hidden()


def test_the_page_asks_for_a_required_key_and_keeps_it_in_the_tab(
    keyed_service: Any, open_page: OpenPage
) -> None:
    """The page fetches images and events with it."""
    service = keyed_service
    command = [sys.executable, "-m", "cli", "keys", "create", "Ada"]
    secret = subprocess.run(
        command, env=service.environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    page = open_page(url=service.url)
    page.fill("#key", "impasto_wrong")
    page.click("text=Use this key")
    expect(page.locator("#key-message")).to_contain_text("not recognized")
    set_parameters(page)
    page.click("#submit-job")
    expect(page.locator("#sending-state")).to_have_text("This service needs an API key.")
    expect(page.locator("#key")).to_be_focused()
    page.keyboard.type(secret)
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/j/job_"))  # the submission goes on by itself
    expect_end(page)
    page.reload()
    expect_end(page)

    assert secret not in page.content()
    stored = [f"{where}Storage.getItem('impasto key')" for where in ("local", "session")]
    assert [page.evaluate(script) for script in stored] == [None, secret]
    page.click("text=Forget my key")
    expect(page.locator("#key-form")).to_be_visible()
    assert [page.evaluate(script) for script in stored] == [None, None]

"""The page under hostile conditions: full storage, wrong clocks, no connection, huge inputs."""

import io
import itertools
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from api_process import ApiProcess
from page_actions import (
    OpenPage,
    PausedRequests,
    end_toasts,
    expect,
    expect_end,
    needs_chromium,
    tile_of,
)
from PIL import Image

from core.auth.api_keys import ApiKey, ApiKeyStore
from core.redis_client import PREFIX
from impasto import Client

pytestmark = [pytest.mark.e2e, needs_chromium]

MARKUP = "<svg onload=document.title='hurt'>&amp;{n}\u202e" + "<b>long</b>" * 15
RETURN_TO_TAB = "document.dispatchEvent(new Event('visibilitychange'))"
FULL = """() => {
    for (let size = 1 << 22; size; size >>= 1) {
        try { for (;;) localStorage.setItem(`full ${Math.random()}`, "x".repeat(size)); } catch {}
    }
    try { localStorage.setItem("more", "x".repeat(99)); } catch (error) { return error.name; }
}"""
FORBIDDEN = """
    const refuse = { get() { throw new DOMException("no", "SecurityError"); } };
    for (const name of ["localStorage", "sessionStorage", "indexedDB", "caches"]) {
        Object.defineProperty(window, name, refuse);
    }
"""
# Copies a job that has ended, with its indexes. KEYS: job, jobs_of, jobs_of:canceled, removable.
# ARGV: the beginning of a job's key, how many, a letter for the new ids.
COPY_JOBS = """
    local letters = 'abcdefghijklmnopqrstuvwxyz234567'
    for n = 2, tonumber(ARGV[2]) do
        local code, rest = '', n
        for _ = 1, 4 do
            code = string.sub(letters, rest % 32 + 1, rest % 32 + 1) .. code
            rest = math.floor(rest / 32)
        end
        local id = 'job_' .. string.rep(ARGV[3], 22) .. code
        redis.call('COPY', KEYS[1], ARGV[1] .. id)
        redis.call('HSET', ARGV[1] .. id, 'id', id, 'entry', n)
        for index = 2, 4 do redis.call('ZADD', KEYS[index], n, id) end
    end
"""


ID_LETTERS = itertools.cycle("abcdefgh")  # for the ids of each long history


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    """An API without a worker: its jobs wait until they are canceled."""
    with ApiProcess(tmp_path_factory.mktemp("api"), API_KEYS="required") as running:
        yield running


@pytest.fixture(scope="module")
def keys(api: ApiProcess) -> Iterator[ApiKeyStore]:
    store = ApiKeyStore(api.redis_url)
    yield store
    store.close()


@pytest.fixture
def caller(keys: ApiKeyStore) -> tuple[ApiKey, str]:
    """The key of this test and its secret."""
    return keys.create("Ada")


@pytest.fixture
def client(api: ApiProcess, caller: tuple[ApiKey, str]) -> Iterator[Client]:
    with Client(api.url, caller[1]) as running:
        yield running


@pytest.fixture
def visit(open_page: OpenPage, api: ApiProcess, caller: tuple[ApiKey, str]) -> OpenPage:
    """Open the page with the caller's key. `prepare` gets the page before its scripts run."""

    def open_with_key(address: str = "/", prepare: Any = None, **options: Any) -> Any:
        page = open_page("/docs", url=api.url, **options)
        page.evaluate("secret => sessionStorage.setItem('impasto key', secret)", caller[1])
        if prepare:
            prepare(page)
        page.goto(address)
        return page

    return open_with_key


@pytest.fixture
def cancel_job(client: Client, image_files: dict[str, Path]) -> Any:
    """A function that submits a job, cancels it and returns its id."""

    def cancel() -> str:
        job = client.submit(image_files["rotated.jpg"], [image_files["painting.png"]], size=64)
        return client.cancel(job.id).id

    return cancel


def _submit(page: Any) -> str:
    """Submit the form; return the id of the job, which waits."""
    expect(page.locator("#presets button").first).to_be_attached()
    page.click("#submit-job")
    page.wait_for_url(re.compile("/j/job_"))
    expect(page.locator("#cancel")).to_be_visible()
    return str(page.url.rpartition("/")[2])


def test_a_job_that_another_tab_deletes_leaves_this_one_at_once(
    visit: OpenPage, client: Client, cancel_job: Any
) -> None:
    shown, listed = cancel_job(), cancel_job()
    page = visit(f"/j/{shown}")
    expect(page.locator("#another")).to_be_visible()
    expect(tile_of(page, listed)).to_have_count(1)
    with page.expect_popup() as popup:
        page.evaluate("window.open('/')")  # with the key of this tab
    other = popup.value
    for job_id in (shown, listed):
        tile_of(other, job_id).locator("a").focus()
        other.keyboard.press("Delete")
    end_toasts(other)
    expect(page.locator("#status")).to_have_text("We can’t find this painting")
    expect(page.locator("#history-list li")).to_have_count(0)
    assert not [*client.jobs()]


def test_a_job_that_another_device_deletes_leaves_when_the_page_hears_of_it(
    visit: OpenPage, client: Client, cancel_job: Any
) -> None:
    shown, listed = cancel_job(), cancel_job()
    page = visit(f"/j/{shown}")
    expect(page.locator("#another")).to_be_visible()
    expect(tile_of(page, listed)).to_have_count(1)
    for job_id in (shown, listed):
        client.delete(job_id)
    page.evaluate(RETURN_TO_TAB)
    expect(tile_of(page, listed)).to_have_count(0)

    page.click("#another")
    expect(page.locator("#status")).to_have_text("We can’t find this painting")
    expect(page.locator("#ended-controls")).to_be_hidden()
    expect(tile_of(page, shown)).to_have_count(0)


def test_deletions_one_after_the_other_have_one_undo(
    visit: OpenPage, client: Client, cancel_job: Any, until: Any
) -> None:
    """As by a key that is held for too long."""
    ids = [cancel_job() for _ in range(3)]
    page = visit()
    for undoes in (True, False):
        tile_of(page, ids[2]).locator("a").focus()
        for _ in range(2):
            page.keyboard.press("Delete")
        expect(page.locator("#toast")).to_contain_text("2 paintings deleted.")
        expect(page.locator("#history-list li")).to_have_count(1)
        assert {job.id for job in client.jobs()} == {*ids}
        if undoes:
            page.click("#toast button")
            expect(page.locator("#history-list li")).to_have_count(3)
    end_toasts(page)
    until(lambda: [job.id for job in client.jobs()] == ids[:1], "both are deleted")


def test_the_estimate_follows_the_jobs_that_end_and_begin(
    visit: OpenPage, client: Client, image_files: dict[str, Path]
) -> None:
    def estimate(route: Any) -> None:
        position = sum(job.status == "queued" for job in client.jobs())
        queue = {"position": position, "start_seconds": 60}
        route.fulfill(json={"seconds": 30, "queue": queue, "refused": None})

    pictures = image_files["rotated.jpg"], [image_files["painting.png"]]
    jobs = [client.submit(*pictures, size=64).id for _ in range(2)]
    page = visit(prepare=lambda page: page.route("**/v1/estimate", estimate))
    page.hover("#submit-job")
    for count in (2, 1):
        expect(page.locator("#estimate")).to_contain_text(f"({count} ahead of you)")
        client.cancel(jobs.pop())
    expect(page.locator("#estimate")).to_have_text("Ready in about 2 min")


def test_what_is_canceled_while_it_waits_leaves_nothing_to_keep(
    visit: OpenPage, client: Client, until: Any
) -> None:
    page = visit()
    _submit(page)
    page.click("#cancel")
    expect(page.locator("#toast")).to_have_text("The painting is canceled.")
    expect(page.locator("#submit-view")).to_be_visible()
    until(lambda: not [*client.jobs()], "it is deleted")
    expect(page.locator("#history-list li")).to_have_count(0)


def test_a_deletion_is_not_lost_with_the_key(
    visit: OpenPage, client: Client, cancel_job: Any, until: Any
) -> None:
    job_id = cancel_job()
    page = visit()
    tile = tile_of(page, job_id)
    tile.locator("a").focus()
    page.keyboard.press("Delete")
    expect(tile).to_have_count(0)
    page.click("#forget-key")
    expect(page.locator("#key-form")).to_be_visible()
    until(lambda: not [*client.jobs()], "it is deleted")


def test_a_new_job_gets_its_tile_also_if_the_list_fails_at_first(visit: OpenPage) -> None:
    page = visit()
    expect(page.locator("#history-empty")).to_be_visible()
    page.route(re.compile(r"/v1/jobs[?]"), lambda route: route.abort(), times=1)

    expect(tile_of(page, _submit(page))).to_have_count(1)


@pytest.mark.parametrize("storage", ["full", "forbidden"])
def test_without_storage_the_page_works_until_it_is_closed(
    visit: OpenPage,
    api: ApiProcess,
    caller: tuple[ApiKey, str],
    image_files: dict[str, Path],
    storage: str,
) -> None:
    def prepare(page: Any) -> None:
        if storage == "forbidden":
            page.add_init_script(FORBIDDEN)
            return
        assert page.evaluate(FULL) == "QuotaExceededError"
        page.context.new_cdp_session(page).send(
            "Storage.overrideQuotaForOrigin", {"origin": api.url, "quotaSize": 1}
        )

    page = visit(prepare=prepare)
    if storage == "forbidden":
        page.fill("#key", caller[1])
        page.keyboard.press("Enter")
    page.set_input_files("#photo input.files", image_files["rotated.jpg"])
    expect(page.locator("#photo .status")).to_have_text("72 × 96 px")
    save = """async () => {
        const { loadDraft, saveDraft } = await import("./web/drafts.js");
        await saveDraft("test", () => "x".repeat(1 << 20));
        return loadDraft("test"); }"""
    assert page.evaluate(save) is None, "the database refuses"
    _submit(page)

    expect(page.locator("#canvas-title")).to_have_text("rotated × Brush strokes")


# The service may have many newer jobs.
SHOW_WHOLE_FILMSTRIP = """() => {
  const film = document.querySelector(".film");
  film.scrollTo(film.scrollWidth, 0);
  const has = (selector) => document.querySelector(selector);
  return has("#history-list li") && has("#history-more").hidden;
}"""


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_wrong_clock_changes_no_time_that_the_page_shows(
    open_page: OpenPage, unusual_job: Any, hours: int
) -> None:
    def read(page: Any) -> list[str]:
        expect_end(page)
        page.wait_for_function(SHOW_WHOLE_FILMSTRIP)
        expect(tile_of(page, unusual_job.id).locator(".status")).to_have_text(re.compile("Until"))
        texts = [page.locator(f"#{part}").inner_text() for part in ("details", "retention")]
        return [*texts, tile_of(page, unusual_job.id).inner_text()]

    page = open_page()
    page.clock.set_system_time(datetime.now(UTC) + timedelta(hours=hours))
    page.goto(f"/j/{unusual_job.id}")
    shifted = page.evaluate("Date.now()") / 1000
    assert shifted == pytest.approx(datetime.now(UTC).timestamp() + hours * 3600, abs=300)

    assert read(page) == read(open_page(f"/j/{unusual_job.id}"))


def test_ten_minutes_without_a_connection_lose_nothing(
    visit: OpenPage, client: Client, image_files: dict[str, Path]
) -> None:
    page = visit(prepare=lambda page: page.clock.install())
    expect(page.locator("#presets button").first).to_be_visible()
    failed: list[str] = []
    page.on("requestfailed", lambda request: failed.append(request.url))

    def stay_offline() -> None:
        for _ in range(60):
            page.clock.run_for(10_000)
            page.wait_for_timeout(10)
        assert 5 < len(failed) < 300, "it tries again, and not in a hurry"
        failed.clear()
        page.context.set_offline(False)

    page.context.set_offline(True)
    page.set_input_files("#photo input.files", image_files["rotated.jpg"])
    page.click("#submit-job")
    expect(page.locator("#submit-error")).to_have_text("You are offline. This page keeps trying.")
    stay_offline()
    page.wait_for_url(re.compile("/j/job_"))
    expect(page.locator("#canvas-title")).to_have_text("rotated × Brush strokes")
    expect(page.locator("#status")).to_have_text("Waiting")
    (job,) = client.jobs()
    page.context.set_offline(True)
    client.cancel(job.id)
    stay_offline()

    expect(page.locator("#status")).to_have_text("Canceled")
    expect(page.locator("#job-error")).to_be_hidden()


def test_a_page_of_an_earlier_version_works_on_and_offers_the_new_one(
    browser: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its samples come from the new version, its code never does."""
    with ApiProcess(tmp_path_factory.mktemp("api")) as api:
        context = browser.new_context(service_workers="allow", locale="en")
        page = context.new_page()
        page.goto(api.url)
        page.wait_for_function("() => navigator.serviceWorker.controller")
        expect(page.locator("#presets button").first).to_be_visible()
        code = page.get_attribute("script[type=module]", "src")
        api.restart_api(MAX_SIZE_PX="1024")
        assert "$modules" not in page.request.get(f"{api.url}/{code}").text()
        page.locator("#photo .sample button").nth(1).click()
        page.locator("#style .sample button").nth(4).click()
        after = page.locator("#stage img.after")
        expect(after).to_have_attribute("src", re.compile("pears-ink"))
        expect(after).to_have_js_property(
            "naturalWidth", 768
        )  # the large file, after the small one
        _submit(page)

        page.evaluate(RETURN_TO_TAB)
        page.click("#toast button:has-text('Reload')")
        page.wait_for_url("**", wait_until="load")
        assert json.loads(page.text_content("#form"))["limits"]["max_size"] == 1024
        names = "performance.getEntriesByType('resource').map(({ name }) => name)"
        versions = {*re.findall(r"web-\w+", " ".join(page.evaluate(names)))}
        assert len(versions) == 1
        assert code.split("/")[-2] not in versions
        context.close()


def test_a_key_that_is_revoked_while_a_job_waits_is_asked_for_again(
    visit: OpenPage, keys: ApiKeyStore, caller: tuple[ApiKey, str], api: ApiProcess
) -> None:
    _, other = keys.create("Bob")
    page = visit()
    own = _submit(page)
    keys.revoke(caller[0].id)
    expect(page.locator("#key-message")).to_have_text("Key not recognized. Try another.")
    expect(page.locator("#key")).to_be_focused()
    page.fill("#key", other)
    page.keyboard.press("Enter")

    expect(page.locator("#key-form")).to_be_hidden()
    expect(page.locator("#status")).to_have_text("We can’t find this painting")
    expect(tile_of(page, own)).to_have_count(0)
    page.click("text=New painting")
    expect(tile_of(page, _submit(page))).to_have_count(1)


def test_an_answer_to_the_old_key_does_not_ask_for_another_one(
    visit: OpenPage,
    keys: ApiKeyStore,
    caller: tuple[ApiKey, str],
    image_files: dict[str, Path],
    until: Any,
) -> None:
    def is_asked() -> bool:  # a process remembers a key for seconds
        page.evaluate(RETURN_TO_TAB)
        return bool(page.locator("#key").is_visible())

    page = visit()
    expect(page.locator("#presets button").first).to_be_visible()
    uploads = PausedRequests(page, "**/v1/images", "POST")
    page.set_input_files("#photo input.files", image_files["rotated.jpg"])
    uploads.wait_for(page, 1)
    _, other = keys.create("Bob")
    keys.revoke(caller[0].id)
    until(is_asked, "the key is refused")
    page.fill("#key", other)
    page.keyboard.press("Enter")
    expect(page.locator("#key-form")).to_be_hidden()

    uploads.routes[0].continue_()
    uploads.wait_for(page, 2)
    uploads.routes[1].continue_()
    expect(page.locator("#photo .status")).to_have_text("72 × 96 px")
    expect(page.locator("#key-form")).to_be_hidden()


@pytest.fixture
def long_history(api: ApiProcess, caller: tuple[ApiKey, str], cancel_job: Any) -> list[str]:
    """The caller has 10,000 jobs, which have no result but show their photo. Returns the newest."""
    job_key, own = f"{PREFIX}job:", f"{PREFIX}jobs_of:{caller[0].id}"
    names = [job_key + cancel_job(), own, f"{own}:canceled", f"{PREFIX}removable:{caller[0].id}"]
    with redis.Redis.from_url(api.redis_url, decode_responses=True) as store:
        store.eval(COPY_JOBS, len(names), *names, job_key, 10_000, next(ID_LETTERS))
        store.hset(f"{PREFIX}entries", caller[0].id, 10_000)
        assert store.zcard(own) == 10_000
        return list(store.zrevrange(own, 0, 99))


# Scrolls until so many jobs are known; returns the most tiles and pictures that were there at once.
SCROLL_TO = """async (count) => {
  const film = document.querySelector(".film"), list = document.querySelector("#history-list");
  let tiles = 0, pictures = 0;
  while (list.style.getPropertyValue("--count") < count) {
    film.scrollLeft = film.scrollWidth;
    await new Promise(requestAnimationFrame);
    tiles = Math.max(tiles, list.children.length);
    pictures = Math.max(pictures, list.querySelectorAll("img").length);
  }
  return [tiles, pictures];
}"""
# The jobs in view, with their places in px.
VISIBLE = """() => {
  const { left, right } = document.querySelector(".film").getBoundingClientRect();
  return [...document.querySelectorAll("#history-list li")]
    .map((tile) => [tile.dataset.job, Math.round(tile.getBoundingClientRect().left - left)])
    .filter(([, place]) => place >= 0 && place < right - left);
}"""
# Ends when the tiles at the new place are in the document.
SCROLL_BY_TILES = """async (count) => {
  const list = document.querySelector("#history-list");
  const tile = list.offsetWidth / list.style.getPropertyValue("--count");
  list.parentElement.scrollLeft += count * tile;
  for (let frame = 0; frame < 2; frame += 1) await new Promise(requestAnimationFrame);
}"""


def test_of_a_long_history_only_the_tiles_near_the_view_are_in_the_document(
    visit: OpenPage, long_history: list[str]
) -> None:
    page = visit()
    tiles = page.locator("#history-list li")
    expect(tile_of(page, long_history[0]).locator("img")).to_have_count(1)
    film = page.locator(".film")
    assert film.evaluate("film => film.scrollWidth") < 5000, "one page of jobs"

    most_tiles, most_pictures = page.evaluate(SCROLL_TO, 1000)
    assert 10 <= most_tiles <= 60
    assert 3 <= most_pictures <= most_tiles
    expect(page.locator("#history-list img").last).to_have_js_property("naturalWidth", 72)
    expect(tile_of(page, long_history[0])).to_have_count(0)
    page.evaluate(SCROLL_BY_TILES, -5000)
    expect(tile_of(page, long_history[0]).locator("img")).to_have_count(1)
    order = [job_id for job_id, _ in page.evaluate(VISIBLE)]
    assert order == long_history[: len(order)]

    page.evaluate(SCROLL_BY_TILES, 50)
    expect(tile_of(page, long_history[50])).to_have_attribute("aria-posinset", "51")
    assert tiles.first.get_attribute("aria-setsize") == "-1", "there are more than it knows"
    order = [job_id for job_id, _ in page.evaluate(VISIBLE)]
    assert order == long_history[50 : 50 + len(order)]
    assert tiles.count() <= 60


def test_keys_move_through_tiles_that_are_not_in_the_document(
    visit: OpenPage, long_history: list[str]
) -> None:
    page = visit()
    expect(tile_of(page, long_history[0])).to_be_visible()
    page.evaluate(SCROLL_TO, 100)
    page.evaluate(SCROLL_BY_TILES, -5000)
    expect(page.locator("#history-list a[tabindex='0']")).to_have_count(1)

    def expect_focus(job_id: str) -> None:
        expect(tile_of(page, job_id).locator("a")).to_be_focused()
        expect(tile_of(page, job_id).locator("a")).to_be_in_viewport(ratio=0.9)

    tile_of(page, long_history[0]).locator("a").focus()
    page.keyboard.press("End")
    expect_focus(long_history[99])
    page.keyboard.press("ArrowLeft")
    expect_focus(long_history[98])
    page.keyboard.press("Home")
    expect_focus(long_history[0])
    page.keyboard.press("ArrowRight")
    expect_focus(long_history[1])
    page.evaluate(SCROLL_BY_TILES, 60)
    expect(tile_of(page, long_history[65])).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect_focus(long_history[2])
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/j/{long_history[2]}")
    page.evaluate(SCROLL_BY_TILES, 60)
    expect(tile_of(page, long_history[2])).to_have_count(0)
    page.evaluate(SCROLL_BY_TILES, -5000)
    expect(tile_of(page, long_history[2]).locator("a")).to_have_attribute("aria-current", "page")


def test_what_happens_to_jobs_without_a_tile_moves_nothing_in_view(
    visit: OpenPage, long_history: list[str], client: Client, cancel_job: Any
) -> None:
    page = visit()
    expect(tile_of(page, long_history[0])).to_be_visible()
    deleted = long_history.pop(4)
    client.delete(deleted)
    page.evaluate(RETURN_TO_TAB)
    expect(tile_of(page, deleted)).to_have_count(0)
    order = [job_id for job_id, _ in page.evaluate(VISIBLE)]
    assert order == long_history[: len(order)], "the twentieth, which is new to it, comes last"
    page.evaluate(SCROLL_TO, 100)
    page.evaluate(SCROLL_BY_TILES, -40)
    expect(tile_of(page, long_history[0])).to_have_count(0)
    before = page.evaluate(VISIBLE)
    assert len(before) >= 5

    def expect_nothing_moved() -> None:
        places = dict(page.evaluate(VISIBLE))
        for job_id, place in before[1:-1]:  # a pixel may bring the others in or out
            assert places.get(job_id) == pytest.approx(place, abs=2)

    films = page.locator("#history-list")
    known = int(films.evaluate("list => list.style.getPropertyValue('--count')"))

    newest = cancel_job()
    page.evaluate(RETURN_TO_TAB)
    expect(films).to_have_css("--count", f"{known + 1}")
    expect_nothing_moved()
    client.delete(long_history[3])
    page.evaluate(RETURN_TO_TAB)
    expect(films).to_have_css("--count", f"{known}")
    expect_nothing_moved()

    page.click("#select")
    page.locator(f"[data-job={before[0][0]}] input").check()
    page.evaluate(SCROLL_BY_TILES, -5000)
    expect(tile_of(page, newest)).to_be_visible()
    expect(page.locator("#selection-count")).to_have_text("1 selected")
    page.click("#selection-delete")
    expect(page.locator("#toast")).to_contain_text("Painting deleted.")
    expect(films).to_have_css("--count", f"{known - 1}")
    page.click("#toast button")
    expect(tile_of(page, before[0][0]).locator("input")).to_be_focused()
    assert before[0][0] in [job_id for job_id, _ in page.evaluate(VISIBLE)]

    page.click("#selection-all")
    expect(page.locator("#selection-count")).to_have_text(f"{known} selected")
    page.evaluate(SCROLL_BY_TILES, -5000)
    expect(tile_of(page, newest).locator("input")).to_be_checked()
    page.click("#selection-all")
    expect(page.locator("#selection-count")).to_have_text("Click the paintings")


def test_the_tile_of_an_old_job_changes_while_many_newer_ones_wait(
    visit: OpenPage, client: Client, image_files: dict[str, Path]
) -> None:
    batch = client.submit_batch(
        [image_files["rotated.jpg"]] * 7, [image_files["painting.png"]] * 3, size=64
    )
    oldest = [*client.jobs()][-1]
    page = visit()
    page.evaluate(SCROLL_TO, 21)
    page.evaluate(SCROLL_BY_TILES, 21)
    expect(tile_of(page, oldest.id)).to_have_attribute("data-status", "queued")
    client.cancel(oldest.id)

    expect(tile_of(page, oldest.id)).to_have_attribute("data-status", "canceled")
    client.cancel_batch(batch.id)


@pytest.mark.parametrize(("language", "alt"), [("en", "The photo"), ("zh-CN", "照片原图")])
def test_jobs_without_a_picture_show_their_photo_in_the_filmstrip(
    visit: OpenPage, client: Client, cancel_job: Any, language: str, alt: str
) -> None:
    job_id = cancel_job()
    page = visit(locale=language)
    image = tile_of(page, job_id).locator("img.photo")
    expect(image).to_have_js_property("naturalWidth", 72)
    assert image.get_attribute("alt") == alt
    own = _submit(page)
    image = tile_of(page, own).locator("img.photo")
    expect(image).to_have_js_property("naturalWidth", 256)
    expect(tile_of(page, own).locator("a")).to_have_accessible_name(re.compile(alt))
    assert client.cancel(own).status == "canceled"


def test_names_that_are_markup_or_very_long_are_text_and_fit_a_small_phone(
    visit: OpenPage, image_files: dict[str, Path]
) -> None:
    page = visit(width=320, locale="zh-CN")
    expect(page.locator("#presets button").first).to_be_attached()
    picture = image_files["painting.png"].read_bytes()
    file = {"name": f"{MARKUP}.png", "mimeType": "image/png", "buffer": picture}

    def check(selector: str) -> None:
        expect(page.locator(selector).first).to_contain_text(MARKUP)
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        assert page.locator("main [onload], main b").count() == 0

    page.set_input_files("#photo input.files", file)
    check("#photo .own .name")
    page.click("#tabs [data-tab=style]")
    page.set_input_files("#style input.files", file)
    check("#style .own .name")
    _submit(page)
    check("#canvas-title")
    check("#history-list .caption")
    page.reload()
    check("#history-list .caption")
    assert "hurt" not in page.title()


def test_a_phone_does_not_hold_many_megapixels_decoded(visit: OpenPage) -> None:
    """Also not if they are rotated, nor when only the service has them."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.linear_gradient("L").resize((4500, 3000)).convert("RGB").save(file, "JPEG", exif=exif)
    page = visit(width=375, has_touch=True, is_mobile=True)
    page.set_input_files(
        "#photo input.files",
        {"name": "large.jpg", "mimeType": "image/jpeg", "buffer": file.getvalue()},
    )
    expect(page.locator("#photo .status")).to_have_text("3000 × 4500 px")
    before = page.locator("#stage img.before")
    expect(before).to_have_js_property("naturalHeight", 2560)
    decoded = """() => [...document.querySelectorAll("#stage img.before, .own img")]
        .map(({ naturalWidth, naturalHeight }) => [naturalWidth, naturalHeight])"""
    assert page.evaluate(decoded) == [[1707, 2560]] * 2

    _submit(page)
    page.reload()
    expect(before).to_have_js_property("naturalWidth", 512)


def test_many_fast_clicks_on_another_one_are_one_job(
    visit: OpenPage, client: Client, cancel_job: Any
) -> None:
    first = cancel_job()
    page = visit(f"/j/{first}")
    expect(page.locator("#another")).to_be_visible()
    page.locator("#another").evaluate("(one) => { for (let i = 0; i < 100; i++) one.click(); }")
    page.wait_for_url(lambda url: "/j/job_" in url and first not in url)
    page.wait_for_timeout(300)

    assert len([*client.jobs()]) == 2

"""The operator's page in a real browser with a real service."""

import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from page_actions import OpenPage, expect, needs_chromium

from core.auth.api_keys import ApiKeyStore
from impasto import Status, errors

pytestmark = [pytest.mark.e2e, needs_chromium]

DATA_CELLS = "#workers td, #failures td, #queue td:nth-child(-n+3), #keys td:nth-child(-n+2)"
HOSTILE = "<img src=x onerror=document.title='hurt'>"


@pytest.fixture
def keys(shared_service: Any) -> Iterator[ApiKeyStore]:
    url_file = Path(shared_service.environment["IMPASTO_DATA_DIR"]) / "store.url"
    store = ApiKeyStore(url_file.read_text())
    yield store
    store.close()


@pytest.fixture
def jobs(shared_service: Any, pictures: tuple[Path, Path]) -> Iterator[list[str]]:
    """A job that runs until the end of the test, and three that wait."""
    client = shared_service.client
    ids = [client.submit(*pictures, size=128, iterations=5000).id]
    ids += [client.submit(*pictures, size=64, iterations=2, scales=1).id for _ in range(3)]
    yield ids
    for job_id in reversed(ids):
        with suppress(errors.NotFound):
            client.cancel(job_id)


def _enter_key(page: Any, secret: str) -> None:
    page.fill("#key", secret)
    page.click("#key-form button")


def _queue(page: Any) -> list[str]:
    return [str(one) for one in page.locator("#queue tbody tr td:nth-child(2)").all_text_contents()]


def test_only_the_key_of_an_operator_opens_the_page(open_page: OpenPage, keys: ApiKeyStore) -> None:
    page = open_page("/operator")
    expect(page.locator("#key-form")).to_contain_text("Enter the key of an operator")
    expect(page.locator("#service")).to_be_hidden()
    _enter_key(page, "impasto_" + "a" * 52)
    expect(page.locator("#key-error")).to_contain_text("not valid")
    _enter_key(page, keys.create("Ada")[1])
    expect(page.locator("#key-error")).to_contain_text("may not operate the service")
    expect(page.locator("#service")).to_be_hidden()
    _enter_key(page, keys.create("Operator", admin=True)[1])
    expect(page.locator("#service")).to_be_visible()

    page.click("#forget-key")
    expect(page.locator("#key-form")).to_be_visible()


def test_the_operator_moves_and_cancels_jobs_and_pauses_the_intake(
    open_page: OpenPage,
    keys: ApiKeyStore,
    jobs: list[str],
    shared_service: Any,
    pictures: tuple[Path, Path],
) -> None:
    page, client = open_page("/operator"), shared_service.client
    _enter_key(page, keys.create("Operator", admin=True)[1])
    running, first, second, third = jobs
    rows = page.locator("#queue tbody tr")
    expect(rows).to_have_count(3)
    assert _queue(page) == [first, second, third]
    expect(page.locator("#workers")).to_contain_text(running)

    page.get_by_role("button", name=f"First {third}").click()
    expect(rows.first).to_contain_text(third)
    page.get_by_role("button", name=f"Last {first}").click()
    expect(rows.last).to_contain_text(first)
    assert _queue(page) == [third, second, first]
    assert client.job(third).queue.position == 0
    page.get_by_role("button", name=f"Cancel {second}").click()
    assert client.job(second).status == Status.QUEUED
    page.get_by_role("button", name=f"Cancel: sure? {second}").click()
    expect(rows).to_have_count(2)
    assert client.job(second).status == Status.CANCELED

    worker = page.locator("#workers tbody tr")
    expect(worker).to_contain_text("active")
    worker.get_by_role("button", name="Pause").click()
    expect(worker).to_contain_text("paused")
    expect(worker).to_contain_text(running)
    worker.get_by_role("button", name="Resume").click()
    expect(worker).to_contain_text("active")

    page.click("#intake")
    expect(page.locator("#intake-state")).to_contain_text("Paused since")
    with pytest.raises(errors.IntakePaused):
        client.submit(*pictures, size=64)
    page.click("#intake")
    expect(page.locator("#intake-state")).to_have_text("Accepts jobs")
    client.cancel(client.submit(*pictures, size=64).id)


def test_keys_are_created_shown_once_and_revoked(open_page: OpenPage, keys: ApiKeyStore) -> None:
    page = open_page("/operator")
    _enter_key(page, keys.create("Operator", admin=True)[1])
    page.fill("#new-name", HOSTILE)
    page.select_option("#new-priority", "high")
    page.locator("#new-key button").click()
    expect(page.locator("#secret")).to_have_text(re.compile("impasto_[a-z2-7]{52}"))
    key = keys.find(page.locator("#secret").text_content())

    assert key is not None
    assert (key.name, key.priority, key.admin) == (HOSTILE, "high", False)
    row = page.locator("#keys tbody tr", has_text=key.id)
    expect(row.locator("td").first).to_have_text(HOSTILE)
    assert page.title() == "Operator · Impasto"
    page.click("#hide-secret")
    expect(page.locator("#secret")).to_have_text("")
    row.get_by_role("button", name="Revoke").click()
    row.get_by_role("button", name="Revoke: sure?").click()
    expect(row.get_by_role("button")).to_be_disabled()
    assert [one.revoked for one in keys.list() if one.id == key.id] == [True]


def test_the_page_is_chinese_and_its_waits_ignore_a_wrong_clock(
    open_page: OpenPage, keys: ApiKeyStore, jobs: list[str]
) -> None:
    page = open_page("/docs", width=375, locale="zh-CN")
    page.clock.set_system_time(datetime.now(UTC) + timedelta(hours=5))
    page.goto("/operator")
    expect(page.locator("#key-form")).to_contain_text("请输入管理员密钥")
    _enter_key(page, keys.create("Operator", admin=True)[1])
    expect(page.locator("#queue tbody tr")).to_have_count(3)
    assert page.locator("#queue tbody td:nth-child(6)").first.text_content().endswith(" 秒")
    # Names, codes and ids are in no language: a hidden cell is no part of the text.
    page.locator(DATA_CELLS).evaluate_all(
        "all => all.forEach((one) => one.style.visibility = 'hidden')"
    )
    words = {*re.findall(r"[A-Za-z]{3,}", page.inner_text("body"))}
    assert words - {"Impasto", "API", "English"} == set()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.click("#language")
    expect(page.locator("h1")).to_have_text("Operator")


@pytest.mark.parametrize("width", [1280, 320])
def test_the_page_is_accessible_and_uses_its_own_routes_only(
    open_page: OpenPage,
    keys: ApiKeyStore,
    unusual_job: Any,
    jobs: list[str],
    width: int,
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page("about:blank", width=width)
    requests: set[str] = set()
    page.on("request", lambda request: requests.add(request.url.partition("/v1/")[2]))
    page.goto("/operator")
    _enter_key(page, keys.create("Operator", admin=True)[1])
    expect(page.locator("#queue tbody tr")).to_have_count(3)

    succeeded = page.locator(".bar-succeeded[height]:not([height='0'])")
    assert succeeded.count() >= 1  # unusual_job has ended
    assert page.locator(".bar-p50[height]:not([height='0'])").count() >= 1
    assert page.get_attribute("#jobs-chart", "aria-label").startswith("Last 24 hours: ")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function("() => !document.getAnimations().length")  # colors change slowly
        result = axe.run(page, options={"resultTypes": ["violations"]})
        assert result.violations_count == 0, result.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#service").bounding_box()["width"] > 0.9 * (width - 32)
    parts = {request.partition("?")[0] for request in requests} - {""}
    assert parts == {f"operator/{part}" for part in ("status", "queue", "hours", "keys")}
    assert page.locator("main img").count() == 0

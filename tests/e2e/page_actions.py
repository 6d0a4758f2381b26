"""What the tests of the page do with it, again and again. `page` is always Playwright's."""

import json
import re
import shutil
from collections.abc import Callable
from typing import Any

import pytest

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here; `make browser` installs it where apt and root are"
)
TIMEOUT_MS = 60_000  # the machine may be busy

OpenPage = Callable[..., Any]


def expect(target: Any) -> Any:
    """Playwright's `expect`, imported late: the package may be missing."""
    from playwright.sync_api import expect as expect_of

    return expect_of(target)


def choose_files(page: Any, photo: Any, *paintings: Any) -> None:
    """Choose files as photo and paintings."""
    page.set_input_files("#photo input.files", photo)
    page.set_input_files("#painting input.files", [*paintings])


def choose_examples(page: Any) -> None:
    """Choose the first photo and the first painting of the gallery."""
    page.locator("#gallery-photos button").first.click()
    page.locator("#gallery-paintings button").first.click()


def set_parameters(page: Any, size: int = 64, iterations: int = 6) -> None:
    """Set what makes a job short."""
    page.select_option("#parameter-size", "other")
    page.fill("#parameter-size-px", str(size))
    page.locator("summary").click()
    page.fill("#parameter-iterations", str(iterations))
    page.fill("#parameter-scales", "1")


def submit_job(page: Any, **parameters: int) -> str:
    """Submit the form; return the address of the job's page."""
    set_parameters(page, **parameters)
    page.click("#submit-job")
    page.wait_for_url(re.compile("/j/job_"))
    return str(page.url)


def expect_end(page: Any, title: str = "Done") -> None:
    """Wait until the job has ended and its result is shown."""
    expect(page.locator("#status")).to_have_text(title)
    expect(page.locator("#stage img.after")).to_have_js_property("complete", True)
    expect(page.locator("#compare-controls")).to_be_visible()


def store_history(page: Any, *job_ids: str) -> None:
    """Write the history that the browser stores, and reload the page."""
    entries = [{"id": job_id, "names": {"content": "a", "styles": ["b"]}} for job_id in job_ids]
    page.evaluate(
        "entries => localStorage.setItem('impasto history', entries)", json.dumps(entries)
    )
    page.reload()


def respond_with_error(code: str, detail: str, status: int = 503) -> Callable[[Any], None]:
    """Make the handler of a Playwright route that answers with an error."""
    body = {"status": status, "code": code, "detail": detail}
    return lambda route: route.fulfill(status=status, json=body, headers={"Retry-After": "1"})


class PausedRequests:
    """Pauses the requests of one kind until the test continues or aborts them; others pass."""

    def __init__(self, page: Any, pattern: str, method: str) -> None:
        self.routes: list[Any] = []
        self._method = method
        page.route(pattern, self._handle)

    def _handle(self, route: Any) -> None:
        if route.request.method == self._method:
            self.routes.append(route)
        else:
            route.fallback()

    def wait_for(self, page: Any, count: int) -> None:
        """Wait until there are at least so many requests."""
        for _ in range(TIMEOUT_MS // 50):
            if len(self.routes) >= count:
                return
            page.wait_for_timeout(50)
        raise AssertionError(f"{len(self.routes)} requests, not {count}")

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


def open_part(page: Any, name: str) -> None:
    """Show a part of the form: photo, style or adjust. On a wide screen all are shown."""
    tab = page.locator(f"#tabs [data-tab={name}]")
    if tab.is_visible():
        tab.click()


def open_group(page: Any, name: str) -> None:
    """Open a group of the advanced parameters."""
    open_part(page, "adjust")
    group = page.locator(f"#group-{name}")
    if group.get_attribute("open") is None:
        group.locator("summary").click()


def choose_files(page: Any, photo: Any, *styles: Any) -> None:
    """Choose files as photo and styles."""
    page.set_input_files("#photo input.files", photo)
    page.set_input_files("#style input.files", [*styles])


def choose_examples(page: Any) -> None:
    """Choose the first sample photo and the first sample style."""
    for part in ("photo", "style"):
        open_part(page, part)
        page.locator(f"#{part} .sample button").first.click()


def set_parameters(page: Any, size: int = 64, iterations: int = 6) -> None:
    """Set what makes a job short."""
    open_group(page, "start")
    page.fill("#parameter-iterations", str(iterations))
    page.fill("#parameter-scales", "1")
    page.select_option("#parameter-size", "other")
    page.fill("#parameter-size-px", str(size))


def submit_job(page: Any, **parameters: int) -> str:
    """Submit the form; return the address of the job's page."""
    set_parameters(page, **parameters)
    page.click("#submit-job")
    page.wait_for_url(re.compile("/j/job_"))
    return str(page.url)


def expect_end(page: Any, title: str = "Done") -> None:
    """Wait until the job has ended and its result is shown."""
    expect(page.locator("#status")).to_have_text(title)
    expect(page.locator("#result-controls")).to_be_visible()
    expect(page.locator("#stage img.after")).to_have_js_property("complete", True)
    expect(page.locator("#stage img.after")).to_have_attribute("src", re.compile("^blob:"))
    expect(page.locator("#stage")).not_to_have_attribute("aria-busy", "true")


def tile_of(page: Any, job_id: str) -> Any:
    """Return the tile of a job in the filmstrip."""
    return page.locator(f"#history-list [data-job={job_id}]")


def end_toasts(page: Any) -> None:
    """End the messages that are shown, as if their time were over."""
    page.evaluate(
        """async () => {
          const { src } = document.querySelector("script[type=module]");  // of this version
          (await import(new URL("toast.js", src))).endToasts();
        }"""
    )


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


def change_form(page: Any, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the form that the service puts into the document of the first screen."""

    def answer(route: Any) -> None:
        response = route.fetch()
        start, form, end = re.split('(?<=id="form">)|(?=</script>)', response.text(), maxsplit=2)
        changed = json.loads(form)
        change(changed)
        route.fulfill(response=response, body=start + json.dumps(changed) + end)

    page.route(re.compile("[0-9]/$"), answer)

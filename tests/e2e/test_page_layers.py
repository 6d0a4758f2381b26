"""The browser's Back button closes what lies over the page, in a real browser."""

from collections.abc import Callable
from typing import Any

import pytest
from page_actions import OpenPage, choose_examples, expect, expect_end, needs_chromium

pytestmark = [pytest.mark.e2e, needs_chromium]


def _open_dialog(page: Any) -> None:
    page.click(".menu summary")
    page.click("#show-command")


# By page: what opens a layer, what is visible then, the page's own button that closes it, and what
# has the focus afterwards.
LAYERS: dict[str, list[tuple[Callable[[Any], None], str, str, str]]] = {
    "editor": [
        (lambda page: page.click("#open-mask"), "#mask-layer", "#mask-done", "#open-mask"),
        (lambda page: page.click("#try-all"), "#batch", "#batch-close", "#try-all"),
        (lambda page: page.click("#select"), "#selection", "#select", "#select"),
    ],
    "job": [
        (_open_dialog, "#command-dialog", "#close-command", ".menu summary"),
        (
            lambda page: page.click("#full-screen"),
            "#canvas:fullscreen",
            "#full-screen",
            "#full-screen",
        ),
    ],
}


@pytest.mark.parametrize("name", LAYERS)
def test_back_closes_what_lies_over_the_page_and_then_leaves_it(
    open_page: OpenPage, unusual_job: Any, name: str
) -> None:
    def expect_closed() -> None:
        page.wait_for_function("() => !history.state?.layers")
        expect(layer.locator("visible=true")).to_have_count(0)
        expect(focused).to_be_focused()
        assert page.url == address

    page = open_page("/livez")
    page.route("**/v1/batches", lambda route: route.abort())
    page.goto({"editor": "/", "job": f"/j/{unusual_job.id}"}[name])
    expect(page.locator("#select")).to_be_enabled()
    if name == "editor":
        expect(page.locator("#presets button").first).to_be_attached()
    else:
        expect_end(page)
    address = page.url
    for show, part, button, focus in LAYERS[name]:
        layer, focused = page.locator(part), page.locator(focus)
        for close in (page.go_back, lambda selector=button: page.click(selector), page.go_back):
            show(page)
            expect(layer).to_be_visible()
            close()
            expect_closed()
        page.evaluate("history.forward()")
        page.wait_for_timeout(200)
        expect_closed()
    page.go_back()
    assert page.url.endswith("/livez")


@pytest.mark.usefixtures("unusual_job")
def test_a_painting_replaces_an_open_layer_and_back_leads_to_the_editor(
    open_page: OpenPage, until: Any
) -> None:
    page = open_page()
    choose_examples(page)
    page.click("#open-mask")
    page.locator("#mask-layer").click()
    page.locator("#history-list [data-status=succeeded] a").first.click()
    expect_end(page)
    expect(page.locator("#mask-tools")).to_be_hidden()
    page.go_back()
    expect(page.locator("#submit-view")).to_be_visible()
    expect(page.locator("#mask-chip")).to_be_visible()
    page.go_forward()
    expect(page.locator("#job-view")).to_be_visible()
    page.go_back()
    has_mask = """async () => {
        const { loadDraft } = await import("./web/drafts.js");
        return Boolean((await loadDraft("current"))?.masks.photo[0]); }"""
    until(lambda: page.evaluate(has_mask), "the mask is saved")
    page.click("#open-mask")
    expect(page.locator("#mask-layer")).to_be_visible()
    page.reload()
    expect(page.locator("#mask-chip")).to_be_visible()
    expect(page.locator("#mask-tools")).to_be_hidden()
    page.click("#open-mask")
    page.go_back()
    expect(page.locator("#mask-tools")).to_be_hidden()
    expect(page.locator("#submit-view")).to_be_visible()

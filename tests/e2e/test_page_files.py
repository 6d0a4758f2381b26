"""How a real browser loads the files of the page: bundles, requests, caches."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from api_process import ApiProcess
from page_actions import TIMEOUT_MS, OpenPage, expect, needs_chromium

from api.assets.files import PageFiles
from core.style.presets import PRESETS

pytestmark = [pytest.mark.e2e, needs_chromium]

SITE = "http://site.test"
GALLERY = Path(__file__).parents[2] / "api" / "web" / "gallery"
ROWS = [*json.loads((GALLERY / "index.json").read_text()), "standard", *PRESETS]
# Modules that tell in `log` what runs, in which order, how often, and what they get.
MODULES = {
    "app.js": """
import { log, add } from "./log.js";
import first, { count, Box as Crate } from "./values.js";
import * as values from "./values.js";
import "./effect.js";
log.push("app", first, count(), new Crate().name, Object.keys(values).sort().join());
add(new URL("../v1/jobs", import.meta.url).pathname);
loadMore();
async function loadMore() {
  const { word, default: text } = await import("./text/late.js");
  log.push(word, text(), log === (await import("./log.js")).log);
  document.title = log.join(" ");
}
""",
    "log.js": 'export const log = ["log"];\nexport function add(line) { log.push(line); }\n',
    "values.js": """import { log } from "./log.js";
log.push("values");
let number = 1;
export const count = () => ++number;
class Box { name = "box"; }
export { Box, number as one };
export default "first";
""",
    "effect.js": 'import { add } from "./log.js";\nadd("effect");\n',
    "text/late.js": """import { add } from "../log.js";
import "../effect.js";
add(new URL("./words.json", import.meta.url).pathname.split("/").slice(-2).join("/"));
export const word = "late";
export default () => "default";
""",
    "index.html": '<!doctype html><script type="module" src="./web/app.js"></script>',
}


@pytest.fixture
def run_site(browser: Any) -> Iterator[Callable[[dict[str, bytes]], str]]:
    """Return a function that opens a site of these files and returns the title that it sets."""
    contexts = []

    def run(contents: dict[str, bytes]) -> str:
        contexts.append(browser.new_context())
        page = contexts[-1].new_page()

        def fulfill(route: Any) -> None:
            path = route.request.url.removeprefix(f"{SITE}/")
            kind = "text/html" if path.endswith(".html") else "text/javascript"
            route.fulfill(body=contents[path], content_type=kind)

        page.route(f"{SITE}/**", fulfill)
        page.goto(f"{SITE}/index.html")
        page.wait_for_function("() => document.title")
        return str(page.title())

    yield run
    for context in contexts:
        context.close()


def test_bundles_do_what_the_browser_does_with_the_modules(
    tmp_path: Path, run_site: Callable[[dict[str, bytes]], str]
) -> None:
    """Also a module that is loaded later shares what has run already."""
    for name, code in MODULES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code)
    files = PageFiles(tmp_path)
    modules = run_site({name: _source(name) for name in _all_names()})
    served = {f"{files.folder}/{name}": files.get(name) for name in MODULES}
    bundles = {name: file.content for name, file in served.items() if file}
    bundles["index.html"] = files.document("index.html").content

    assert run_site(bundles) == modules
    assert modules.split() == [
        *("log", "values", "effect", "app", "first", "2", "box", "Box,count,default,one"),
        *("/v1/jobs", "text/words.json", "late", "default", "true"),
    ]


def _all_names() -> list[str]:
    return [name if name == "index.html" else f"web/{name}" for name in MODULES]


def _source(name: str) -> bytes:
    return MODULES[name.removeprefix("web/")].encode()


@pytest.fixture(scope="module")
def limited_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    """An API without a worker, which allows small jobs only."""
    limits = {"MAX_SIZE_PX": "300", "MAX_ITERATIONS": "90"}
    with ApiProcess(tmp_path_factory.mktemp("api"), **limits) as running:
        yield running


def _list_requests(api: ApiProcess) -> list[tuple[str, int]]:
    """Return the path of the route and the status of each request that the API has logged."""
    lines = [json.loads(line) for line in api.log.read_text().splitlines() if line[:1] == "{"]
    return [(line["route"], line["status"]) for line in lines if "route" in line]


def _wait_for_requests(page: Any, api: ApiProcess, since: int, route: str, times: int = 1) -> None:
    """Wait until the API has logged so many requests of a route, and the page asks for no more."""
    for _ in range(TIMEOUT_MS // 50):
        if [path for path, _ in _list_requests(api)[since:]].count(route) >= times:
            break
        page.wait_for_timeout(50)
    page.wait_for_load_state("networkidle")


def test_the_page_loads_in_few_requests_and_again_from_the_cache(
    open_page: OpenPage, limited_api: ApiProcess
) -> None:
    """An estimate of what the user has not chosen would be one more request each time."""
    # At this width, the screen does not need the large files of the samples.
    page, sizes = open_page("/livez", 900, limited_api.url, service_workers="allow"), []
    devtools = page.context.new_cdp_session(page)
    devtools.send("Network.enable")
    devtools.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    before = len(_list_requests(limited_api))
    page.goto("/")
    expect(page.locator("#presets img").last).to_have_js_property("complete", True)
    expect(page.locator("#stage img.after")).to_have_js_property("complete", True)
    expect(page.locator("#history-empty img")).to_have_count(3)
    # The service worker requests the document once more, after the page has become idle.
    page.evaluate("navigator.serviceWorker.ready.then(() => null)")
    _wait_for_requests(page, limited_api, before, "/", times=2)
    logged, bytes_first = _list_requests(limited_api)[before:], sum(sizes)
    before += len(logged)
    first = [request for request in logged if request[0] != "/livez"]  # may be logged late
    page.reload()
    expect(page.locator("#presets img").last).to_have_js_property("complete", True)
    _wait_for_requests(page, limited_api, before, "/v1/jobs")
    again = _list_requests(limited_api)[before:]

    assert len(first) <= 12, first
    assert 80_000 < bytes_first <= 130_000
    assert "/v1/estimate" not in dict(first)
    assert sorted(request for request in again if request[0] != "/sw.js") == [
        ("/", 304),
        ("/v1/jobs", 200),
    ]
    page.mouse.move(9, 9)
    _wait_for_requests(page, limited_api, before, "/v1/estimate")


def test_the_operators_limits_bound_what_can_be_chosen_and_what_is_sent(
    open_page: OpenPage, limited_api: ApiProcess
) -> None:
    page = open_page(url=limited_api.url)
    expect(page.locator("#job-limits")).to_contain_text("At most 300 px, 90 iterations")
    size, qualities = page.locator("#parameter-size"), page.locator("#parameter-quality option")

    assert size.locator("option").evaluate_all("all => all.map((one) => one.value)") == [
        *("256", "300", "other")
    ]
    expect(size).to_have_value("300")
    assert qualities.evaluate_all("all => all.map((one) => [one.textContent, one.disabled])") == [
        ["Draft", False],
        ["Standard", False],
        ["Fine (over 90 iterations)", True],
    ]
    expect(page.locator("#parameter-size-px")).to_have_attribute("max", "300")
    expect(page.locator("#parameter-iterations")).to_have_attribute("max", "90")
    page.click("#submit-job")
    page.wait_for_url("**/j/job_*")
    job = page.request.get(page.url.replace("/j/", "/v1/jobs/")).json()
    assert job["input"]["spec"]["size"] == 300


def test_automatic_regions_are_one_click_away(open_page: OpenPage, limited_api: ApiProcess) -> None:
    page = open_page(url=limited_api.url)
    page.click("#auto-regions")
    expect(page.locator("#auto-regions")).to_have_attribute("aria-pressed", "true")
    assert page.input_value("#parameter-regions") == "auto"
    page.click("#submit-job")
    page.wait_for_url("**/j/job_*")
    job = page.request.get(page.url.replace("/j/", "/v1/jobs/")).json()
    assert job["input"]["spec"]["regions"] == "auto"


def test_each_thumbnail_shows_its_own_row(open_page: OpenPage) -> None:
    """Also where the place has another size than the row."""
    page = open_page("/")
    images = page.locator(".sample img, #presets img")
    expect(images).to_have_count(len(ROWS))
    expect(images.last).not_to_have_js_property("naturalHeight", 0)
    # How many rows of the image are above the middle of what is shown.
    middles = images.evaluate_all(
        """all => all.map((image) => {
          const height = image.clientWidth * image.naturalHeight / image.naturalWidth;
          const part = parseFloat(getComputedStyle(image).objectPosition.split(" ")[1]) / 100;
          const middle = part * (height - image.clientHeight) + image.clientHeight / 2;
          return all.length * middle / height;
        })"""
    )
    assert middles == pytest.approx([row + 0.5 for row in range(len(ROWS))], abs=0.02)

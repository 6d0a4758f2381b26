"""How a real browser loads the files of the page: bundles, requests, caches."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from page_actions import OpenPage, expect, needs_chromium

from api.assets.files import PageFiles

pytestmark = [pytest.mark.e2e, needs_chromium]

SITE = "http://site.test"
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
        page.wait_for_function("document.title")
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


def _list_loads(page: Any) -> dict[str, int]:
    """Return the bytes over the network of the document and of each file; 0: from a cache."""
    entries = page.evaluate(
        "[...performance.getEntriesByType('navigation'), "
        "...performance.getEntriesByType('resource')].map((one) => [one.name, one.transferSize])"
    )
    return {name: int(size) for name, size in entries if "/v1/" not in name}


def test_the_page_loads_in_few_requests_and_again_from_the_cache(open_page: OpenPage) -> None:
    page = open_page("/")
    expect(page.locator("#gallery-photos img").first).to_be_visible()
    shell = {name: size for name, size in _list_loads(page).items() if "gallery" not in name}
    shell.pop(f"{page.url}openapi.json", None)
    page.goto("/docs")
    page.goto("/")
    expect(page.locator("#gallery-photos img").first).to_be_visible()
    loads = (shell, _list_loads(page))
    first, again = ({name for name in load if "/web-" in name and load[name]} for load in loads)

    assert len(shell) <= 6, shell
    assert sum(shell.values()) <= 50_000, shell
    assert {name.rpartition("/")[2] for name in first} >= {"app.js", "style.css"}
    assert again == set()

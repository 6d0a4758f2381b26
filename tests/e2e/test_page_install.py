"""The installed page in a real browser: manifest, service worker, shared pictures."""

import io
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import pytest
from api_process import ApiProcess
from page_actions import TIMEOUT_MS, expect, needs_chromium, tile_of
from PIL import Image

pytestmark = [pytest.mark.e2e, needs_chromium]

# The page itself may change, so the tests see a shared picture as every module does: by its event.
WATCH_PASTE = """addEventListener("paste", async ({ clipboardData: { files: [file] } }) => {
  globalThis.pasted = [file.name, (await file.arrayBuffer()).byteLength];
});"""

READ_CACHED = """async (name) => {
  const cache = await caches.open(name), texts = {};
  for (const { url } of await cache.keys()) {
    texts[new URL(url).pathname] = await (await cache.match(url, { ignoreVary: true })).text();
  }
  return texts;
}"""

Open = Callable[..., Any]


def _wait_for(page: Any, expression: str, argument: Any = None) -> None:
    """Wait until the expression is true. Playwright's own wait needs `eval`, which is forbidden."""
    for _ in range(TIMEOUT_MS // 50):
        if page.evaluate(expression, argument):
            return
        page.wait_for_timeout(50)
    raise AssertionError(expression)


class _BadGateway(BaseHTTPRequestHandler):
    """A proxy whose service does not answer."""

    def do_GET(self) -> None:
        self.send_error(502)

    def log_message(self, *_: Any) -> None:
        pass


class _RollingProxy(BaseHTTPRequestHandler):
    """A proxy that alternates between two processes, whatever the request."""

    origins: tuple[str, ...]
    turns = itertools.count()

    def do_GET(self) -> None:
        origin = self.origins[next(self.turns) % len(self.origins)]
        headers = dict(self.headers) | {"Host": origin.removeprefix("http://")}
        answer = httpx2.get(f"{origin}{self.path}", headers=headers, trust_env=False)
        self.send_response(answer.status_code)
        for name, value in answer.headers.items():
            if name not in ("content-encoding", "content-length", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        with suppress(BrokenPipeError):  # a page that is loaded again
            self.wfile.write(answer.content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    with ApiProcess(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short name: the path of a socket has 108 bytes at most."""
    return tmp_path_factory.mktemp("api")


@pytest.fixture
def open_installed(browser: Any) -> Iterator[Open]:
    """Return a function that opens an address in a new context and waits for the worker."""
    contexts = []

    def open_page(address: str) -> Any:
        context = browser.new_context(service_workers="allow")
        context.set_default_timeout(TIMEOUT_MS)
        context.add_init_script(WATCH_PASTE)
        contexts.append(context)
        page = context.new_page()
        page.goto(address)
        _wait_for(page, "navigator.serviceWorker.controller?.state === 'activated'")
        return page

    yield open_page
    for context in contexts:
        context.close()


def _list_cached(page: Any) -> list[str]:
    """Return the paths of all that is cached, after the names of the caches."""
    return list(
        page.evaluate(
            """async () => {
              const names = await caches.keys(), paths = [];
              for (const name of names) {
                const cache = await caches.open(name);
                for (const { url } of await cache.keys()) paths.push(new URL(url).pathname);
              }
              return [...names, ...paths];
            }"""
        )
    )


def _list_requests(api: ApiProcess) -> list[tuple[str, int]]:
    """Return the route and the status of each request that the API has logged."""
    lines = [json.loads(line) for line in api.log.read_text().splitlines() if line[:1] == "{"]
    return [(line["route"], line["status"]) for line in lines if "route" in line]


def test_chromium_finds_the_page_installable(open_installed: Open, api: ApiProcess) -> None:
    page = open_installed(api.url)
    devtools = page.context.new_cdp_session(page)
    answer = devtools.send("Page.getAppManifest")
    manifest = json.loads(answer["data"])

    assert answer["errors"] == []
    found = devtools.send("Page.getInstallabilityErrors")["installabilityErrors"]
    assert {one["errorId"] for one in found} <= {"in-incognito"}  # as every context of a test
    description = page.get_attribute("meta[name=description]", "content")
    assert description == manifest["description"].removesuffix(".")
    assert page.locator("meta[name='theme-color']").count() == 2
    base = answer["url"]
    for icon in manifest["icons"]:
        address = page.evaluate("([path, base]) => new URL(path, base).href", [icon["src"], base])
        body = page.request.get(address).body()
        if icon["type"] == "image/png":
            assert "x".join(map(str, Image.open(io.BytesIO(body)).size)) == icon["sizes"]
        assert len(body) < 8000
    purposes = [icon.get("purpose", "any") for icon in manifest["icons"]]
    assert Counter(purposes) == {"any": 3, "maskable": 1}
    favicon = Image.open(io.BytesIO(page.request.get(f"{api.url}/favicon.ico").body()))
    assert favicon.info["sizes"] == {(16, 16), (32, 32), (48, 48)}


def test_the_shell_opens_without_a_connection_and_nothing_else_is_kept(
    open_installed: Open, api: ApiProcess
) -> None:
    page = open_installed(api.url)
    page.evaluate("fetch('v1/form')")
    manifest = page.get_attribute("link[rel=manifest]", "href")
    pictures = ("web", manifest.rpartition("/")[0])
    for folder in pictures:
        assert page.evaluate("path => fetch(path).then(({ ok }) => ok)", f"{folder}/icon.svg")
        assert page.evaluate(
            "path => fetch(path).then(({ ok }) => ok)", f"{folder}/gallery/harbor.jpg"
        )
    page.context.set_offline(True)

    for path in ("/", "/j/job_x"):
        answer = page.goto(f"{api.url}{path}")
        assert answer.from_service_worker
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        assert page.locator("main").count() == 1
        # The modules have run, from the cache: one of them asks for the service and fails.
        _wait_for(page, "Object.keys(globalThis.$modules ?? {}).includes('app.js')")
    assert page.evaluate("fetch('../v1/form').then(() => 'kept', () => 'gone')") == "gone"
    page.context.set_offline(False)
    name, *paths = _list_cached(page)
    assert name.startswith(f"impasto {api.url}/ ")
    assert {"/", "/j/-"} < {*paths}
    rest = [path for path in paths if path not in ("/", "/j/-")]
    assert rest
    assert all(path.startswith("/web-") for path in rest)
    assert all(path.endswith((".js", ".css", ".svg", ".woff2")) for path in rest)


def test_where_the_storage_is_full_the_worker_keeps_less_and_breaks_nothing(
    open_installed: Open, api: ApiProcess
) -> None:
    page = open_installed(api.url)
    page.context.new_cdp_session(page).send(
        "Storage.overrideQuotaForOrigin", {"origin": api.url, "quotaSize": 1}
    )
    folder = page.get_attribute("script[type=module]", "src").rpartition("/")[0]
    load = "path => fetch(path).then(({ ok }) => ok, () => false)"

    assert page.evaluate(load, f"{folder}/text-zh.js")


def test_a_repeated_load_asks_the_service_for_the_document_only(
    open_installed: Open, api: ApiProcess
) -> None:
    page = open_installed(api.url)
    expect(page.locator("#stage img.layer[src]")).to_have_count(2)  # now in the browser's cache
    before = len(_list_requests(api))
    page.reload()
    page.wait_for_load_state("networkidle")
    again = _list_requests(api)[before:]

    shell = {route: status for route, status in again if not route.startswith(("/v1/", "/openapi"))}
    shell.pop("-", None)  # pictures of the gallery, at their plain addresses
    assert shell.pop("/sw.js", 304) == 304  # the browser's own look for a new version
    assert shell == {"/": 304}


def test_a_new_version_is_shown_at_once_and_replaces_the_kept_one(
    open_installed: Open, folder: Path
) -> None:
    with ApiProcess(folder) as api:
        page = open_installed(api.url)
        old, *_ = _list_cached(page)
        api.restart_api(MAX_SIZE_PX="1024")
        page.reload()
        assert json.loads(page.text_content("#form"))["limits"]["max_size"] == 1024
        _wait_for(
            page,
            "old => caches.keys().then((names) => names.length === 1 && names[0] !== old)",
            old,
        )
        new, *paths = _list_cached(page)
        page.context.set_offline(True)
        page.reload()

        assert new != old
        assert json.loads(page.text_content("#form"))["limits"]["max_size"] == 1024
        folders = {path.split("/")[1] for path in paths if path.startswith("/web-")}
        assert folders == {f"web-{new.rpartition(' ')[2]}"}


def test_a_service_that_restarts_behind_a_proxy_does_not_hide_the_page(
    open_installed: Open, folder: Path
) -> None:
    with ApiProcess(folder) as api:
        page = open_installed(api.url)
        api.stop()
        page.reload()
        assert page.locator("main").count() == 1
        with ThreadingHTTPServer(("127.0.0.1", api.port), _BadGateway) as proxy:
            Thread(target=proxy.serve_forever, daemon=True).start()
            page.reload()
            shown = page.locator("main").count()
            status = page.evaluate("fetch('v1/form').then(({ status }) => status)")
            proxy.shutdown()
        assert (shown, status) == (1, 502)


def test_during_an_upgrade_behind_a_proxy_the_page_opens_and_no_cache_mixes_versions(
    browser: Any, api: ApiProcess, folder: Path
) -> None:
    """Each file may come from a process of either version, and in the end only the new one runs."""
    with (
        ApiProcess(folder, MAX_SIZE_PX="1024") as other,
        ThreadingHTTPServer(("127.0.0.1", 0), _RollingProxy) as proxy,
    ):
        Thread(target=proxy.serve_forever, daemon=True).start()
        url, errors = f"http://127.0.0.1:{proxy.server_port}", []
        contexts = [
            browser.new_context(service_workers=name, locale="en") for name in ("allow", "block")
        ]
        page, fresh = [context.new_page() for context in contexts]
        for one in (page, fresh):
            one.on("pageerror", lambda error: errors.append(str(error)))
        _RollingProxy.origins = (api.url, other.url)
        for path in ("/", "/j/job_x", "/"):
            page.goto(f"{url}{path}")
            expect(page.locator("[data-text]").first).to_have_text("Skip to content")

        def end_old_version(route: Any) -> None:
            _RollingProxy.origins = (other.url,)
            route.continue_()

        _RollingProxy.origins = (api.url,)
        fresh.route("**/app.js", end_old_version)
        old = fresh.goto(url).text()
        expect(fresh.locator("[data-text]").first).to_have_text("Skip to content")
        assert fresh.get_attribute("script[type=module]", "src") not in old

        page.goto(url)
        _wait_for(page, "navigator.serviceWorker.ready.then(() => true)")
        _wait_for(page, "caches.keys().then(({ length }) => length === 1)")
        name, *paths = _list_cached(page)
        kept = page.evaluate(READ_CACHED, name)
        proxy.shutdown()
        for context in contexts:
            context.close()
    version = f"web-{name.rpartition(' ')[2]}"
    assert {path.split("/")[1] for path in paths if path.startswith("/web-")} == {version}
    assert version in kept["/"]
    assert "$modules" in kept[f"/{version}/app.js"]
    assert errors == []


def test_under_a_path_the_worker_keeps_to_that_path(open_installed: Open, folder: Path) -> None:
    with ApiProcess(folder, API_ROOT_PATH="/impasto") as api:
        page = open_installed(f"{api.url}/impasto/")
        scope = page.evaluate("navigator.serviceWorker.ready.then(({ scope }) => scope)")
        manifest = page.evaluate("document.querySelector('link[rel=manifest]').href")
        action = page.request.get(manifest).json()["share_target"]["action"]
        page.context.set_offline(True)
        page.goto(f"{api.url}/impasto/j/job_x")

        assert scope == f"{api.url}/impasto/"
        assert page.locator("main").count() == 1
        _, *paths = _list_cached(page)
        assert all(path.startswith("/impasto/") for path in paths)
        url = page.evaluate("([path, base]) => new URL(path, base).pathname", [action, manifest])
        assert url == "/impasto/share"


def _share(page: Any, address: str, picture: Path) -> None:
    """Send a form as the system does when a user shares a picture with the installed page."""
    page.route("http://system.test/**", lambda route: route.fulfill(body=form, content_type=html))
    form, html = (
        f'<form method="post" action="{address}" enctype="multipart/form-data">'
        '<input type="file" name="picture"><button>Share</button></form>',
        "text/html",
    )
    page.goto("http://system.test/")
    page.set_input_files("input", picture)
    page.click("button")


def test_a_shared_picture_arrives_as_if_it_was_pasted(
    open_installed: Open, api: ApiProcess, pictures: tuple[Path, Path]
) -> None:
    page, picture = open_installed(api.url), pictures[0]
    before = len(_list_requests(api))
    _share(page, f"{api.url}/share", picture)
    _wait_for(page, "Boolean(globalThis.pasted)")

    assert page.evaluate("pasted") == [picture.name, picture.stat().st_size]
    assert page.url == f"{api.url}/"
    assert "/share" not in [route for route, _ in _list_requests(api)[before:]]
    assert not any("share" in path for path in _list_cached(page))
    page.reload()
    assert page.evaluate("globalThis.pasted") is None


def test_without_a_worker_a_share_opens_the_page(api: ApiProcess) -> None:
    """As in the first seconds after the installation. The picture must be shared again."""
    answer = httpx2.post(f"{api.url}/share", files={"picture": b"x"}, follow_redirects=False)

    assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_a_deletion_is_not_lost_with_a_page_that_the_worker_controls(
    open_installed: Open, shared_service: Any, image_files: dict[str, Path], until: Any
) -> None:
    client = shared_service.client
    job = client.submit(image_files["rotated.jpg"], [image_files["painting.png"]], size=64)
    page = open_installed(shared_service.url)
    page.reload()
    assert page.evaluate("Boolean(navigator.serviceWorker.controller)")
    tile = tile_of(page, job.id)
    tile.hover()
    tile.locator(".remove").click()
    expect(page.locator("#toast")).to_contain_text("deleted")
    page.reload()
    until(lambda: job.id not in [one.id for one in client.jobs()], "it is deleted")

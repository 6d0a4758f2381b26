"""Measures the memory and the first load of the page in Chromium, as on a phone of 375 px.

    python bench/page.py [--slowdown 4] picture [--megapixels 40] [--whole] | history [--jobs 10000]
    python bench/page.py [--slowdown 4] load [--rounds 5]

Starts its own Valkey and `python -m api`. Each command prints one table (bench/README.md).
"""

import io
import json
import re
import shutil
import subprocess
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx2
import psutil
from PIL import Image
from playwright.sync_api import sync_playwright
from websockets.sync.client import ClientConnection, connect

from bench import api
from bench.api import SAMPLES
from core.style.spec import StyleSpec

TIMEOUT_MS = 300_000
MIB = 1 << 20


@click.group()
@click.option("--slowdown", default=4, show_default=True, help="Of the page's CPU, by Chromium.")
@click.pass_context
def main(context: click.Context, slowdown: int) -> None:
    """Measure the page."""
    context.obj = slowdown


class Phone:
    """A page in a Chromium of its own, and the memory that it takes."""

    def __init__(self, chromium: Any, service: api.Service, slowdown: int) -> None:
        self.service, url = service, f"http://127.0.0.1:{service.ports[0]}"
        context = chromium.new_context(
            viewport={"width": 375, "height": 812}, device_scale_factor=3, is_mobile=True,
            has_touch=True, base_url=url, service_workers="block", locale="en",
        )  # fmt: skip
        context.set_default_timeout(TIMEOUT_MS)
        self.page = context.new_page()
        self._devtools = context.new_cdp_session(self.page)
        _prepare(self._devtools, slowdown)
        self._browser = chromium.new_browser_cdp_session()

    def open(self) -> None:
        """Open the editor and wait until it is complete."""
        self.page.goto("/")
        self.page.locator("#presets button").first.wait_for(state="attached")

    def print_row(self, state: str) -> None:
        """Print what the page takes now, and at most until now."""
        _print_row(state, self._devtools, self._browser)


class Devtools:
    """A connection to Chromium: to the browser, or to a page of it.

    Playwright's own connection asks for the network's events. Chromium then keeps the answers that
    a page has read, so a page that loads many pictures seems to grow by their bytes.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._count = socket, 0

    def send(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call a method of the protocol. Raises RuntimeError if Chromium answers with an error."""
        self._count += 1
        call = {"id": self._count, "method": method, "params": params or {}}
        self._socket.send(json.dumps(call))
        answer: dict[str, Any] = {}
        while answer.get("id") != self._count:  # other messages are events
            answer = json.loads(self._socket.recv())
        if "error" in answer or "exceptionDetails" in answer["result"]:
            raise RuntimeError(f"{method}: {answer}")
        result: dict[str, Any] = answer["result"]
        return result


def _prepare(page: Any, slowdown: int) -> None:
    page.send("Emulation.setCPUThrottlingRate", {"rate": slowdown})
    page.send("Performance.enable")


def _print_row(state: str, page: Any, browser: Any) -> None:
    """Print what a page takes. Both: a CDP session of Playwright, or a Devtools.

    Chromium keeps decoded pictures until it needs the memory; so it is told that it does.
    """
    time.sleep(3)
    pids = [
        process["id"]
        for process in browser.send("SystemInfo.getProcessInfo")["processInfo"]
        if process["type"] == "renderer"
    ]
    before = _resident(pids)
    page.send("Memory.simulatePressureNotification", {"level": "critical"})
    page.send("HeapProfiler.collectGarbage")
    time.sleep(2)
    metrics = page.send("Performance.getMetrics")["metrics"]
    values = {metric["name"]: metric["value"] for metric in metrics}
    click.echo(
        f"| {state} | {values['JSHeapUsedSize'] / MIB:.1f} | {values['Nodes']:.0f} "
        f"| {before:.0f} | {_resident(pids):.0f} | {sum(map(_peak, pids)):.0f} |"
    )


def _resident(pids: list[int]) -> float:
    """MiB of the processes, with their share of common memory."""
    return sum(psutil.Process(pid).memory_full_info().pss for pid in pids) / MIB


def _peak(pid: int) -> float:
    """MiB that were resident at once, at most."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024


_HEADER = (
    "| state | JS heap | nodes | renderers | under memory pressure | peak |\n"
    "|---|---|---|---|---|---|"
)


@contextmanager
def _phone(slowdown: int) -> Iterator[Phone]:
    with api.service() as running, sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        click.echo(_HEADER)
        yield Phone(chromium, running, slowdown)
        chromium.close()


_WATCH_SHIFTS = """window.shifts = 0;
new PerformanceObserver((list) => {
  for (const { hadRecentInput, value } of list.getEntries()) if (!hadRecentInput) shifts += value;
}).observe({ type: "layout-shift", buffered: true });"""
# Milliseconds since the navigation began.
_FIRST_PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
_USABLE = """() => document.querySelector("#presets button")
  && document.querySelector("#submit-job").checkVisibility() && performance.now()"""
_PAINTED = "() => document.querySelector('#stage img.after').naturalWidth && performance.now()"


@main.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--mbit", default=1.6, show_default=True, help="Of the connection, per second.")
@click.option("--latency-ms", default=150, show_default=True)
@click.pass_obj
def load(slowdown: int, rounds: int, mbit: float, latency_ms: int) -> None:
    """The first load on a slow connection, with nothing in the cache."""
    click.echo(f"| {mbit} Mbit/s, {latency_ms} ms | first paint | usable | painted | shifts |")
    click.echo("|---|---|---|---|---|")
    speed = mbit * 1e6 / 8
    network = {"offline": False, "downloadThroughput": speed, "uploadThroughput": speed}
    with api.service() as running, sync_playwright() as driver:
        for number in range(rounds):
            chromium = driver.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            phone = Phone(chromium, running, slowdown)
            devtools = phone.page.context.new_cdp_session(phone.page)
            devtools.send("Network.enable")
            devtools.send("Network.emulateNetworkConditions", {**network, "latency": latency_ms})
            phone.page.add_init_script(_WATCH_SHIFTS)
            phone.page.goto("/", wait_until="commit")
            steps = (_FIRST_PAINT, _USABLE, _PAINTED)
            times = [phone.page.wait_for_function(step).json_value() / 1e3 for step in steps]
            cells = " | ".join(f"{seconds:.2f} s" for seconds in times)
            click.echo(f"| {number + 1} | {cells} | {phone.page.evaluate('shifts'):.3f} |")
            chromium.close()


@main.command()
@click.option("--megapixels", default=40, show_default=True)
@click.option("--whole", is_flag=True, help="Control: show the picture itself, not a copy of it.")
@click.pass_obj
def picture(slowdown: int, megapixels: int, whole: bool) -> None:
    """A large photo: chosen, submitted, and shown again after a reload."""
    with Image.open(SAMPLES / "harbor.jpg") as sample:
        factor = (megapixels * 1e6 / (sample.width * sample.height)) ** 0.5
        photo = sample.resize((round(sample.width * factor), round(sample.height * factor)))
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=90)
    click.echo(f"{photo.width} × {photo.height} px, {len(file.getvalue()) / 1e6:.1f} MB\n")
    with _phone(slowdown) as phone:
        page = phone.page
        if whole:
            page.route("**/app.js", _replace("SCREEN_PIXELS = 12e6", "SCREEN_PIXELS = 1e12"))
        phone.open()
        phone.print_row("first visit")
        upload = {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": file.getvalue()}
        page.set_input_files("#photo input.files", upload)
        page.locator("#photo .status", has_text=f"{photo.width} ×").wait_for()
        page.wait_for_function(
            "document.querySelector('#stage img.before').src.startsWith('blob:')"
        )
        phone.print_row("photo chosen")
        page.click("#submit-job")
        page.wait_for_url("**/j/job_*")
        phone.print_row("submitted")
        page.reload()
        page.locator("#stage img.before[src]").wait_for()
        phone.print_row("after a reload")


def _replace(old: str, new: str) -> Callable[[Any], None]:
    def handle(route: Any) -> None:
        text = route.fetch().text()
        assert old in text
        route.fulfill(body=text.replace(old, new), content_type="text/javascript")

    return handle


# Answers requests for jobs and results: within the page, because each answer by Playwright takes
# longer than what is measured. Numbers are letters in the ids of jobs.
_ANSWER = """([job, count, thumbnail]) => {
    const picture = Uint8Array.from(atob(thumbnail), (letter) => letter.charCodeAt(0));
    const nameJob = (number) => "job_" + [...String(number).padStart(26, "0")]
        .map((digit) => "abcdefghij"[digit]).join("");
    const createJob = (number) => JSON.parse(JSON.stringify(job)
        .replaceAll("JOB", nameJob(number)).replaceAll("OUTPUT", String(number).padStart(64, "0")));
    const send = window.fetch;
    window.fetch = async (address, options) => {
        const { pathname, searchParams } = new URL(address);
        if (pathname.endsWith("/result")) {
            return new Response(picture, { headers: { "Content-Type": "image/webp" } });
        }
        if (!pathname.endsWith("/v1/jobs")) return send(address, options);
        const start = Number(searchParams.get("cursor")), end = Math.min(start + 20, count);
        const jobs = Array.from({ length: end - start }, (_, i) => createJob(count - start - i));
        const next = end < count ? `/v1/jobs?limit=20&cursor=${end}` : null;
        return Response.json({ jobs, next });
    };
}"""
_SCROLL = """async (count) => {
    const find = (id) => document.querySelector(id);
    while (!find("#presets button")) await new Promise(requestAnimationFrame);
    const list = find("#history-list");
    while (list.style.getPropertyValue("--count") < count) {
        find("#history-more").scrollIntoView();
        await new Promise(requestAnimationFrame);
    }
}"""


@main.command()
@click.option("--jobs", default=10_000, show_default=True)
@click.pass_obj
def history(slowdown: int, jobs: int) -> None:
    """A filmstrip that is scrolled to its end. The answers of the service are made up here."""
    with Image.open(SAMPLES / "harbor.jpg") as sample:
        file = io.BytesIO()
        sample.resize((256, 192)).save(file, "WEBP")
    thumbnail = b64encode(file.getvalue()).decode()

    with api.service() as running, _chromium() as (page, browser):
        url, start = f"http://127.0.0.1:{running.ports[0]}", time.monotonic()
        template = httpx2.get(f"{url}/v1/jobs/{running.create_job()}", trust_env=False).json()
        _prepare(page, slowdown)
        phone = {"width": 375, "height": 812, "deviceScaleFactor": 3, "mobile": True}
        page.send("Emulation.setDeviceMetricsOverride", phone)
        page.send("Page.enable")
        answer = f"({_ANSWER})({json.dumps([_job(template), jobs, thumbnail])})"
        page.send("Page.addScriptToEvaluateOnNewDocument", {"source": answer})
        page.send("Page.navigate", {"url": url})
        click.echo(_HEADER)
        for count in sorted({min(one, jobs) for one in (20, 1000, *range(2500, jobs, 2500), jobs)}):
            scroll = {"expression": f"({_SCROLL})({count})", "awaitPromise": True}
            page.send("Runtime.evaluate", scroll)
            seconds = time.monotonic() - start
            _print_row(f"{count} jobs, after {seconds:.0f} s", page, browser)


@contextmanager
def _chromium() -> Iterator[tuple[Devtools, Devtools]]:
    """A page of a Chromium of its own, and the browser, without Playwright."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            ["chromium", "--headless=new", "--no-sandbox", "--remote-debugging-port=0",
             f"--user-data-dir={profile}", "about:blank"],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr
        try:
            found = (re.search(r"ws://(\S+?)/\S+", line) for line in process.stderr)
            browser = next(match for match in found if match)
            targets = httpx2.get(f"http://{browser[1]}/json", trust_env=False).json()
            page = next(target for target in targets if target["type"] == "page")
            with (
                connect(page["webSocketDebuggerUrl"], max_size=None) as page_socket,
                connect(browser[0], max_size=None) as browser_socket,
            ):
                yield Devtools(page_socket), Devtools(browser_socket)
        finally:
            process.terminate()
            process.wait()


def _job(template: dict[str, Any]) -> dict[str, Any]:
    """Return a job with a result, as large as those of the service. JOB and OUTPUT are its ids."""
    address = "/v1/jobs/JOB"
    names = ("events", "retry", "preview", "result", "frames", "timelapse")
    links = {"self": address} | {name: f"{address}/{name}" for name in names}
    output = {"id": "sha256:OUTPUT", "content_type": "image/png", "size_bytes": 98694}
    return {
        **template,
        "id": "JOB",
        "status": "succeeded",
        "input": template["input"] | {"spec": StyleSpec().model_dump(mode="json")},
        "outputs": [output | {"width": 256, "height": 192}],
        "links": links,
    }


if __name__ == "__main__":
    main()

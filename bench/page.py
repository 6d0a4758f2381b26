"""Measures the memory of the page in Chromium, as on a phone: 375 px, three pixels for each.

    python bench/page.py [--slowdown 4] picture [--megapixels 40] [--whole] | history [--jobs 10000]

Starts its own Valkey and `python -m api`. Each command prints one table (bench/README.md).
"""

import io
import json
import re
import shutil
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import psutil
from PIL import Image
from playwright.sync_api import sync_playwright

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
        self._devtools.send("Emulation.setCPUThrottlingRate", {"rate": slowdown})
        self._devtools.send("Performance.enable")
        self._browser = chromium.new_browser_cdp_session()

    def open(self) -> None:
        """Open the editor and wait until it is complete."""
        self.page.goto("/")
        self.page.locator("#presets button").first.wait_for(state="attached")

    def print_row(self, state: str) -> None:
        """Print what the page takes now, and at most until now.

        Chromium keeps decoded pictures until it needs the memory; so it is told that it does.
        """
        self.page.wait_for_timeout(3000)
        pids = [
            process["id"]
            for process in self._browser.send("SystemInfo.getProcessInfo")["processInfo"]
            if process["type"] == "renderer"
        ]
        before = _resident(pids)
        self._devtools.send("Memory.simulatePressureNotification", {"level": "critical"})
        self._devtools.send("HeapProfiler.collectGarbage")
        self.page.wait_for_timeout(2000)
        metrics = self._devtools.send("Performance.getMetrics")["metrics"]
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


@contextmanager
def _phone(slowdown: int) -> Iterator[Phone]:
    with api.service() as running, sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        click.echo("| state | JS heap | nodes | renderers | under memory pressure | peak |")
        click.echo("|---|---|---|---|---|---|")
        yield Phone(chromium, running, slowdown)
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
    const list = document.querySelector("#history-list");
    while (list.style.getPropertyValue("--count") < count) {
        document.querySelector("#history-more").scrollIntoView();
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

    with _phone(slowdown) as phone:
        page, start = phone.page, time.monotonic()
        template = page.request.get(f"/v1/jobs/{phone.service.create_job()}").json()
        page.add_init_script(f"({_ANSWER})({json.dumps([_job(template), jobs, thumbnail])})")
        phone.open()
        for count in (20, 1000, *range(2500, jobs, 2500), jobs):
            page.evaluate(_SCROLL, count)
            seconds = time.monotonic() - start
            phone.print_row(f"{count} jobs, after {seconds:.0f} s")


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

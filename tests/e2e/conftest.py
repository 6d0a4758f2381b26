"""The whole service as a user starts it: an `impasto up` process with its own data and port."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
from page_actions import CHROMIUM, TIMEOUT_MS, OpenPage
from PIL import Image

from cli.local_service import free_port
from core.neural.weights.cache import WeightsCache
from core.style.spec import GATYS_DEFAULTS, StyleSpec
from impasto import Client

# Webhooks to a receiver on this machine.
WEBHOOKS = {
    "IMPASTO_WEBHOOK_SECRET": "whsec_" + "A" * 32,
    "IMPASTO_WEBHOOK_ALLOW_HTTP": "1",
    "IMPASTO_WEBHOOK_ALLOW_PRIVATE": "1",
}


class Service:
    """An `impasto up` process to start, stop and kill."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.port, self._log_path = free_port(), folder / "up.log"
        self.webhook_port = free_port()  # for a test's receiver
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **os.environ,
            "IMPASTO_DATA_DIR": str(folder / "my data"),
            "IMPASTO_CACHE_DIR": str(cache),
            "IMPASTO_WEBHOOK_PORTS": str(self.webhook_port),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self.client = Client(self.url)

    def start(self) -> None:
        command = [sys.executable, "-m", "cli", "up", "--port", str(self.port)]
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while not self.client.ready():
            assert self._process.poll() is None, self._log_path.read_text()
            assert time.monotonic() < deadline, self._log_path.read_text()
            time.sleep(0.05)

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> int:
        """Press Ctrl-C and return the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(60)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def processes(self) -> list[psutil.Process]:
        """All processes that it has started, directly or not."""
        assert self._process is not None
        return psutil.Process(self._process.pid).children(recursive=True)

    def find(self, *words: str) -> list[psutil.Process]:
        """Its processes whose command line has each word as an argument or a program's name."""
        matches = []
        for process in self.processes():
            try:
                # Valkey writes its address after its name into the same argument.
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if {Path(word).name for word in line.split()}.issuperset(words):
                matches.append(process)
        return matches

    @property
    def log(self) -> str:
        return self._log_path.read_text()


@pytest.fixture(scope="module")
def _service(tmp_path_factory: pytest.TempPathFactory, weights: WeightsCache) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("service"), weights, WEBHOOKS) as running:
        yield running


@pytest.fixture
def service(_service: Service) -> Service:
    """The module's service. A test may stop it; the fixture restarts it for the next test."""
    if not _service.is_running():
        _service.start()
    return _service


@pytest.fixture
def keyed_service(tmp_path: Path, weights: WeightsCache) -> Iterator[Service]:
    """A service for one test that requires API keys."""
    with serving(tmp_path, weights, {"IMPASTO_API_KEYS": "required"}) as running:
        yield running


@pytest.fixture(scope="session")
def shared_service(
    tmp_path_factory: pytest.TempPathFactory, weights: WeightsCache
) -> Iterator[Service]:
    """A service for all tests of the page. They may kill its API, but they do not stop it."""
    with serving(
        tmp_path_factory.mktemp("service"), weights, {"IMPASTO_WORKER_PREVIEW_SECONDS": "0.2"}
    ) as running:
        yield running


@contextmanager
def serving(folder: Path, weights: WeightsCache, settings: dict[str, str]) -> Iterator[Service]:
    """Run a service; afterwards check that none of its processes is left."""
    running = Service(folder, weights.folder.parent)
    running.environment |= settings
    running.start()
    before = running.processes()
    yield running
    if running.is_running():
        before = running.processes()
        running.stop()
    _, alive = psutil.wait_procs(before, 20)
    assert not alive, alive
    running.client.__exit__(None, None, None)


@pytest.fixture(scope="session")
def pictures(
    tmp_path_factory: pytest.TempPathFactory, photo: Any, painting: Any
) -> tuple[Path, Path]:
    """A small photo and a small painting as files."""
    folder = tmp_path_factory.mktemp("pictures")
    photo.save(folder / "photo.jpg", quality=95)
    painting.save(folder / "painting.png")
    return folder / "photo.jpg", folder / "painting.png"


@pytest.fixture
def submit(service: Service, pictures: tuple[Path, Path]) -> Callable[..., str]:
    """A function that submits a job and returns its id; it runs ~6 s on two cores by default."""

    def send(**parameters: str) -> str:
        defaults = {"size": "128", "iterations": "80", "scales": "1"}
        return service.client.submit(*pictures, **{**defaults, **parameters}).id

    return send


# ---------------------------------------------------------------------- the page


# Not for the session: while Playwright's synchronous API runs, asyncio.run() fails in this thread.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium for the tests of one module."""
    playwright = pytest.importorskip("playwright.sync_api")
    playwright.expect.set_options(timeout=TIMEOUT_MS)
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any, shared_service: Service) -> Iterator[OpenPage]:
    """Open the page in a new browser context. An exception or a policy violation fails the test."""
    contexts, page_errors = [], []

    def record_error(message: Any) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:
            page_errors.append(message.text)

    def open_context(
        address: str = "/", width: int = 1280, url: str = shared_service.url, **options: Any
    ) -> Any:
        viewport = {"width": width, "height": 800}
        # Only its own tests want it: Playwright sees no request that it answers.
        options.setdefault("service_workers", "block")
        context = browser.new_context(viewport=viewport, base_url=url, **options)
        context.set_default_timeout(TIMEOUT_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", record_error)
        page.on("pageerror", lambda error: page_errors.append(str(error)))
        page.on("dialog", lambda dialog: dialog.accept())
        page.goto(address)
        return page

    yield open_context
    for context in contexts:
        context.close()
    assert not page_errors


@pytest.fixture(scope="session")
def image_files(
    tmp_path_factory: pytest.TempPathFactory, photo: Image.Image, painting: Image.Image
) -> dict[str, Path]:
    """Files to upload, by name: good ones, one with a hostile name, and one that is no image."""
    folder = tmp_path_factory.mktemp("files")
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: rotated by 90 degrees, as from a phone that is held upright
    photo.save(folder / "rotated.jpg", exif=exif, quality=95)
    painting.save(folder / "painting.png")
    photo.save(folder / "<img src=x onerror=document.title='hurt'>.png")
    (folder / "not an image.png").write_text("<script>alert(1)</script>")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="session")
def unusual_job(shared_service: Any, image_files: dict[str, Path]) -> Any:
    """A job that has ended, with values that no control of the page can show.

    It has masks, an initial image, zeros, and parameters between the steps of their sliders.
    """
    client, mask = shared_service.client, io.BytesIO()
    Image.linear_gradient("L").save(mask, "PNG")
    pictures = {
        "masks": [mask.getvalue()],
        "style_masks": [mask.getvalue()],
        "init": "picture",
        "init_image": image_files["painting.png"],
    }
    parameters = {
        "strength": 0.33,
        "style_scale": 1.6,
        "content_weight": 0,
        "size": 80,
        "iterations": 40,
        "scales": 1,
    }
    job = client.submit(
        image_files["rotated.jpg"], [image_files["painting.png"]], **pictures, **parameters
    )
    return client.wait(job.id)


@pytest.fixture(scope="session")
def gatys_job(shared_service: Any, image_files: dict[str, Path]) -> Any:
    """A job with the paper's objective that has ended, and with the defaults of the other one."""
    client, defaults = shared_service.client, StyleSpec().model_dump()
    parameters = {name: defaults[name] for name in GATYS_DEFAULTS}
    job = client.submit(
        image_files["rotated.jpg"],
        [image_files["painting.png"]],
        **parameters,
        objective="gatys",
        size=64,
        iterations=2,
    )
    return client.wait(job.id)

"""A headless Firefox for tests, by WebDriver BiDi: Playwright drives only builds of its own."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
needs_firefox = pytest.mark.skipif(
    FIREFOX is None, reason="no Firefox here; `make browser` installs it where apt and root are"
)
TIMEOUT_SECONDS = 60  # the machine may be busy
# A proxy that nobody runs: the browser's own services must not reach the internet.
_PREFERENCES = {
    "network.proxy.type": 1,
    "network.proxy.http": "127.0.0.1",
    "network.proxy.http_port": 9,
    "network.proxy.ssl": "127.0.0.1",
    "network.proxy.ssl_port": 9,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
}
KEYS = {"Tab": "\ue004", "ArrowRight": "\ue014", "Enter": "\ue007", "Home": "\ue011"}


class Firefox:
    """One tab. `errors` are the messages that the page has logged as errors."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection, self._count, self.errors = connection, 0, list[str]()
        self.send("session.new", capabilities={})
        self.send("session.subscribe", events=["log.entryAdded"])
        self._tab = self.send("browsingContext.getTree")["contexts"][0]["context"]

    def send(self, method: str, **parameters: Any) -> Any:
        """Send a command; return its result."""
        self._count += 1
        command = {"id": self._count, "method": method, "params": parameters}
        self._connection.send(json.dumps(command))
        while True:
            answer = json.loads(self._connection.recv(timeout=TIMEOUT_SECONDS))
            if answer.get("method") == "log.entryAdded" and answer["params"]["level"] == "error":
                self.errors.append(answer["params"]["text"])
            if answer.get("id") == self._count:
                assert answer["type"] == "success", answer
                return answer["result"]

    def open(self, url: str, width: int = 1280) -> None:
        """Load the address in a viewport of this width."""
        viewport = {"width": width, "height": 800}
        self.send("browsingContext.setViewport", context=self._tab, viewport=viewport)
        self.send("browsingContext.navigate", context=self._tab, url=url, wait="complete")

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, which may be a promise, as JSON has it."""
        answer = self.send(
            "script.evaluate",
            expression=f"(async () => JSON.stringify((await ({expression})) ?? null))()",
            target={"context": self._tab},
            awaitPromise=True,
        )
        assert answer["type"] == "success", answer
        return json.loads(answer["result"]["value"])

    def wait_for(self, expression: str) -> None:
        """Wait until the expression is true."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not self.evaluate(f"Boolean({expression})"):
            assert time.monotonic() < deadline, expression
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """Click the middle of the element with the mouse."""
        x, y = self.evaluate(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)});"
            " one.scrollIntoView({ block: 'center' });"
            " const { x, y, width, height } = one.getBoundingClientRect();"
            " return [x + width / 2, y + height / 2].map(Math.round); })()"
        )
        actions = [{"type": "pointerMove", "x": x, "y": y}]
        actions += [{"type": kind, "button": 0} for kind in ("pointerDown", "pointerUp")]
        self._perform({"type": "pointer", "id": "mouse", "actions": actions})

    def press(self, *names: str) -> None:
        """Press keys, one after the other: names of KEYS, or characters."""
        actions = [
            {"type": kind, "value": KEYS.get(name, name)}
            for name in names
            for kind in ("keyDown", "keyUp")
        ]
        self._perform({"type": "key", "id": "keyboard", "actions": actions})

    def _perform(self, source: dict[str, Any]) -> None:
        self.send("input.performActions", context=self._tab, actions=[source])

    def set_files(self, selector: str, *paths: Path) -> None:
        """Choose files in a file input, which may be hidden."""
        locator = {"type": "css", "value": selector}
        found = self.send("browsingContext.locateNodes", context=self._tab, locator=locator)
        element = {"sharedId": found["nodes"][0]["sharedId"]}
        files = [str(path) for path in paths]
        self.send("input.setFiles", context=self._tab, element=element, files=files)


@contextmanager
def run_firefox(profile: Path) -> Iterator[Firefox]:
    """Run the browser with a new profile in this folder."""
    lines = [f'user_pref("{name}", {json.dumps(value)});' for name, value in _PREFERENCES.items()]
    (profile / "user.js").write_text("\n".join(lines))
    command = [str(FIREFOX), "--headless", "--no-remote", "--profile", str(profile)]
    with (profile / "log").open("w") as log:
        process = subprocess.Popen([*command, "--remote-debugging-port", "0"], stderr=log)
    try:
        with connect(f"{_find_address(process, profile / 'log')}/session", max_size=None) as socket:
            yield Firefox(socket)
    finally:
        process.terminate()
        process.wait(TIMEOUT_SECONDS)


def _find_address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if found := re.search(r"WebDriver BiDi listening on (ws://\S+)", log.read_text()):
            return found[1]
        time.sleep(0.05)
    raise AssertionError(log.read_text())

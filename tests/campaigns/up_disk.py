"""`impasto up` on a small disk that fills up and has room again: the same process serves on.

python tests/campaigns/up_disk.py                  # prints the seconds until it serves again
python tests/campaigns/up_disk.py --without room   # the control: it ends

The program starts itself again in its own mount namespace, as full_disk.py does.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import httpx2
from full_disk import Disk
from processes import environment

from cli.local_service import free_port

UP = "from cli.__main__ import main; import sys; sys.argv = ['impasto', 'up']; "
CONTROLS = {"room": "import cli.local_service as s; s.LocalService.has_room = lambda self: True; "}
DISK_MB = 128
TIMEOUT_SECONDS = 60.0


@click.command()
@click.option("--without", type=click.Choice([*CONTROLS]))
@click.option("--inside", is_flag=True, hidden=True)
def main(without: str | None, inside: bool) -> None:
    if not inside:
        user = [] if os.geteuid() == 0 else ["--map-root-user"]
        command = ["unshare", *user, "--mount", sys.executable, *sys.argv, "--inside"]
        sys.exit(subprocess.run(command, check=False).returncode)
    program = f"{CONTROLS.get(without or '', '')}{UP}main()"
    with tempfile.TemporaryDirectory() as folder:
        disk = Disk(Path(folder) / "disk", DISK_MB)
        print(f"serves again after {_fill_and_clear(program, disk, Path(folder) / 'log'):.1f} s")
        subprocess.run(["umount", "--lazy", str(disk.folder)], check=True)


def _fill_and_clear(program: str, disk: Disk, log: Path) -> float:
    """Return the seconds from the room until the service is ready."""
    port = free_port()
    settings = environment(DATA_DIR=str(disk.folder / "data"), API_PORT=str(port))
    with log.open("wb") as output:
        up = subprocess.Popen(
            [sys.executable, "-c", program], env=settings, stdout=output, stderr=output
        )
    try:
        _wait_until(lambda: _is_ready(port), "the service serves", up, log)
        disk.fill(0)
        _wait_until(lambda: "The disk of" in log.read_text(), "it reports the disk", up, log)
        time.sleep(8)  # longer than three restarts would take
        disk.clear()
        began = time.monotonic()
        _wait_until(lambda: _is_ready(port), "it serves again", up, log)
        return time.monotonic() - began
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(TIMEOUT_SECONDS)


def _is_ready(port: int) -> bool:
    try:
        url = f"http://127.0.0.1:{port}/readyz"
        return httpx2.get(url, timeout=5, trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False


def _wait_until(
    condition: Callable[[], bool], name: str, up: subprocess.Popen[bytes], log: Path
) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        if up.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"not: {name}\n{log.read_text()}")
        time.sleep(0.1)


if __name__ == "__main__":
    main()

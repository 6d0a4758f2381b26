"""What a decoder that a file has taken over can do: nothing."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from core.images import codec

here = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="no filter on this system",
)

# The child as it is, but its decoder is taken over: it tries one thing, and says what came of it.
_TAKEN_OVER = """
import ctypes, multiprocessing, os, pathlib, resource, signal, socket, subprocess, sys, threading
from core import errors
from core.images import codec
folder, out = pathlib.Path(sys.argv[1]), os.dup(1)
def attempt():
    {attempt}
def decode(data):
    try:
        attempt()
    except BaseException as error:
        raise errors.BadImage(f"{{type(error).__name__}} {{error}}") from error
    raise errors.BadImage("done")
if "decoder" in sys.argv:
    codec.decode = decode
ours, theirs = multiprocessing.Pipe(duplex=False)
if os.fork() == 0:
    try:
        codec._inspect(theirs, folder / "upload", 2**30, 5, mask=False)
    finally:
        os._exit(0)
theirs.close()
ours.recv_bytes()  # it has begun
print(ours.recv_bytes().decode())
"""


def _try(folder: Path, attempt: str) -> str:
    (folder / "upload").write_bytes(b"x")
    script = _TAKEN_OVER.format(attempt=attempt)
    done = subprocess.run(
        [sys.executable, "-c", script, folder, "decoder"],
        capture_output=True,
        check=True,
        timeout=60,
    )
    return str(json.loads(done.stdout)["message"])


@here
@pytest.mark.parametrize(
    "attempt",
    [
        pytest.param("(folder / 'new').write_bytes(b'x')", id="write a new file"),
        pytest.param("(folder / 'upload').write_bytes(b'y')", id="change its own upload"),
        pytest.param("(folder / 'upload').unlink()", id="delete"),
        pytest.param("(folder / 'upload').rename(folder / 'new')", id="rename"),
        pytest.param("(folder / 'upload').read_bytes()", id="read a file"),
        pytest.param("os.listdir('/')", id="list a folder"),
        pytest.param("socket.socket()", id="a TCP socket"),
        pytest.param("socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", id="a UDP socket"),
        pytest.param("socket.socket(socket.AF_UNIX)", id="a local socket"),
        pytest.param("os.fork()", id="fork"),
        pytest.param("threading.Thread(target=print).start()", id="a thread"),
        pytest.param("os.execv('/bin/true', ['true'])", id="exec"),
        pytest.param("subprocess.run(['true'])", id="a program"),
        pytest.param("os.kill(os.getppid(), 0)", id="signal its parent"),
        pytest.param("os.write(out, b'x')", id="write to what its parent had open"),
        pytest.param("resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9))", id="raise a limit"),
        pytest.param("os.chmod(folder, 0)", id="change rights"),
    ],
)
def test_a_decoder_that_is_taken_over_can_do_nothing(tmp_path: Path, attempt: str) -> None:
    answer = _try(tmp_path, attempt)

    refusals = (
        "PermissionError",
        "OSError",
        "RuntimeError can't start new thread",
        "ValueError not allowed",
    )
    assert answer.startswith(refusals), answer
    assert list(tmp_path.iterdir()) == [tmp_path / "upload"]
    assert (tmp_path / "upload").read_bytes() == b"x"


@here
def test_what_needs_no_leave_still_works(tmp_path: Path) -> None:
    """Else the test before would pass for a child that can do nothing at all."""
    assert _try(tmp_path, "bytearray(2**26)") == "done"


@here
def test_what_a_decoder_prints_does_not_reach_the_log(tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(b"x")
    script = _TAKEN_OVER.format(attempt="os.write(2, b'flood'); print('flood', flush=True)")
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path, "decoder"], capture_output=True, check=True
    )

    assert b"flood" not in done.stdout + done.stderr


@here
def test_the_children_of_the_api_are_filtered() -> None:
    assert codec.warm_up()

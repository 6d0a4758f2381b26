"""A decoder that a file has taken over can do nothing."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from core.images import decoder

needs_filter = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="no filter on this system",
)

# The real process with a decoder that is taken over: it makes one attempt, and reports the result.
_TAKEN_OVER = """
import ctypes, multiprocessing, os, pathlib, resource, signal, socket, subprocess, sys, threading
from core import errors
from core.images import codec, decoder_process
folder, out = pathlib.Path(sys.argv[1]), os.dup(1)
def attempt():
    {attempt}
def decode(*_, **__):
    try:
        attempt()
    except BaseException as error:
        raise errors.BadImage(f"{{type(error).__name__}} {{error}}") from error
    raise errors.BadImage("done")
codec.decode = decode
ours, theirs = multiprocessing.Pipe()
if os.fork() == 0:
    try:
        decoder_process.serve(theirs, 2**30, 5, {threads})
    finally:
        os._exit(0)
theirs.close()
ours.recv_bytes()  # the process is ready
ours.send_bytes(b"{{}}")
ours.send_bytes(b"x")
ours.send_bytes(b"")
print(ours.recv_bytes().decode())
"""


# The child would end at once. A raw call, because the C library may use another one.
_CLONE_FLAGS = "ctypes.CDLL(None, use_errno=True).syscall({number}, {flags} | 17, 0, 0, 0, 0)"
_CLONE_NUMBER = 56 if platform.machine() == "x86_64" else 220
_CHECK = "number = {call}; number or os._exit(0); number > 0 or exec('raise OSError(number)')"
_CLONE, _CLONE_IN_NAMESPACE = (
    _CHECK.format(call=_CLONE_FLAGS.format(number=_CLONE_NUMBER, flags=flags))
    for flags in (0, 0x10000000)
)


def _try(folder: Path, attempt: str, *, threads: bool = False) -> str:
    (folder / "upload").write_bytes(b"x")
    script = _TAKEN_OVER.format(attempt=attempt, threads=threads)
    done = subprocess.run(
        [sys.executable, "-c", script, folder],
        capture_output=True,
        check=True,
        timeout=60,
    )
    return str(json.loads(done.stdout)["message"])


@needs_filter
@pytest.mark.parametrize("threads", [False, True], ids=["", "with threads"])
@pytest.mark.parametrize(
    "attempt",
    [
        pytest.param("(folder / 'new').write_bytes(b'x')", id="write a new file"),
        pytest.param("(folder / 'upload').write_bytes(b'y')", id="change a file"),
        pytest.param("(folder / 'upload').unlink()", id="delete"),
        pytest.param("(folder / 'upload').rename(folder / 'new')", id="rename"),
        pytest.param("(folder / 'upload').read_bytes()", id="read a file"),
        pytest.param("os.listdir('/')", id="list a folder"),
        pytest.param("socket.socket()", id="a TCP socket"),
        pytest.param("socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", id="a UDP socket"),
        pytest.param("socket.socket(socket.AF_UNIX)", id="a local socket"),
        pytest.param("os.fork()", id="fork"),
        pytest.param(f"{_CLONE}", id="a process by clone"),
        pytest.param(f"{_CLONE_IN_NAMESPACE}", id="a process in a namespace"),
        pytest.param("os.execv('/bin/true', ['true'])", id="exec"),
        pytest.param("subprocess.run(['true'])", id="a program"),
        pytest.param("os.kill(os.getppid(), 0)", id="signal its parent"),
        pytest.param("os.write(out, b'x')", id="write to what its parent had open"),
        pytest.param("resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9))", id="raise a limit"),
        pytest.param("os.chmod(folder, 0)", id="change rights"),
    ],
)
def test_a_decoder_that_is_taken_over_can_do_nothing(
    tmp_path: Path, attempt: str, threads: bool
) -> None:
    answer = _try(tmp_path, attempt, threads=threads)

    refusals = (
        "PermissionError",
        "OSError",
        "RuntimeError can't start new thread",
        "ValueError not allowed",
    )
    assert answer.startswith(refusals), answer
    assert list(tmp_path.iterdir()) == [tmp_path / "upload"]
    assert (tmp_path / "upload").read_bytes() == b"x"


@needs_filter
def test_only_a_decoder_that_needs_threads_can_start_them(tmp_path: Path) -> None:
    attempt = "thread = threading.Thread(target=int); thread.start(); thread.join()"

    assert _try(tmp_path, attempt).startswith("RuntimeError can't start new thread")
    assert _try(tmp_path, attempt, threads=True) == "done"


@needs_filter
def test_a_decoder_that_is_taken_over_can_still_use_memory(tmp_path: Path) -> None:
    """Otherwise the test before would pass for a process that cannot do anything."""
    assert _try(tmp_path, "bytearray(2**26)") == "done"


@needs_filter
def test_the_output_of_a_decoder_does_not_reach_the_log(tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(b"x")
    script = _TAKEN_OVER.format(
        attempt="os.write(2, b'flood'); print('flood', flush=True)", threads=False
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, check=True)

    assert b"flood" not in done.stdout + done.stderr


@needs_filter
def test_the_system_calls_of_decoding_processes_are_filtered() -> None:
    assert decoder.warm_up()

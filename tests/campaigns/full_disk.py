"""Make the disks of a running service fail: (nearly) full, read-only, too many open files.

python tests/campaigns/full_disk.py --seed 1 --count 60 [--kind "store full"]
python tests/campaigns/full_disk.py --seed 1 --count 6 --without rename

Pictures and store have a small tmpfs each. The program starts itself again in its own mount
namespace, so that no other process sees the mounts and they end with the campaign. This needs root,
or a Linux that allows user namespaces.
"""

import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import faults
import httpx2
import kills
import psutil
from fleet import Fleet
from history import History, events, percentile, report_violations

from core.storage.blobs import digest_of

SIZES_MB = {"data": 256, "valkey": 96}
KINDS = ("full", "nearly full", "read-only", "too many files", "store full")
FULL = ("full", "read-only")  # nothing can be written, but the store answers
FAULT_SECONDS = (1.0, 4.0)
PAUSE_SECONDS = (0.5, 2.0)
RECOVERY_SECONDS = 10.0
TIMEOUT_SECONDS = 120.0

CONTROLS = {
    # Blobs are written in place.
    "rename": (
        "import core.storage.blobs as b\n"
        "def commit(self, file, *_):\n"
        "    path = self._path(file.digest)\n"
        "    path.parent.mkdir(parents=True, exist_ok=True)\n"
        "    try:\n"
        "        path.write_bytes(file.path.read_bytes())\n"
        "    except OSError as error:\n"
        "        raise b.errors.StorageFull() from error\n"
        "    return file.digest\n"
        "b.Blobs.commit = commit\n"
    ),
    # OSErrors are not translated to StorageFull.
    "refusal": (
        "import core.storage.blobs as b, io, tempfile\n"
        "plain = io.BufferedRandom\n"
        "part = b.PendingBlob\n"
        "part.write, part.flush, part.seek = plain.write, plain.flush, plain.seek\n"
        "def pending(self):\n"
        "    self._pending_folder.mkdir(parents=True, exist_ok=True)\n"
        "    handle, path = tempfile.mkstemp(dir=self._pending_folder)\n"
        "    return b.PendingBlob(handle, b.Path(path))\n"
        "b.Blobs.pending = pending\n"
    ),
    # Files that are not committed are not deleted.
    "parts": (
        "import core.storage.blobs as b, io\n"
        "b.PendingBlob.close = lambda self: io.BufferedRandom.close(self)\n"
    ),
    # /readyz does not check the disk.
    "room": "import core.storage.blobs as b; b.Blobs.is_writable = lambda self: True\n",
}


class Disk:
    """A tmpfs that can be filled and made read-only."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.folder, self._filler = folder, folder / "filler"
        folder.mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "impasto", str(folder))

    def fill(self, spare_bytes: int) -> None:
        """Fill the disk until at most `spare_bytes` are free. Others write at the same time."""
        with self._filler.open("ab") as file, suppress(OSError):
            while (size := self._free_bytes() - spare_bytes) > 0:
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)

    def _free_bytes(self) -> int:
        status = os.statvfs(self.folder)
        return status.f_bavail * status.f_frsize

    def clear(self) -> None:
        self._filler.unlink(missing_ok=True)

    def lock(self) -> None:
        """Make the disk read-only. The kernel refuses while a file is open for writing."""
        deadline = time.monotonic() + 20
        while True:
            try:
                return _run("mount", "-o", "remount,ro", str(self.folder))
            except subprocess.CalledProcessError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def unlock(self) -> None:
        _run("mount", "-o", "remount,rw", str(self.folder))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


class Timed(faults.Timed):
    """A caller whose photos differ in bytes, but not in pixels."""

    def photo(self, key: str) -> bytes:
        return _photo(key)


def _photo(key: str) -> bytes:
    return kills.picture(1, 96, 72, random.Random(key).randbytes(20_000).hex())


class Client(faults.Client):
    kind = Timed


class Visitor(threading.Thread):
    """A thread that reads every page and job of the service, again and again."""

    def __init__(self, fleet: Fleet, history: History, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self._caller, self._over = Timed(fleet.url, history), over

    def run(self) -> None:
        with self._caller:
            while not self._over.is_set():
                for path in ("/", "/docs", "/v1/jobs"):
                    answer = self._caller.ask("GET", path, self._over.is_set)
                for job in answer.json()["jobs"]:
                    for name in ("preview", "result"):
                        if name in job["links"]:
                            query = "?format=webp" if name == "result" else ""
                            self._caller.ask("GET", job["links"][name] + query, self._over.is_set)
                self._over.wait(0.3)


class Trial:
    """Causes the faults of one fleet's disks, one after another."""

    def __init__(
        self, fleet: Fleet, disks: dict[str, Disk], history: History, random_: random.Random
    ) -> None:
        self._fleet, self._disks, self._history, self._random = fleet, disks, history, random_
        self._http = httpx2.Client(
            base_url=fleet.url, timeout=3 * faults.HANG_SECONDS, trust_env=False
        )
        self._sent = 0

    def run(self, kind: str) -> None:
        """Cause one fault, end it, and wait until the service works again."""
        before = self._pids()
        self._history.record("fault", kind=kind)
        try:
            self._begin(kind)
            self._history.record("begun", kind=kind)
            time.sleep(self._random.uniform(*FAULT_SECONDS))
            if kind in FULL:
                self._history.record("refused", kind=kind, **self._refused(kind))
        finally:
            self._end(kind)
        began = time.monotonic()
        self._history.record("over", kind=kind, torn=self.torn())
        while not (self._ready() == 200 and self._upload() == 201 and self._fleet.is_serving()):
            if time.monotonic() - began > TIMEOUT_SECONDS:
                break
            time.sleep(0.05)
        died = [name for name, pid in self._pids().items() if pid != before[name]]
        self._history.record(
            "recovered", kind=kind, after=round(time.monotonic() - began, 3), died=died
        )

    def _begin(self, kind: str) -> None:
        data = self._disks["data"]
        if kind == "full":
            data.fill(0)
        elif kind == "nearly full":
            data.fill(self._random.randrange(80_000))
        elif kind == "read-only":
            data.lock()
        elif kind == "store full":
            self._disks["valkey"].fill(self._random.randrange(20_000))
        else:
            self._limit_files(
                self._random.choice(["api", "worker", "child"]), self._random.choice([0, 1, 2, 5])
            )

    def _end(self, kind: str) -> None:
        if kind == "read-only":
            self._disks["data"].unlock()
        elif kind == "too many files":
            self._unlimit_files()
        else:
            self._disks["valkey" if kind == "store full" else "data"].clear()

    def _refused(self, kind: str) -> dict[str, int]:
        """Return the statuses of an upload and of /readyz."""
        for _ in range(20):
            if kind == "full":
                # Pending files that others closed meanwhile have freed space.
                self._disks["data"].fill(0)
            seen = {"upload": self._upload(), "ready": self._ready()}
            if {*seen.values()} == {503}:
                break
        return seen

    def _limit_files(self, target: str, spare: int) -> None:
        if target == "child":
            chosen = [child for worker in self._fleet.workers for child in worker.children()]
        else:
            chosen = [
                psutil.Process((self._fleet.api if target == "api" else self._fleet.workers[0]).pid)
            ]
        for process in chosen:
            hard = process.rlimit(psutil.RLIMIT_NOFILE)[1]
            process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds() + spare, hard))
        self._history.record("limited", target=target, spare=spare)

    def _unlimit_files(self) -> None:
        """Lift the limit, also of processes that were started meanwhile."""
        for program in (self._fleet.api, *self._fleet.workers):
            with suppress(psutil.Error):
                parent = psutil.Process(program.pid)
                for process in (parent, *parent.children(recursive=True)):
                    with suppress(psutil.Error):
                        hard = process.rlimit(psutil.RLIMIT_NOFILE)[1]
                        process.rlimit(psutil.RLIMIT_NOFILE, (hard, hard))

    def _pids(self) -> dict[str, int]:
        found = {"api": self._fleet.api.pid}
        for worker in self._fleet.workers:
            found |= {
                worker.name: worker.pid,
                f"{worker.name}'s child": sum(one.pid for one in worker.children()),
            }
        return found

    def _upload(self) -> int:
        """Upload a new picture; return the status."""
        self._sent += 1
        photo = _photo(f"probe {self._sent} {self._random.random()}")
        return self._status("POST", "/v1/images", files={"image": ("a.png", photo)})

    def _ready(self) -> int:
        return self._status("GET", "/readyz")

    def _status(self, method: str, path: str, **request: Any) -> int:
        try:
            return self._http.request(method, path, **request).status_code
        except httpx2.HTTPError:
            return 0

    def torn(self) -> list[str]:
        """Return the blobs whose content does not match their digest."""
        return [
            name for name, data in _blobs(self._fleet.data) if digest_of(data) != f"sha256:{name}"
        ]

    def parts(self) -> list[str]:
        return [path.name for path in (self._fleet.data / "blobs" / "parts").glob("*")]


def _blobs(data: Path) -> Any:
    for path in (data / "blobs").glob("??/*"):
        with suppress(FileNotFoundError):
            yield path.parent.name + path.name, path.read_bytes()


def campaign(
    folder: Path,
    history: History,
    *,
    seed: int,
    count: int,
    kinds: tuple[str, ...] = KINDS,
    without: str | None = None,
) -> None:
    """Run the campaign in its own mount namespace, and record its history."""
    random_, over = random.Random(seed), threading.Event()
    history.record("begin", seed=seed, count=count, without=without)
    disks = {name: Disk(folder / name, megabytes) for name, megabytes in SIZES_MB.items()}
    fleet = Fleet(
        folder, tiny=True, changed=CONTROLS.get(without or "", ""), WORKER_PREVIEW_SECONDS="0.3"
    )
    with fleet, Timed(fleet.url, history) as caller:
        for number, parameters in enumerate(kills.PARAMETERS):
            job = kills.wait_until_ended(caller, caller.submit(parameters, f"reference-{number}"))
            history.record("reference", parameters=number, pixels=caller.pixels(job))
        clients = [
            Client(fleet, history, seed * 1000 + number, 10**6, over)
            for number in range(kills.CLIENTS)
        ]
        for client in (*clients, Visitor(fleet, history, over)):
            client.start()
        trial = Trial(fleet, disks, history, random_)
        for kind in _order(random_, kinds, count):
            time.sleep(random_.uniform(*PAUSE_SECONDS))
            trial.run(kind)
        over.set()
        deadline = time.monotonic() + TIMEOUT_SECONDS
        for client in clients:
            client.join(max(0.0, deadline - time.monotonic()))
        kills.record_final_states(fleet, caller, history)
        history.record("files", torn=trial.torn(), parts=trial.parts())
        kills.delete_all_jobs(fleet, caller, history)


def _order(random_: random.Random, kinds: tuple[str, ...], count: int) -> list[str]:
    """Return `count` faults in random order, each kind equally often."""
    order = [*kinds] * -(-count // len(kinds))
    random_.shuffle(order)
    return order[:count]


# ---------------------------------------------------------------------- the checker


def violations(file: Path) -> list[str]:
    """Return the violations that the history shows: those of faults.py, and those of the disk."""
    found = faults.violations(file)
    found += [
        f"{event['job']} ended as {event['status']}"
        for event in events(file, "final")
        if event["status"] != "succeeded"
    ]
    fault = ""
    for event in events(file, "begun", "over", "answer"):
        if event["event"] == "answer":
            found += _check_answer(event, fault)
        else:
            fault = event["kind"] if event["event"] == "begun" else ""
    for event in events(file, "refused"):
        if event["upload"] != 503 or event["ready"] != 503:
            statuses = f"{event['upload']}, /readyz {event['ready']}"
            found.append(f"{event['kind']}: an upload was answered {statuses}")
    for event in events(file, "over", "files"):
        found += [f"torn: {name}" for name in event["torn"]]
    for event in events(file, "files"):
        found += [f"pending and left: {name}" for name in event["parts"]]
    for event in events(file, "recovered"):
        if event["after"] > RECOVERY_SECONDS:
            found.append(f"{event['kind']}: recovered after {event['after']} s")
        if event["died"] and event["kind"] not in ("too many files", "store full"):
            found.append(f"{event['kind']}: {', '.join(event['died'])} died")
    return found


def _check_answer(event: dict[str, Any], fault: str) -> list[str]:
    """Return the violations of one answer.

    A preview may be replaced or deleted between the read of its job and the request for it.
    """
    if event["status"] in (404, 409) and event["path"].endswith("/preview"):
        return []
    what = (
        f"{fault or 'no fault'}: {event['method']} {event['path']} was answered {event['status']}"
    )
    status = event["status"]
    if status == 503 and not event["retry_after"]:
        return [f"{what} without Retry-After"]
    if fault in FULL and event["method"] == "GET" and status == 503:
        return [f"{what}, although it writes nothing"]
    return [] if status < 300 or status >= 500 else [what]


def figures(file: Path) -> dict[str, Any]:
    """Return the rows of the table."""
    shown = kills.figures(file)
    del shown["kills"]
    for kind in KINDS:
        recovered = [event for event in events(file, "recovered") if event["kind"] == kind]
        if recovered:
            after = [event["after"] for event in recovered]
            died = sum(len(event["died"]) for event in recovered)
            shown[f"{kind}: times, recovered after (p50, most), processes that died"] = (
                f"{len(recovered)}, {percentile(after, 0.5):.2f} s, {max(after):.2f} s, {died}"
            )
    shown["answers"] = dict(Counter(event["status"] for event in events(file, "answer")))
    return shown


# ---------------------------------------------------------------------- the program


def _in_a_namespace(arguments: list[str]) -> int:
    """Run this program again in its own mount namespace; return its exit code."""
    unshare = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--mount"]
    return subprocess.run(
        [*unshare, sys.executable, __file__, "--inside", *arguments], check=False
    ).returncode


@click.command()
@click.option("--seed", default=1)
@click.option("--count", default=60, help="Faults.")
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(KINDS),
    multiple=True,
    default=KINDS,
    help="Only faults of these kinds.",
)
@click.option("--history", "file", type=click.Path(path_type=Path), default=None)
@click.option("--without", type=click.Choice([*CONTROLS]), default=None)
@click.option("--inside", is_flag=True, hidden=True)
def main(
    *,
    seed: int,
    count: int,
    kinds: tuple[str, ...],
    file: Path | None,
    without: str | None,
    inside: bool,
) -> None:
    """Run the campaign, and check its history."""
    if not inside:
        sys.exit(_in_a_namespace(sys.argv[1:]))
    with tempfile.TemporaryDirectory(
        prefix="impasto-full-disk-", ignore_cleanup_errors=True
    ) as folder:
        history = History(file or Path(folder) / "history.jsonl")
        try:
            campaign(
                Path(folder) / "fleet",
                history,
                seed=seed,
                count=count,
                kinds=kinds,
                without=without,
            )
        finally:  # so that the folder can be deleted
            for name in SIZES_MB:
                command = ["umount", "--lazy", str(Path(folder) / "fleet" / name)]
                subprocess.run(command, check=False, capture_output=True)
        for name, value in figures(history.file).items():
            click.echo(f"| {name} | {value} |")
        report_violations(violations(history.file))


if __name__ == "__main__":
    main()

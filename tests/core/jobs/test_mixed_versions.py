"""The scripts of the version before and of this one on one store, in any order.

tests/campaigns/mixed_versions.py does the same with whole processes.
"""

import hashlib
import random
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from mixed_versions import ROOT, find_earlier_commit

from core.jobs.models import JobInput, Status, SubmissionContext, WorkerReport, new_job_id
from core.jobs.store import SCRIPTS, JobStore
from core.style.spec import StyleSpec

SIZES = (256, 1024, 4096)
REPORTS = [
    WorkerReport(device="", precision="", network="", networks=[], max_size_px=size, id=str(size))
    for size in (1024, 8192)
]


class EarlierStore(JobStore):
    """A store that calls the scripts of an earlier commit."""

    def __init__(self, url: str, commit: str) -> None:
        super().__init__(url)
        folder = "core/jobs/scripts"
        listed = _git("ls-tree", "--name-only", f"{commit}:{folder}").split()
        topics = [topic for topic in SCRIPTS if f"{topic}.lua" in listed]
        assert len(topics) == len(listed), "the order of the scripts is not known"
        code = "\n".join(_git("show", f"{commit}:{folder}/{topic}.lua") for topic in topics)
        # A name of its own, in case both versions have the same code.
        self._version = f"impasto_{hashlib.sha256(code.encode()).hexdigest()[:11]}_"
        self._redis.function_load(code.replace("impasto_VERSION", self._version), replace=True)

    def _call(self, function: str, *args: str | int, **_: Any) -> Any:
        """Without the entry of the audit log: an earlier version may have none.

        This version reads the records: the form of the answer may differ.
        """
        if function == "read_changed":
            return super()._call(function, *args)
        return self._redis.fcall(f"{self._version}_{function}", 1, "impasto:", *args)


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture
def earlier(valkey: Any) -> Iterator[JobStore]:
    commit = find_earlier_commit()
    if commit is None:
        pytest.skip("this clone has no commit before this version")
    store = EarlierStore(valkey.url, commit)
    yield store
    store.close()


class RandomSteps:
    """Steps of callers, workers, operator and reaper, each by the store of either version."""

    def __init__(self, driver: Any, rng: random.Random) -> None:
        self._driver, self._rng = driver, rng
        self.jobs: set[str] = set()
        self.running: dict[str, str] = {}  # id -> token

    def submit(self, at: JobStore) -> None:
        spec = StyleSpec(size=self._rng.choice(SIZES)).model_dump()
        job_input = JobInput(content=self._driver.CONTENT, styles=[self._driver.STYLE], spec=spec)
        context = SubmissionContext(owner=self._rng.choice("xyz"))
        self.jobs.add(at.create(new_job_id(), job_input, context=context).id)

    def claim(self, at: JobStore) -> None:
        report, token = self._rng.choice(REPORTS), new_job_id()
        if job := at.claim(token, report.id, report):
            assert job.id not in self.running, "two workers run it"
            assert job.status is Status.RUNNING
            self.running[job.id] = token

    def release(self, at: JobStore) -> None:
        if self.running:
            assert at.release(*self._take()) == "ok"

    def end(self, at: JobStore) -> None:
        if self.running:
            assert at.fail(*self._take(), self._driver.DIVERGED) == "ok"

    def _take(self) -> tuple[str, str]:
        job_id = self._rng.choice(sorted(self.running))
        return job_id, self.running.pop(job_id)

    def reap(self, at: JobStore) -> None:
        self._driver.expire_leases()
        at.reap_expired_leases()
        self.running.clear()

    def cancel(self, at: JobStore) -> None:
        if queued := at.operations.list_queue(0, 100)[0]:
            at.cancel(self._rng.choice(queued).id)

    def move(self, at: JobStore) -> None:
        if queued := at.operations.list_queue(0, 100)[0]:
            at.operations.move_in_queue(
                self._rng.choice(queued).id, self._rng.choice(["first", "last"])
            )


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("last", ["this version", "the version before"])
def test_each_job_runs_once_whichever_version_does_each_step(
    driver: Any, store: JobStore, earlier: JobStore, seed: int, last: str
) -> None:
    rng = random.Random(seed)
    steps = RandomSteps(driver, rng)
    for report in REPORTS:
        store.heartbeat(report.id, report)
    for digest in (driver.CONTENT, driver.STYLE):
        store.reserve(digest, 600)
    choices = [steps.submit] * 3 + [steps.claim, steps.release, steps.end]
    choices += [steps.cancel, steps.move, steps.reap]
    for _ in range(150):
        rng.choice(choices)(rng.choice([store, earlier]))

    final = store if last == "this version" else earlier
    for _ in range(3 * len(steps.jobs)):
        while steps.running:
            steps.end(final)
        steps.claim(final)
    assert {store.get(job_id).status for job_id in steps.jobs} == {Status.FAILED, Status.CANCELED}
    assert sum(store.get_counts()[0].values()) == len(steps.jobs)

"""The commands that use a service: what they send and print, and their exit codes."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from api_process import ApiProcess
from keyed_api import KeyedApi

from core import errors
from core.auth.api_keys import ApiKeyStore
from core.images import codec
from core.jobs.models import (
    EstimateResponse,
    JobError,
    JobInput,
    QueuePosition,
    ScaleEstimate,
    SubmissionContext,
    WorkerReport,
    new_job_id,
)
from core.jobs.store import JobStore
from core.storage.blobs import digest_of
from core.style.presets import PRESETS
from impasto import Client, Estimate

Pictures = tuple[Path, Path]


@pytest.fixture
def impasto(service: ApiProcess, at_service: JobStore, run_command: Any) -> Any:
    def run(*args: Any, **environment: str) -> Any:
        return run_command(*args, **{"IMPASTO_URL": service.url, **environment})

    return run


def test_submit_sends_parameters_presets_and_those_of_an_earlier_result(
    impasto: Any, client: Client, pictures: Pictures, worker: Any, tmp_path: Path
) -> None:
    first = impasto(
        "submit", *pictures, "--preset", "brushwork", "--size", 64, "--seamless", "true"
    )
    (job,) = client.jobs()
    worker.claim()
    (tmp_path / "result.png").write_bytes(worker.succeed())
    again = impasto("submit", *pictures, pictures[1], "--from", "result.png", "--seed", 3)
    newest, _ = client.jobs()

    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    assert first.stdout.strip() == client.link(job)
    assert tuple(job.input.spec[name] for name in ("size", "seamless", "strength")) == (
        64,
        True,
        PRESETS["brushwork"].parameters["strength"],
    )
    assert newest.input.spec == {**job.input.spec, "seed": 3, "style_weights": [0.5, 0.5]}


def test_submit_needs_only_an_earlier_result(
    impasto: Any, client: Client, pictures: Pictures, worker: Any, tmp_path: Path
) -> None:
    """With its own pictures, or with another photo. A photo alone is refused."""
    first = client.submit(*pictures, size=64, seed=5)
    worker.claim()
    (tmp_path / "result.png").write_bytes(worker.succeed())
    same = impasto("submit", "--from", "result.png", "--seed", 6)
    (again, _) = client.jobs()
    other = impasto("submit", "--from", "result.png", pictures[1])
    (newest, *_) = client.jobs()
    nothing = impasto("submit", pictures[0])

    assert (same.returncode, other.returncode, nothing.returncode) == (0, 0, 2), (
        same.stderr + other.stderr
    )
    assert (again.input.spec, again.input.digests()) == (
        {**first.input.spec, "seed": 6},
        first.input.digests(),
    )
    assert newest.input.digests() == [digest_of(pictures[1].read_bytes()), *first.input.styles]
    assert "or an earlier result with --from" in nothing.stderr


def test_plan_prints_the_services_estimate_and_submits_no_job(
    impasto: Any, client: Client, pictures: Pictures, at_service: JobStore
) -> None:
    step = ScaleEstimate(
        width=64, height=48, iterations=70, seconds=4.0, memory_bytes=2_000_000_000, tile_px=None
    )
    responses = [
        EstimateResponse(device="cpu", network="vgg16", scales=[step]),
        EstimateResponse(
            device="cpu",
            network="vgg16",
            refused=JobError(code="out_of_memory", message="Too large."),
        ),
    ]

    def answer() -> None:
        while responses:
            at_service.heartbeat("worker")
            if request := at_service.estimates.next_request():
                at_service.estimates.reply(request[0], responses.pop(0))

    answering = threading.Thread(target=answer)
    answering.start()
    planned, refused = (impasto("submit", *pictures, "--plan", "--size", "64") for _ in range(2))
    answering.join()

    total = (
        "Total: 4 s and 2.0 GB plus the network (vgg16, cpu); the job would start after 0 others."
    )
    assert planned.stdout.splitlines() == ["64 x 48 px, 70 iterations, whole: 4 s", total], (
        planned.stderr
    )
    assert (refused.returncode, refused.stderr) == (1, "impasto: Too large.\n")
    assert list(client.jobs()) == []
    assert impasto("submit", "--plan", "--from", pictures[0]).returncode == 2


def test_what_a_service_says_reaches_the_terminal_without_escape_sequences(
    impasto: Any, client: Client, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(client.submit(*pictures), warnings=["style: \x1b[2J"])
    estimate = Estimate(
        seconds=1,
        memory_bytes=1,
        width=64,
        height=64,
        scales=[],
        refused=None,
        device="\x1b[31m",
        network="a\nb",
        queue=QueuePosition(position=0, start_seconds=None),
    )
    monkeypatch.setattr(Client, "submit", lambda *_, **__: job)
    monkeypatch.setattr(Client, "estimate", lambda *_, **__: estimate)
    submitted = impasto("submit", *pictures)
    planned = impasto("submit", *pictures, "--plan")

    assert submitted.stderr == "style: \N{REPLACEMENT CHARACTER}[2J\n"
    assert "(a\N{REPLACEMENT CHARACTER}b, \N{REPLACEMENT CHARACTER}[31m)" in planned.stdout


def test_watch_follows_a_url_and_sends_no_key_to_another_service(
    impasto: Any,
    client: Client,
    pictures: Pictures,
    worker: Any,
    tmp_path: Path,
    service: ApiProcess,
) -> None:
    job = client.submit(*pictures, size=64)
    worker.claim()
    data = worker.succeed()
    with KeyedApi(tmp_path) as api:
        keys, store, own = (
            ApiKeyStore(api.redis_url),
            JobStore(api.redis_url),
            f"http://127.0.0.1:{api.port}",
        )
        ada, secret = keys.create("ada")
        for one in ("sha256:a", "sha256:b"):
            store.reserve(one)
        waiting = store.create(
            new_job_id(),
            JobInput(content="sha256:a", styles=["sha256:b"], spec={}),
            context=SubmissionContext(owner=ada.id),
        )
        store.cancel(waiting.id)
        keyed = {"IMPASTO_URL": own, "IMPASTO_KEY": secret}
        by_url = [
            impasto("watch", url, "-o", "out.png", **keyed)
            for url in (client.link(job), f"{service.url}/j/{job.id}/")
        ]
        job_url = f"{own}/v1/jobs/{waiting.id}"
        withheld = impasto("watch", job_url, IMPASTO_KEY=secret)
        by_variable = impasto("watch", job_url, **keyed)
        by_option = impasto("watch", job_url, "--url", own, IMPASTO_KEY=secret)
        store.close()
        keys.close()
    two = impasto("watch", client.link(job), "--url", own)

    assert [ran.returncode for ran in by_url] == [0, 0], by_url[0].stderr + by_url[1].stderr
    assert (tmp_path / "out.png").read_bytes() == data
    assert (
        withheld.returncode,
        withheld.stderr,
    ) == (2, f"impasto: That service requires an API key; to send it yours, add --url {own}\n")
    assert [ran.stderr.splitlines()[-1] for ran in (by_variable, by_option)] == [
        "impasto: The job was canceled."
    ] * 2
    assert (two.returncode, two.stderr) == (
        2,
        "impasto: The job's URL and --url name different services; drop --url.\n",
    )


def test_watch_writes_the_picture_of_a_canceled_job_and_exits_with_1(
    impasto: Any, client: Client, pictures: Pictures, worker: Any, tmp_path: Path
) -> None:
    job = client.submit(*pictures, size=64)
    worker.claim()
    client.cancel(job.id)
    data = worker.end_canceled()
    ran = impasto("watch", job.id, "-o", "out.png")

    assert (ran.returncode, ran.stderr.splitlines()[-1]) == (1, "impasto: The job was canceled.")
    assert (tmp_path / "out.png").read_bytes() == data


def test_watch_writes_the_result_of_a_job_that_has_ended(
    impasto: Any, client: Client, pictures: Pictures, worker: Any, tmp_path: Path
) -> None:
    job = client.submit(*pictures, size=64)
    worker.claim()
    data = worker.succeed()

    assert impasto("watch", client.link(job), "-o", "out.png").returncode == 0
    assert (tmp_path / "out.png").read_bytes() == data


def test_a_refusal_exits_with_2_and_one_line_a_job_without_a_picture_with_1(
    impasto: Any, client: Client, pictures: Pictures
) -> None:
    canceled = client.cancel(client.submit(*pictures).id)
    unknown, refused = impasto("watch", "job_x"), impasto("submit", *pictures, "--size", "1")
    ended = impasto("watch", canceled.id)

    assert (unknown.returncode, unknown.stderr) == (
        2,
        f"impasto: {errors.JobNotFound().message}\n",
    )
    assert (refused.returncode, refused.stderr) == (
        2,
        "impasto: size must be a whole number from 64 to 8192.\n",
    )
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (
        1,
        "impasto: The job was canceled.",
    )


def test_submit_sends_priority_deadline_reuse_and_webhook(
    impasto: Any, client: Client, pictures: Pictures, worker: Any, at_service: JobStore
) -> None:
    at_service.record_model_weights("auto", "0" * 64)
    options = ["--priority", "low", "--deadline-seconds", "600", "--reuse"]
    ran = impasto("submit", *pictures, "--size", "64", *options)
    (job,) = client.jobs()
    worker.claim()
    worker.succeed()
    again = impasto("submit", *pictures, "--size", "64", "--reuse")
    (reused, _) = client.jobs()
    plain = impasto("submit", *pictures, "--size", "64")
    wrong = [
        impasto("submit", *pictures, name, value)
        for name, value in (
            ("--deadline-seconds", "-1"),
            ("--priority", "urgent"),
            ("--webhook", "http://127.0.0.1/"),
        )
    ]

    assert [ran.returncode, again.returncode, plain.returncode] == [0, 0, 0], ran.stderr
    assert job.priority == "low"
    assert job.deadline_at is not None
    assert (job.deadline_at - job.created_at).total_seconds() == 600
    assert reused.reused_from == job.id
    assert next(client.jobs()).reused_from is None
    assert [ran.returncode for ran in wrong] == [2, 2, 2]
    for refused, name in zip(wrong, ("deadline_seconds", "priority", "webhook"), strict=True):
        assert name in refused.stderr.lower()


def test_cancel_retry_and_result_take_an_id_or_a_url(
    impasto: Any, client: Client, pictures: Pictures, worker: Any, tmp_path: Path
) -> None:
    job = client.submit(*pictures, size=64, seed=3)
    canceled, early = impasto("cancel", client.link(job)), impasto("result", job.id, "-o", "x.png")
    retried = impasto("retry", job.id, "--seed", "4", "--seamless")
    (again, _) = client.jobs()
    worker.claim()
    running = impasto("result", again.id, "-o", "x.png")
    stopping = impasto("cancel", again.id)
    data = worker.end_canceled()
    saved = impasto("result", client.link(again), "-o", "whole.png")
    small = impasto("result", again.id, "-o", "small.webp", "--width", "64")
    continued = impasto("retry", again.id, "--continue", "--size", "128")
    (more, *_) = client.jobs()

    assert canceled.stdout == f"{job.id}: canceled\n"
    assert stopping.stdout == f"{again.id}: is being canceled\n"
    assert [early.returncode, running.returncode] == [2, 2]
    assert errors.JobNotEnded().message in running.stderr
    assert retried.stdout.strip() == client.link(again), retried.stderr
    assert again.input.spec == {**job.input.spec, "seed": 4, "seamless": True}
    assert (saved.returncode, saved.stdout) == (0, "whole.png\n"), saved.stderr
    assert (tmp_path / "whole.png").read_bytes() == data
    assert (small.returncode, codec.decode((tmp_path / "small.webp").read_bytes()).width) == (0, 64)
    assert continued.returncode == 0, continued.stderr
    assert (more.retried_from, more.input.spec["init"]) == (again.id, "picture")
    assert not (tmp_path / "x.png").exists()


def test_retry_follows_the_new_job_and_saves_its_result(
    impasto: Any, client: Client, pictures: Pictures, worker: Any, tmp_path: Path, until: Any
) -> None:
    job = client.cancel(client.submit(*pictures, size=64).id)
    ended: list[bytes] = []

    def run() -> None:
        until(lambda: (worker.claim(), worker.job)[1], "the new job")
        ended.append(worker.succeed())

    running = threading.Thread(target=run)
    running.start()
    ran = impasto("retry", job.id, "-o", "out.png")
    running.join()

    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "out.png").read_bytes() == ended[0]


def test_a_result_does_not_replace_a_picture_of_the_job(
    impasto: Any, client: Client, pictures: Pictures, worker: Any, tmp_path: Path
) -> None:
    """It is known by its content: the job may have been submitted from another folder."""
    job = client.submit(*pictures, size=64)
    worker.claim()
    result = worker.succeed()
    own = tmp_path / "own.png"
    own.write_bytes(Path(pictures[0]).read_bytes())
    refused = [impasto(name, job.id, "-o", "own.png") for name in ("result", "retry", "watch")]
    kept = own.read_bytes()
    forced = impasto("result", job.id, "-o", "own.png", "--force")

    assert [ran.returncode for ran in refused] == [2, 2, 2]
    assert all("own.png is an input of the job" in ran.stderr for ran in refused)
    assert kept == Path(pictures[0]).read_bytes()
    assert len([*client.jobs()]) == 1, "the refused retry has created no job"
    assert (forced.returncode, own.read_bytes()) == (0, result)
    assert impasto("result", job.id, "-o", "own.png").returncode == 0, "no input any more"


@pytest.mark.parametrize("command", ["submit", "watch"])
def test_ctrl_c_says_that_the_job_goes_on(
    impasto: Any,
    client: Client,
    pictures: Pictures,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    words = [*pictures, "--wait"] if command == "submit" else [client.submit(*pictures).id]
    monkeypatch.setattr(Client, "follow", interrupt)
    ran = impasto(command, *words)
    link = client.link(next(client.jobs()))

    assert ran.returncode == 130
    assert f"`impasto watch {link}` follows it, `impasto cancel {link}` cancels it" in ran.stderr


def test_seamless_is_a_switch_and_its_message_names_it(
    impasto: Any, client: Client, pictures: Pictures
) -> None:
    switched = impasto("submit", *pictures, "--seamless", "--size", "64")
    off = impasto("submit", *pictures, "--seamless", "false", "--size", "64")
    confused = impasto("submit", "--seamless", *pictures)

    assert (switched.returncode, off.returncode) == (0, 0), switched.stderr + off.stderr
    assert [job.input.spec["seamless"] for job in client.jobs()] == [False, True]
    assert confused.returncode == 2
    assert "Invalid value for '--seamless'" in confused.stderr


def test_an_operator_lists_pauses_drains_and_resumes_workers(
    impasto: Any, service: ApiProcess, at_service: JobStore
) -> None:
    keys = ApiKeyStore(service.redis_url)
    key = keys.create("Operator", admin=True)[1]
    keys.close()
    for number in (0, 1):
        report = WorkerReport(
            id=f"gpu-1/cuda:{number}",
            pools=["", "team=a"],
            device="NVIDIA TITAN Xp",
            precision="float32",
            network="vgg19",
            networks=["vgg19"],
            max_size_px=4096,
        )
        at_service.heartbeat(f"host:{number}", report)

    def run(*args: str) -> list[str]:
        ran = impasto("workers", *args, IMPASTO_KEY=key)
        assert ran.returncode == 0, ran.stderr
        return list(ran.stdout.splitlines())

    facts = "NVIDIA TITAN Xp  up to 4096 px  pools team=a"
    assert run("list") == [f"gpu-1/cuda:{number}  active  {facts}" for number in (0, 1)]
    assert run("pause", "gpu-1/cuda:0")[0] == f"gpu-1/cuda:0  paused  {facts}"
    assert "draining" in run("drain", "--all", "--release")[1]
    assert run("resume", "--all") == run("list")
    at_service.suspensions.suspend("gone", "draining")
    assert run("list")[-1] == "gone  drained"
    at_service.suspensions.resume("gone")

    for args, message in (
        (("pause",), "or --all"),
        (("pause", "x", "--all"), "or --all"),
        (("pause", "x"), "no live or suspended worker"),
    ):
        ran = impasto("workers", *args, IMPASTO_KEY=key)
        assert (ran.returncode, ran.stdout) == (2, "")
        assert message in ran.stderr
    ran = impasto("workers", "list")
    assert (ran.returncode, ran.stdout) == (2, "")

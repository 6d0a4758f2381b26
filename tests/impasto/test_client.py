"""The client against a real service: requests, responses, errors and retries."""

import itertools
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from api_process import ApiProcess
from keyed_api import KeyedApi

from cli.local_service import free_port
from core.auth.api_keys import ApiKeyStore
from core.images import codec, validation
from core.jobs.models import EstimateRequest, EstimateResponse, ScaleEstimate, WorkerInfo
from core.jobs.store import JobStore
from core.storage.blobs import digest_of
from core.style.presets import PRESETS
from impasto import Client, Job, Status, client, errors

Pictures = tuple[Path, Path]


def test_a_job_from_submission_to_result(client: Client, pictures: Pictures, worker: Any) -> None:
    """The worker waits before each step until the client has seen the previous state."""
    steps: list[Callable[[], Any]] = [worker.claim, lambda: worker.progress(0.5), worker.succeed]
    seen: list[Job] = []

    def show(job: Job) -> None:
        seen.append(job)
        if steps:
            steps.pop(0)()

    job = client.submit(
        *pictures, size=64, preset="brushwork", style_layers={"relu1_1": 1}, seamless=True
    )
    ended = client.wait(job.id, show)

    parameters = {
        "size": 64,
        "strength": PRESETS["brushwork"].parameters["strength"],
        "style_layers": {"relu1_1": 1.0},
    }
    assert {name: job.input.spec[name] for name in (*parameters, "seamless")} == parameters | {
        "seamless": True
    }
    statuses = [Status.QUEUED, Status.RUNNING, Status.RUNNING, Status.SUCCEEDED]
    assert (
        [job.status for job in seen],
        [job.progress and job.progress.value for job in seen],
    ) == (statuses, [None, None, 0.5, 0.5])
    assert seen[-1] == ended == client.job(job.id)
    assert ended.outputs[0].id == digest_of(client.result(job.id))
    assert (
        validation.detect_format(client.result(job.id, "webp")),
        validation.detect_format(client.preview(job.id)),
    ) == ("webp", "jpeg")


def test_a_picture_is_a_path_bytes_or_a_digest_and_order_is_kept(
    client: Client, pictures: Pictures
) -> None:
    photo, painting = pictures
    digest = client.upload(photo)
    job = client.submit(
        digest,
        [str(painting), photo.read_bytes(), digest],
        masks=[painting, digest, photo],
        style_masks=[painting, digest, photo],
    )

    photo_digest, painting_digest = (digest_of(path.read_bytes()) for path in pictures)
    expected = [painting_digest, photo_digest, photo_digest]
    assert (job.input.content, job.input.styles) == (photo_digest, expected)
    assert job.input.masks == job.input.style_masks == expected


def test_a_result_can_be_submitted_again_from_its_file(
    client: Client, pictures: Pictures, worker: Any
) -> None:
    first = client.submit(*pictures, size=64, seed=5)
    worker.claim()
    again = client.submit(source=worker.succeed(), seed=6)

    assert again.input.spec == {**first.input.spec, "seed": 6}
    assert again.input.digests() == first.input.digests()


def test_options_appear_in_the_job_and_none_means_the_default(
    client: Client, pictures: Pictures
) -> None:
    job = client.submit(
        *pictures,
        init_image=pictures[0],
        init="picture",
        priority="low",
        deadline_seconds=60,
        seed=None,
    )

    assert (
        job.priority,
        job.input.spec["seed"],
        job.input.init_image,
    ) == ("low", 0, digest_of(pictures[0].read_bytes()))
    assert job.deadline_at is not None
    assert (job.deadline_at - job.created_at).total_seconds() == 60


def test_a_batch_is_submitted_read_canceled_and_deleted(client: Client, pictures: Pictures) -> None:
    sent = client.submit_batch(pictures, pictures, preset="draft", size=64)
    canceled = client.cancel_batch(sent.id)

    one, other = (digest_of(picture.read_bytes()) for picture in pictures)
    pairs = [(one, [one]), (one, [other]), (other, [one]), (other, [other])]
    assert [(job.input.content, job.input.styles) for job in sent.jobs] == pairs
    assert (sent.counts[Status.QUEUED], canceled.counts[Status.CANCELED]) == (4, 4)
    assert client.batch(sent.id) == canceled
    for _ in range(2):
        client.delete_batch(sent.id)
    with pytest.raises(errors.BatchNotFound):
        client.batch(sent.id)


def test_jobs_are_canceled_pinned_retried_listed_and_deleted(
    client: Client, pictures: Pictures
) -> None:
    first, second = (client.submit(*pictures, size=size) for size in (64, 96))
    canceled = client.cancel(first.id)
    again = client.retry(first.id, size=80)

    assert (canceled.status, client.pin(first.id).pinned) == (Status.CANCELED, True)
    assert (again.retried_from, again.input.spec["size"]) == (first.id, 80)
    assert [job.id for job in client.jobs()] == [again.id, second.id, first.id]
    assert [job.id for job in client.jobs(Status.QUEUED)] == [again.id, second.id]
    assert [job.id for job in client.jobs(Status.QUEUED, "canceled")] == [
        again.id,
        second.id,
        first.id,
    ]
    for _ in range(2):
        client.delete(second.id)
    assert [job.id for job in client.jobs()] == [again.id, first.id]


def test_the_job_list_continues_over_its_pages(
    client: Client, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("impasto.client.PAGE_JOBS", 2)
    ids = [client.submit(*pictures, size=64).id for _ in range(5)]

    assert [job.id for job in client.jobs()] == ids[::-1]


def test_a_queued_job_is_updated_and_an_ended_one_continues_at_a_larger_size(
    client: Client, pictures: Pictures, worker: Any
) -> None:
    job = client.submit(*pictures, size=64)
    updated = client.update(job.id, strength=0.9, style_weights=None)
    worker.claim()
    worker.succeed()
    result = client.job(job.id).outputs[0].id
    larger, same = client.retry(job.id, continue_from_result=True, size=96), client.retry(job.id)

    assert (updated.input.spec["strength"], same.input.spec["strength"]) == (0.9, 0.9)
    assert (larger.input.init_image, larger.input.spec["init"], larger.input.spec["size"]) == (
        result,
        "picture",
        96,
    )
    assert same.input.init_image is None
    with pytest.raises(errors.JobAlreadyEnded):
        client.update(job.id, strength=0.1)


def test_every_picture_of_a_job_can_be_downloaded(
    client: Client, pictures: Pictures, worker: Any
) -> None:
    job = client.submit(*pictures, size=64)
    worker.claim()
    with pytest.raises(errors.NoResult):
        client.timelapse(job.id)
    worker.frame()
    worker.progress(0.5)
    (frame,) = client.frames(job.id)
    data = worker.succeed()

    assert (frame.index, frame.iteration, frame.scale, frame.seconds) == (0, 5, 1, 0.1)
    assert (
        validation.detect_format(client.frame(job.id, 0)),
        validation.detect_format(client.timelapse(job.id)),
    ) == ("jpeg", "webp")
    assert tuple(
        codec.decode(client.result(job.id, width=width)).width for width in (None, 48)
    ) == (96, 48)
    assert [client.image(one) for one in (digest_of(data), job.input.content)] == [
        data,
        pictures[0].read_bytes(),
    ]
    assert codec.decode(client.image(job.input.content, width=48)).width == 48
    for missing in (lambda: client.frame(job.id, 7), lambda: client.image("sha256:" + "0" * 64)):
        with pytest.raises(errors.ImageNotFound):
            missing()


def test_an_estimate_accepts_sizes_digests_and_files(
    client: Client, pictures: Pictures, at_service: JobStore
) -> None:
    """A thread plays the worker and answers each estimate request."""
    with pytest.raises(errors.NoWorker), Client(client.url, retry_seconds=0) as without_retry:
        without_retry.estimate((1200, 900), [(640, 480)])
    step = ScaleEstimate(
        width=256, height=192, iterations=70, seconds=4.0, memory_bytes=2_000_000, tile_px=None
    )
    requests: list[EstimateRequest] = []

    def answer() -> None:
        while len(requests) < 2:
            at_service.heartbeat("worker")
            if request := at_service.estimates.next_request():
                requests.append(request[1])
                at_service.estimates.reply(
                    request[0], EstimateResponse(device="cpu", network="vgg16", scales=[step])
                )

    at_service.heartbeat("worker")
    answering = threading.Thread(target=answer)
    answering.start()
    estimate = client.estimate((1200, 900), [(640, 480)], size=256, strength=None)
    client.estimate(pictures[0], [client.upload(pictures[1]), (640, 480)], masks=[pictures[0]] * 2)
    answering.join()

    assert [asdict(scale) for scale in estimate.scales] == [step.model_dump()]
    assert (estimate.seconds, estimate.memory_bytes, estimate.queue.position) == (4.0, 2_000_000, 0)
    assert [(request.content, request.styles, request.masks) for request in requests] == [
        ((1200, 900), [(640, 480)], 0),
        ((96, 72), [(96, 75), (640, 480)], 2),
    ]
    assert (requests[0].spec["size"], requests[0].spec["strength"]) == (256, 0.5)


def test_the_service_lists_its_workers_queue_limits_and_models(
    client: Client, pictures: Pictures, at_service: JobStore
) -> None:
    at_service.heartbeat(
        "worker",
        WorkerInfo(device="A card", precision="float16", network="vgg19", networks=["mine"]),
    )
    client.submit(*pictures)
    system, models = client.system(), {model.name: model for model in client.models()}

    assert (system.queued, system.running, system.limits.max_file_bytes) == (
        1,
        0,
        validation.MAX_BYTES,
    )
    assert [(status.busy, status.info and status.info.device) for status in system.workers] == [
        (False, "A card")
    ]
    assert (models["auto"].resolves_to, models["mine"].workers, models["vgg16"].workers) == (
        ["vgg19"],
        1,
        0,
    )


def test_wait_batch_returns_after_the_last_job_has_ended(
    client: Client, pictures: Pictures, worker: Any
) -> None:
    batch = client.submit_batch([pictures[0]], pictures, size=64)
    steps: list[Callable[[], Any]] = [worker.claim, worker.succeed, worker.claim, worker.succeed]
    seen: list[int] = []

    def show(batch: Any) -> None:
        seen.append(batch.counts[Status.SUCCEEDED])
        if steps:
            steps.pop(0)()

    ended = client.wait_batch(batch.id, show, timeout_seconds=20)

    assert seen == [0, 0, 1, 1, 2]
    assert (ended.counts[Status.SUCCEEDED], ended.has_ended) == (2, True)
    with pytest.raises(TimeoutError, match=r"After 0\.2 s the batch has not ended"):
        client.wait_batch(client.submit_batch([pictures[0]], [pictures[1]]).id, timeout_seconds=0.2)


def test_presets_lists_all_presets(client: Client) -> None:
    assert [(one.name, one.description, one.spec) for one in client.presets()] == [
        (one.name, one.description, one.parameters) for one in PRESETS.values()
    ]


def test_a_wait_times_out_and_the_job_goes_on(client: Client, pictures: Pictures) -> None:
    job = client.submit(*pictures)

    with pytest.raises(TimeoutError, match=r"After 0\.2 s the job has not ended"):
        client.wait(job.id, timeout_seconds=0.2)
    assert client.job(job.id).status is Status.QUEUED


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda client, photo: client.job("job_x"),
            errors.JobNotFound,
            "There is no job with this id",
        ),
        (lambda client, photo: client.job("../images"), errors.NotFound, "There is no such path"),
        (
            lambda client, photo: client.result(client.submit(photo, photo).id),
            errors.JobNotEnded,
            "has not ended",
        ),
        (
            lambda client, photo: client.submit(photo, photo, size=1),
            errors.BadSpec,
            "size must be a whole number",
        ),
        (
            lambda client, photo: client.submit(photo, photo, size=float("nan")),
            errors.BadSpec,
            "must be finite",
        ),
        (
            lambda client, photo: client.submit(photo, photo, preset="x"),
            errors.BadSpec,
            "preset must be one of",
        ),
        (
            lambda client, photo: client.submit(photo, "sha256:" + "0" * 64),
            errors.ImageNotFound,
            "upload it first",
        ),
        (
            lambda client, photo: client.upload(b"hello"),
            errors.UnsupportedImage,
            "Only JPEG, PNG, WebP",
        ),
        (
            lambda client, photo: client.upload(bytes(20_000_001)),
            errors.UploadTooLarge,
            "at most 20 MB",
        ),
        (lambda client, photo: list(client.jobs("x")), errors.BadInput, "status must be one of"),
    ],
)
def test_a_refusal_raises_the_services_error_without_a_retry(
    client: Client,
    pictures: Pictures,
    call: Callable[..., Any],
    kind: type[errors.ImpastoError],
    message: str,
) -> None:
    with pytest.raises(errors.ImpastoError) as refused:
        call(client, pictures[0])

    assert (type(refused.value), refused.value.code) == (kind, kind.code)
    assert message in refused.value.message


def test_an_error_has_the_reason_and_the_parameter_that_the_service_names(
    client: Client, pictures: Pictures
) -> None:
    with pytest.raises(errors.BadImage) as empty:
        client.upload(b"")
    with pytest.raises(errors.BadSpec) as layers:
        client.submit(*pictures, content_layers="foo")

    assert (empty.value.reason, empty.value.parameter) == ("empty_file", None)
    assert (layers.value.reason, layers.value.parameter) == (None, "content_layers")


def test_the_key_comes_from_the_argument_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with KeyedApi(tmp_path) as api:
        keys = ApiKeyStore(api.redis_url)
        _, secret = keys.create("me")
        keys.close()
        monkeypatch.setenv("IMPASTO_URL", f"http://127.0.0.1:{api.port}/")
        with Client() as without_key, pytest.raises(errors.Unauthorized, match="set IMPASTO_KEY"):
            list(without_key.jobs())
        with Client(key=secret) as with_argument:
            assert list(with_argument.jobs()) == []
        monkeypatch.setenv("IMPASTO_KEY", secret)
        with Client() as with_variable:
            assert list(with_variable.jobs()) == []


# ---------------------------------------------------------------------- retries


@contextmanager
def _proxy(target: int, cut: int) -> Iterator[int]:
    """The port of a proxy to `target` that drops the responses of the first `cut` connections."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stopped = threading.Event()
        thread = threading.Thread(target=_forward, args=(listener, target, cut, stopped))
        thread.start()
        yield listener.getsockname()[1]
        stopped.set()
        socket.create_connection(listener.getsockname()).close()
        thread.join()


def _forward(listener: socket.socket, target: int, cut: int, stopped: threading.Event) -> None:
    while True:
        connection, _ = listener.accept()
        with connection, socket.create_connection(("127.0.0.1", target)) as upstream:
            if stopped.is_set():
                return
            sender = threading.Thread(target=_pump, args=(connection, upstream))
            sender.start()
            if cut:
                cut -= 1
                upstream.recv(1)  # the service has processed the request
            else:
                _pump(upstream, connection)
            connection.shutdown(socket.SHUT_RDWR)
            sender.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    while data := source.recv(65536):
        target.sendall(data)


def test_a_submission_whose_responses_are_lost_makes_one_job(
    service: ApiProcess, at_service: JobStore, pictures: Pictures
) -> None:
    with _proxy(service.port, 2) as port, Client(f"http://127.0.0.1:{port}") as client:
        job = client.submit(*pictures)

    assert [listed.id for listed in at_service.list_page(limit=10)[0]] == [job.id]


def test_two_submissions_make_two_jobs(client: Client, pictures: Pictures) -> None:
    assert client.submit(*pictures).id != client.submit(*pictures).id


Requests = list[tuple[float, str]]


def _start_server(*responses: bytes) -> tuple[threading.Thread, int, Requests]:
    """A server that sends these responses and stops: thread, port, and (time, text) of requests."""
    listener = socket.create_server(("127.0.0.1", 0))
    requests: Requests = []

    def serve() -> None:
        with listener:
            for response in responses:
                connection, _ = listener.accept()
                with connection:
                    requests.append((time.monotonic(), connection.recv(65536).decode()))
                    connection.sendall(response)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread, listener.getsockname()[1], requests


def _to_json(job: Job) -> str:
    return json.dumps(asdict(job), default=datetime.isoformat)


def _response(status: int, body: str, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", body]).encode()


def _problem(status: int, code: str, **headers: str) -> bytes:
    return _response(status, f'{{"code": "{code}", "detail": "Words."}}', **headers)


NO_PRESETS = _response(200, '{"presets": []}')


@pytest.mark.parametrize(
    "first",
    [
        _problem(503, "store_unavailable", Retry_After="1"),
        _problem(429, "rate_limited", Retry_After="1"),
        _problem(503, "of_another_version", Retry_After="1"),
        _response(502, "<html>from a proxy</html>"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ncut",
        b"",
    ],
    ids=["store unavailable", "rate limited", "unknown code", "proxy", "cut", "closed"],
)
def test_a_temporary_error_is_retried_after_the_time_that_the_service_asks_for(
    first: bytes,
) -> None:
    thread, port, requests = _start_server(first, first, NO_PRESETS)
    with Client(f"http://127.0.0.1:{port}") as client:
        assert client.presets() == []
    thread.join()

    assert len(requests) == 3
    if b"Retry-After" in first:
        assert requests[2][0] - requests[0][0] >= 2


@pytest.mark.parametrize(
    ("response", "kind", "code"),
    [
        (_problem(503, "queue_full", Retry_After="600"), errors.QueueFull, "queue_full"),
        (
            _problem(429, "of_another_version", Retry_After="600"),
            errors.RetryLater,
            "of_another_version",
        ),
        (_problem(422, "of_another_version"), errors.BadInput, "of_another_version"),
        (_problem(500, "internal"), errors.ImpastoError, "internal"),
        (_response(200, "")[:20], errors.ServiceUnreachable, "service_unreachable"),
        (_response(404, "<html>"), errors.ServiceUnreachable, "service_unreachable"),
        (_response(404, '{"detail": "x"}'), errors.ServiceUnreachable, "service_unreachable"),
    ],
)
def test_an_error_that_a_retry_cannot_cure_in_time_is_raised(
    response: bytes, kind: type[errors.ImpastoError], code: str
) -> None:
    thread, port, requests = _start_server(response)
    with (
        Client(f"http://127.0.0.1:{port}", retry_seconds=0.1) as client,
        pytest.raises(errors.ImpastoError) as raised,
    ):
        client.presets()
    thread.join()

    assert (type(raised.value), raised.value.code, len(requests)) == (kind, code, 1)


@pytest.mark.parametrize("end", ["/v1", "/v1/"])
def test_a_url_with_v1_is_refused_with_what_to_give(service: ApiProcess, end: str) -> None:
    with Client(service.url + end) as client, pytest.raises(errors.NotFound, match="without /v1"):
        client.presets()


PORTAL = _response(200, "<html>Log in</html>", Content_Type="text/html")


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.submit(b"a", b"b"),
        lambda client: client.wait("job_x"),
        lambda client: client.job("job_x"),
        lambda client: list(client.jobs()),
        lambda client: client.upload(b"a"),
        lambda client: client.presets(),
        lambda client: client.models(),
        lambda client: client.frames("job_x"),
        lambda client: client.result("job_x"),
        lambda client: client.timelapse("job_x"),
        lambda client: client.delete("job_x"),
    ],
)
def test_the_page_of_a_network_that_wants_a_login_is_no_answer_of_the_service(call: Any) -> None:
    thread, port, _ = _start_server(PORTAL)
    with (
        Client(f"http://user:secret@127.0.0.1:{port}", retry_seconds=0.1) as client,
        pytest.raises(errors.ServiceUnreachable) as raised,
    ):
        call(client)
    thread.join()

    assert "is not an Impasto service: it answers 200 with text/html" in raised.value.message
    assert "secret" not in raised.value.message


@pytest.mark.parametrize(
    ("response", "kind", "words"),
    [
        (
            _response(301, "moved", Location="https://example.org/v1/presets"),
            errors.ServiceUnreachable,
            "redirects to https://example.org/v1/presets; give the service's own URL",
        ),
        (_response(413, "<html>nginx"), errors.UploadTooLarge, "client_max_body_size"),
        (_response(403, "<html>"), errors.ServiceUnreachable, "it answers 403 with no content"),
    ],
)
def test_an_answer_of_a_proxy_is_named(
    response: bytes, kind: type[errors.ImpastoError], words: str
) -> None:
    thread, port, _ = _start_server(response)
    with (
        Client(f"http://127.0.0.1:{port}", retry_seconds=0.1) as client,
        pytest.raises(errors.ImpastoError) as raised,
    ):
        client.presets()
    thread.join()

    assert type(raised.value) is kind
    assert words in raised.value.message


def test_follow_repeats_a_long_poll_at_once_and_a_plain_poll_after_the_interval(
    client: Client, pictures: Pictures
) -> None:
    waiting = client.submit(*pictures)
    ended = _to_json(client.cancel(waiting.id))
    headers = {"ETag": '"1-0"', "Retry_After": "1"}
    long_poll = _response(304, "", Preference_Applied="wait=20", **headers)
    plain_poll = _response(304, "", **headers)
    thread, port, requests = _start_server(
        _response(200, _to_json(waiting), **headers),
        long_poll,
        plain_poll,
        _response(200, ended),
    )
    with Client(f"http://127.0.0.1:{port}") as other:
        seen = [job.status for job in other.follow(waiting.id)]
    thread.join()

    assert seen == [Status.QUEUED, Status.CANCELED]
    assert ["prefer: wait=20" in text.lower() for _, text in requests] == [False, True, True, True]
    assert ['if-none-match: "1-0"' in text.lower() for _, text in requests] == [
        False,
        True,
        True,
        True,
    ]
    pauses = [second[0] - first[0] for first, second in itertools.pairwise(requests)]
    assert [pause >= 1 for pause in pauses] == [False, False, True]


@pytest.mark.parametrize("behavior", ["silent", "unavailable", "long interval", "closed"])
def test_a_wait_never_exceeds_its_timeout(
    client: Client, pictures: Pictures, behavior: str
) -> None:
    """The server answers once. Then it is silent, sends 503, asks for 30 s, or closes its port."""
    job = _to_json(client.submit(*pictures))
    interval = "30" if behavior == "long interval" else "1"
    responses = [_response(200, job, ETag='"1-0"', Retry_After=interval)]
    if behavior == "unavailable":
        responses.append(_problem(503, "store_unavailable", Retry_After="2"))
    if behavior == "long interval":
        responses.append(_response(304, "", Retry_After="30"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stopped = threading.Event()

        def serve() -> None:
            for response in responses:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(response)
            if behavior == "closed":
                listener.close()
            stopped.wait(30)

        thread = threading.Thread(target=serve)
        thread.start()
        began = time.monotonic()
        with (
            Client(f"http://127.0.0.1:{listener.getsockname()[1]}") as waiting,
            pytest.raises(TimeoutError, match="After 2 s the job has not ended"),
        ):
            waiting.wait("job_x", timeout_seconds=2)
        seconds = time.monotonic() - began
        stopped.set()
        thread.join()

    assert seconds < 4


def test_a_refused_first_connection_raises_at_once() -> None:
    began = time.monotonic()
    with (
        Client(f"http://127.0.0.1:{free_port()}") as client,
        pytest.raises(errors.ServiceUnreachable, match="impasto up"),
    ):
        client.presets()

    assert time.monotonic() - began < 5


def test_the_client_waits_for_a_service_that_restarts(tmp_path: Path) -> None:
    thread, port, _ = _start_server(NO_PRESETS)
    with Client(f"http://127.0.0.1:{port}") as client:
        client.presets()
        thread.join()
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

            def restart() -> None:
                listener.bind(("127.0.0.1", port))
                listener.listen()
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(NO_PRESETS)

            timer = threading.Timer(0.5, restart)
            timer.start()
            assert client.presets() == []
            timer.join()


def test_the_errors_are_a_module_of_the_package() -> None:
    code = (
        "import impasto.errors, core.errors\n"
        "names = [name for name in vars(core.errors) if name[0].isupper() and name != 'Any']\n"
        "print(all(getattr(impasto.errors, n) is getattr(core.errors, n) for n in names))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert ran.stdout == "True\n", ran.stderr


def test_the_client_imports_no_store_no_framework_and_no_torch() -> None:
    code = (
        "import impasto, sys\n"
        "heavy = ('torch', 'redis', 'celery', 'fastapi')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout == "[]\n"


def test_the_example_in_the_docstring_runs(
    service: ApiProcess, pictures: Pictures, worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (client.__doc__ or "").split("\n\n")[1:3]
    monkeypatch.setenv("IMPASTO_URL", service.url)
    monkeypatch.chdir(pictures[0].parent)
    (pictures[0].parent / "painting.jpg").write_bytes(pictures[1].read_bytes())
    steps = [worker.claim, worker.succeed]
    shown: list[Any] = []

    def show(*words: Any) -> None:
        shown.append(words)
        if steps:
            steps.pop(0)()

    exec(  # noqa: S102
        "\n".join(line[4:] for line in "\n\n".join(lines).splitlines()),
        {"Path": Path, "print": show},
    )

    assert shown == [("queued", None), ("running", None), ("succeeded", None)]
    assert validation.detect_format(Path("result.png").read_bytes()) == "png"

"""The client against a real service: what it sends, what it makes of answers, what it does when none comes."""

import itertools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from api_process import ApiProcess
from keyed_api import KeyedApi

from cli.local_service import free_port
from core.auth.api_keys import ApiKeyStore
from core.images import codec
from core.jobs.models import EstimateRequest, EstimateResponse, ScaleEstimate, WorkerInfo
from core.jobs.store import JobStore
from core.storage.blobs import digest_of
from core.style.presets import PRESETS
from impasto import Client, Job, Status, client, errors

Pictures = tuple[Path, Path]


def test_a_job_from_submission_to_result(client: Client, pictures: Pictures, worker: Any) -> None:
    """The worker takes a step whenever the client has seen the last one, so every state is seen once."""
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
        codec.detect_format(client.result(job.id, "webp")),
        codec.detect_format(client.preview(job.id)),
    ) == ("webp", "jpeg")


def test_pictures_are_paths_bytes_or_digests_and_keep_their_order(
    client: Client, pictures: Pictures
) -> None:
    photo, painting = pictures
    digest = client.upload(photo)
    job = client.submit(
        digest, [str(painting), photo.read_bytes(), digest], masks=[painting, digest, photo]
    )

    one, other = digest_of(photo.read_bytes()), digest_of(painting.read_bytes())
    assert (job.input.content, job.input.styles, job.input.masks) == (
        one,
        [other, one, one],
        [other, one, one],
    )


def test_a_result_runs_again_by_its_file(client: Client, pictures: Pictures, worker: Any) -> None:
    first = client.submit(*pictures, size=64, seed=5)
    worker.claim()
    again = client.submit(source=worker.succeed(), seed=6)

    assert again.input.spec == {**first.input.spec, "seed": 6}
    assert again.input.digests() == first.input.digests()


def test_wishes_show_in_the_job_and_what_is_none_is_left_out(
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


def test_a_batch_is_sent_followed_canceled_and_deleted(client: Client, pictures: Pictures) -> None:
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


def test_jobs_are_changed_listed_and_deleted(client: Client, pictures: Pictures) -> None:
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


def test_the_list_goes_on_over_its_pages(
    client: Client, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("impasto.client.PAGE_JOBS", 2)
    ids = [client.submit(*pictures, size=64).id for _ in range(5)]

    assert [job.id for job in client.jobs()] == ids[::-1]


def test_a_waiting_job_is_steered_and_an_ended_one_goes_on_larger(
    client: Client, pictures: Pictures, worker: Any
) -> None:
    job = client.submit(*pictures, size=64)
    spec_updates = client.update(job.id, strength=0.9, style_weights=None)
    worker.claim()
    worker.succeed()
    result = client.job(job.id).outputs[0].id
    larger, same = client.retry(job.id, continue_from_result=True, size=96), client.retry(job.id)

    assert (spec_updates.input.spec["strength"], same.input.spec["strength"]) == (0.9, 0.9)
    assert (larger.input.init_image, larger.input.spec["init"], larger.input.spec["size"]) == (
        result,
        "picture",
        96,
    )
    assert same.input.init_image is None
    with pytest.raises(errors.JobAlreadyEnded):
        client.update(job.id, strength=0.1)


def test_every_picture_of_a_job_is_fetched(client: Client, pictures: Pictures, worker: Any) -> None:
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
        codec.detect_format(client.frame(job.id, 0)),
        codec.detect_format(client.timelapse(job.id)),
    ) == ("jpeg", "webp")
    assert tuple(
        codec.decode(client.result(job.id, width=width)).width for width in (None, 48)
    ) == (96, 48)
    assert [client.image(one) for one in (digest_of(data), job.input.content)] == [
        data,
        pictures[0].read_bytes(),
    ]
    for missing in (lambda: client.frame(job.id, 7), lambda: client.image("sha256:" + "0" * 64)):
        with pytest.raises(errors.ImageNotFound):
            missing()


def test_an_estimate_is_of_sizes_digests_or_files(
    client: Client, pictures: Pictures, at_service: JobStore
) -> None:
    """The worker is played by a thread that answers each question."""
    with pytest.raises(errors.NoWorker), Client(client.url, retry_seconds=0) as impatient:
        impatient.estimate((1200, 900), [(640, 480)])
    step = ScaleEstimate(
        width=256, height=192, iterations=70, seconds=4.0, memory_bytes=2_000_000, tile_px=None
    )
    asked: list[EstimateRequest] = []

    def answer() -> None:
        while len(asked) < 2:
            at_service.heartbeat("worker")
            if found := at_service.next_estimate_request():
                asked.append(found[1])
                at_service.reply_to_estimate(
                    found[0], EstimateResponse(device="cpu", network="vgg16", scales=[step])
                )

    at_service.heartbeat("worker")
    answering = threading.Thread(target=answer)
    answering.start()
    told = client.estimate((1200, 900), [(640, 480)], size=256, strength=None)
    client.estimate(pictures[0], [client.upload(pictures[1]), (640, 480)], masks=[pictures[0]] * 2)
    answering.join()

    assert (told.seconds, told.memory_bytes, told.scales, told.queue.position) == (
        4.0,
        2_000_000,
        [step],
        0,
    )
    assert [(question.content, question.styles, question.masks) for question in asked] == [
        ((1200, 900), [(640, 480)], 0),
        ((96, 72), [(96, 75), (640, 480)], 2),
    ]
    assert (asked[0].spec["size"], asked[0].spec["strength"]) == (256, 0.5)


def test_the_service_tells_of_itself(
    client: Client, pictures: Pictures, at_service: JobStore
) -> None:
    at_service.heartbeat(
        "worker",
        WorkerInfo(device="A card", precision="float16", network="vgg19", networks=["mine"]),
    )
    client.submit(*pictures)
    system, models = client.system(), {model.name: model for model in client.models()}

    assert (system.queued, system.running, system.limits.max_file_bytes) == (1, 0, codec.MAX_BYTES)
    assert [(one.busy, one.info and one.info.device) for one in system.workers] == [
        (False, "A card")
    ]
    assert (models["auto"].resolves_to, models["mine"].workers, models["vgg16"].workers) == (
        ["vgg19"],
        1,
        0,
    )


def test_a_batch_is_waited_for_until_its_last_job_has_ended(
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


def test_presets_are_told(client: Client) -> None:
    assert client.presets() == list(PRESETS.values())


def test_a_wait_ends_when_its_time_is_over_and_the_job_goes_on(
    client: Client, pictures: Pictures
) -> None:
    job = client.submit(*pictures)

    with pytest.raises(TimeoutError, match=r"After 0\.2 s the job has not ended"):
        client.wait(job.id, timeout_seconds=0.2)
    assert client.job(job.id).status is Status.QUEUED


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("ask", "kind", "words"),
    [
        (
            lambda client, photo: client.job("job_x"),
            errors.JobNotFound,
            "There is no job with this id.",
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
            lambda client, photo: client.upload(b"GIF89a"),
            errors.UnsupportedImage,
            "Only JPEG, PNG and WebP",
        ),
        (
            lambda client, photo: client.upload(bytes(20_000_001)),
            errors.UploadTooLarge,
            "at most 20 MB",
        ),
        (lambda client, photo: list(client.jobs("x")), errors.BadInput, "status must be one of"),
    ],
)
def test_a_refusal_is_the_services_own_error_at_once(
    client: Client,
    pictures: Pictures,
    ask: Callable[..., Any],
    kind: type[errors.ImpastoError],
    words: str,
) -> None:
    with pytest.raises(errors.ImpastoError) as refused:
        ask(client, pictures[0])

    assert (type(refused.value), refused.value.code) == (kind, kind.code)
    assert words in refused.value.message


def test_the_key_is_taken_from_the_environment_or_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with KeyedApi(tmp_path) as api:
        keys = ApiKeyStore(api.redis_url)
        _, secret = keys.create("me")
        keys.close()
        monkeypatch.setenv("IMPASTO_URL", f"http://127.0.0.1:{api.port}/")
        with Client() as stranger, pytest.raises(errors.Unauthorized, match="set IMPASTO_KEY"):
            list(stranger.jobs())
        with Client(key=secret) as told:
            assert list(told.jobs()) == []
        monkeypatch.setenv("IMPASTO_KEY", secret)
        with Client() as known:
            assert list(known.jobs()) == []


# ---------------------------------------------------------------------- no answer, or one for later


@contextmanager
def _between(target: int, cut: int) -> Iterator[int]:
    """A port that leads to another; of the first `cut` connections the answer is lost when it has been given."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        over = threading.Event()
        thread = threading.Thread(target=_serve, args=(listener, target, cut, over))
        thread.start()
        yield listener.getsockname()[1]
        over.set()
        socket.create_connection(listener.getsockname()).close()
        thread.join()


def _serve(listener: socket.socket, target: int, cut: int, over: threading.Event) -> None:
    while True:
        line, _ = listener.accept()
        with line, socket.create_connection(("127.0.0.1", target)) as onward:
            if over.is_set():
                return
            sender = threading.Thread(target=_pump, args=(line, onward))
            sender.start()
            if cut:
                cut -= 1
                onward.recv(1)  # it has answered
            else:
                _pump(onward, line)
            line.shutdown(socket.SHUT_RDWR)
            sender.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    while data := source.recv(65536):
        target.sendall(data)


def test_a_submission_whose_answers_are_lost_makes_one_job(
    service: ApiProcess, at_service: JobStore, pictures: Pictures
) -> None:
    with _between(service.port, 2) as port, Client(f"http://127.0.0.1:{port}") as client:
        job = client.submit(*pictures)

    assert [found.id for found in at_service.list_page(limit=10)[0]] == [job.id]


def test_two_submissions_make_two_jobs(client: Client, pictures: Pictures) -> None:
    assert client.submit(*pictures).id != client.submit(*pictures).id


Asked = list[tuple[float, str]]


def _answering(*answers: bytes) -> tuple[threading.Thread, int, Asked]:
    """A service that says these and no more; and when it was asked for what."""
    listener, asked = socket.create_server(("127.0.0.1", 0)), []

    def serve() -> None:
        with listener:
            for answer in answers:
                line, _ = listener.accept()
                with line:
                    asked.append((time.monotonic(), line.recv(65536).decode()))
                    line.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread, listener.getsockname()[1], asked


def _answer(status: int, body: str, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", body]).encode()


def _problem(status: int, code: str, **headers: str) -> bytes:
    return _answer(status, f'{{"code": "{code}", "detail": "Words."}}', **headers)


NONE = _answer(200, '{"presets": []}')


@pytest.mark.parametrize(
    "first",
    [
        _problem(503, "store_unavailable", Retry_After="1"),
        _problem(429, "rate_limited", Retry_After="1"),
        _problem(503, "of_another_version", Retry_After="1"),
        _answer(502, "<html>a proxy's own</html>"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ncut",
        b"",
    ],
    ids=["store away", "too often", "unknown code", "proxy", "cut", "closed"],
)
def test_what_may_pass_is_asked_again_when_the_service_says(first: bytes) -> None:
    thread, port, asked = _answering(first, first, NONE)
    with Client(f"http://127.0.0.1:{port}") as client:
        assert client.presets() == []
    thread.join()

    assert len(asked) == 3
    if b"Retry-After" in first:
        assert asked[2][0] - asked[0][0] >= 2


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        (_problem(503, "queue_full", Retry_After="600"), errors.QueueFull, "queue_full"),
        (
            _problem(429, "of_another_version", Retry_After="600"),
            errors.RetryLater,
            "of_another_version",
        ),
        (_problem(422, "of_another_version"), errors.BadInput, "of_another_version"),
        (_problem(500, "internal"), errors.ImpastoError, "internal"),
        (_answer(200, "")[:20], errors.ServiceUnreachable, "service_unreachable"),
        (_answer(404, "<html>"), errors.ServiceUnreachable, "service_unreachable"),
        (_answer(404, '{"detail": "x"}'), errors.ServiceUnreachable, "service_unreachable"),
    ],
)
def test_what_does_not_pass_in_time_is_raised(
    answer: bytes, kind: type[errors.ImpastoError], code: str
) -> None:
    thread, port, asked = _answering(answer)
    with (
        Client(f"http://127.0.0.1:{port}", retry_seconds=0.1) as client,
        pytest.raises(errors.ImpastoError) as raised,
    ):
        client.presets()
    thread.join()

    assert (type(raised.value), raised.value.code, len(asked)) == (kind, code, 1)


def test_a_service_that_holds_its_answers_back_is_asked_again_at_once_any_other_after_a_while(
    client: Client, pictures: Pictures
) -> None:
    waiting = client.submit(*pictures)
    ended = client.cancel(waiting.id).model_dump_json()
    told = {"ETag": '"1-0"', "Retry_After": "1"}
    held, polled = _answer(304, "", Preference_Applied="wait=20", **told), _answer(304, "", **told)
    thread, port, asked = _answering(
        _answer(200, waiting.model_dump_json(), **told), held, polled, _answer(200, ended)
    )
    with Client(f"http://127.0.0.1:{port}") as patient:
        seen = [job.status for job in patient.follow(waiting.id)]
    thread.join()

    assert seen == [Status.QUEUED, Status.CANCELED]
    assert ["prefer: wait=20" in words.lower() for _, words in asked] == [False, True, True, True]
    assert ['if-none-match: "1-0"' in words.lower() for _, words in asked] == [
        False,
        True,
        True,
        True,
    ]
    pauses = [later[0] - sooner[0] for sooner, later in itertools.pairwise(asked)]
    assert [pause >= 1 for pause in pauses] == [False, False, True]


@pytest.mark.parametrize("retry_later", ["silent", "away", "busy", "gone"])
def test_a_wait_does_not_overrun_its_time_whatever_the_service_does(
    client: Client, pictures: Pictures, later: str
) -> None:
    """It answers once, and then never; or with 503; or says to come again in half a minute; or takes no connection."""
    job = client.submit(*pictures).model_dump_json()
    first = _answer(200, job, ETag='"1-0"', Retry_After="30" if later == "busy" else "1")
    away = [_problem(503, "store_unavailable", Retry_After="2")] if later == "away" else []
    busy = [_answer(304, "", Retry_After="30")] if later == "busy" else []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answers, over = [first, *away, *busy], threading.Event()

        def serve() -> None:
            for answer in answers:
                line, _ = listener.accept()
                with line:
                    line.recv(65536)
                    line.sendall(answer)
            if later == "gone":
                listener.close()
            over.wait(30)

        thread = threading.Thread(target=serve)
        thread.start()
        began = time.monotonic()
        with (
            Client(f"http://127.0.0.1:{listener.getsockname()[1]}") as waiting,
            pytest.raises(TimeoutError, match="After 2 s the job has not ended"),
        ):
            waiting.wait("job_x", timeout_seconds=2)
        seconds = time.monotonic() - began
        over.set()
        thread.join()

    assert seconds < 4


def test_where_nobody_is_there_nobody_is_waited_for() -> None:
    began = time.monotonic()
    with (
        Client(f"http://127.0.0.1:{free_port()}") as client,
        pytest.raises(errors.ServiceUnreachable, match="impasto up"),
    ):
        client.presets()

    assert time.monotonic() - began < 5


def test_who_has_been_there_is_waited_for(tmp_path: Path) -> None:
    """A service that is away while it is renewed."""
    thread, port, _ = _answering(NONE)
    with Client(f"http://127.0.0.1:{port}") as client:
        client.presets()
        thread.join()
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

            def back() -> None:
                listener.bind(("127.0.0.1", port))
                listener.listen()
                line, _ = listener.accept()
                with line:
                    line.recv(65536)
                    line.sendall(NONE)

            later = threading.Timer(0.5, back)
            later.start()
            assert client.presets() == []
            later.join()


def test_the_client_loads_no_store_and_no_tensors() -> None:
    code = "import impasto, sys; print([name for name in ('torch', 'redis', 'celery', 'fastapi') if name in sys.modules])"

    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )


def test_its_own_words_are_a_program_that_runs(
    service: ApiProcess, pictures: Pictures, worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example at the head of the module."""
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
    assert codec.detect_format(Path("result.png").read_bytes()) == "png"

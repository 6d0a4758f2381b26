"""One attempt at one job, with a real store, real blobs and real weights, in this process."""

import asyncio
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from PIL import Image, ImageChops, ImageStat
from proxy import Proxy

from core import errors
from core.config import Settings
from core.images import codec
from core.jobs.models import Job, JobInput, Status, new_job_id
from core.jobs.store import JobStore
from core.neural.transfer.inputs import StyleInputs
from core.neural.weights.cache import WeightsCache, random_parameters
from core.neural.weights.parameters import Parameters
from core.redis_client import PREFIX
from core.storage.blobs import Blobs
from core.style.spec import parse_spec
from worker import attempt, lease
from worker.runner import JobRunner
from worker.settings import WorkerSettings


@pytest.fixture
def runner(valkey: Any, tmp_path: Path, weights: WeightsCache) -> JobRunner:
    settings = Settings(redis_url=valkey.url, data_dir=tmp_path, cache_dir=weights.folder.parent)
    return JobRunner(settings, WorkerSettings(preview_seconds=0.1))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    yield
    attempt.shutting_down.clear()


Submit = Callable[..., Job]


def _submitter(store: JobStore, blobs: Blobs, pair: tuple[Image.Image, Image.Image]) -> Submit:
    def send(*pictures: Image.Image, **parameters: Any) -> Job:
        content, *styles = [blobs.put(codec.encode(picture)) for picture in pictures or pair]
        for digest in (content, *styles):
            store.reserve(digest)
        spec = parse_spec({"size": 64, "iterations": 6, **parameters}).for_pictures(len(styles))
        return store.create(
            new_job_id(), JobInput(content=content, styles=styles, spec=spec.model_dump())
        )

    return send


@pytest.fixture
def submit(store: JobStore, blobs: Blobs, photo: Image.Image, painting: Image.Image) -> Submit:
    """A small job of the photo and the painting, or of other pictures."""
    return _submitter(store, blobs, (photo, painting))


Running = tuple[Job, threading.Thread]


@pytest.fixture
def running(
    runner: JobRunner, store: JobStore, submit: Submit, until: Callable[..., None]
) -> Running:
    """A long job, and the thread that is painting it."""
    job = submit(iterations=5000)
    run = threading.Thread(target=runner.run_next)
    run.start()
    until(lambda: store.get(job.id).progress, "progress")
    return job, run


def test_a_job_ends_with_its_picture_and_a_record_of_how_it_was_made(
    runner: JobRunner,
    store: JobStore,
    submit: Submit,
    blobs: Blobs,
    photo: Image.Image,
    painting: Image.Image,
) -> None:
    job = submit(photo, painting, photo, style_weights="3,1")

    assert runner.run_next() == job.id
    ended = store.get(job.id)
    data = blobs.get(ended.outputs[0].id)
    record = codec.read_provenance(data)

    assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 1)
    assert (64, 48) == codec.decode(data).size == (ended.outputs[0].width, ended.outputs[0].height)
    assert ended.outputs[0].size_bytes == len(data)
    assert record is not None
    assert ended.model is not None
    assert record == {
        "program": "impasto",
        "job": job.id,
        **job.input.model_dump(),
        "model": ended.model.model_dump(),
    }
    assert record["spec"]["style_weights"] == [0.75, 0.25]
    assert {"run_seconds", "load_seconds", "loss_total"} <= set(ended.metrics)
    assert ended.progress is not None
    assert (
        ended.progress.value,
        ended.progress.seconds_left,
        ended.progress.iteration,
    ) == (1.0, 0.0, ended.progress.iterations)


def test_a_strangers_file_is_not_decoded_in_the_workers_own_process(
    runner: JobRunner, store: JobStore, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit()
    monkeypatch.setattr(codec, "decode", None)
    runner.run_next()

    assert store.get(job.id).status is Status.SUCCEEDED


def test_without_a_job_nothing_happens(runner: JobRunner) -> None:
    assert runner.run_next() is None


class Forgetful(Proxy):
    """Passes claims on and cuts the line before they are answered, a few times."""

    cuts = 5  # each step is sent twice before the worker hears of it

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionResetError):
            await super()._serve(reader, writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
            if b"_claim" in data and self.cuts:
                self.cuts -= 1
                raise ConnectionResetError
        writer.close()


def test_a_claim_whose_answer_is_lost_counts_as_no_attempt(
    valkey: Any, store: JobStore, submit: Submit, tmp_path: Path, weights: WeightsCache
) -> None:
    jobs = [submit() for _ in range(2)]
    with Forgetful(1, valkey.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        settings = Settings(redis_url=url, data_dir=tmp_path, cache_dir=weights.folder.parent)
        runner = JobRunner(settings, WorkerSettings())

        assert runner.run_next() == jobs[0].id
        assert proxy.cuts == 0
        runner._store.close()

    seen = [store.get(job.id) for job in jobs]
    assert [(job.status, job.attempt) for job in seen] == [
        (Status.SUCCEEDED, 1),
        (Status.QUEUED, 0),
    ]


def test_the_network_stays_between_jobs(runner: JobRunner) -> None:
    assert runner.load_network("vgg16") is runner.load_network("auto")


def test_who_asks_how_long_it_takes_loads_no_network(runner: JobRunner, tmp_path: Path) -> None:
    runner._weights = cache = WeightsCache(tmp_path / "own")
    for number, name in enumerate(["vgg16", "one", "two", "three"]):
        cache.keep(
            name,
            Parameters.of(random_parameters("vgg16" if name == "vgg16" else "vgg11", number)),
            {},
        )
        runner.load_network(name)
    loaded = {
        name
        for name in ("vgg16", "one", "two", "three")
        if runner.get_loaded_network(name)[0].name == name
    }

    assert loaded == {"two", "three"}
    assert runner.get_loaded_network("auto")[0].name == "three"
    assert runner.load_network("two") is runner.load_network("two")


def test_progress_and_previews_show_while_it_runs(
    running: Running, store: JobStore, blobs: Blobs, until: Callable[..., None]
) -> None:
    job, run = running
    until(lambda: (seen := store.get(job.id)).preview and seen.progress, "progress and a preview")
    running = store.get(job.id)
    until(lambda: store.get(job.id).version > running.version, "news")
    assert running.preview is not None
    assert running.progress is not None
    assert set(running.progress.loss) == {"total", "content", "style", "tv"}
    assert codec.decode(blobs.get(running.preview)).width == 64
    store.cancel(job.id)
    run.join()

    assert store.get(job.id).status is Status.CANCELED


@pytest.mark.parametrize("gone", ["content", "style"])
def test_a_picture_that_is_gone_fails_the_job_in_words(
    runner: JobRunner, store: JobStore, submit: Submit, blobs: Blobs, gone: str
) -> None:
    job = submit()
    blobs.delete(job.input.content if gone == "content" else job.input.styles[0])
    runner.run_next()

    error = store.get(job.id).error
    assert error is not None
    assert error.code == "image_not_found"


def test_a_network_of_ones_own_paints_and_a_layer_it_has_not_is_told(
    runner: JobRunner, store: JobStore, submit: Submit, tmp_path: Path
) -> None:
    runner._weights = cache = WeightsCache(tmp_path / "own")
    cache.keep("my-textures", first := Parameters.of(random_parameters("vgg11")), {})
    jobs = [
        submit(model="my-textures", **parameters)
        for parameters in (
            {},
            {"style_layers": "relu3_3"},
            {"style_layers": "relu3_3=0,relu3_2"},
            {},
        )
    ]
    for _ in range(3):
        runner.run_next()
    cache.remove("my-textures")
    cache.keep("my-textures", second := Parameters.of(random_parameters("vgg13")), {})
    runner.run_next()
    painted, refused, unweighted, replaced = (store.get(job.id) for job in jobs)

    assert painted.model is not None
    assert (painted.model.name, painted.model.sha256) == ("my-textures", first.sha256)
    assert refused.error is not None
    assert refused.error.code == "bad_spec"
    assert refused.error.message.startswith(
        "relu3_3 is no layer of my-textures, a VGG-11: it has relu1_1, relu2_1,"
    )
    assert unweighted.status is Status.SUCCEEDED
    assert replaced.model is not None
    assert replaced.model.sha256 == second.sha256


def test_a_network_that_is_not_here_fails_the_job_with_the_command(
    runner: JobRunner, store: JobStore, submit: Submit, tmp_path: Path
) -> None:
    runner._weights = WeightsCache(tmp_path / "none")
    job = submit(model="vgg19")
    runner.run_next()

    error = store.get(job.id).error
    assert error is not None
    assert error.code == "weights_unavailable"
    assert "impasto weights fetch vgg19" in error.message
    assert str(tmp_path) not in error.message


def test_a_run_that_went_wrong_leaves_its_last_good_picture_as_the_preview(
    runner: JobRunner,
    store: JobStore,
    submit: Submit,
    blobs: Blobs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = attempt.stylize

    def diverge(*arguments: Any, **more: Any) -> None:
        good = usual(*arguments, **more)
        raise errors.Diverged(picture=good.picture)

    monkeypatch.setattr(attempt, "stylize", diverge)
    job = submit()
    runner.run_next()

    ended = store.get(job.id)
    assert ended.error is not None
    assert (ended.status, ended.error.code) == (Status.FAILED, "diverged")
    assert ended.preview is not None
    assert codec.decode(blobs.get(ended.preview)).size == (64, 48)


def test_a_job_with_masks_and_a_first_picture_is_painted(
    runner: JobRunner, store: JobStore, blobs: Blobs, photo: Image.Image, painting: Image.Image
) -> None:
    digests = [
        blobs.put(codec.encode(picture))
        for picture in (photo, painting, photo.convert("L").convert("RGB"))
    ]
    for digest in digests:
        store.reserve(digest)
    spec = parse_spec({"size": 64, "iterations": 2, "init": "picture"}).for_pictures(
        1, 1, init_image=True
    )
    wanted = JobInput(
        content=digests[0],
        styles=[digests[1]],
        masks=[digests[2]],
        init_image=digests[1],
        spec=spec.model_dump(),
    )
    job = store.create(new_job_id(), wanted)
    runner.run_next()

    assert store.get(job.id).status == Status.SUCCEEDED
    assert {"planned_seconds", "planned_bytes"} <= set(store.get(job.id).metrics)


def test_a_transparent_mask_selects_nothing(
    runner: JobRunner, store: JobStore, blobs: Blobs, photo: Image.Image, painting: Image.Image
) -> None:
    clear = io.BytesIO()
    Image.new("LA", (40, 40), (255, 0)).save(clear, "PNG")
    digests = [
        blobs.put(data) for data in (codec.encode(photo), codec.encode(painting), clear.getvalue())
    ]
    for digest in digests:
        store.reserve(digest)
    spec = parse_spec({"size": 64, "iterations": 2}).for_pictures(1, 1)
    wanted = JobInput(
        content=digests[0], styles=[digests[1]], masks=[digests[2]], spec=spec.model_dump()
    )
    job = store.create(new_job_id(), wanted)
    runner.run_next()

    error = store.get(job.id).error
    assert error is not None
    assert (error.code, "black all over" in error.message) == ("bad_image", True)


def test_a_job_too_large_for_the_workers_memory_fails_with_the_size_that_fits(
    valkey: Any, tmp_path: Path, weights: WeightsCache, store: JobStore, submit: Submit
) -> None:
    settings = Settings(redis_url=valkey.url, data_dir=tmp_path, cache_dir=weights.folder.parent)
    job = submit(size=8192)
    JobRunner(settings, WorkerSettings(memory_gb=1)).run_next()

    error = store.get(job.id).error
    assert error is not None
    assert error.code == "out_of_memory"
    assert "fits" in error.message


def test_what_nobody_foresaw_fails_the_job_without_its_words(
    runner: JobRunner, store: JobStore, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret path /etc/passwd")

    monkeypatch.setattr(attempt, "stylize", explode)
    job = submit()
    runner.run_next()

    error = store.get(job.id).error
    assert error is not None
    assert (error.code, error.message) == ("internal", errors.ImpastoError().message)


def test_asked_to_go_the_worker_hands_its_job_back(running: Running, store: JobStore) -> None:
    job, run = running
    attempt.shutting_down.set()
    run.join()

    back = store.get(job.id)
    assert (back.status, back.attempt) == (Status.QUEUED, 0)


def test_a_job_canceled_after_it_was_handed_back_keeps_how_far_it_was_as_its_preview(
    valkey: Any,
    tmp_path: Path,
    weights: WeightsCache,
    store: JobStore,
    submit: Submit,
    blobs: Blobs,
    until: Callable[..., None],
) -> None:
    settings = Settings(redis_url=valkey.url, data_dir=tmp_path, cache_dir=weights.folder.parent)
    runner = JobRunner(settings, WorkerSettings(preview_seconds=600))
    job = submit(iterations=5000)
    run = threading.Thread(target=runner.run_next)
    run.start()
    until(lambda: store.get(job.id).preview, "the only preview")
    early = store.get(job.id).preview
    until(lambda: (progress := store.get(job.id).progress) and progress.iteration > 5, "progress")
    attempt.shutting_down.set()
    run.join()
    ended = store.cancel(job.id)

    assert (ended.status, ended.outputs) == (Status.CANCELED, [])
    assert ended.preview not in (None, early)
    assert ended.preview is not None
    assert codec.decode(blobs.get(ended.preview)).width == 64
    assert ended.preview not in store.mark_deleting()


def test_an_attempt_that_lost_its_job_publishes_nothing(
    running: Running, store: JobStore, valkey: Any
) -> None:
    job, run = running
    with redis.Redis.from_url(
        valkey.url
    ) as client:  # as if the lease had run out and another worker had come
        client.hset(f"{PREFIX}job:{job.id}", "token", "another")
    run.join()

    untouched = store.get(job.id)
    assert (untouched.status, untouched.outputs) == (Status.RUNNING, [])


@pytest.fixture
def outage(
    own_valkey: Any,
    blobs: Blobs,
    tmp_path: Path,
    weights: WeightsCache,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[JobRunner, JobStore, threading.Event]]:
    """A runner whose store dies the moment the picture is done; and the event of that."""
    settings = Settings(
        redis_url=own_valkey.url, data_dir=tmp_path, cache_dir=weights.folder.parent
    )
    runner, store, away = (
        JobRunner(settings, WorkerSettings()),
        JobStore(own_valkey.url),
        threading.Event(),
    )
    real = attempt.stylize

    def paint_then_lose_the_store(*args: Any, **more: Any) -> Any:
        painted = real(*args, **more)
        own_valkey.kill()
        away.set()
        return painted

    monkeypatch.setattr(attempt, "stylize", paint_then_lose_the_store)
    yield runner, store, away
    store.close()


Outage = tuple[JobRunner, JobStore, threading.Event]


def test_a_result_waits_for_a_store_that_is_away(
    outage: Outage, own_valkey: Any, blobs: Blobs, photo: Image.Image, painting: Image.Image
) -> None:
    runner, store, away = outage
    job = _submitter(store, blobs, (photo, painting))()
    run = threading.Thread(target=runner.run_next)
    run.start()
    assert away.wait(60)
    own_valkey.start()
    run.join()

    assert store.get(job.id).status is Status.SUCCEEDED


def test_asked_to_go_during_an_outage_the_job_is_handed_back_when_the_store_is_back_a_moment_later(
    runner: JobRunner, store: JobStore, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts as no attempt: three such in a row would fail it."""

    def away(*_: Any) -> None:
        attempt.shutting_down.set()
        raise errors.StoreUnavailable()

    monkeypatch.setattr(runner._store, "succeed", away)
    job = submit()
    runner.run_next()

    assert ((back := store.get(job.id)).status, back.attempt) == (Status.QUEUED, 0)


@pytest.mark.parametrize("trouble", ["for a moment", "of this picture", "of the disk"])
def test_a_picture_that_cannot_be_read_costs_no_attempt(
    runner: JobRunner,
    store: JobStore,
    submit: Submit,
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
) -> None:
    """A moment, or the folder's trouble, is waited for; a picture that is the only one ends its job in words."""
    job, tries, usual = submit(), list[Path](), Path.read_bytes

    def refuse(path: Path) -> bytes:
        tries.append(path)
        if trouble == "for a moment" and len(tries) > 2:
            return usual(path)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(attempt, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(Blobs, "is_writable", lambda _: trouble != "of the disk")
    runner.run_next()

    ended = store.get(job.id)
    assert (ended.status, ended.attempt, ended.error and ended.error.code) == {
        "for a moment": (Status.SUCCEEDED, 1, None),
        "of this picture": (Status.FAILED, 1, "image_not_found"),
        "of the disk": (Status.QUEUED, 0, None),
    }[trouble]


def test_a_result_waits_for_room_on_the_disk(
    runner: JobRunner, store: JobStore, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit()
    real, tries = runner._blobs.put, []

    def full_once(data: bytes) -> str:
        tries.append(1)
        if len(tries) == 1:
            raise errors.StorageFull()
        return real(data)

    monkeypatch.setattr(runner._blobs, "put", full_once)
    runner.run_next()

    assert store.get(job.id).status is Status.SUCCEEDED
    assert len(tries) > 1


@pytest.mark.parametrize("end", ["canceled", "deadline_exceeded", "deleted", "another's"])
def test_nobody_waits_for_room_on_the_disk_when_the_job_is_over(
    runner: JobRunner,
    store: JobStore,
    submit: Submit,
    monkeypatch: pytest.MonkeyPatch,
    valkey: Any,
    end: str,
) -> None:
    job, waiting = submit(), threading.Event()

    def full(data: bytes) -> str:
        if codec.detect_format(data) == "png":  # the result, not a preview
            waiting.set()
        raise errors.StorageFull()

    monkeypatch.setattr(runner._blobs, "put", full)
    run = threading.Thread(target=runner.run_next, daemon=True)
    run.start()
    assert waiting.wait(30)
    with redis.Redis.from_url(valkey.url) as client:
        if end == "canceled":
            store.cancel(job.id)
        elif end == "deadline_exceeded":
            client.hset(f"{PREFIX}job:{job.id}", "deadline_at", 1)
        elif end == "deleted":
            store.delete(job.id)
        else:
            client.hset(f"{PREFIX}job:{job.id}", "token", "another")
    run.join(10)

    assert not run.is_alive()
    if end in ("canceled", "deadline_exceeded"):
        ended = store.get(job.id)
        assert (ended.status, ended.outputs) == (
            Status.CANCELED if end == "canceled" else Status.FAILED,
            [],
        )


# ---------------------------------------------------------------------- checkpoints


@pytest.fixture
def keen(valkey: Any, tmp_path: Path, weights: WeightsCache) -> JobRunner:
    """Takes checkpoints as often as it can."""
    settings = Settings(redis_url=valkey.url, data_dir=tmp_path, cache_dir=weights.folder.parent)
    return JobRunner(settings, WorkerSettings(checkpoint_seconds=0.05))


def _checkpoints(folder: Path) -> list[Path]:
    return [*(folder / "checkpoints").glob("*")]


def test_the_next_attempt_goes_on_where_the_last_got_to_and_ends_with_the_same_bits(
    keen: JobRunner,
    store: JobStore,
    submit: Submit,
    blobs: Blobs,
    until: Callable[..., None],
    tmp_path: Path,
) -> None:
    whole = submit(iterations=200)
    keen.run_next()
    job = submit(iterations=200)
    run = threading.Thread(target=keen.run_next)
    run.start()
    until(lambda: store.get(job.id).checkpoint, "a checkpoint")
    attempt.shutting_down.set()  # it is handed back in the middle
    run.join()
    attempt.shutting_down.clear()
    back = store.get(job.id)
    assert back.status is Status.QUEUED
    assert back.progress is not None
    assert 0 < back.progress.iteration < back.progress.iterations
    assert len(_checkpoints(tmp_path)) == 1

    began: list[int] = []
    usual = keen._store.report_progress
    keen._store.report_progress = lambda *news: (began.append(news[2].iteration), usual(*news))[1]  # type: ignore[method-assign]
    keen.run_next()
    ended = store.get(job.id)

    assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 1)
    assert began[0] >= back.progress.iteration
    pixels = [
        codec.decode(blobs.get(store.get(one).outputs[0].id)).tobytes()
        for one in (whole.id, job.id)
    ]
    assert pixels[1] == pixels[0]
    assert _checkpoints(tmp_path) == []


def test_attempts_that_die_where_they_went_on_have_got_no_further(
    keen: JobRunner, store: JobStore, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(BaseException):
        pass

    def deadly(*args: Any, resume: Any) -> Any:
        subject, spec, network, watch, planner = args

        def die(moment: Any) -> bool:
            while resume is None and not store.get(job.id).checkpoint:
                attempt.time.sleep(0.06)  # a checkpoint is due
                watch(moment)
            if resume is not None:
                attempt.time.sleep(0.06)
                watch(moment)
            raise Died

        return stylize(subject, spec, network, die, planner, resume=resume)

    stylize = attempt.stylize
    monkeypatch.setattr(attempt, "stylize", deadly)
    job = submit(iterations=50)
    for _ in range(3):
        with pytest.raises(Died):
            keen.run_next()
        store.requeue_jobs_of(keen._name)
    ended = store.get(job.id)

    assert (ended.status, ended.attempt) == (Status.FAILED, 3)
    assert ended.error is not None
    assert ended.error.code == "worker_lost"


def test_a_torn_checkpoint_costs_the_work_not_the_job(
    keen: JobRunner, store: JobStore, submit: Submit, tmp_path: Path
) -> None:
    job = submit()
    store.claim("t", "worker")
    store.save_checkpoint(job.id, "t", "job_torn")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "job_torn").write_bytes(b"PK")
    store.release(job.id, "t")
    keen.run_next()

    assert store.get(job.id).status is Status.SUCCEEDED
    assert _checkpoints(tmp_path) == []


@pytest.mark.parametrize("end", ["canceled", "deadline_exceeded"])
def test_stopped_beside_a_long_iteration_the_job_ends_at_once_with_its_picture(
    runner: JobRunner,
    store: JobStore,
    submit: Submit,
    blobs: Blobs,
    monkeypatch: pytest.MonkeyPatch,
    until: Callable[..., None],
    valkey: Any,
    end: str,
) -> None:
    """One iteration of a large picture takes a minute: nobody waits for it."""
    stuck, usual = threading.Event(), attempt.Attempt._watch

    def watch(self: attempt.Attempt, moment: Any) -> bool:
        stop = usual(self, moment)
        if moment.progress.iteration == 5:
            stuck.set()
            until(lambda: store.get(job.id).status.has_ended, "the end")
        return stop

    monkeypatch.setattr(attempt.Attempt, "_watch", watch)
    job = submit(iterations=100)
    run = threading.Thread(target=runner.run_next)
    run.start()
    assert stuck.wait(30)
    if end == "canceled":
        store.cancel(job.id)
    else:
        with redis.Redis.from_url(valkey.url) as client:
            client.hset(f"{PREFIX}job:{job.id}", "deadline_at", 1)
    run.join()
    ended = store.get(job.id)

    assert ended.status is (Status.CANCELED if end == "canceled" else Status.FAILED)
    assert (ended.error.code if ended.error else None) == (
        "deadline_exceeded" if end == "deadline_exceeded" else None
    )
    assert codec.decode(blobs.get(ended.outputs[0].id)).size == (64, 48)


def test_asked_to_go_in_a_long_iteration_the_job_is_handed_back_without_it(
    runner: JobRunner,
    store: JobStore,
    submit: Submit,
    monkeypatch: pytest.MonkeyPatch,
    until: Callable[..., None],
) -> None:
    monkeypatch.setattr(lease, "HAND_BACK_SECONDS", 0.2)
    stuck, usual = threading.Event(), attempt.Attempt._watch

    def watch(self: attempt.Attempt, moment: Any) -> bool:
        if moment.progress.iteration == 5:
            stuck.set()
            until(lambda: store.get(job.id).status is Status.QUEUED, "handed back")
        return usual(self, moment)

    monkeypatch.setattr(attempt.Attempt, "_watch", watch)
    job = submit(iterations=100)
    run = threading.Thread(target=runner.run_next)
    run.start()
    assert stuck.wait(30)
    attempt.shutting_down.set()
    run.join()

    assert ((back := store.get(job.id)).status, back.attempt) == (Status.QUEUED, 0)


def test_a_lost_device_ends_no_job(
    runner: JobRunner, store: JobStore, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is to end, and its parent to put the job back: else it would fail each job that it claims."""

    def lost(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(StyleInputs, "at", lost)
    job = submit()
    with pytest.raises(errors.DeviceLost):
        runner.run_next()

    assert store.get(job.id).status is Status.RUNNING


def test_a_run_that_was_cut_off_after_its_last_iteration_succeeds(
    keen: JobRunner, store: JobStore, submit: Submit
) -> None:
    """Nothing is left to paint, only to publish."""
    job = submit(iterations=8, scales=1)

    class Last(lease.Lease):
        def report(self, progress: Any, preview: Any = None) -> None:
            super().report(progress, preview)
            if progress.iteration == 7:
                attempt.shutting_down.set()  # asked to go in the last iteration

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempt, "Lease", Last)
        keen.run_next()
    attempt.shutting_down.clear()
    assert store.get(job.id).status is Status.QUEUED
    keen.run_next()

    ended = store.get(job.id)
    assert ended.status is Status.SUCCEEDED
    assert ended.progress is not None
    assert (ended.progress.value, ended.progress.iteration) == (1.0, 8)


# ---------------------------------------------------------------------- steering


def _apply_update(store: JobStore, job: Job, **parameters: Any) -> Job:
    return store.update_spec(job.id, lambda job_input: job_input.with_updates(parameters))


def _record(store: JobStore, blobs: Blobs, job: Job) -> dict[str, Any]:
    record = codec.read_provenance(blobs.get(store.get(job.id).outputs[0].id))
    assert record is not None
    return record


def test_steered_before_it_begins_a_job_is_that_of_the_other_spec_to_the_bit(
    runner: JobRunner, store: JobStore, submit: Submit, blobs: Blobs
) -> None:
    job, other = submit(), submit(strength=0.9)
    _apply_update(store, job, strength=0.9)
    runner.run_next()
    runner.run_next()
    one, two = (codec.decode(blobs.get(store.get(each.id).outputs[0].id)) for each in (job, other))

    assert two.tobytes() == one.tobytes()
    assert _record(store, blobs, job)["spec"]["strength"] == 0.9
    assert "spec_updated" not in _record(store, blobs, job)


def test_a_running_job_is_steered_within_a_beat_and_tells_so_ever_after(
    running: Running, store: JobStore, blobs: Blobs, until: Callable[..., None]
) -> None:
    job, run = running
    _apply_update(store, job, strength=0.9)

    def spec_updates() -> Any:
        progress = store.get(job.id).progress
        return progress and progress.spec_updates

    until(spec_updates, "the change in the progress")
    change = spec_updates()[0]
    assert (change.before, change.after) == ({"strength": 0.5}, {"strength": 0.9})
    store.cancel(job.id)
    run.join()

    record = _record(store, blobs, job)
    assert (record["spec"]["strength"], record["spec_updates"]) == (0.9, [change.model_dump()])
    assert store.get(job.id).input.spec["strength"] == 0.9


def test_steered_at_the_last_moment_the_run_goes_on_and_after_it_nobody_steers(
    runner: JobRunner,
    store: JobStore,
    submit: Submit,
    blobs: Blobs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the last iteration and the end: what was acknowledged is in the picture, what is not in it is refused."""
    job, usual, refused = submit(scales=1), JobStore.lock_spec, []

    def steer_then_seal(self: JobStore, job_id: str, token: str, spec_update_count: int) -> Any:
        if not spec_update_count:
            _apply_update(store, job, strength=0.9)
        standing = usual(self, job_id, token, spec_update_count)
        if standing == "ok":
            with pytest.raises(errors.JobAlreadyEnded) as caught:
                _apply_update(store, job, strength=0.1)
            refused.append(caught.value)
        return standing

    monkeypatch.setattr(JobStore, "lock_spec", steer_then_seal)
    runner.run_next()
    ended, record = store.get(job.id), _record(store, blobs, job)

    assert ended.progress is not None
    assert (ended.status, ended.progress.iteration, ended.input.spec["strength"]) == (
        Status.SUCCEEDED,
        9,
        0.9,
    )
    assert [(change["iteration"], change["after"]) for change in record["spec_updates"]] == [
        (6, {"strength": 0.9})
    ]
    assert len(refused) == 1


@pytest.mark.parametrize(
    "before",
    [True, False],
    ids=["spec_updates, then handed back", "handed back, then spec_updates"],
)
def test_a_steered_job_goes_on_steered_in_the_next_attempt(
    keen: JobRunner,
    store: JobStore,
    submit: Submit,
    blobs: Blobs,
    until: Callable[..., None],
    before: bool,
) -> None:
    job = submit(iterations=200)
    run = threading.Thread(target=keen.run_next)
    run.start()
    if before:
        until(lambda: store.get(job.id).progress, "progress")
        _apply_update(store, job, strength=0.9)
        until(lambda: (at := store.get(job.id).progress) and at.spec_updates, "the change")
    until(lambda: store.get(job.id).checkpoint, "a checkpoint")
    attempt.shutting_down.set()
    run.join()
    attempt.shutting_down.clear()
    if not before:
        _apply_update(store, job, strength=0.9)
    keen.run_next()
    ended, record = store.get(job.id), _record(store, blobs, job)

    assert ended.progress is not None
    assert (ended.status, record["spec"]["strength"]) == (Status.SUCCEEDED, 0.9)
    assert [change["after"] for change in record["spec_updates"]] == [{"strength": 0.9}]
    assert 0 < record["spec_updates"][0]["iteration"] < ended.progress.iterations


# ---------------------------------------------------------------------- frames


def test_a_run_leaves_frames_and_the_result_is_the_last(
    runner: JobRunner,
    store: JobStore,
    submit: Submit,
    blobs: Blobs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attempt, "FRAME_SECONDS", 0.01)
    monkeypatch.setattr(attempt, "FRAME_COST_FACTOR", 0)
    job = submit(iterations=60)
    runner.run_next()
    ended, frames = store.get(job.id), store.list_frames(job.id)
    result = codec.decode(blobs.get(ended.outputs[0].id))

    assert ended.progress is not None
    assert 3 <= len(frames) <= 60
    assert [frame.iteration for frame in frames] == sorted({frame.iteration for frame in frames})
    assert frames[-1].iteration == ended.progress.iteration
    assert blobs.get(frames[-1].digest) == codec.encode(result, "jpeg", quality=80)


def test_without_room_for_frames_a_run_goes_on(
    runner: JobRunner, store: JobStore, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise errors.StorageFull()

    monkeypatch.setattr(JobStore, "add_frame", full)
    job = submit()
    runner.run_next()

    assert store.get(job.id).status is Status.SUCCEEDED


def test_without_memory_for_frames_a_run_goes_on(
    runner: JobRunner, store: JobStore, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = codec.thumbnail

    def short(picture: Image.Image, side_px: int) -> Image.Image:
        if side_px == attempt.FRAME_PX:
            raise MemoryError
        return usual(picture, side_px)

    job = submit(iterations=2)
    monkeypatch.setattr(attempt, "FRAME_SECONDS", 1e9)
    monkeypatch.setattr(attempt.codec, "thumbnail", short)
    runner.run_next()

    assert store.get(job.id).status is Status.SUCCEEDED


@pytest.mark.parametrize("why", ["canceled", "deadline_exceeded"])
def test_a_picture_that_takes_longer_than_a_lease_to_write_is_kept_when_the_run_is_ended(
    valkey: Any,
    runner: JobRunner,
    store: JobStore,
    submit: Submit,
    monkeypatch: pytest.MonkeyPatch,
    until: Callable[..., None],
    why: str,
) -> None:
    """In the middle of an iteration that takes longer still."""
    runner._store.lease_seconds = 0.5
    usual, watch, over = codec.encode, attempt.Attempt._watch, threading.Event()

    def slow(picture: Image.Image, kind: Any = "png", *args: Any, **more: Any) -> bytes:
        if kind == "png":
            attempt.time.sleep(1.5)
        return usual(picture, kind, *args, **more)

    def long(self: attempt.Attempt, moment: Any) -> bool | Any:
        if moment.progress.iteration == 3:
            over.wait(20)
        return watch(self, moment)

    job = submit(iterations=5000)
    monkeypatch.setattr(attempt.codec, "encode", slow)
    monkeypatch.setattr(attempt.Attempt, "_watch", long)
    run = threading.Thread(target=runner.run_next)
    run.start()
    until(lambda: store.get(job.id).progress, "progress")
    if why == "canceled":
        store.cancel(job.id)
    else:
        with redis.Redis.from_url(valkey.url) as client:
            client.hset(f"{PREFIX}job:{job.id}", "deadline_at", 1)
    until(lambda: (store.reap_expired_leases(), store.get(job.id).status.has_ended)[1], "its end")
    over.set()
    run.join()

    ended = store.get(job.id)
    assert (ended.status, len(ended.outputs)) == (
        Status.CANCELED if why == "canceled" else Status.FAILED,
        1,
    )


def test_going_on_at_a_larger_size_the_result_is_not_painted_anew(
    runner: JobRunner, store: JobStore, submit: Submit, blobs: Blobs
) -> None:
    """Seen from afar the large one is the small one; one that is painted from the photo is another picture."""
    old = submit(iterations=30, scales=1, strength=0.8)
    runner.run_next()
    result = store.get(old.id).outputs[0].id
    small = codec.decode(blobs.get(result))
    spec = {**old.input.spec, "size": 96, "iterations": 12}
    anew = old.input.model_copy(update={"spec": spec})
    further = old.input.model_copy(
        update={"init_image": result, "spec": {**spec, "init": "picture", "scales": 0}}
    )
    larger = []
    for job_input in (further, anew):
        job = store.create(new_job_id(), job_input)
        runner.run_next()
        larger.append(codec.decode(blobs.get(store.get(job.id).outputs[0].id)).resize(small.size))

    apart = [sum(ImageStat.Stat(ImageChops.difference(picture, small)).mean) for picture in larger]
    assert apart[0] < 0.6 * apart[1], apart

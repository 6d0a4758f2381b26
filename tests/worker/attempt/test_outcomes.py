"""How an attempt ends: with a result, or with an error that names the cause."""

import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_files
import pytest
from PIL import Image, ImageChops, ImageOps, ImageStat

from core import errors
from core.images import codec
from core.jobs.models import Job, JobInput, Status, new_job_id
from core.jobs.store import JobStore
from core.neural.transfer.inputs import StyleInputs
from core.neural.transfer.stylize import Control, StepEvent
from core.neural.weights.cache import WeightsCache, random_parameters
from core.neural.weights.parameters import Parameters
from core.storage.blobs import Blobs
from core.style.spec import parse_spec
from worker import attempt
from worker.runner import JobRunner

MakeRunner = Callable[..., JobRunner]
Submit = Callable[..., Job]
RunningJob = tuple[Job, threading.Thread]


def test_a_job_ends_with_its_picture_and_its_provenance(
    runner: JobRunner,
    store: JobStore,
    submit: Submit,
    blobs: Blobs,
    photo: Image.Image,
    painting: Image.Image,
) -> None:
    job = submit(photo, painting, photo, style_weights="3,1")

    assert runner.run_next() == "done"
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


def test_an_untrusted_file_is_not_decoded_in_the_workers_own_process(
    runner: JobRunner, store: JobStore, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit()
    monkeypatch.setattr(codec, "decode", None)
    runner.run_next()

    assert store.get(job.id).status is Status.SUCCEEDED


def test_progress_and_previews_are_visible_during_the_run(
    running_job: RunningJob, store: JobStore, blobs: Blobs, until: Callable[..., None]
) -> None:
    job, run = running_job
    until(lambda: (seen := store.get(job.id)).preview and seen.progress, "progress and a preview")
    running = store.get(job.id)
    until(lambda: store.get(job.id).version > running.version, "newer progress")
    assert running.preview is not None
    assert running.progress is not None
    assert set(running.progress.loss) == {"total", "content", "style", "tv"}
    assert codec.decode(blobs.get(running.preview)).width == 64
    store.cancel(job.id)
    run.join()

    assert store.get(job.id).status is Status.CANCELED


@pytest.mark.parametrize("deleted", ["content", "style"])
def test_a_deleted_input_fails_the_job_with_its_own_error(
    runner: JobRunner, store: JobStore, submit: Submit, blobs: Blobs, deleted: str
) -> None:
    job = submit()
    blobs.delete(job.input.content if deleted == "content" else job.input.styles[0])
    runner.run_next()

    error = store.get(job.id).error
    assert error is not None
    assert error.code == "image_not_found"


@pytest.mark.usefixtures("nominal_throughput")
def test_an_imported_network_runs_and_a_layer_that_it_lacks_is_refused(
    runner: JobRunner, store: JobStore, submit: Submit, tmp_path: Path
) -> None:
    runner._weights = cache = WeightsCache(tmp_path / "own")
    cache.add("my-textures", first := Parameters.of(random_parameters("vgg11")), {})
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
    cache.add("my-textures", second := Parameters.of(random_parameters("vgg13")), {})
    runner.run_next()
    succeeded, refused, unweighted, replaced = (store.get(job.id) for job in jobs)

    assert succeeded.model is not None
    assert (succeeded.model.name, succeeded.model.sha256) == ("my-textures", first.sha256)
    assert refused.error is not None
    assert refused.error.code == "bad_spec"
    assert refused.error.message.startswith(
        "relu3_3 is no layer of my-textures, a VGG-11: it has relu1_1, relu2_1,"
    )
    assert unweighted.status is Status.SUCCEEDED
    assert replaced.model is not None
    assert replaced.model.sha256 == second.sha256


def test_a_missing_network_fails_the_job_with_the_command_that_fetches_it(
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


def test_a_job_says_which_part_of_a_framed_painting_it_uses(
    runner: JobRunner,
    store: JobStore,
    submit: Submit,
    blobs: Blobs,
    photo: Image.Image,
    painting: Image.Image,
) -> None:
    framed = ImageOps.expand(painting.resize((200, 150)), 20, "black")
    job = submit(photo, framed, painting)
    runner.run_next()
    ended = store.get(job.id)
    record = codec.read_provenance(blobs.get(ended.outputs[0].id))

    assert ended.progress is not None
    assert ended.progress.style_crops == [(21, 21, 219, 169), None]
    assert record is not None
    assert record["style_crops"] == [[21, 21, 219, 169], None]


def test_the_initial_image_is_a_preview_before_the_first_iteration(
    make_runner: Any,
    store: JobStore,
    submit: Any,
    until: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client sees its photo change before the network has been used."""
    may_go_on = threading.Event()
    usual = attempt.Attempt._on_step

    def wait_and_step(self: attempt.Attempt, event: StepEvent) -> Control:
        assert may_go_on.wait(30)
        return usual(self, event)

    monkeypatch.setattr(attempt.Attempt, "_on_step", wait_and_step)
    job = submit(iterations=2)
    thread = threading.Thread(target=make_runner(preview_seconds=600).run_next)
    thread.start()
    until(lambda: store.get(job.id).preview, "the first preview")
    early = store.get(job.id)
    may_go_on.set()
    thread.join()

    assert early.progress is None
    assert store.get(job.id).status == "succeeded"


@pytest.mark.usefixtures("nominal_throughput")
def test_the_first_previews_come_sooner_than_the_setting_says(
    make_runner: Any, store: JobStore, submit: Any, until: Callable[..., None]
) -> None:
    """The picture of the first iteration hardly differs from the photo."""
    runner = make_runner(preview_seconds=600)
    job = submit(iterations=5000)
    thread = threading.Thread(target=runner.run_next)
    thread.start()
    until(lambda: store.get(job.id).preview, "the first preview")
    early = store.get(job.id).preview
    until(lambda: store.get(job.id).preview != early, "the second preview")
    store.cancel(job.id)
    thread.join()


def test_later_estimates_follow_a_run_that_took_longer_than_planned(
    make_runner: Any,
    store: JobStore,
    submit: Any,
    until: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But not one that its user has stopped."""
    monkeypatch.setattr("worker.statistics.MIN_PLANNED_SECONDS", 0.0)
    monkeypatch.setattr("worker.statistics.PACES", (0.0, 1e9))
    runner, job = make_runner(), submit(iterations=20)
    runner.run_next()
    metrics = store.get(job.id).metrics
    pace = metrics["run_seconds"] / metrics["planned_seconds"]
    assert runner.pace == pytest.approx(pace)

    stopped = submit(iterations=5000)
    thread = threading.Thread(target=runner.run_next)
    thread.start()
    until(lambda: store.get(stopped.id).progress, "progress")
    store.cancel(stopped.id)
    thread.join()
    assert runner.pace == pytest.approx(pace)


def test_a_diverged_run_leaves_its_last_good_picture_as_the_preview(
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


def test_a_job_with_masks_and_an_initial_picture_succeeds(
    runner: JobRunner, store: JobStore, blobs: Blobs, photo: Image.Image, painting: Image.Image
) -> None:
    digests = [
        blobs.put(codec.encode(picture))
        for picture in (photo, painting, photo.convert("L").convert("RGB"))
    ]
    for digest in digests:
        store.reserve(digest)
    spec = parse_spec({"size": 64, "iterations": 2, "init": "picture"}).for_pictures(
        1, 1, 1, init_image=True
    )
    job_input = JobInput(
        content=digests[0],
        styles=[digests[1]],
        masks=[digests[2]],
        style_masks=[digests[0]],
        init_image=digests[1],
        spec=spec.model_dump(),
    )
    job = store.create(new_job_id(), job_input)
    runner.run_next()

    assert store.get(job.id).status == Status.SUCCEEDED
    assert {"planned_seconds", "planned_bytes"} <= set(store.get(job.id).metrics)


@pytest.mark.parametrize("kind", ["masks", "style_masks"])
def test_a_transparent_mask_selects_nothing(
    runner: JobRunner,
    store: JobStore,
    blobs: Blobs,
    photo: Image.Image,
    painting: Image.Image,
    kind: str,
) -> None:
    clear = io.BytesIO()
    Image.new("LA", (40, 40), (255, 0)).save(clear, "PNG")
    digests = [
        blobs.put(data) for data in (codec.encode(photo), codec.encode(painting), clear.getvalue())
    ]
    for digest in digests:
        store.reserve(digest)
    spec = parse_spec({"size": 64, "iterations": 2}).for_pictures(1)
    job_input = JobInput(
        content=digests[0], styles=[digests[1]], spec=spec.model_dump(), **{kind: [digests[2]]}
    )
    job = store.create(new_job_id(), job_input)
    runner.run_next()

    error = store.get(job.id).error
    assert error is not None
    assert (error.code, "black all over" in error.message) == ("bad_image", True)


def test_a_job_too_large_for_the_workers_memory_fails_with_the_size_that_fits(
    make_runner: MakeRunner, weights: WeightsCache, store: JobStore, submit: Submit
) -> None:
    runner = make_runner(memory_gb=1)
    runner._weights = weights  # the tiny network would fit
    job = submit(size=8192)
    runner.run_next()

    error = store.get(job.id).error
    assert error is not None
    assert error.code == "out_of_memory"
    assert "fits" in error.message


def test_an_unexpected_error_fails_the_job_without_its_text(
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


def test_a_lost_device_ends_no_job(
    runner: JobRunner, store: JobStore, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process must end, or it would fail each job that it claims."""

    def lost(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(StyleInputs, "target_at", lost)
    job = submit()
    with pytest.raises(errors.DeviceLost):
        runner.run_next()

    assert store.get(job.id).status is Status.RUNNING


def test_a_larger_size_refines_the_result_of_the_smaller_one(
    vgg_runner: JobRunner, store: JobStore, submit: Submit, blobs: Blobs
) -> None:
    """Scaled down, the large picture is the small one. One that starts from the photo is not."""
    old = submit(iterations=30, scales=1, strength=0.8)
    vgg_runner.run_next()
    result = store.get(old.id).outputs[0].id
    small = codec.decode(blobs.get(result))
    spec = {**old.input.spec, "size": 96, "iterations": 12}
    restarted = old.input.model_copy(update={"spec": spec})
    refined = old.input.model_copy(
        update={"init_image": result, "spec": {**spec, "init": "picture", "scales": 0}}
    )
    larger = []
    for job_input in (refined, restarted):
        job = store.create(new_job_id(), job_input)
        vgg_runner.run_next()
        larger.append(codec.decode(blobs.get(store.get(job.id).outputs[0].id)).resize(small.size))

    differences = [
        sum(ImageStat.Stat(ImageChops.difference(picture, small)).mean) for picture in larger
    ]
    assert differences[0] < 0.6 * differences[1], differences


@pytest.mark.parametrize("transparency", ["keep", "flatten"])
def test_a_result_is_as_transparent_as_the_photo_if_the_job_says_so(
    runner: JobRunner,
    store: JobStore,
    submit: Submit,
    blobs: Blobs,
    painting: Image.Image,
    transparency: str,
) -> None:
    cutout = Image.new("RGBA", (128, 96), (200, 60, 40, 255))
    cutout.putalpha(Image.linear_gradient("L").rotate(90).resize(cutout.size))
    job = submit(cutout, painting, transparency=transparency, background="black")
    runner.run_next()
    ended = store.get(job.id)
    assert ended.preview is not None
    for digest, has_alpha in (
        (ended.outputs[0].id, transparency == "keep"),
        (ended.preview, False),
    ):
        with Image.open(io.BytesIO(blobs.get(digest))) as picture:
            assert (picture.size, picture.has_transparency_data) == ((64, 48), has_alpha)
            if has_alpha:
                expected = cutout.getchannel("A").resize(picture.size, Image.Resampling.BILINEAR)
                assert picture.getchannel("A").tobytes() == expected.tobytes()


def test_a_canceled_job_keeps_the_transparency_too(
    runner: JobRunner, store: JobStore, submit: Submit, blobs: Blobs, painting: Image.Image,
    until: Callable[..., None],
) -> None:  # fmt: skip
    """Its picture may be smaller, because it ends at a coarse scale."""
    cutout = Image.new("RGBA", (128, 96), (200, 60, 40, 255))
    cutout.paste((0, 0, 0, 0), (0, 0, 64, 96))
    job = submit(cutout, painting, transparency="keep", iterations=5000)
    run = threading.Thread(target=runner.run_next)
    run.start()
    until(lambda: store.get(job.id).progress, "progress")
    store.cancel(job.id)
    run.join()

    with Image.open(io.BytesIO(blobs.get(store.get(job.id).outputs[0].id))) as picture:
        alpha = picture.getchannel("A")
        assert [alpha.getpixel((x, 10)) for x in (2, picture.width - 3)] == [0, 255]


def test_a_worker_reads_the_pictures_that_phones_send(
    runner: JobRunner, store: JobStore, blobs: Blobs, painting: Image.Image
) -> None:
    digests = [
        blobs.put(hostile_files.encodings()["HEIC plain"]),
        blobs.put(codec.encode(painting)),
    ]
    for digest in digests:
        store.reserve(digest)
    spec = parse_spec({"size": 64, "iterations": 2}).for_pictures().model_dump()
    job = store.create(new_job_id(), JobInput(content=digests[0], styles=digests[1:], spec=spec))
    runner.run_next()

    assert store.get(job.id).status is Status.SUCCEEDED

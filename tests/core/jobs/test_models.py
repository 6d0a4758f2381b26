"""The status transitions, the ids, and the pictures of an input."""

from PIL import Image

from core.images import codec
from core.jobs.models import TRANSITIONS, JobInput, Status, is_job_id, new_job_id
from core.storage.blobs import digest_of


def test_an_ended_status_is_final_and_every_other_status_can_end() -> None:
    ended = {status for status in Status if status.has_ended}

    assert ended == {Status.SUCCEEDED, Status.FAILED, Status.CANCELED, Status.EXPIRED}
    assert all(TRANSITIONS[status] & ended for status in set(Status) - ended)


def test_ids_are_unique_and_recognized() -> None:
    ids = {new_job_id() for _ in range(100)}

    assert len(ids) == 100
    assert all(is_job_id(job_id) for job_id in ids)
    assert not any(
        is_job_id(bad)
        for bad in ("", "job_", "job_../x", next(iter(ids)).upper(), next(iter(ids)) + "\n")
    )


def test_a_transparent_result_continues_with_its_painted_colors() -> None:
    """Composited, what is not seen would be lost, and be run again from the background."""
    cutout = Image.new("RGBA", (64, 48), (200, 60, 40, 0))
    cutout.paste((200, 60, 40, 255), (0, 0, 32, 48))
    result = Image.new("RGBA", (64, 48), (250, 250, 250, 0))  # hardly seen on white
    result.paste((252, 252, 252, 255), (0, 0, 32, 48))
    files = {digest_of(data): data for data in map(codec.encode, (cutout, result))}
    content, init_image = files
    spec = {"transparency": "keep", "background": "white", "init": "picture"}
    job_input = JobInput(content=content, styles=[content], init_image=init_image, spec=spec)
    images = job_input.load_images(
        lambda digest, *args, **options: codec.decode(files[digest], *args, **options)
    )

    assert images.init is not None
    assert [images.init.getpixel((x, 20)) for x in (5, 60)] == [(252,) * 3, (250,) * 3]

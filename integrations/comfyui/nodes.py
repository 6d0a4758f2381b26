"""The nodes: paint a batch of photos on the service, and fetch the frames of a job.

The widgets are made from the service's own schema (GET /v1/form). Address and key come from
IMPASTO_URL and IMPASTO_KEY and are no widgets: a workflow is a file that people share, and must
neither carry a key nor send one to another host.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from PIL import Image

from impasto import Client, Form, Job, Status, errors

CATEGORY = "image/impasto"
NO_PRESET = "none"
POLL_SECONDS = 1.0  # between two looks at ComfyUI's cancel button
PROGRESS_STEPS = 1000
FLOAT_STEP = 0.01


@cache
def get_form() -> Form:
    """Return the service's form, read once. Raises ServiceUnreachable, which ComfyUI logs."""
    with Client(retry_seconds=0) as client:
        return client.form()


class ImpastoPaint:
    """Paints each photo of a batch in the style of all paintings of another batch."""

    CATEGORY = CATEGORY
    FUNCTION = "paint"
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("image", "job_id")
    OUTPUT_IS_LIST = (False, True)
    DESCRIPTION = "Neural style transfer on an Impasto service."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:  # noqa: N802 - ComfyUI's name
        """Return the sockets, and a widget for each parameter of the service."""
        form = get_form()
        presets = [NO_PRESET, *(preset.name for preset in form.presets)]
        return {
            "required": {
                "content": ("IMAGE", {"tooltip": "The photos; each becomes a job."}),
                "style": ("IMAGE", {"tooltip": "The paintings; a batch is mixed."}),
                "preset": (presets, {"tooltip": "A set of parameters, under those changed below."}),
                **{name: _widget(schema) for name, schema in form.parameters.items()},
            },
            "optional": {
                "mask": ("MASK", {"tooltip": "White where the style applies; one per painting."}),
                "init_image": ("IMAGE", {"tooltip": "The first image, with init=picture."}),
            },
        }

    def paint(
        self,
        content: torch.Tensor,  # (B, H, W, 3 or 4), 0 to 1, as are all images of ComfyUI
        style: torch.Tensor,
        preset: str = NO_PRESET,
        mask: torch.Tensor | None = None,  # (B, H, W)
        init_image: torch.Tensor | None = None,
        **widgets: Any,
    ) -> tuple[torch.Tensor, list[str]]:
        """Return the results as one batch, and the jobs' ids.

        If ComfyUI is told to stop, all jobs are canceled. Raises RuntimeError for a failed one.
        """
        parameters = _changed_parameters(widgets, get_form())
        if preset != NO_PRESET:
            parameters["preset"] = preset
        more: dict[str, Any] = {"masks": [] if mask is None else _encode_batch(mask)}
        if init_image is not None:
            more["init_image"] = _encode_batch(init_image)[0]
        with Client() as client:
            styles = [client.upload(picture) for picture in _encode_batch(style)]
            with _canceling(client) as jobs:
                for photo in _encode_batch(content):
                    jobs.append(client.submit(photo, styles, **more, **parameters))
                ended = list(_follow_all(client, jobs))
            results = [_decode(client.result(job.id)) for job in ended]
        return torch.stack(results), [job.id for job in ended]


class ImpastoFrames:
    """Fetches the frames that a job has saved, as a batch in the size of the last one."""

    CATEGORY = CATEGORY
    FUNCTION = "fetch"
    RETURN_TYPES = ("IMAGE",)
    DESCRIPTION = "The states of a run, for a time-lapse."
    INPUT: ClassVar = {"required": {"job_id": ("STRING", {"forceInput": True})}}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:  # noqa: N802 - ComfyUI's name
        """Return the one input, the id from ImpastoPaint."""
        return cls.INPUT

    def fetch(self, job_id: str) -> tuple[torch.Tensor]:
        """Return the frames as one batch. Raises RuntimeError if there are none."""
        with Client() as client:
            files = [client.frame(job_id, frame.index) for frame in client.frames(job_id)]
        if not files:
            raise RuntimeError(f"{job_id} has saved no frames.")
        size = _open(files[-1]).size
        return (torch.stack([_decode(file, size) for file in files]),)


def _widget(schema: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return ComfyUI's description of the parameter with this JSON schema."""
    options = {"tooltip": schema["description"], "default": schema["default"]}
    bounds = {"min": schema.get("minimum"), "max": schema.get("maximum")}
    if "enum" in schema:
        return schema["enum"], options
    if schema["type"] == "boolean":
        return "BOOLEAN", options
    if schema["type"] == "integer":
        return "INT", {**options, **bounds}
    if schema["type"] == "number":
        # Weights up to 1e9 have no useful step; None keeps what was typed.
        step = FLOAT_STEP if schema["maximum"] <= 10 else 1.0
        return "FLOAT", {**options, **bounds, "step": step, "round": False}
    return "STRING", {**options, "default": _to_text(schema["default"])}


def _to_text(value: Any) -> str:
    """Return a default as the service reads it from text: relu1_1=1,relu2_1=0.5 or 0.7,0.3."""
    if isinstance(value, dict):
        return ",".join(f"{name}={share:g}" for name, share in value.items())
    return ",".join(f"{share:g}" for share in value) if isinstance(value, list) else str(value)


def _changed_parameters(widgets: dict[str, Any], form: Form) -> dict[str, Any]:
    """Return the parameters that differ from their defaults.

    A default is not sent, so that a preset, or the other defaults of objective=gatys, hold.
    """
    defaults = {name: _widget(schema)[1]["default"] for name, schema in form.parameters.items()}
    return {name: value for name, value in widgets.items() if value != defaults.get(name)}


@contextmanager
def _canceling(client: Client) -> Iterator[list[Job]]:
    """Yield a list of jobs; if the block raises, those of them that run are canceled."""
    jobs: list[Job] = []
    try:
        yield jobs
    except BaseException:
        for job in jobs:
            try:
                client.cancel(job.id)
            except errors.ImpastoError:
                continue  # the reason to stop is what matters
        raise


def _follow_all(client: Client, jobs: list[Job]) -> Iterator[Job]:
    """Yield each job as it ends, in order, and show the progress of all. Raises RuntimeError."""
    bar = comfy.utils.ProgressBar(PROGRESS_STEPS)
    shown = None
    for index, job in enumerate(jobs):
        for state in _poll(client, job.id):
            value = state.progress.value if state.progress else 0.0
            preview = None
            if state.preview not in (None, shown):
                shown = state.preview
                preview = ("JPEG", _open(client.preview(state.id)), None)
            done = (index + value) / len(jobs)
            bar.update_absolute(round(done * PROGRESS_STEPS), PROGRESS_STEPS, preview)
        if state.status is not Status.SUCCEEDED:
            reason = state.error.message if state.error else f"The job was {state.status}."
            raise RuntimeError(f"{state.id}: {reason}")
        yield state


def _poll(client: Client, job_id: str) -> Iterator[Job]:
    """Yield the job's states until it has ended. Raises ComfyUI's exception when it is to stop."""
    while True:
        comfy.model_management.throw_exception_if_processing_interrupted()
        try:
            for state in client.follow(job_id, POLL_SECONDS):
                yield state
                comfy.model_management.throw_exception_if_processing_interrupted()
        except TimeoutError:
            continue
        return


def _encode_batch(batch: torch.Tensor) -> list[bytes]:
    """Return each picture of a batch as a PNG file."""
    files = []
    for picture in (batch.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG", compress_level=1)
        files.append(file.getvalue())
    return files


def _open(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file))


def _decode(file: bytes, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Return a picture as (H, W, 3), 0 to 1; size: in px, to scale it to."""
    picture = _open(file).convert("RGB")
    if size is not None and picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)

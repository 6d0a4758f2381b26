"""The ComfyUI nodes, loaded and called as ComfyUI does it, against a real service.

ComfyUI itself is on no package index. The two functions of it that the nodes call are played here:
the progress bar and the cancel button.
"""

import importlib.util
import io
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cli.local_service import free_port
from core.style.presets import PRESETS
from core.style.spec import PARAMETERS, StyleSpec
from impasto import errors

pytestmark = pytest.mark.e2e

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"


class InterruptProcessingException(Exception):
    """What ComfyUI raises in a node after the cancel button was pressed."""


class Host:
    """ComfyUI as the nodes see it: what it was shown, and when it is told to stop."""

    def __init__(self) -> None:
        self.updates: list[tuple[int, int, Any]] = []
        self.must_stop: Callable[[], bool] = lambda: False

    def ProgressBar(self, _total: int) -> "Host":  # noqa: N802 - ComfyUI's name
        return self

    def update_absolute(self, value: int, total: int, preview: Any) -> None:
        self.updates.append((value, total, preview))

    def throw_exception_if_processing_interrupted(self) -> None:
        if self.must_stop():
            raise InterruptProcessingException


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    comfy: Any = ModuleType("comfy")
    comfy.utils = comfy.model_management = host
    for name in ("comfy", "comfy.utils", "comfy.model_management"):
        monkeypatch.setitem(sys.modules, name, comfy if name == "comfy" else host)
    return host


@pytest.fixture
def nodes(
    host: Host, shared_service: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    """The node classes, from a folder in custom_nodes."""
    monkeypatch.setenv("IMPASTO_URL", shared_service.url)
    name = "custom_nodes.impasto"
    spec = importlib.util.spec_from_file_location(
        name, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    yield module.NODE_CLASS_MAPPINGS
    for loaded in [one for one in sys.modules if one.startswith(name)]:
        del sys.modules[loaded]


def _execute(node: Any, **inputs: Any) -> Any:
    """Call the node with a value for each input that it declares, as ComfyUI does."""
    declared = node.INPUT_TYPES()
    values = {}
    for name, (kind, options) in declared["required"].items():
        if name in inputs or (isinstance(kind, str) and "default" not in options):
            values[name] = inputs[name]
        else:
            values[name] = options.get("default", kind[0])  # of a list: its first value
    values |= {name: value for name, value in inputs.items() if name in declared["optional"]}
    assert inputs.keys() <= values.keys()
    return getattr(node(), node.FUNCTION)(**values)


def _image(*pictures: Image.Image) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.asarray(one, np.float32) / 255) for one in pictures])


def test_the_widgets_are_the_parameters_of_the_service(nodes: dict[str, Any]) -> None:
    declared = nodes["ImpastoPaint"].INPUT_TYPES()["required"]
    kinds = {name: kind for name, (kind, _) in declared.items()}

    assert [*declared] == ["content", "style", "preset", *StyleSpec.model_fields]
    assert kinds["preset"] == ["none", *PRESETS]
    assert (kinds["size"], kinds["strength"], kinds["seamless"]) == ("INT", "FLOAT", "BOOLEAN")
    assert kinds["quality"] == ["draft", "standard", "fine"]
    for name in PARAMETERS:
        kind, options = declared[name]
        default = options["default"]
        if default != "":  # an empty text is not sent
            assert StyleSpec.model_validate({name: default}) == StyleSpec(), name
        assert options["tooltip"]
        if kind in ("INT", "FLOAT"):
            assert options["min"] <= default <= options["max"], name


def test_a_batch_is_painted_with_progress_and_previews(
    nodes: dict[str, Any],
    host: Host,
    shared_service: Any,
    photo: Image.Image,
    painting: Image.Image,
) -> None:
    image, jobs = _execute(
        nodes["ImpastoPaint"],
        content=_image(photo, photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        style=_image(painting, painting),
        preset="brushwork",
        style_weights="0.7,0.3",
        mask=torch.ones(2, 60, 80),
        size=64,
        iterations=40,
        scales=1,
    )
    (frames,) = nodes["ImpastoFrames"]().fetch(jobs[0])
    specs = [shared_service.client.job(job).input.spec for job in jobs]

    assert (image.shape, image.dtype) == ((2, 48, 64, 3), torch.float32)
    assert 0 <= image.min() < image.max() <= 1
    data = shared_service.client.result(jobs[1])
    expected = np.asarray(Image.open(io.BytesIO(data)), np.float32) / 255
    assert np.array_equal(image[1].numpy(), expected)
    assert [spec["style_weights"] for spec in specs] == [[0.7, 0.3]] * 2
    assert [spec["strength"] for spec in specs] == [PRESETS["brushwork"].parameters["strength"]] * 2
    values = [value for value, _, _ in host.updates]
    assert values == sorted(values)
    assert values[-1] == host.updates[-1][1]
    previews = [preview for _, _, preview in host.updates if preview]
    assert all(kind == "JPEG" and image.width for kind, image, _ in previews)
    assert frames.shape[0] == len(shared_service.client.frames(jobs[0]))
    assert frames.shape[3] == 3


def test_the_cancel_button_cancels_every_job(
    nodes: dict[str, Any],
    host: Host,
    shared_service: Any,
    photo: Image.Image,
    painting: Image.Image,
    until: Any,
) -> None:
    before = {job.id for job in shared_service.client.jobs()}

    def started() -> set[str]:
        return {job.id for job in shared_service.client.jobs()} - before

    host.must_stop = lambda: any(value for value, _, _ in host.updates)
    with pytest.raises(InterruptProcessingException):
        _execute(
            nodes["ImpastoPaint"],
            content=_image(photo, photo),
            style=_image(painting),
            size=96,
            iterations=2000,
            scales=1,
        )

    assert len(started()) == 2
    for job in started():
        until(lambda job=job: shared_service.client.job(job).status == "canceled", "canceled")


def test_a_refusal_and_a_job_without_success_reach_the_user(
    nodes: dict[str, Any],
    host: Host,
    shared_service: Any,
    photo: Image.Image,
    painting: Image.Image,
) -> None:
    pictures = {"content": _image(photo), "style": _image(painting)}
    with pytest.raises(errors.BadSpec, match="style_layers"):
        _execute(nodes["ImpastoPaint"], **pictures, style_layers="relu9_9")

    def cancel_elsewhere() -> bool:
        if host.updates:
            shared_service.client.cancel(next(shared_service.client.jobs()).id)
        return False

    host.must_stop = cancel_elsewhere
    with pytest.raises(RuntimeError, match=r"job_\w+: The job was canceled"):
        _execute(nodes["ImpastoPaint"], **pictures, size=96, iterations=2000, scales=1)


def test_without_a_service_the_node_says_what_to_do(
    nodes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMPASTO_URL", f"http://127.0.0.1:{free_port()}")

    with pytest.raises(errors.ServiceUnreachable, match="impasto up"):
        nodes["ImpastoPaint"].INPUT_TYPES()


def test_the_version_is_the_services() -> None:
    def version(path: Path) -> str:
        return str(tomllib.loads(path.read_text(encoding="utf-8"))["project"]["version"])

    assert version(FOLDER / "pyproject.toml") == version(FOLDER.parents[1] / "pyproject.toml")

"""Which device is used, what its errors mean, and its memory; without a card, with stubs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from core import errors
from core.neural import device, torch_versions
from core.neural.device import best_device, kernel_problem
from core.neural.transfer import planner
from core.neural.transfer.inputs import StyleInputs
from core.neural.transfer.planner import Planner, measure_throughput
from core.neural.transfer.stylize import stylize
from core.neural.vgg import Network
from core.neural.weights.cache import WeightsCache
from core.style.spec import parse_spec

LOST = RuntimeError("CUDA error: an illegal memory access was encountered")


def _raise(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("place", ["plan", "scale", "picture"])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (LOST, errors.DeviceLost),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            ),
            errors.OutOfMemory,
        ),
        (MemoryError(), errors.OutOfMemory),
        (RuntimeError("something else"), RuntimeError),
    ],
)
def test_a_run_recognizes_a_lost_device_and_missing_memory_at_every_step(
    tiny_vgg16: Network,
    photo: Image.Image,
    painting: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    error: Exception,
    expected: type[BaseException],
) -> None:
    where = {
        "plan": (Planner, "free_bytes"),
        "scale": (StyleInputs, "target_at"),
        "picture": (StyleInputs, "render"),
    }[place]
    monkeypatch.setattr(*where, _raise(error))
    with pytest.raises(expected):
        stylize(
            StyleInputs(photo, [painting]),
            parse_spec({"size": 64, "iterations": 1}).for_pictures(),
            tiny_vgg16,
        )


def test_a_device_lost_while_loading_a_network_is_not_reported_as_a_bad_setting(
    weights: WeightsCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.neural.weights.cache.Network", _raise(LOST))
    with pytest.raises(errors.DeviceLost):
        weights.load("vgg19")
    monkeypatch.setattr(
        "core.neural.weights.cache.Network",
        _raise(RuntimeError("CUDA error: invalid device ordinal")),
    )
    with pytest.raises(errors.BadSettings):
        weights.load("vgg19")


def test_throughput_is_measured_at_smaller_sizes_if_memory_is_short(
    tiny_vgg16: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = list[int]()

    def cramped(network: Network, side: int) -> tuple[int, float, float]:
        sides.append(side)
        if side > 160:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return side * side, 1e-6 * side * side, 0.0

    monkeypatch.setattr(planner, "_time_evaluation", cramped)
    assert measure_throughput(tiny_vgg16).pixel_seconds == pytest.approx(1e-6)
    assert sides == [128, 320, 64, 160]

    monkeypatch.setattr(
        planner, "_time_evaluation", _raise(torch.OutOfMemoryError("CUDA out of memory."))
    )
    with pytest.raises(torch.OutOfMemoryError):
        measure_throughput(tiny_vgg16)


# What torch and its libraries have been seen to say, with what it means.
SHORT_OF_MEMORY = [
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 11.90 GiB",
    "CUDA error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
    "GET was unable to find an engine to execute this computation",
    "FIND was unable to find an engine to execute this computation",
    "NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp",
    "MPS backend out of memory (MPS allocated: 5.11 GB, other allocations: 3.90 GB)",
    "Invalid buffer size: 16.00 GiB",
    "[enforce fail at alloc_cpu.cpp:114] err == 0. DefaultCPUAllocator: can't allocate memory",
    "[enforce fail at alloc_cpu.cpp:80] DefaultCPUAllocator: not enough memory: you tried",
]
DEVICE_LOST = [
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: unspecified launch failure",
    "CUDA error: device-side assert triggered",
    "CUDA error: no kernel image is available for execution on the device",
    "CUDA error: the launch timed out and was terminated",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb)`",
    "CUDA driver error: unknown error",
    "Unable to determine the device handle for GPU 0000:01:00.0: GPU is lost. Reboot the system",
    "No CUDA GPUs are available",
]
NEITHER = [
    "CUDA error: invalid device ordinal",
    "cuDNN error: CUDNN_STATUS_BAD_PARAM",
    "The size of tensor a (3) must match the size of tensor b (4)",
]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        *((message, errors.OutOfMemory) for message in SHORT_OF_MEMORY),
        *((message, errors.DeviceLost) for message in DEVICE_LOST),
        *((message, RuntimeError) for message in NEITHER),
    ],
)
def test_each_message_of_torch_has_its_meaning(message: str, expected: type[BaseException]) -> None:
    with pytest.raises(expected), device.translate_device_errors():
        raise RuntimeError(message)


# The architectures of torch's wheels; that of 2.7.1 is known from its build.
OF_DEFAULT = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
OF_LEGACY = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
TITANS = {
    "Titan X (Maxwell)": (5, 2),
    "Titan Xp": (6, 1),
    "Titan V": (7, 0),
    "Titan RTX": (7, 5),
}


class Cuda:
    """Stubs of torch.cuda for one card."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.calls: list[tuple[Any, ...]] = []

    def stub(self, **values: Any) -> None:
        for name, value in values.items():
            self._monkeypatch.setattr(
                torch.cuda,
                name,
                lambda *args, _name=name, _value=value: self._call(_name, _value, args),
            )

    def _call(self, name: str, value: Any, args: tuple[Any, ...]) -> Any:
        self.calls.append((name, *args))
        return value

    def insert(self, name: str, version: str, architectures: list[str]) -> None:
        """Put a card into the machine, with this torch."""
        self._monkeypatch.setattr(torch, "__version__", version)
        self.stub(
            is_available=True,
            device_count=1,
            get_device_name=name,
            get_device_capability=TITANS.get(name, (9, 0)),
            get_arch_list=architectures,
            mem_get_info=(11 * 10**9, 12 * 10**9),
        )


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return Cuda(monkeypatch)


@pytest.mark.parametrize("card", TITANS)
@pytest.mark.parametrize("wanted", ["auto", "cuda", "cuda:0"])
def test_a_card_without_kernels_is_refused_with_the_set_that_has_them(
    cuda: Cuda, card: str, wanted: str
) -> None:
    cuda.insert(card, "2.13.0", OF_DEFAULT)
    if card == "Titan RTX":
        assert best_device(wanted).type == "cuda"
    else:
        with pytest.raises(errors.BadSettings) as refused:
            best_device(wanted)
        assert card in refused.value.message
        assert "constraints-legacy-gpu.txt" in refused.value.message
        assert "make up GPU=legacy" in refused.value.message

    cuda.insert(card, "2.7.1+cu126", OF_LEGACY)
    assert best_device(wanted).type == "cuda"


@pytest.mark.parametrize(
    ("capability", "version", "architectures", "expected"),
    [
        ((3, 5), "2.13.0", OF_DEFAULT, "No version that Impasto supports"),
        ((12, 0), "2.7.1+cu126", OF_LEGACY, "The set of constraints.txt"),
        ((12, 1), "2.13.0", OF_DEFAULT, ""),
        ((8, 9), "2.13.0", OF_DEFAULT, ""),
        ((7, 2), "2.13.0", OF_DEFAULT, "constraints-legacy-gpu.txt"),  # a lower minor number
        ((9, 0), "2.13.0", ["sm_80", "compute_80"], ""),  # PTX is compiled by the driver
        ((9, 0), "2.13.0", ["sm_80"], "The set of"),
        ((10, 3), "2.13.0", ["sm_100a"], "No version"),
        ((10, 3), "2.13.0", ["sm_100f"], ""),
        ((9, 0), "2.13.0", [], ""),  # torch does not say
    ],
)
def test_kernels_fit_by_major_and_minor_capability(
    cuda: Cuda,
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    version: str,
    architectures: list[str],
    expected: str,
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    cuda.stub(get_arch_list=architectures)
    problem = kernel_problem(capability)

    assert expected in problem
    assert bool(expected) == bool(problem)


def test_without_cuda_auto_is_the_cpu_and_cuda_is_refused(cuda: Cuda) -> None:
    cuda.stub(is_available=False)

    assert best_device("auto").type in ("cpu", "mps")
    for wanted in ("cuda", "cuda:0"):
        with pytest.raises(errors.BadSettings, match=r"driver \d+ or newer.*impasto doctor"):
            best_device(wanted)


def test_a_card_that_is_absent_is_refused(cuda: Cuda) -> None:
    cuda.insert("Titan RTX", "2.13.0", OF_DEFAULT)
    with pytest.raises(errors.BadSettings, match="There is no device cuda:1"):
        best_device("cuda:1")


def test_a_worker_with_a_limit_limits_the_allocator_too(cuda: Cuda) -> None:
    cuda.insert("Titan RTX", "2.13.0", OF_DEFAULT)
    cuda.stub(memory_allocated=10**9, set_per_process_memory_fraction=None)
    card = torch.device("cuda")
    device.limit_memory(card, 5 * 10**9)
    device.limit_memory(card, 50 * 10**9)
    device.limit_memory(card, None)
    device.limit_memory(torch.device("cpu"), 5)
    limits = [call[1:] for call in cuda.calls if call[0] == "set_per_process_memory_fraction"]

    assert limits == [(0.5, card), (1.0, card), (1.0, card)]


@pytest.mark.parametrize("variable", ["", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
@pytest.mark.parametrize("works", [True, False])
def test_segments_of_a_card_expand_unless_the_user_or_the_driver_decides_otherwise(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch, variable: str, works: bool
) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "backend:native")
    chosen: list[str] = []
    monkeypatch.setattr(torch_versions, "set_allocator_settings", chosen.append)
    failed = _raise(RuntimeError("CUDA driver error: unknown error"))
    monkeypatch.setattr(torch, "empty", (lambda *_, **__: None) if works else failed)
    device.configure_allocator(torch.device("cpu"))
    assert chosen == []

    device.configure_allocator(torch.device("cuda"))
    expected = ["expandable_segments:True"] + ["expandable_segments:False"] * (not works)
    assert chosen == ([] if variable else expected)


def test_cards_are_listed_with_their_problems(cuda: Cuda) -> None:
    cuda.insert("Titan Xp", "2.13.0", OF_DEFAULT)
    (card,) = device.list_cards()

    assert (card.name, card.capability, card.total_bytes) == ("Titan Xp", (6, 1), 12 * 10**9)
    assert "constraints-legacy-gpu.txt" in card.problem
    cuda.stub(is_available=False)
    assert device.list_cards() == []

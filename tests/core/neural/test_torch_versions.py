"""What differs between the two sets of torch, without a card."""

import contextlib
import re
from pathlib import Path

import pytest
import torch

from core.neural import torch_versions
from core.neural.torch_versions import DEFAULT, LEGACY, installed_set

ROOT = Path(__file__).parents[3]
_OF_TORCH = re.compile(r"^(torch|torchvision)==(.+)$", re.MULTILINE)


def _pins(name: str) -> dict[str, str]:
    return dict(
        line.split("==")
        for line in (ROOT / name).read_text().splitlines()
        if not line.startswith("#")
    )


def test_the_sets_differ_only_in_torch_and_torchvision() -> None:
    """To renew the second file, copy the first and change these two lines."""
    default, legacy = _pins(DEFAULT.constraints), _pins(LEGACY.constraints)

    assert (default["torch"], legacy["torch"]) == (DEFAULT.torch, LEGACY.torch)
    assert {name for name in default | legacy if default.get(name) != legacy.get(name)} == {
        "torch",
        "torchvision",
    }


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.13.0", DEFAULT), ("2.13.0+cpu", DEFAULT), ("2.7.1+cu126", LEGACY), ("2.8.0", DEFAULT)],
)
def test_the_set_follows_from_the_version(
    monkeypatch: pytest.MonkeyPatch, version: str, expected: torch_versions.TorchSet
) -> None:
    monkeypatch.setattr(torch, "__version__", version)

    assert installed_set() is expected


def test_a_product_of_halves_has_float32_sums_where_torch_offers_it() -> None:
    """On a card only; shapes and types need none. 2.7.1 offers it on no device."""
    rows = torch.empty(10, 4, dtype=torch.float16, device="meta")

    assert (installed_set() is DEFAULT) == torch_versions.HAS_MM_TO_FLOAT32
    if torch_versions.HAS_MM_TO_FLOAT32:
        product = torch_versions.mm_to_float32(rows.T, rows)
        assert (product.shape, product.dtype) == ((4, 4), torch.float32)
    else:
        with pytest.raises(TypeError):
            torch_versions.mm_to_float32(rows.T, rows)


def test_the_processors_instructions_are_found_without_torchs_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_torch = torch_versions.cpu_capabilities()
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    by_kernel = torch_versions.cpu_capabilities()

    assert by_kernel["architecture"] == by_torch["architecture"]
    for name in ("avx512_bf16", "amx_bf16", "avx512_fp16", "amx_fp16", "avx2"):
        assert bool(by_kernel.get(name)) == bool(by_torch.get(name)), name


def test_the_allocator_accepts_settings() -> None:
    torch_versions.set_allocator_settings("expandable_segments:False")


def test_products_in_bfloat16_end_with_their_block() -> None:
    """All other products of the process, such as the optimizer's, stay in float32."""
    before = torch.get_float32_matmul_precision()
    with contextlib.suppress(ValueError), torch_versions.allow_bfloat16_products():
        assert torch.get_float32_matmul_precision() == "medium"
        raise ValueError

    assert torch.get_float32_matmul_precision() == before == "highest"

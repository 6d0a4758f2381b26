"""The program that measures a card: it starts anywhere, and one failure loses no other row."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from bench import gpu
from core.neural.vgg import Network
from core.neural.weights.cache import random_parameters

ROOT = Path(__file__).parents[2]


def test_it_needs_no_installed_project(tmp_path: Path) -> None:
    code = (
        "import pathlib, runpy, sys\n"
        "sys.path[:] = [p for p in sys.path if not pathlib.Path(p, 'bench/gpu.py').exists()]\n"
        f"runpy.run_path({str(ROOT / 'bench' / 'gpu.py')!r}, run_name='probe')\n"
    )
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ""},
    )

    assert ran.returncode == 0, ran.stderr


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the program on the CPU with these sections only."""

    class Card:
        def __init__(self, device: str, _: object) -> None:
            self.device = torch.device(device)
            self.fast = self.exact = Network(
                "vgg11", random_parameters("vgg11"), name="", sha256="", device="cpu"
            )

    def run(**sections: Any) -> Result:
        monkeypatch.setattr(gpu, "Card", Card)
        for name in ("correctness", "number_formats", "rates", "autotune", "batches", "memory"):
            section = sections.get(name, lambda _: iter([]))
            section.__name__ = name
            monkeypatch.setattr(gpu, name, section)
        monkeypatch.setattr(gpu, "recipe", lambda _: iter([("the last", "row")]))
        return CliRunner().invoke(gpu.main, ["--device", "cpu"])

    return run


def test_a_section_that_fails_leaves_the_others(measure: Any) -> None:
    def fail(_: object) -> Iterator[gpu.Row]:
        yield "before", "1"
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

    ran = measure(batches=fail)

    assert "| before | 1 |" in ran.output
    assert "| batches | OutOfMemoryError: CUDA out of memory. |" in ran.output
    assert "| the last | row |" in ran.output
    assert ran.exit_code == 1


def test_a_size_that_does_not_fit_leaves_the_other_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    def rates_at(card: object, size: int, peak: float) -> Iterator[gpu.Row]:
        if size > 512:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        yield f"{size} px", "measured"

    class Card:
        device = torch.device("cuda")
        fast = Network("vgg11", random_parameters("vgg11"), name="", sha256="", device="cpu")

    monkeypatch.setattr(gpu, "_rates_at", rates_at)
    monkeypatch.setattr(gpu, "seconds_of", lambda *_: 1.0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    usual = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *_, device: usual(2, 2))
    values = dict(gpu.rates(Card()))  # type: ignore[arg-type]

    assert values["512 px"] == "measured"
    assert values["1024 px"] == values["2048 px"] == "OutOfMemoryError: CUDA out of memory."


@pytest.mark.parametrize(
    ("dtype", "difference", "is_wrong"),
    [
        (torch.float32, 1e-5, False),
        (torch.float32, 0.01, True),
        (torch.bfloat16, 0.1, False),
        (torch.bfloat16, 0.5, True),
        (torch.float16, 0.05, False),
        (torch.float16, float("nan"), True),
    ],
)
def test_a_gradient_that_rounding_does_not_explain_is_wrong(
    measure: Any, dtype: torch.dtype, difference: float, is_wrong: bool
) -> None:
    expected = torch.ones(8)
    value = gpu._judge(expected * (1 + difference), expected, gpu.GRADIENT_LIMITS[dtype])
    ran = measure(correctness=lambda _: iter([("gradient", value)]))

    assert value.endswith(gpu.WRONG) == is_wrong
    assert ran.exit_code == int(is_wrong)


def test_another_card_than_the_first_is_the_one_that_is_waited_for(
    measure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`torch.cuda.synchronize` waits for the current card."""
    chosen: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "T")
    measure()
    CliRunner().invoke(gpu.main, ["--device", "cuda:1"])

    assert chosen == ["cuda:1"]

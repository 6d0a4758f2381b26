import re
from collections.abc import Callable

import pytest
from click.testing import CliRunner

from bench import optimize
from core.neural.vgg import Network


@pytest.fixture(autouse=True)
def _tiny_network(
    make_tiny_network: Callable[..., Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = make_tiny_network("vgg11")
    monkeypatch.setattr(optimize, "_network", lambda *_: tiny)


@pytest.mark.parametrize(
    ("command", "rows"),
    [
        ("speed 64 96", 2),
        ("precision --size 64", 3),
        ("preconditioner --size 64", 2),
        ("detail --size 256", 2),
        ("recipes --size 64 --iterations 6", 5),
        ("peer --size 64 --iterations 5", 3),
        ("strength --size 64", 5),
        ("tiled --size 300", 2),
    ],
)
def test_each_measurement_prints_a_table_of_numbers(command: str, rows: int) -> None:
    result = CliRunner().invoke(optimize.main, command.split(), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    _, _, *table = result.output.splitlines()
    assert len(table) == rows
    for row in table:
        _, _, *cells, _ = row.split("|")
        assert all(re.fullmatch(r" x?\d+(\.\d+)?(e[+-]\d+)?%? ", cell) for cell in cells), row


def test_the_detail_of_a_photo_needs_a_coarser_scale() -> None:
    result = CliRunner().invoke(optimize.main, ["detail", "--size", "128"])
    assert result.exit_code == 2
    assert "one scale" in result.output

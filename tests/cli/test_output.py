"""The progress bar on a terminal."""

import sys

import pytest

from cli import output
from cli.output import ProgressBar


def test_the_bar_is_drawn_ten_times_a_second_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(output.time, "monotonic", lambda: clock[0])
    with ProgressBar() as bar:
        for step in range(1000):
            clock[0] += 0.001
            bar.show_work("training", step / 1000, f"step {step};")
        bar.show_work("training", 1.0, "step 1000;")

    drawn = capsys.readouterr().err
    assert 10 <= drawn.count("step ") <= 14
    assert "step 1000;" in drawn

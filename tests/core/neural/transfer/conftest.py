"""Callbacks that record a run."""

from collections.abc import Callable
from typing import Any

import pytest

from core.neural.transfer.stylize import Control, StepEvent

Record = Callable[..., Callable[[StepEvent], Control]]


@pytest.fixture(scope="session")
def record() -> Record:
    """Make a callback that appends a value of each event to a list.

    The value is the event's progress, or what `read` returns.
    """

    def make(
        values: list[Any], read: Callable[[StepEvent], Any] = lambda event: event.progress
    ) -> Callable[[StepEvent], Control]:
        def on_progress(event: StepEvent) -> Control:
            values.append(read(event))
            return Control.CONTINUE

        return on_progress

    return make

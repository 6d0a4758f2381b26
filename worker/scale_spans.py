"""The spans of a run's scales, one after the other, below the span of the attempt."""

from core import tracing
from core.neural.transfer.stylize import RunProgress


class ScaleSpans:
    """A context manager around a run. A scale begins where the one before has ended."""

    def __init__(self) -> None:
        self._scale = 0
        self._span = tracing.Span()
        self._last_step_ns = 0

    def __enter__(self) -> "ScaleSpans":
        self._last_step_ns = tracing.now_ns()
        return self

    def __exit__(self, *_: object) -> None:
        self._span.end()

    def report(self, progress: RunProgress) -> None:
        """A step is done."""
        if progress.scale != self._scale:
            self._span.end(self._last_step_ns)
            self._scale = progress.scale
            self._span = tracing.begin(
                f"scale {progress.scale}/{progress.scales}",
                self._last_step_ns,
                impasto__scale=progress.scale,
                impasto__width=progress.width,
                impasto__height=progress.height,
            )
        self._last_step_ns = tracing.now_ns()
        self._span.add(impasto__iteration=progress.iteration)

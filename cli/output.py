"""What the commands print: the progress bar, and untrusted text without control characters."""

import sys
import time
from types import TracebackType
from typing import NoReturn

import click
from tqdm import tqdm

from core.jobs.models import Job, Status

_REDRAW_SECONDS = (
    0.1  # thousands of steps a second would be told of otherwise, each at the cost of a redraw
)


class ProgressBar:
    """One line on the terminal; plain lines, one for each tenth, where there is none. A context manager."""

    def __init__(self) -> None:
        self._bar: tqdm[NoReturn] | None = None
        self._told = ("", -1)
        self._drawn = 0.0

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def show_job(self, job: Job) -> None:
        """Queued, running or ended."""
        if job.status is Status.QUEUED and job.queue is not None:
            self._show("queued", 0.0, f"{job.queue.position} before it")
        elif job.progress is None:
            self._show(job.status, 0.0, "starting")
        else:
            at = job.progress
            self.show(
                at.value,
                (at.scale, at.scales),
                (at.iteration, at.iterations),
                at.loss["total"],
                at.seconds_left,
            )

    def show(
        self,
        value: float,
        scale: tuple[int, int],
        iteration: tuple[int, int],
        loss: float,
        seconds_left: float | None,
    ) -> None:
        """A running painting."""
        left = "" if seconds_left is None else f", {seconds_left:.0f} s left"
        steps = f"scale {scale[0]}/{scale[1]}, iteration {iteration[0]}/{iteration[1]}"
        self._show("painting", value, f"{steps}, loss {loss:.4g}{left}")

    def tell(self, words: str, value: float, details: str) -> None:
        """Any other work, `value` of it done, from 0 to 1."""
        self._show(words, value, details)

    def done(self, words: str) -> None:
        """The last line."""
        self._show(words, 1.0, "")

    def _show(self, words: str, value: float, details: str) -> None:
        if not sys.stderr.isatty():
            tenth = (words, int(10 * value))
            if tenth != self._told:
                click.echo(f"{words:<9} {100 * value:3.0f}%  {details}".rstrip(), err=True)
            self._told = tenth
            return
        if value < 1 and time.monotonic() - self._drawn < _REDRAW_SECONDS:
            return
        self._drawn = time.monotonic()
        if self._bar is None:
            form = "{desc:<9} {percentage:3.0f}% |{bar}| {unit}"
            self._bar = tqdm(total=1.0, bar_format=form, dynamic_ncols=True, mininterval=0.2)
        self._bar.n = value
        self._bar.unit = details
        self._bar.set_description_str(words, refresh=False)
        self._bar.refresh()


def printable(text: str) -> str:
    """The same with a mark in the place of whatever is not seen: escape sequences, ends of lines, turned directions."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)

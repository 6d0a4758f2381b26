"""What the commands print: the progress bar, and untrusted text without control characters."""

import sys
import time
from types import TracebackType
from typing import NoReturn

import click
from tqdm import tqdm

from impasto import Job, Status

_REDRAW_SECONDS = 0.1  # a run can report thousands of steps a second; each redraw costs time


class ProgressBar:
    """A progress bar on a terminal; without one, a plain line for each tenth. A context manager."""

    def __init__(self) -> None:
        self._bar: tqdm[NoReturn] | None = None
        self._printed = ("", -1)  # the last plain line: its label and its tenth
        self._drawn_at = 0.0

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
        """Show a job in any state."""
        if job.status is Status.QUEUED and job.queue is not None:
            self._show("queued", 0.0, f"{job.queue.position} jobs before it")
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
        """Show a run: value from 0 to 1, (scale, scales), (iteration, iterations), total loss."""
        left = "" if seconds_left is None else f", {seconds_left:.0f} s left"
        steps = f"scale {scale[0]}/{scale[1]}, iteration {iteration[0]}/{iteration[1]}"
        self._show("running", value, f"{steps}, loss {loss:.4g}{left}")

    def show_work(self, label: str, value: float, details: str) -> None:
        """Show any other work; value is the finished share, from 0 to 1."""
        self._show(label, value, details)

    def finish(self, label: str) -> None:
        """Show the last line."""
        self._show(label, 1.0, "")

    def _show(self, label: str, value: float, details: str) -> None:
        if not sys.stderr.isatty():
            line = (label, int(10 * value))
            if line != self._printed:
                click.echo(f"{label:<9} {100 * value:3.0f}%  {details}".rstrip(), err=True)
            self._printed = line
            return
        if value < 1 and time.monotonic() - self._drawn_at < _REDRAW_SECONDS:
            return
        self._drawn_at = time.monotonic()
        if self._bar is None:
            form = "{desc:<9} {percentage:3.0f}% |{bar}| {unit}"
            self._bar = tqdm(total=1.0, bar_format=form, dynamic_ncols=True, mininterval=0.2)
        self._bar.n = value
        self._bar.unit = details
        self._bar.set_description_str(label, refresh=False)
        self._bar.refresh()


def printable(text: str) -> str:
    """Replace characters that are not printable, such as escape sequences, by a mark.

    Line ends and characters that turn the text direction are not printable either.
    """
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)

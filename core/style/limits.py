"""The operator's limits on one job: its size, its iterations, its seconds.

Each refusal names the setting. Knows no HTTP and no worker.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core import errors
from core.style.schedule import Scale, schedule
from core.style.spec import MAX_ITERATIONS, MAX_SIZE_PX, StyleSpec

# More seconds than any device that is still in use takes for a pixel and an iteration: a CPU of two
# cores takes a third.
_SLOWEST_PIXEL_SECONDS = 2e-5

# Long sides in px. A worker takes jobs up to the largest of these that its memory holds.
# core/jobs/scripts/lanes.lua has them as well.
SIZE_CLASSES = (512, 1024, 1536, 2048, 3072, 4096, 6144, 8192)


def describe_seconds(seconds: float) -> str:
    """A duration in the unit in which a person would state it: `90 s`, `3 h`, `29 days`."""
    for unit, unit_seconds in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * unit_seconds:
            return f"{seconds / unit_seconds:.0f} {unit}"
    return f"{seconds:.0f} s"


def _most_iterations(spec: StyleSpec, width: int, height: int) -> int:
    """The most iterations at one scale."""
    return max(scale.iterations for scale in schedule(spec, width, height))


@dataclass(frozen=True)
class JobLimits:
    """What one job may take. seconds: of its run, 0 for no limit."""

    size_px: int = MAX_SIZE_PX
    iterations: int = MAX_ITERATIONS
    seconds: float = 0

    def clip_defaults(
        self, spec: StyleSpec, chosen: Collection[str], width: int, height: int
    ) -> StyleSpec:
        """The spec with size and iterations within the limits, unless the caller chose them.

        chosen: the names of the parameters that the caller set. A chosen `quality` counts as chosen
        iterations. width, height: of the photo, in px. Raises BadSpec if the largest size is too
        small for its shape.
        """
        if "size" not in chosen:
            spec = spec.model_copy(update={"size": min(spec.size, self.size_px)})
        is_chosen = "iterations" in chosen or "quality" in chosen
        if not is_chosen and _most_iterations(spec, width, height) > self.iterations:
            spec = spec.model_copy(update={"iterations": self.iterations})
        return spec

    def clip_values(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a preset, with size and iterations within the limits."""
        limits = {"size": self.size_px, "iterations": self.iterations}
        return {
            name: min(value, limits[name]) if name in limits else value
            for name, value in parameters.items()
        }

    @property
    def default_size_px(self) -> int:
        """The size of a job that names none, in px."""
        return min(StyleSpec().size, self.size_px)

    def check_spec(self, spec: StyleSpec, width: int, height: int) -> None:
        """Raise BadSpec for a job that is too large, or too small for the photo's shape.

        width, height: of the photo, in px.
        """
        if spec.size > self.size_px:
            raise errors.BadSpec(
                f"size must be at most {self.size_px}, the limit of this service "
                "(IMPASTO_MAX_SIZE_PX).",
                parameter="size",
            )
        most = _most_iterations(spec, width, height)
        if most > self.iterations:
            raise errors.BadSpec(
                f"The job takes {most} iterations at one scale, and this service allows "
                f"{self.iterations} (IMPASTO_MAX_ITERATIONS): set iterations.",
                parameter="iterations",
            )

    def may_exceed_seconds(self, scales: Sequence[Scale]) -> bool:
        """Whether a slow device might take longer than allowed, so that an estimate is needed."""
        work = sum(scale.width * scale.height * scale.iterations for scale in scales)
        return bool(self.seconds) and work * _SLOWEST_PIXEL_SECONDS > self.seconds

    def check_seconds(self, seconds: float) -> None:
        """Raise BadSpec for a job that is estimated to take longer."""
        if self.seconds and seconds > self.seconds:
            raise errors.BadSpec(
                f"The job would take about {describe_seconds(seconds)}, and this service allows "
                f"{self.seconds:g} s (IMPASTO_MAX_JOB_SECONDS): use a smaller size, or fewer "
                "iterations.",
                reason="job_too_long",
            )

    def is_over(self, seconds: float) -> bool:
        """Whether a run that has taken these seconds must end."""
        return bool(self.seconds) and seconds > self.seconds

    @property
    def run_error(self) -> errors.TimeLimitExceeded:
        """The error of a run that took longer."""
        return errors.TimeLimitExceeded(
            f"The job took longer than the {self.seconds:g} s that this service allows "
            "(IMPASTO_MAX_JOB_SECONDS); retry it with a smaller size, or fewer iterations."
        )

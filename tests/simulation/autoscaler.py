"""The decisions of KEDA and its autoscaler, by deploy/kubernetes/components/keda/scaler.yaml.

Its formula is a sum of metrics, each perhaps divided by a number.
"""

import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).parents[2] / "deploy" / "kubernetes" / "components" / "keda" / "scaler.yaml"
SYNC_SECONDS = 15  # of Kubernetes' autoscaler
TOLERANCE = 0.1  # a metric that is so near to its target changes nothing


def read_spec() -> dict[str, Any]:
    """Return the ScaledObject."""
    return dict(next(yaml.safe_load_all(FILE.read_text()))["spec"])


def evaluate(spec: Mapping[str, Any], metrics: Mapping[str, float]) -> float:
    """Return the formula's value. A metric that is missing counts as 0."""
    names = {trigger["name"]: trigger["metadata"]["valueLocation"] for trigger in spec["triggers"]}
    value = 0.0
    for term in spec["advanced"]["scalingModifiers"]["formula"].split("+"):
        name, _, divisor = term.partition("/")
        value += metrics.get(names[name.strip()], 0) / float(divisor or 1)
    return value


class Autoscaler:
    """Computes the number of workers, every SYNC_SECONDS."""

    def __init__(self, spec: Mapping[str, Any], min_workers: int, max_workers: int) -> None:
        """min_workers, max_workers: instead of those of the file."""
        self._spec = spec
        self._target = float(spec["advanced"]["scalingModifiers"]["target"])
        self._behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        self._limits = (min_workers, max_workers)
        self._wanted: deque[tuple[float, int]] = deque()  # within the longest window
        self._counts: deque[tuple[float, int]] = deque()  # the workers that there were

    def decide(self, seconds: float, workers: int, metrics: Mapping[str, float]) -> int:
        """Return how many workers there must be now. seconds: the time."""
        self._counts.append((seconds, workers))
        wanted = self._wants(evaluate(self._spec, metrics) / self._target, workers)
        low, high = self._limits
        self._wanted.append((seconds, min(high, max(low, wanted))))
        up, down = self._behavior["scaleUp"], self._behavior["scaleDown"]
        for past in (self._wanted, self._counts):
            while past[0][0] < seconds - 900:
                past.popleft()
        # Up: the least, down: the most that was wanted within the window.
        least = min(self._within(seconds, up))
        most = max(self._within(seconds, down))
        if least > workers:
            return min(least, max(self._bounds(seconds, up, +1)))
        if most < workers:
            return max(most, min(self._bounds(seconds, down, -1)))
        return workers

    def _within(self, seconds: float, behavior: Mapping[str, Any]) -> list[int]:
        begin = seconds - behavior["stabilizationWindowSeconds"]
        return [count for at, count in self._wanted if at >= begin]

    @staticmethod
    def _wants(value: float, workers: int) -> int:
        if workers and abs(value / workers - 1) <= TOLERANCE:
            return workers
        return math.ceil(value)

    def _bounds(self, seconds: float, behavior: Mapping[str, Any], sign: int) -> list[int]:
        """Return the number that each policy allows now."""
        bounds = []
        for policy in behavior["policies"]:
            begin = seconds - policy["periodSeconds"]
            past = [count for at, count in self._counts if at >= begin]
            start = min(past) if sign > 0 else max(past)
            step = policy["value"]
            if policy["type"] == "Percent":
                step = math.ceil(start * step / 100)
            bounds.append(start + sign * step)
        return bounds

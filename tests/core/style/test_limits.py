"""The operator's limits on one job."""

from typing import Any

import pytest

from core import errors
from core.config import Settings
from core.style.limits import JobLimits, describe_seconds
from core.style.schedule import schedule
from core.style.spec import parse_spec

LIMITS = JobLimits(size_px=512, iterations=90, seconds=60)


@pytest.mark.parametrize(
    ("parameters", "setting"),
    [
        ({"size": 513}, "IMPASTO_MAX_SIZE_PX"),
        ({"iterations": 91}, "IMPASTO_MAX_ITERATIONS"),
        ({"quality": "fine"}, "IMPASTO_MAX_ITERATIONS"),  # 96 at the coarsest scale
        ({"init": "noise"}, "IMPASTO_MAX_ITERATIONS"),  # 180 at the coarsest one
    ],
    ids=str,
)
def test_a_job_above_a_limit_is_refused_by_the_name_of_the_setting(
    parameters: dict[str, Any], setting: str
) -> None:
    with pytest.raises(errors.BadSpec, match=setting):
        LIMITS.check_spec(parse_spec(parameters), 4, 3)


@pytest.mark.parametrize("parameters", [{}, {"iterations": 90}, {"size": 512}], ids=str)
def test_a_job_within_the_limits_is_accepted(parameters: dict[str, Any]) -> None:
    LIMITS.check_spec(parse_spec(parameters), 4, 3)
    LIMITS.check_seconds(60)
    JobLimits().check_seconds(1e9)


def test_only_a_job_that_may_take_too_long_needs_an_estimate() -> None:
    """The default job needs none, whatever the device, so that it waits for no worker."""

    def needs_estimate(limits: JobLimits, **parameters: Any) -> bool:
        return limits.may_exceed_seconds(schedule(parse_spec(parameters), 4, 3))

    by_default = Settings().job_limits
    huge = {"size": 8192, "iterations": 5000, "scales": 8}
    assert not needs_estimate(by_default)
    assert needs_estimate(by_default, **huge)
    assert needs_estimate(LIMITS)
    assert not needs_estimate(JobLimits(), **huge)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (119, "119 s"), (200, "3 min"), (9000, "2 h"), (2_546_535, "29 days")],
)
def test_a_duration_is_stated_in_a_unit_that_fits(seconds: float, words: str) -> None:
    assert describe_seconds(seconds) == words
    if seconds > 60:
        with pytest.raises(errors.BadSpec, match=f"would take about {words}, and"):
            LIMITS.check_seconds(seconds)


def test_a_run_is_over_after_the_seconds_of_the_limit_and_without_one_never() -> None:
    assert [LIMITS.is_over(seconds) for seconds in (59, 61)] == [False, True]
    assert not JobLimits().is_over(1e9)
    assert "IMPASTO_MAX_JOB_SECONDS" in LIMITS.run_error.message

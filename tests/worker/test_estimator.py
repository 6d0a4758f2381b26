"""What a worker answers when it is asked how long."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from core import errors
from core.jobs.models import EstimateRequest
from core.jobs.store import JobStore
from core.neural.transfer.planner import Planner, Throughput
from core.neural.vgg import Network
from core.style.spec import StyleSpec
from worker.estimator import EstimateService


class Painter:
    """With a network, and a memory that a test sets."""

    def __init__(self, network: Network) -> None:
        self.network, self.paints = network, False
        self.planner = Planner(network, Throughput(0.01, 1e-6, 0.5), 4_000_000_000)

    def resident(self, model: str) -> tuple[Network, Planner]:
        if model == "vgg16":
            raise errors.WeightsUnavailable()
        return self.network, self.planner


@pytest.fixture
def runner(random_vgg19: Network) -> Painter:
    return Painter(random_vgg19)


@pytest.fixture
def forecaster(store: JobStore, runner: Any) -> EstimateService:
    return EstimateService(store, runner)


def question(**parameters: Any) -> EstimateRequest:
    spec = StyleSpec(**parameters).for_pictures(1)
    return EstimateRequest(
        content=(1200, 900), styles=[(640, 480)], masks=0, spec=spec.model_dump()
    )


def test_the_forecast_is_the_plan(forecaster: EstimateService, runner: Painter) -> None:
    asked = question(size=400)
    plan = runner.planner.plan((1200, 900), [(640, 480)], StyleSpec(**asked.spec))

    told = forecaster.forecast(asked)

    assert sum(scale.seconds for scale in told.scales) == pytest.approx(plan.seconds, abs=0.01)
    assert max(scale.memory_bytes for scale in told.scales) == plan.memory_bytes
    assert (told.scales[-1].width, told.scales[-1].height, told.scales[-1].iterations) == (
        400,
        300,
        70,
    )
    assert (told.device, told.network, told.refused) == ("cpu", "vgg19", None)


def test_what_has_no_plan_is_refused_with_its_reason(
    forecaster: EstimateService, runner: Painter
) -> None:
    runner.planner._free_bytes = 800_000_000
    told = forecaster.forecast(question(size=8192))
    assert told.refused is not None
    assert (told.scales, told.refused.code) == ([], "out_of_memory")
    assert "fits" in told.refused.message
    unknown = forecaster.forecast(question(model="vgg16")).refused
    assert unknown is not None
    assert unknown.code == "weights_unavailable"


def test_a_run_does_not_count_as_memory_that_is_gone(
    forecaster: EstimateService, runner: Painter
) -> None:
    at_rest = forecaster.forecast(question(size=1024))
    runner.paints, runner.planner._free_bytes = True, 300_000_000
    assert forecaster.forecast(question(size=1024)) == at_rest
    runner.paints = False
    assert forecaster.forecast(question(size=1024)) != at_rest


def test_estimate_requests_are_answered_in_passing(
    forecaster: EstimateService, store: JobStore, valkey: Any
) -> None:
    assert store.request_estimate(question(), 0.2) is None, "nobody listens"
    store._redis.delete("impasto:estimate_requests")
    with ThreadPoolExecutor() as asking:
        asked = asking.submit(store.request_estimate, question(size=400), 20)
        while not asked.done():
            forecaster.answer_next()
        told = asked.result()
    assert told is not None
    assert told.scales[-1].width == 400


def test_what_stays_wrong_is_said_once_and_in_one_line(
    forecaster: EstimateService,
    runner: Painter,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def gone(_: str) -> None:
        raise errors.WeightsUnavailable()

    with monkeypatch.context() as patch:
        patch.setattr(runner, "resident", gone)
        assert [forecaster.listened() for _ in range(3)] == [False] * 3
    assert forecaster.listened()

    said = [record for record in caplog.records if record.name == "worker.estimator"]
    assert [record.exc_info for record in said] == [None]

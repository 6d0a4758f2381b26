"""The estimates that a worker gives, with a real store and a fake runner."""

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


class FakeRunner:
    """A runner with one network, and with free memory that a test sets."""

    def __init__(self, network: Network) -> None:
        self.network, self.is_running, self.pace = network, False, 1.0
        self.planner = Planner(network, Throughput(0.01, 1e-6, 0.5), 4_000_000_000)

    def get_loaded_network(self, model: str) -> tuple[Network, Planner]:
        if model == "vgg16":
            raise errors.WeightsUnavailable()
        return self.network, self.planner


@pytest.fixture
def runner(random_vgg19: Network) -> FakeRunner:
    return FakeRunner(random_vgg19)


@pytest.fixture
def estimator(store: JobStore, runner: Any) -> EstimateService:
    return EstimateService(store, runner)


def _request(**parameters: Any) -> EstimateRequest:
    spec = StyleSpec(**parameters).for_pictures(1)
    return EstimateRequest(
        content=(1200, 900), styles=[(640, 480)], masks=0, spec=spec.model_dump()
    )


def test_the_seconds_follow_those_of_recent_runs(
    estimator: EstimateService, runner: FakeRunner
) -> None:
    planned = estimator.estimate(_request(size=400)).scales
    runner.pace = 2.5
    slower = estimator.estimate(_request(size=400)).scales

    wanted = [pytest.approx(2.5 * scale.seconds, abs=0.01) for scale in planned]
    assert [scale.seconds for scale in slower] == wanted


def test_the_estimate_is_the_plan(estimator: EstimateService, runner: FakeRunner) -> None:
    request = _request(size=400)
    plan = runner.planner.plan((1200, 900), [(640, 480)], StyleSpec(**request.spec))

    response = estimator.estimate(request)

    assert sum(scale.seconds for scale in response.scales) == pytest.approx(plan.seconds, abs=0.01)
    assert max(scale.memory_bytes for scale in response.scales) == plan.memory_bytes
    assert (
        response.scales[-1].width,
        response.scales[-1].height,
        response.scales[-1].iterations,
    ) == (
        400,
        300,
        16,
    )
    assert (response.device, response.network, response.refused) == ("cpu", "vgg19", None)


def test_a_run_from_an_initial_picture_starts_above_its_size(estimator: EstimateService) -> None:
    spec = StyleSpec(size=400, init="picture").model_dump()
    request = _request().model_copy(update={"init": (200, 150), "spec": spec})

    assert [scale.width for scale in estimator.estimate(request).scales] == [283, 400]


def test_a_request_without_a_plan_is_refused_with_the_reason(
    estimator: EstimateService, runner: FakeRunner
) -> None:
    runner.planner._free_bytes = 800_000_000
    response = estimator.estimate(_request(size=8192))
    assert response.refused is not None
    assert (response.scales, response.refused.code) == ([], "out_of_memory")
    assert "fits" in response.refused.message
    missing = estimator.estimate(_request(model="vgg16")).refused
    assert missing is not None
    assert missing.code == "weights_unavailable"


def test_the_memory_of_the_current_run_counts_as_free(
    estimator: EstimateService, runner: FakeRunner
) -> None:
    when_idle = estimator.estimate(_request(size=1024))
    runner.is_running, runner.planner._free_bytes = True, 300_000_000
    assert estimator.estimate(_request(size=1024)) == when_idle
    runner.is_running = False
    assert estimator.estimate(_request(size=1024)) != when_idle


def test_estimate_requests_are_answered(
    estimator: EstimateService, store: JobStore, valkey: Any
) -> None:
    assert store.estimates.request(_request(), 0.2) is None, "no worker answers"
    store._redis.delete("impasto:estimate_requests")
    with ThreadPoolExecutor() as pool:
        future = pool.submit(store.estimates.request, _request(size=400), 20)
        while not future.done():
            estimator.answer_next()
        response = future.result()
    assert response is not None
    assert response.scales[-1].width == 400


def test_a_lasting_problem_is_logged_once_and_in_one_line(
    estimator: EstimateService,
    runner: FakeRunner,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: str) -> None:
        raise errors.WeightsUnavailable()

    with monkeypatch.context() as patch:
        patch.setattr(runner, "get_loaded_network", fail)
        assert [estimator.try_answer() for _ in range(3)] == [False] * 3
    assert estimator.try_answer()

    records = [record for record in caplog.records if record.name == "worker.estimator"]
    assert [record.exc_info for record in records] == [None]

"""A thousand GPUs on two cores: the store's real decisions, with simulated time and workers.

python tests/simulation/simulate.py run --seed 1                  # 20 workers, 2,000 jobs
python tests/simulation/simulate.py run --seed 1 --big            # 1,000 workers, 1,000,000 jobs
python tests/simulation/simulate.py run --seed 1 --mixed          # workers of several pools
python tests/simulation/simulate.py run --seed 7 --trace FILE     # every call and answer of a seed
python tests/simulation/simulate.py controls [--rule NAME]        # each rule removed in turn
python tests/simulation/simulate.py costs                         # the server's time for each call

Real: the Lua functions (claim, lease, reaper, fair order, lanes, limits), JobStore's own calls,
api/background/reaper.py, and the autoscaler's rules in deploy/kubernetes/components/keda, on a real
server. Simulated: the clock, the network, workers, clients and their faults, all from the seed.
"""

import statistics
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import bars
import click
from scenario import Outcome, Scenario
from script_variants import OTHER_RULES, RULES
from simulated_service import simulate

BIG = Scenario(
    workers=1000,
    owners=200,
    jobs=1_000_000,
    batch=60,
    fault_minutes=20.0,
    scales=True,
    # Half as many calls as a worker makes, so that the run ends in time on two cores.
    renew_ms=1600,
    checkpoint_ms=4000,
    heartbeat_ms=4000,
    window_ms=100,
)
MIXED = Scenario(owners=100, jobs=3000, load=0.9, batch=6, mixed=True)
MAX_SEEDS = 1000


def check(scenario: Scenario, trace: Path | None = None) -> tuple[Outcome, list[str]]:
    """Run a scenario. Returns what it has shown, and the violations."""
    if trace is None:
        outcome = simulate(scenario)
    else:
        with trace.open("w") as file:
            outcome = simulate(scenario, file)
    if outcome.violation:
        return outcome, [outcome.violation]
    return outcome, bars.find_violations(outcome, bars.measure(outcome))


@click.group()
def main() -> None:
    """Simulate the service."""


@main.command()
@click.option("--seed", default=1)
@click.option("--big", is_flag=True)
@click.option(
    "--jobs", type=click.IntRange(500), default=None, help="Shorter runs end amid updates."
)
@click.option("--workers", type=int, default=None)
@click.option("--scales", is_flag=True, help="The autoscaler decides how many workers there are.")
@click.option("--mixed", is_flag=True, help="Workers take jobs of the pool beside others.")
@click.option("--without", type=click.Choice([*RULES, *OTHER_RULES]), default=None)
@click.option("--trace", type=click.Path(path_type=Path, dir_okay=False), default=None)
def run(
    seed: int,
    big: bool,
    jobs: int | None,
    workers: int | None,
    scales: bool,
    mixed: bool,
    without: str | None,
    trace: Path | None,
) -> None:
    """Run one seed and print a table. Exit with 1 if there is a violation."""
    scenario = BIG if big else MIXED if mixed else Scenario()
    scenario = replace(scenario, seed=seed, without=without)
    changes = {"jobs": jobs, "workers": workers, "scales": scales or None}
    scenario = replace(scenario, **{k: v for k, v in changes.items() if v is not None})
    began = time.monotonic()
    outcome, found = check(scenario, trace)
    _print_table(outcome, time.monotonic() - began)
    click.echo(f"violations {len(found)}")
    for violation in found:
        click.echo(violation)
    if found:
        arguments = " ".join(argument for argument in sys.argv[1:] if "trace" not in argument)
        click.echo(f"replay: python tests/simulation/simulate.py {arguments} --trace trace.txt")
        sys.exit(1)


def _print_table(outcome: Outcome, seconds: float) -> None:
    scenario, counts, server = outcome.scenario, outcome.model.counts, outcome.server
    cpu = float(server["used_cpu_user"]) + float(server["used_cpu_sys"])
    rows: list[tuple[str, object]] = [
        ("seed, workers, owners", f"{scenario.seed}, {scenario.workers}, {scenario.owners}"),
        ("jobs", f"{len(outcome.accepted):,}: " + _join(counts)),
        ("faults", _join(outcome.faults)),
        ("calls", f"{outcome.calls:,}"),
        ("simulated", f"{outcome.simulated_ms / 3.6e6:.2f} h"),
        (
            "took",
            f"{seconds / 60:.1f} min; CPU: {time.process_time() / 60:.1f} min, "
            f"server {cpu / 60:.1f} min",
        ),
        ("memory of the server", server["used_memory_peak_human"]),
        ("trace", outcome.trace),
    ]
    if outcome.violation is None:
        figures = bars.measure(outcome)
        waits = ", ".join(f"{figures.percentile(p):.1f}" for p in (0.5, 0.95, 0.99, 1))
        rows += [
            ("wait p50, p95, p99, max", f"{waits} s"),
            ("longest wait / fair share", f"{3 * figures.worst_wait:.2f}"),
            ("Jain's index", f"{figures.jain:.4f} of {figures.jain_owners} owners"),
            ("worker seconds / seconds of runs and messages", f"{figures.gpu_ratio:.3f}"),
            ("of which with a job", f"{figures.held_ratio:.3f}"),
            ("most workers", outcome.max_workers),
        ]
    for name, value in rows:
        click.echo(f"| {name} | {value} |")


def _join(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


@main.command()
@click.option("--rule", type=click.Choice([*RULES, *OTHER_RULES]), default=None)
@click.option("--seeds", default=MAX_SEEDS)
def controls(rule: str | None, seeds: int) -> None:
    """Remove each rule, and print the first seed that shows it. Exit with 1 if none does."""
    missed = 0
    for name in [rule] if rule else [*RULES, *OTHER_RULES]:
        seed, violation = detect(name, seeds)
        missed += violation is None
        click.echo(f"| {name} | {seed} | {violation} |")
    sys.exit(1 if missed else 0)


def control(rule: str, seed: int) -> Scenario:
    """Return the scenario without a rule."""
    if rule == "turns of pools":
        return replace(MIXED, seed=seed, without=rule)
    scenario = Scenario(seed=seed, without=rule, jobs=1000)
    if seed % 2 == 0:  # each job loses several workers
        scenario = replace(scenario, mean_run_ms=15_000, fault_minutes=0.7, jobs=500)
    return scenario


def detect(rule: str, seeds: int = MAX_SEEDS) -> tuple[int, str | None]:
    """Return the first seed at which the simulation notices that the rule is missing."""
    for seed in range(1, seeds + 1):
        scenario = control(rule, seed)
        _, found = check(scenario)
        # With the rule, the seed must be clean: else it shows the faults, not the missing rule.
        if found and not check(replace(scenario, without=None))[1]:
            return seed, found[0]
    return seeds, None


@main.command()
@click.option("--seed", default=1)
@click.option("--jobs", default=1000)
def costs(seed: int, jobs: int) -> None:
    """Print how often each function is called, and the median of the server's time for one call.

    Each call runs alone, between two readings of the server's own statistics.
    """
    outcome = simulate(Scenario(seed=seed, jobs=jobs, measures_calls=True))
    microseconds: defaultdict[str, list[float]] = defaultdict(list)
    for kind, cost in outcome.costs:
        microseconds[kind].append(cost)
    click.echo("| call | calls per job | server, µs (median) |\n|---|---|---|")
    for kind, values in sorted(microseconds.items()):
        click.echo(f"| {kind} | {len(values) / jobs:.2f} | {statistics.median(values):.0f} |")


if __name__ == "__main__":
    main()

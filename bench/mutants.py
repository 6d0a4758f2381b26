"""How many sampled mutants of a module its tests kill. Prints the survivors and one table.

    pip install cosmic-ray
    python bench/mutants.py [--count 300] [--seed 1] [--processes 2] [MODULE=TESTS ...]

A mutant is the module with one changed operator, number, condition, loop or decorator. Each runs in
a clone of the committed tree. Mutants of `X | None` in annotations are left out: the import kills
them.
"""

import difflib
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import click

ROOT = Path(__file__).parents[1]
TRANSFER, TRANSFER_TESTS = "core/neural/transfer", "tests/core/neural/transfer"
DEFAULT = [
    *[
        f"{TRANSFER}/{name}.py={TRANSFER_TESTS}"
        for name in ("losses", "objective", "optimize", "tiling")
    ],
    "core/style/schedule.py=tests/core/style",
    "core/jobs/store.py=tests/core/jobs",
    "core/jobs/estimates.py=tests/core/jobs",
]
TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Mutant:
    """A changed module and the tests that should fail."""

    module: str
    tests: str
    text: str
    change: str


def find_mutants(module: str, tests: str, rng: random.Random) -> Iterator[Mutant]:
    """One mutant for each place and kind of change, chosen at random."""
    from cosmic_ray.commands import init
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator
    from cosmic_ray.work_db import WorkDB, use_db

    text = (ROOT / module).read_text(encoding="utf-8")
    database = tempfile.TemporaryDirectory()
    with database as folder, use_db(str(Path(folder) / "db"), WorkDB.Mode.create) as db:
        init([ROOT / module], db, {})
        mutations = [item.mutations[0] for item in db.pending_work_items]
    by_place: dict[tuple[object, str], list[int]] = {}
    for index, mutation in enumerate(mutations):
        kind = mutation.operator_name.split("_")[0]
        if "BitOr" not in mutation.operator_name:
            by_place.setdefault((mutation.start_pos, kind), []).append(index)
    for place in sorted(by_place, key=str):
        mutation = mutations[rng.choice(by_place[place])]
        operator = get_operator(mutation.operator_name)(**mutation.operator_args)
        mutated = mutate_code(text, operator, mutation.occurrence)
        if mutated is not None:
            yield Mutant(module, tests, mutated, _describe_change(text, mutated))


def _describe_change(before: str, after: str) -> str:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return " -> ".join(line[1:].strip() for line in lines if line[:2] not in ("--", "++", "@@"))


def is_killed(mutant: Mutant, clone: Path) -> bool:
    """Run the tests on the mutant. A run beyond TIMEOUT_SECONDS counts as killed."""
    file = clone / mutant.module
    original = file.read_bytes()
    file.write_text(mutant.text, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-xqn0", "-p", "no:cacheprovider", mutant.tests]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        ran = subprocess.run(
            command,
            check=False,
            cwd=clone,
            env=environment,
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return True
    finally:
        file.write_bytes(original)
    return ran.returncode != 0


def run_all(mutants: Sequence[Mutant], processes: int) -> list[bool]:
    """Whether each mutant is killed."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(processes) as pool:
        clones: SimpleQueue[Path] = SimpleQueue()
        for number in range(processes):
            clone = Path(folder) / str(number)
            subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
            clones.put(clone)

        def run(mutant: Mutant) -> bool:
            clone = clones.get()
            try:
                return is_killed(mutant, clone)
            finally:
                clones.put(clone)

        return list(pool.map(run, mutants))


@click.command()
@click.argument("targets", nargs=-1)
@click.option("--count", default=300)
@click.option("--seed", default=1)
@click.option("--processes", default=2)
def main(targets: tuple[str, ...], count: int, seed: int, processes: int) -> None:
    """Sample mutants of the TARGETS (module=tests), run their tests and count the killed ones."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    mutants: list[Mutant] = []
    for target in targets or DEFAULT:
        module, tests = target.split("=")
        mutants += find_mutants(module, tests, rng)
    sample = rng.sample(mutants, min(count, len(mutants)))
    outcomes = run_all(sample, processes)
    killed, total = Counter[str](), Counter[str]()
    for mutant, outcome in zip(sample, outcomes, strict=True):
        total[mutant.module] += 1
        killed[mutant.module] += outcome
        if not outcome:
            click.echo(f"survived: {mutant.module}: {mutant.change}")
    click.echo("| module | mutants | killed |\n|---|---|---|")
    for module in total:
        click.echo(f"| {module} | {total[module]} | {killed[module]} |")
    share = 100 * killed.total() / total.total()
    click.echo(f"| all | {total.total()} | {killed.total()} ({share:.0f} %) |")


if __name__ == "__main__":
    main()

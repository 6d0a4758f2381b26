"""Compares plans with runs: memory under a hard limit, and seconds. bench/README.md."""

import json
import math
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
from PIL import Image

from bench.optimize import SAMPLES
from core import errors
from core.config import Settings
from core.images import codec
from core.neural.transfer.inputs import StyleInputs
from core.neural.transfer.planner import Planner, Throughput, measure_throughput
from core.neural.transfer.stylize import stylize
from core.neural.vgg import Network
from core.neural.weights.cache import Precision, WeightsCache
from core.style.spec import StyleSpec, parse_spec


@click.group()
def main() -> None:
    """Measure plans."""


def random_parameters(seed: int, largest: int) -> dict[str, Any]:
    """Random values for all parameters that change memory or time, and for the photo's shape."""
    choose = random.Random(seed)  # noqa: S311 - no secret
    layers = choose.choice(
        [
            {},
            {"style_layers": "relu1_1,relu3_1"},
            {"style_layers": "relu1_2,relu5_3"},
            {"content_layers": "relu2_2"},
        ]
    )
    return {
        "size": round(math.exp(choose.uniform(math.log(100), math.log(largest)))),
        "pooling": choose.choice(["l2", "l2", "max", "average"]),
        "optimizer": choose.choice(["lbfgs", "lbfgs", "adam"]),
        "seamless": choose.random() < 0.15,
        "tv_weight": choose.choice([0, 0, 1]),
        "preserve_color": choose.choice(["none", "none", "luminance", "match", "histogram"]),
        "style_scale": choose.choice([0.5, 1, 1, 2]),
        "objective": choose.choice(["relative", "relative", "gatys"]),
        "aspect": choose.choice([0.4, 0.75, 1, 1.3, 2]),
        "paintings": choose.choice([1, 1, 2]),
        "masked": choose.random() < 0.3,
        "style_masked": choose.random() < 0.2,
        "regions": choose.choice(["none", "none", "auto"]),
        "precision": choose.choice(["auto", "float32"]),
        **layers,
    }


def _run(parameters: dict[str, Any]) -> tuple[StyleInputs, StyleSpec, Network]:
    precision: Precision = parameters.pop("precision")
    names = ("aspect", "paintings", "masked", "style_masked")
    aspect, paintings, masked, style_masked = (parameters.pop(name) for name in names)
    photo = codec.decode((SAMPLES / "harbor.jpg").read_bytes()).resize((1000, round(1000 / aspect)))
    painting = codec.decode((SAMPLES / "strokes.jpg").read_bytes())
    masks = [Image.linear_gradient("L")] * paintings if masked else []
    network = WeightsCache(Settings().weights_dir).load("vgg19", "cpu", precision)
    style_masks = [Image.linear_gradient("L")] * paintings if style_masked else []
    inputs = StyleInputs(photo, [painting] * paintings, masks, style_masks=style_masks)
    return inputs, parse_spec(parameters), network


@main.command()
@click.option("--count", default=100)
@click.option("--largest", default=1200)
def memory(count: int, largest: int) -> None:
    """Count the failures of random specs under random memory limits of the operating system."""
    outcomes: dict[str, int] = {}
    for seed in range(count):
        command = [sys.executable, __file__, "one-under-limit", str(seed), str(largest)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = ran.stdout.splitlines()
        outcome = lines[-1] if lines else f"died: {ran.stderr.splitlines()[-1:]}"
        outcomes[outcome.partition(":")[0]] = outcomes.get(outcome.partition(":")[0], 0) + 1
        if not outcome.startswith(("completed", "refused")):
            click.echo(f"seed {seed}: {outcome}")
    click.echo("| outcome | specs |\n|---|---|")
    for outcome, times in sorted(outcomes.items()):
        click.echo(f"| {outcome} | {times} |")


@main.command(hidden=True)
@click.argument("seed", type=int)
@click.argument("largest", type=int)
def one_under_limit(seed: int, largest: int) -> None:
    """One spec of `memory`, with one iteration per scale."""
    # Not from the seed of the parameters, whose first choice would then depend on the limit.
    limit = int(random.Random(f"limit {seed}").uniform(0.3, 2.5) * 1e9)  # noqa: S311 - no secret
    inputs, spec, network = _run(random_parameters(seed, largest) | {"iterations": 1, "scales": 2})
    planner = Planner(network, free_bytes=limit)
    try:
        planner.plan(
            inputs.content.size,
            [style.size for style in inputs.styles],
            inputs.fit_spec(spec),
            len(inputs.masks),
        )
    except (errors.OutOfMemory, errors.BadSpec) as error:
        click.echo(f"refused: {error.message}")
        return
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    most = int(status["VmData"].split()[0]) * 1024 + limit
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    # No second try: the first one is measured.
    Planner.shrink = lambda *_: None  # type: ignore[method-assign]
    try:
        stylize(inputs, spec, network, planner=planner)
        click.echo("completed")
    except errors.OutOfMemory as error:
        click.echo(f"out of memory: {json.dumps(spec.model_dump())} {error}")


@main.command(name="time")
@click.option("--count", default=20)
@click.option("--largest", default=400)
def seconds(count: int, largest: int) -> None:
    """Random specs, run to the end: planned and taken seconds."""
    ratios = []
    throughputs: dict[str, Throughput] = {}
    click.echo("| spec | planned s | taken s | taken / planned |\n|---|---|---|---|")
    for seed in range(count):
        parameters = random_parameters(seed, largest) | {"quality": "draft"}
        inputs, spec, network = _run(dict(parameters))
        throughput = throughputs.get(parameters["precision"]) or measure_throughput(network)
        throughputs[parameters["precision"]] = throughput
        planner = Planner(network, throughput)
        planned = planner.plan(
            inputs.content.size,
            [style.size for style in inputs.styles],
            inputs.fit_spec(spec),
            len(inputs.masks),
        )
        began = time.monotonic()
        stylize(inputs, spec, network, planner=planner)
        taken = time.monotonic() - began
        ratios.append(taken / planned.seconds)
        precision = parameters["precision"]
        label = f"{planned.scales[-1].scale.size}, {spec.optimizer}, {spec.pooling}, {precision}"
        click.echo(f"| {label} | {planned.seconds:.1f} | {taken:.1f} | {ratios[-1]:.2f} |")
    within = sum(0.75 <= ratio <= 1.25 for ratio in ratios)
    click.echo(f"\n{within} of {count} within 25 %")


if __name__ == "__main__":
    main()

"""`impasto stylize`: paints on this machine, without a service."""

from pathlib import Path
from typing import Any

import click

from cli.options import (
    FORMATS,
    FiniteFloat,
    check_output,
    collect_parameters,
    existing_file,
    init_option,
    mask_option,
    parameter_options,
    print_scales,
)
from cli.output import ProgressBar
from cli.weights import open_cache
from core import errors
from core.images import codec
from core.jobs.models import JobInput, ModelUsed
from core.storage.blobs import digest_of
from core.style.spec import StyleSpec, parse_spec


@click.command()
@click.argument("content", type=existing_file)
@click.argument("style", type=existing_file, nargs=-1, required=True)
@mask_option
@init_option
@parameter_options
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--plan", "only_plan", is_flag=True, help="Say what it would take, and stop.")
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps.")
@click.option(
    "--precision", default="auto", type=click.Choice(["auto", "float32", "bfloat16", "float16"])
)
@click.option(
    "--memory-gb",
    default=0.0,
    type=FiniteFloat(0, 10_000),
    help="Memory of the device that the run may take, in GB; 0: what is free.",
)
def stylize(
    *,
    content: Path,
    style: tuple[Path, ...],
    masks: tuple[Path, ...],
    init_image: Path | None,
    output: Path,
    only_plan: bool,
    device: str,
    precision: Any,
    memory_gb: float,
    source: Path | None,
    **given: str | None,
) -> None:
    """Paint on this machine, without a service."""
    check_output(output)
    spec = parse_spec(collect_parameters(given, source)).for_pictures(
        len(style), len(masks), init_image=init_image is not None
    )

    from core.neural.transfer.planner import NOMINAL_THROUGHPUT, Planner, load_throughput
    from core.neural.transfer.stylize import StepEvent
    from core.neural.transfer.stylize import stylize as paint

    wanted, subject = _read(content, style, masks, init_image, spec)
    cache = open_cache()
    network = cache.load(spec.model, device, precision)
    pace = load_throughput(network, cache.folder / "pace.json") if only_plan else NOMINAL_THROUGHPUT
    planner = Planner(network, pace, int(memory_gb * 1e9) or None)
    if only_plan:
        sizes = subject.content.size, [style.size for style in subject.styles]
        begun = subject.init.size if subject.init else None
        _say_plan(planner.plan(*sizes, subject.fitted(spec), len(masks), init=begun))
        return
    with ProgressBar() as bar:

        def show(moment: StepEvent) -> None:
            at = moment.progress
            bar.show(
                at.value,
                (at.scale, at.scales),
                (at.iteration, at.iterations),
                at.losses["total"],
                at.seconds_left,
            )

        try:
            painting = paint(subject, spec, network, show, planner)
        except errors.Diverged as error:
            if error.picture is not None:
                output.write_bytes(codec.encode(error.picture, FORMATS[output.suffix.lower()]))
            raise
        bar.finish("done")
    provenance = wanted.provenance(ModelUsed(name=network.name, sha256=network.sha256))
    output.write_bytes(codec.encode(painting.picture, FORMATS[output.suffix.lower()], provenance))
    click.echo(output)


def _read(
    content: Path,
    style: tuple[Path, ...],
    masks: tuple[Path, ...],
    init_image: Path | None,
    spec: StyleSpec,
) -> tuple[JobInput, Any]:
    """What is asked for, with the pictures' digests, and the pictures themselves. Each file is read once."""
    from core.neural.transfer.inputs import StyleInputs

    files: dict[str, bytes] = {}

    def take(path: Path) -> str:
        data = path.read_bytes()
        files[digest := digest_of(data)] = data
        return digest

    wanted = JobInput(
        content=take(content),
        styles=[*map(take, style)],
        masks=[*map(take, masks)],
        init_image=take(init_image) if init_image else None,
        spec=spec.model_dump(),
    )
    return wanted, StyleInputs(*wanted.pictures(files.__getitem__))


def _say_plan(plan: Any) -> None:
    print_scales(
        (leg.scale.width, leg.scale.height, leg.scale.iterations, leg.route.tile_px, leg.seconds)
        for leg in plan.legs
    )
    click.echo(
        f"In all {plan.seconds:.0f} s, and {plan.memory_bytes / 1e9:.1f} GB beside the network."
    )

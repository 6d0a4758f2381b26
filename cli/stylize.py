"""`impasto stylize`: stylizes a photo on this machine, without a service."""

from pathlib import Path
from typing import Any, NamedTuple

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
    style_mask_option,
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
@style_mask_option
@init_option
@parameter_options
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write the result. Required, except with --plan.",
)
@click.option(
    "--plan",
    "only_plan",
    is_flag=True,
    help="Print the planned scales, seconds and memory, and stop.",
)
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps.")
@click.option(
    "--precision", default="auto", type=click.Choice(["auto", "float32", "bfloat16", "float16"])
)
@click.option(
    "--memory-gb",
    default=0.0,
    type=FiniteFloat(0, 10_000),
    help="Memory of the device that the run may use, in GB. 0: all that is free.",
)
def stylize(
    *,
    content: Path,
    style: tuple[Path, ...],
    masks: tuple[Path, ...],
    style_masks: tuple[Path, ...],
    init_image: Path | None,
    output: Path | None,
    only_plan: bool,
    device: str,
    precision: Any,
    memory_gb: float,
    source: Path | None,
    **given: str | None,
) -> None:
    """Stylize a photo on this machine, without a service."""
    if output is not None:
        check_output(output)
    elif not only_plan:
        raise click.UsageError("Missing option '-o' / '--output'.")
    spec = parse_spec(collect_parameters(given, source)).for_pictures(
        len(style), len(masks), len(style_masks), init_image=init_image is not None
    )

    from core.neural.transfer.planner import NOMINAL_THROUGHPUT, Planner, load_throughput
    from core.neural.transfer.stylize import Control, StepEvent
    from core.neural.transfer.stylize import stylize as run_stylize

    pictures = _Pictures(content, style, masks, style_masks, init_image)
    job_input, inputs = _read_inputs(pictures, spec)
    cache = open_cache()
    network = cache.load(spec.model, device, precision)
    throughput = NOMINAL_THROUGHPUT
    if only_plan:  # only then are the seconds shown
        throughput = load_throughput(network, cache.folder / "throughput.json")
    planner = Planner(network, throughput, int(memory_gb * 1e9) or None)
    if output is None or only_plan:
        sizes = inputs.content.size, [style.size for style in inputs.styles]
        init_size = inputs.init.size if inputs.init else None
        plan = planner.plan(*sizes, inputs.fit_spec(spec), len(masks), init=init_size)
        _print_plan(plan)
        return
    with ProgressBar() as bar:

        def show(event: StepEvent) -> Control:
            progress = event.progress
            bar.show(
                progress.value,
                (progress.scale, progress.scales),
                (progress.iteration, progress.iterations),
                progress.losses["total"],
                progress.seconds_left,
            )
            return Control.CONTINUE

        try:
            result = run_stylize(inputs, spec, network, show, planner)
        except errors.Diverged as error:
            if error.picture is not None:
                output.write_bytes(codec.encode(error.picture, FORMATS[output.suffix.lower()]))
            raise
        bar.finish("done")
    provenance = job_input.provenance(ModelUsed(name=network.name, sha256=network.sha256))
    output.write_bytes(codec.encode(result.picture, FORMATS[output.suffix.lower()], provenance))
    click.echo(output)


class _Pictures(NamedTuple):
    """The files of a run."""

    content: Path
    styles: tuple[Path, ...]
    masks: tuple[Path, ...]
    style_masks: tuple[Path, ...]
    init_image: Path | None


def _read_inputs(pictures: _Pictures, spec: StyleSpec) -> tuple[JobInput, Any]:
    """The job input with the digests of the pictures, and the pictures. Each file is read once."""
    from core.neural.transfer.inputs import StyleInputs

    files: dict[str, bytes] = {}

    def read(path: Path) -> str:
        data = path.read_bytes()
        files[digest := digest_of(data)] = data
        return digest

    job_input = JobInput(
        content=read(pictures.content),
        styles=[*map(read, pictures.styles)],
        masks=[*map(read, pictures.masks)],
        style_masks=[*map(read, pictures.style_masks)],
        init_image=read(pictures.init_image) if pictures.init_image else None,
        spec=spec.model_dump(),
    )
    return job_input, StyleInputs(**job_input.load_images(files.__getitem__)._asdict())


def _print_plan(plan: Any) -> None:
    print_scales(
        (
            planned.scale.width,
            planned.scale.height,
            planned.scale.iterations,
            planned.route.tile_px,
            planned.seconds,
        )
        for planned in plan.scales
    )
    click.echo(
        f"Total: {plan.seconds:.0f} s and {plan.memory_bytes / 1e9:.1f} GB plus the network."
    )

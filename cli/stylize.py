"""`impasto stylize`: stylizes a photo on this machine, without a service."""

import io
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from PIL import Image

from cli.options import (
    FiniteFloat,
    check_output,
    collect_parameters,
    existing_file,
    force_option,
    from_option,
    init_option,
    mask_option,
    output_format,
    parameter_options,
    print_scales,
    style_mask_option,
    write_output,
)
from cli.output import ProgressBar
from cli.weights import open_cache
from core import errors
from core.images import codec, validation
from core.images.decoder import SandboxedDecoder
from core.images.frame import Box
from core.jobs.models import JobInput, ModelUsed
from core.storage.blobs import digest_of
from core.style.limits import describe_seconds
from core.style.spec import StyleSpec, parse_spec

if TYPE_CHECKING:
    from core.neural.vgg import Network


@click.command()
@click.argument("content", type=existing_file)
@click.argument("style", type=existing_file, nargs=-1, required=True)
@mask_option
@style_mask_option
@init_option
@parameter_options
@from_option
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write the result. Required, except with --plan.",
)
@force_option
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
    force: bool,
    only_plan: bool,
    device: str,
    precision: Any,
    memory_gb: float,
    source: Path | None,
    **given: Any,
) -> None:
    """Stylize a photo on this machine, without a service.

    Ctrl-C ends the run and keeps the picture so far.
    """
    pictures = _Pictures(content, style, masks, style_masks, init_image)
    if output is not None:
        check_output(output, [*pictures.files(), source], force=force)
    elif not only_plan:
        raise click.UsageError("Missing option '-o' / '--output'.")
    spec = parse_spec(collect_parameters(given, source)).for_pictures(
        len(style), len(masks), len(style_masks), init_image=init_image is not None
    )
    _check_transparency(output, spec)

    from core.neural.transfer.planner import NOMINAL_THROUGHPUT, Planner, load_throughput
    from core.neural.transfer.stylize import Control, StepEvent
    from core.neural.transfer.stylize import stylize as run_stylize

    job_input, inputs = _read_inputs(pictures, spec)
    cache = open_cache()
    network = cache.load(spec.model, device, precision)
    throughput = NOMINAL_THROUGHPUT
    if only_plan:  # only then are the seconds shown
        throughput = load_throughput(network, cache.throughput_file)
    planner = Planner(network, throughput, int(memory_gb * 1e9) or None)
    if output is None or only_plan:
        sizes = inputs.content.size, [style.size for style in inputs.styles]
        init_size = inputs.init.size if inputs.init else None
        with _name_memory_option(memory_gb):
            plan = planner.plan(*sizes, inputs.fit_spec(spec), len(masks), init=init_size)
        _print_plan(plan)
        return
    newest: StepEvent | None = None

    def save(picture: Image.Image) -> None:
        provenance = _provenance(job_input, network, newest.progress.style_crops if newest else ())
        _write_picture(output, codec.encode(picture, output_format(output), provenance))

    with ProgressBar() as bar:

        def show(event: StepEvent) -> Control:
            nonlocal newest
            newest = event
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
            with _name_memory_option(memory_gb):
                result = run_stylize(inputs, spec, network, show, planner)
        except errors.Diverged as error:
            if error.picture is not None:
                _write_picture(output, codec.encode(error.picture, output_format(output)))
            raise
        except KeyboardInterrupt:
            if newest is None:
                raise
            save(newest.picture())
            raise click.Abort(f"stopped; the picture so far is in {output}.") from None
        bar.finish("done")
    save(result.picture)
    _echo_result(output, style, result.style_crops)


def _provenance(
    job_input: JobInput, network: "Network", crops: Sequence[Box | None]
) -> dict[str, Any]:
    used = ModelUsed(name=network.name, sha256=network.sha256)
    of_run = {"style_crops": crops} if crops else {}
    return {**job_input.provenance(used), **of_run}


def _echo_result(output: Path, paths: Sequence[Path], crops: Sequence[Box | None]) -> None:
    """Print the path, and which part of each painting was used if a frame was left out."""
    for path, box in zip(paths, crops, strict=False):
        if box is not None:
            left, top, right, bottom = box
            click.echo(
                f"{path}: without its frame, x {left} to {right} and y {top} to {bottom} px "
                "(--style-frame keep uses all).",
                err=True,
            )
    click.echo(output)


def _write_picture(output: Path, data: bytes) -> None:
    """Write the picture, or keep it in another folder if the disk has become full meanwhile.

    Raises StorageFull, which says where the picture is, and what `write_output` raises.
    """
    try:
        write_output(output, data)
    except (errors.StorageFull, OSError) as error:
        other = _write_elsewhere(output, data)
        if other is None:
            raise
        raise errors.StorageFull(
            f"{output} cannot be written (no room?); the picture is in {other}."
        ) from error


def _write_elsewhere(output: Path, data: bytes) -> Path | None:
    """Write the picture under a new name to the first folder that takes it, and return its path."""
    for folder in (Path.cwd(), Path.home(), Path(tempfile.gettempdir())):
        other = folder / f"{output.stem}-{secrets.token_hex(4)}{output.suffix}"
        with suppress(errors.StorageFull, OSError):
            write_output(other, data)
            return other
    return None


def _check_transparency(output: Path | None, spec: StyleSpec) -> None:
    """Raise BadInput if the output's format cannot keep the photo's alpha."""
    if output is not None and spec.transparency == "keep" and output_format(output) == "jpeg":
        raise errors.BadInput("A JPEG has no transparency; the output must end in .png or .webp.")


@contextmanager
def _name_memory_option(memory_gb: float) -> Iterator[None]:
    """Name --memory-gb in the error of a run that needs more memory, if it sets the limit."""
    try:
        yield
    except errors.OutOfMemory as error:
        if not memory_gb:
            raise
        raise errors.OutOfMemory(f"--memory-gb {memory_gb:g}: {error.message}") from None


class _Pictures(NamedTuple):
    """The files of a run."""

    content: Path
    styles: tuple[Path, ...]
    masks: tuple[Path, ...]
    style_masks: tuple[Path, ...]
    init_image: Path | None

    def files(self) -> list[Path | None]:
        return [self.content, *self.styles, *self.masks, *self.style_masks, self.init_image]


def _read_inputs(pictures: _Pictures, spec: StyleSpec) -> tuple[JobInput, Any]:
    """The job input with the digests of the pictures, and the pictures. Each file is read once."""
    from core.neural.transfer.inputs import StyleInputs

    files: dict[str, bytes] = {}
    paths: dict[Path, str] = {}  # the digest of each file

    def read(path: Path) -> str:
        data = path.read_bytes()
        paths[path] = digest = digest_of(data)
        files[digest] = data
        return digest

    job_input = JobInput(
        content=read(pictures.content),
        styles=[*map(read, pictures.styles)],
        masks=[*map(read, pictures.masks)],
        style_masks=[*map(read, pictures.style_masks)],
        init_image=read(pictures.init_image) if pictures.init_image else None,
        spec=spec.model_dump(),
    )
    with SandboxedDecoder() as decoder:
        images = job_input.load_images(
            lambda digest, *args, **options: decoder.decode(files[digest], *args, **options)
        )
        for path, digest in paths.items():
            _print_doubts(path, files[digest], decoder)
    return job_input, StyleInputs(**images._asdict())


def _print_doubts(path: Path, data: bytes, decoder: SandboxedDecoder) -> None:
    """Print what may be wrong with a file that was decoded. Only a JPEG can be doubtful."""
    if validation.detect_format(data) == "jpeg":
        for doubt in decoder.inspect(io.BytesIO(data), mask=True, any_size=True).warnings:
            click.echo(f"{path}: {doubt}", err=True)


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
        f"Total: {describe_seconds(plan.seconds)} and {plan.memory_bytes / 1e9:.1f} GB "
        "plus the network."
    )

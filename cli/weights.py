"""`impasto weights`: manage the networks on this machine."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from cli.options import FiniteFloat, existing_file
from cli.output import printable
from core import errors
from core.config import Settings, read_settings
from core.images import validation
from core.images.decoder import SandboxedDecoder
from core.style.spec import MODEL_NAME
from core.style.vgg_layers import DOWNLOADABLE_MODELS, DownloadableModel

convention_option = click.option(
    "--input",
    "convention",
    type=click.Choice(["torchvision", "caffe"]),
    help="Input that the file's network expects. torchvision: RGB in [0, 1], minus mean, divided "
    "by standard deviation; caffe: BGR in 0 to 255, minus mean.  [default: as the file states; "
    "else caffe for .caffemodel, torchvision for the others]",
)


@click.group()
def weights() -> None:
    """Manage the networks on this machine."""


def open_cache() -> Any:
    """The weights cache. Imports torch, which takes seconds."""
    from core.neural.weights.cache import WeightsCache

    settings = read_settings(Settings)
    return WeightsCache(settings.weights_dir, settings.throughput_file)


@weights.command("list")
def list_weights() -> None:
    """List the networks, and which one a job with model=auto uses."""
    cache = open_cache()
    for entry in cache.entries():
        suffix = "  <- auto" if cache.resolve("auto") == entry.name else ""
        click.echo(_describe_entry(entry) + suffix)
    if not cache.has("vgg19"):
        click.echo("vgg19, the paper's network (19 MB), is missing: impasto weights fetch vgg19")


def _describe_entry(entry: Any) -> str:
    from core.style.vgg_layers import title

    if entry.architecture is None:
        return f"{entry.name}  damaged: impasto weights remove {entry.name}"
    size = f"{entry.bytes / 1e6:.0f} MB"
    sha256 = printable(entry.sha256[:16])
    line = f"{entry.name}  {title(entry.architecture)}  {size}  sha256 {sha256}"
    if "from" in entry.metadata:
        line += f"  from {printable(entry.metadata['from'])}"
    return line


@weights.command()
@click.argument("name", required=False)
def show(name: str | None) -> None:
    """Show the metadata of a network; without a name, of auto."""
    cache = open_cache()
    metadata = cache.entry(cache.resolve(name or "auto")).metadata
    for key, text in sorted(metadata.items()):
        click.echo(f"{printable(key)}: {printable(text)}")


_DOWNLOAD_MB: dict[DownloadableModel, int] = {"vgg19": 19, "vgg16": 64, "vgg19-torchvision": 548}


@weights.command()
@click.argument("name", type=click.Choice(DOWNLOADABLE_MODELS), required=False)
def fetch(name: Any) -> None:
    """Download a network; without a name, the paper's VGG-19."""
    cache = open_cache()
    cache.rename_torchvision_vgg19()
    model: DownloadableModel = name or "vgg19"
    if cache.has(model):
        if name:
            click.echo(f"{cache.path(model)} exists already.")
        return
    click.echo(f"Fetching the weights of {model} ({_DOWNLOAD_MB[model]} MB) ...")
    try:
        _fetch(cache, model)
    except errors.WeightsUnavailable as error:
        if name or not cache.has("vgg16"):
            raise
        # A machine without an index, which was set up when `auto` was VGG-16.
        click.echo(f"{error.message} Jobs use vgg16 until then.", err=True)
        return
    click.echo(cache.path(model))


def _fetch(cache: Any, model: str) -> None:
    with click.progressbar(length=1000, show_eta=False) as bar:

        def update(done: int, total: int) -> None:
            # A total of 0 is unknown.
            bar.update(int(1000 * done / max(total, done)) - bar.pos)

        cache.fetch(model, update)


@weights.command("import")
@click.argument("file", type=existing_file)
@click.option("--name", help="Name of the network.  [default: the file's name]")
@convention_option
def import_weights(file: Path, name: str | None, convention: Any) -> None:
    """Import a VGG-11, 13, 16 or 19 from a .safetensors, .pth or .caffemodel file.

    Tensors have torchvision's names. Batch normalization is folded into the convolutions.
    """
    if name is None:
        name = file.stem.lower()
        if not re.fullmatch(MODEL_NAME, name):
            raise errors.BadInput("Give --name: the file's name is not valid for a network.")
    click.echo(_describe_entry(open_cache().import_file(name, file, convention)))


@weights.command()
@click.argument("name")
def remove(name: str) -> None:
    """Delete a network from this machine."""
    open_cache().remove(name)
    click.echo(f"{name} is removed.")


@weights.command()
@click.argument("name")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@convention_option
def export(name: str, file: Path, convention: Any) -> None:
    """Export a network as .caffemodel (with .prototxt), .pth or .safetensors."""
    from core.neural.weights import files

    cache = open_cache()
    if file.suffix.lower() not in files.SUFFIXES:
        raise errors.BadInput(f"The file must end in {', '.join(files.SUFFIXES)}.")
    parameters, metadata = cache.load_parameters(cache.resolve(name))
    files.write_network(file, parameters, metadata, convention)
    click.echo(file)


@weights.command()
@click.argument("model")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", help="Name of the new network.  [default: MODEL-normalized]")
@click.option(
    "--least",
    "min_share",
    default=0.1,
    show_default=True,
    type=FiniteFloat(1e-6, 1),
    help="Divide no filter by less than this share of its layer's average; weaker filters stay "
    "below 1.",
)
def normalize(model: str, folder: Path, name: str | None, min_share: float) -> None:
    """Rescale a network so that each filter's mean activation on a folder's pictures is 1.

    As in Gatys et al. 2016. The network computes the same function up to a factor for each filter;
    the filters' weights in the style loss change.
    """
    from core.neural.weights import normalization

    cache = open_cache()
    model = cache.resolve(model)
    name = name or f"{model}-normalized"
    # Check the name before the measurement, which takes minutes.
    if (architecture := cache.entry(model).architecture) is not None:
        cache.check_name(name, architecture)
    activations = normalization.measure_activations(
        cache.load(model, precision="float32"), _read_pictures(folder)
    )
    parameters, metadata = cache.load_parameters(model)
    provenance = {
        "normalized_over": f"{activations.pictures} pictures, least {min_share:g}",
        "normalized_from": f"{model} {parameters.sha256}",
    }
    for layer, count in activations.count_weak_filters(min_share).items():
        click.echo(f"{layer}: {count} filters respond too weakly; they stay below 1.")
    normalized = normalization.normalize(parameters, activations, min_share)
    entry = cache.add(name, normalized, {**metadata, **provenance})
    click.echo(f"{_describe_entry(entry)}, over {activations.pictures} pictures")


def _read_pictures(folder: Path) -> Iterator[Any]:
    """Decode the folder's files one at a time; report and skip those that cannot be read."""
    with SandboxedDecoder() as decoder:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            try:
                if path.stat().st_size > validation.MAX_BYTES:
                    raise errors.UploadTooLarge()
                yield decoder.decode(path.read_bytes())
            except (errors.BadInput, OSError) as error:
                reason = error.message if isinstance(error, errors.BadInput) else error.strerror
                skipped = printable(str(path.relative_to(folder)))
                click.echo(f"skipped: {skipped}: {reason}", err=True)

"""`impasto weights`: the networks on this machine."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from cli.options import FiniteFloat
from cli.output import printable
from core import errors
from core.config import Settings, read_settings
from core.images import codec, validation
from core.style.spec import MODEL_NAME

existing = click.Path(exists=True, dir_okay=False, path_type=Path)
convention_option = click.option(
    "--input",
    "convention",
    type=click.Choice(["torchvision", "caffe"]),
    help="What the file's network takes: RGB less torchvision's mean, by its deviation; or BGR in 0 to 255 less "
    "Caffe's mean.  [default: what the file tells; else caffe for .caffemodel, torchvision for the others]",
)


@click.group()
def weights() -> None:
    """The networks on this machine."""


def open_cache() -> Any:
    """The cache of networks. Loads torch."""
    from core.neural.weights.cache import WeightsCache

    return WeightsCache(read_settings(Settings).weights_dir)


@weights.command("list")
def list_weights() -> None:
    """What is here, and what a job with model=auto uses."""
    cache = open_cache()
    for entry in cache.entries():
        click.echo(_line(entry) + ("  <- auto" if cache.resolve("auto") == entry.name else ""))
    if not cache.has("vgg19"):
        click.echo("vgg19, the paper's network (548 MB), is not here: impasto weights fetch vgg19")


def _line(entry: Any) -> str:
    from core.style.vgg_layers import title

    if entry.architecture is None:
        return f"{entry.name}  damaged: impasto weights remove {entry.name}"
    told = f"  from {printable(entry.card['from'])}" if "from" in entry.card else ""
    size = f"{entry.bytes / 1e6:.0f} MB"
    return f"{entry.name}  {title(entry.architecture)}  {size}  sha256 {printable(entry.sha256[:16])}{told}"


@weights.command()
@click.argument("name", required=False)
def show(name: str | None) -> None:
    """All that is known of a network: its card."""
    cache = open_cache()
    for key, text in sorted(cache.entry(cache.resolve(name or "auto")).card.items()):
        click.echo(f"{printable(key)}: {printable(text)}")


@weights.command()
@click.argument("name", type=click.Choice(["vgg16", "vgg19"]), required=False)
def fetch(name: Any) -> None:
    """Download a network; without a name, VGG-16 unless there is one already."""
    cache = open_cache()
    wanted = name or cache.resolve("auto")
    if cache.has(wanted):
        if name:
            click.echo(f"{cache.path(wanted)} is here already.")
        return
    click.echo(f"Fetching the weights of {wanted} ({'64' if wanted == 'vgg16' else '548'} MB) ...")
    with click.progressbar(length=1000, show_eta=False) as bar:
        cache.fetch(
            wanted, lambda done, total: bar.update(int(1000 * done / max(total, done)) - bar.pos)
        )
    click.echo(cache.path(wanted))
    if not cache.has("vgg19"):
        click.echo("For VGG-19, the paper's network (548 MB): impasto weights fetch vgg19")


@weights.command("import")
@click.argument("file", type=existing)
@click.option("--name", help="What jobs call it; without, the file's own name.")
@convention_option
def import_weights(file: Path, name: str | None, convention: Any) -> None:
    """Take a network from a .safetensors, .pth or .caffemodel file: a VGG-11, 13, 16 or 19.

    Tensors have torchvision's names; batch normalization is folded into the convolutions.
    """
    if name is None and not re.fullmatch(MODEL_NAME, name := file.stem.lower()):
        raise errors.BadInput("Say --name: the file's own is none that a network can have.")
    click.echo(_line(open_cache().import_file(name, file, convention)))


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
    """Write a network as .caffemodel (with .prototxt), .pth or .safetensors."""
    from core.neural.weights import files

    cache = open_cache()
    if file.suffix.lower() not in files.SUFFIXES:
        raise errors.BadInput(f"The file must end in {', '.join(files.SUFFIXES)}.")
    parameters, card = cache.parameters(cache.resolve(name))
    files.write_network(file, parameters, card, convention)
    click.echo(file)


@weights.command()
@click.argument("model")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--name", help="What jobs call the new network; without, the old name and -normalized."
)
@click.option(
    "--least",
    default=0.1,
    show_default=True,
    type=FiniteFloat(1e-6, 1),
    help="No filter is divided by less than this share of its layer's average; weaker ones stay below 1.",
)
def normalize(model: str, folder: Path, name: str | None, least: float) -> None:
    """Rescale a network so that each filter responds with 1 on average to the pictures in a folder.

    As in Gatys et al. 2016. The network's function stays the same; how much each filter counts for the style does not.
    """
    from core.neural.weights import normalization

    cache = open_cache()
    model = cache.resolve(model)
    name = name or f"{model}-normalized"
    if (architecture := cache.entry(model).architecture) is not None:
        cache.check_name(name, architecture)
    found = normalization.measure_activations(
        cache.load(model, precision="float32"), _pictures(folder)
    )
    parameters, card = cache.parameters(model)
    told = {
        "normalized_over": f"{found.pictures} pictures, least {least:g}",
        "normalized_from": f"{model} {parameters.sha256}",
    }
    for layer, count in found.weak(least).items():
        click.echo(f"{layer}: {count} filters respond too weakly; they stay below 1.")
    made = cache.keep(name, normalization.normalize(parameters, found, least), {**card, **told})
    click.echo(f"{_line(made)}, over {found.pictures} pictures")


def _pictures(folder: Path) -> Iterator[Any]:
    """One at a time; those that cannot be read are told of and left out."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            if path.stat().st_size > validation.MAX_BYTES:
                raise errors.UploadTooLarge()
            yield codec.decode(path.read_bytes())
        except (errors.BadInput, OSError) as error:
            words = error.message if isinstance(error, errors.BadInput) else error.strerror
            click.echo(f"left out: {printable(str(path.relative_to(folder)))}: {words}", err=True)

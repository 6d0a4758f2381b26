"""`impasto weights`: the networks on this machine."""

from pathlib import Path
from typing import Any

import click

from core import settings
from core.settings import Settings


@click.group()
def weights() -> None:
    """The networks on this machine."""


def opened() -> Any:
    """The cache of networks. Loads torch."""
    from core.neural.weights import WeightsCache

    return WeightsCache(settings.read(Settings).weights_dir)


@weights.command("list")
def list_weights() -> None:
    """What is here, and what a job with model=auto uses."""
    cache = opened()
    for entry in cache.entries():
        auto = "  <- auto" if cache.resolve("auto") == entry.name else ""
        click.echo(f"{entry.name}  {entry.bytes / 1e6:.0f} MB  sha256 {entry.sha256[:16]}  {entry.path}{auto}")
    if not cache.has("vgg19"):
        click.echo("vgg19, the paper's network (548 MB), is not here: impasto weights fetch vgg19")


@weights.command()
@click.argument("name", type=click.Choice(["vgg16", "vgg19"]), required=False)
def fetch(name: Any) -> None:
    """Download a network; without a name, VGG-16 unless there is one already."""
    cache = opened()
    wanted = name or cache.resolve("auto")
    if cache.has(wanted):
        if name:
            click.echo(f"{cache.path(wanted)} is here already.")
        return
    click.echo(f"Fetching the weights of {wanted} ({'64' if wanted == 'vgg16' else '548'} MB) ...")
    with click.progressbar(length=1000, show_eta=False) as bar:
        cache.fetch(wanted, lambda done, total: bar.update(int(1000 * done / max(total, done)) - bar.pos))
    click.echo(cache.path(wanted))
    if not cache.has("vgg19"):
        click.echo("For VGG-19, the paper's network (548 MB): impasto weights fetch vgg19")


@weights.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", required=True, type=click.Choice(["vgg16", "vgg19"]), help="Which network the file holds.")
def import_weights(file: Path, name: Any) -> None:
    """Take a .pth or .safetensors file in torchvision's naming as a network."""
    click.echo(opened().import_file(name, file))

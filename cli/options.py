"""What is asked for on the command line: the options of those commands that paint, and where the result goes."""

import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from cli.info import read_record
from core import errors
from core.images import validation
from core.style import presets
from core.style.spec import StyleSpec, apply_changes, describe_range

FORMATS: dict[str, validation.Format] = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
}

Command = Callable[..., Any]

existing_file = click.Path(exists=True, dir_okay=False, path_type=Path)


class FiniteFloat(click.FloatRange):
    """One within bounds. What is no number, which no bounds keep out, is refused."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Raises click.BadParameter."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number


def parameter_options(command: Command) -> Command:
    """One option for each parameter of StyleSpec, one for the presets, one for an earlier result."""
    for name, field in reversed(StyleSpec.model_fields.items()):
        default = (
            ",".join(f"{layer}={weight:g}" for layer, weight in field.default.items())
            if isinstance(field.default, dict)
            else field.default
        )
        text = f"{field.description}  [{describe_range(name)}; default: {'none' if default == [] else default}]"
        command = click.option(f"--{name.replace('_', '-')}", name, metavar="X", help=text)(command)
    told = " ".join(f"{preset.name}: {preset.description}" for preset in presets.PRESETS.values())
    text = f"Parameters that go together; those given beside it win. {told}"
    command = click.option(f"--{presets.FIELD}", type=click.Choice([*presets.PRESETS]), help=text)(
        command
    )
    text = "An earlier result, a PNG: its parameters, and through a service its pictures; what is given beside it wins."
    return click.option("--from", "source", type=existing_file, help=text)(command)


mask_option = click.option(
    "--mask",
    "masks",
    type=existing_file,
    multiple=True,
    help="Where a painting's style goes (white) and where not (black, transparent); one for each painting.",
)
init_option = click.option(
    "--init-image", type=existing_file, help="The picture to begin with, for --init picture."
)


host_option = click.option(
    "--host", envvar="IMPASTO_API_HOST", default="127.0.0.1", help="Address to listen on."
)
port_option = click.option(
    "--port", envvar="IMPASTO_API_PORT", default=8000, type=click.IntRange(1, 65535)
)
url_option = click.option("--url", help="Where the service is.  [default: IMPASTO_URL]")


def check_output(output: Path | None) -> None:
    """Raises BadInput where nothing could be written there."""
    if output is None:
        return
    if output.suffix.lower() not in FORMATS:
        raise errors.BadInput(f"The output must end in {', '.join(FORMATS)}.")
    if not output.absolute().parent.is_dir():
        raise errors.BadInput(f"There is no folder {output.absolute().parent}.")
    if not os.access(output if output.exists() else output.absolute().parent, os.W_OK):
        raise errors.BadInput(f"{output} cannot be written.")


def collect_parameters(options: dict[str, str | None], source: Path | None) -> dict[str, Any]:
    """The parameters; where an earlier result is named, over its own, but for the shares of its paintings."""
    given = {name: value for name, value in options.items() if value is not None}
    if source is None:
        return given
    earlier = read_record(source)[1].spec
    return apply_changes(
        {name: value for name, value in earlier.items() if name != "style_weights"}, given
    )


def print_scales(legs: Iterable[tuple[int, int, int, int | None, float]]) -> None:
    """Width and height in px, iterations, side of a tile if any, seconds: a line for each."""
    for width, height, iterations, tile_px, seconds in legs:
        way = f"tiles of {tile_px} px" if tile_px else "whole"
        click.echo(f"{width} x {height} px, {iterations} iterations, {way}: {seconds:.0f} s")

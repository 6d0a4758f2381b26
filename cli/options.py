"""Options that several commands share: the parameters of a job, its inputs and its output file."""

import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from cli.info import read_record
from core import errors
from core.images import validation
from core.jobs.models import Priority, SubmissionOptions
from core.storage.files import atomic_write
from core.style import presets
from core.style.limits import describe_seconds
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
    """A finite float within bounds. A comparison with a bound would accept nan."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Raise click.BadParameter for a number that is not finite or out of bounds."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def parameter_options(command: Command) -> Command:
    """Add an option for each parameter of StyleSpec, plus --preset."""
    for name, field in reversed(StyleSpec.model_fields.items()):
        default = _format_default(field.default)
        text = f"{field.description}  [{describe_range(name)}; default: {default}]"
        # Without a value, a switch is on.
        kind: dict[str, Any] = {"metavar": "X"}
        if field.annotation is bool:
            kind = {"type": click.BOOL, "is_flag": False, "flag_value": True, "metavar": "[BOOL]"}
        command = click.option(f"--{name.replace('_', '-')}", name, help=text, **kind)(command)
    descriptions = [f"{preset.name}: {preset.description}" for preset in presets.PRESETS.values()]
    text = f"Named set of parameters; options override it. {' '.join(descriptions)}"
    return click.option(f"--{presets.FIELD}", type=click.Choice([*presets.PRESETS]), help=text)(
        command
    )


from_option = click.option(
    "--from",
    "source",
    type=existing_file,
    help="An earlier result (PNG) that supplies the parameters and, with submit, the pictures; "
    "what is given beside it overrides it.",
)


def submission_options(command: Command) -> Command:
    """Add an option for each of SubmissionOptions: priority, deadline, reuse, webhook."""
    for name, field in reversed(SubmissionOptions.model_fields.items()):
        kind: dict[str, Any] = {}
        if field.annotation is bool:
            kind = {"is_flag": True, "default": None}
        elif name == "priority":
            kind = {"type": click.Choice([priority.value for priority in Priority])}
        command = click.option(f"--{name.replace('_', '-')}", name, help=field.description, **kind)(
            command
        )
    return command


def _format_default(default: Any) -> str:
    if isinstance(default, dict):
        return ",".join(f"{layer}={weight:g}" for layer, weight in default.items())
    if default == []:
        return "none"
    return str(default)


mask_option = click.option(
    "--mask",
    "masks",
    type=existing_file,
    multiple=True,
    help="Where a painting's style applies: white yes, black or transparent no. One per painting.",
)
style_mask_option = click.option(
    "--style-mask",
    "style_masks",
    type=existing_file,
    multiple=True,
    help="Which part of a painting counts: white yes, black or transparent no. One per painting.",
)
init_option = click.option(
    "--init-image", type=existing_file, help="Start picture for --init picture."
)


host_option = click.option(
    "--host", envvar="IMPASTO_API_HOST", default="127.0.0.1", help="Address to listen on."
)
port_option = click.option(
    "--port",
    envvar="IMPASTO_API_PORT",
    default=8000,
    type=click.IntRange(1, 65535),
    help="Port to listen on.",
)
output_option = click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write the result.",
)


def service_options(command: Command) -> Command:
    """Add --url and --ca-file."""
    text = "PEM file of the CA that signed the service's certificate, if it is one of your own."
    command = click.option("--ca-file", type=existing_file, help=text)(command)
    return click.option("--url", help="URL of the service.  [default: IMPASTO_URL]")(command)


force_option = click.option(
    "--force", is_flag=True, help="Overwrite an input if the output has its name."
)


def check_output(
    output: Path | None, inputs: Iterable[Path | None] = (), *, force: bool = False
) -> None:
    """Raise BadInput if `write_output` could not write the file.

    Its type is unsupported, its folder is missing or read-only, or it is one of the inputs and
    `force` is not set.
    """
    if output is None:
        return
    if output.suffix.lower() not in FORMATS:
        raise errors.BadInput(f"The output must end in {', '.join(FORMATS)}.")
    folder = output.resolve().parent
    if not folder.is_dir():
        raise errors.BadInput(f"There is no folder {folder}.")
    # The folder too: the file is replaced as a whole.
    is_writable = os.access(folder, os.W_OK) and (not output.exists() or os.access(output, os.W_OK))
    if not is_writable or output.is_dir():
        raise errors.BadInput(f"{output} cannot be written.")
    # Also by another name: a link.
    is_input = output.exists() and any(one is not None and output.samefile(one) for one in inputs)
    if is_input and not force:
        raise errors.BadInput(
            f"{output} is an input; choose another output, or overwrite it with --force."
        )


def output_format(output: Path) -> validation.Format:
    """The format that the file's name asks for; `check_output` has accepted it."""
    return FORMATS[output.suffix.lower()]


def write_output(output: Path, data: bytes) -> None:
    """Write the file whole or not at all. A link stays a link. Raises StorageFull, OSError."""
    atomic_write(output.resolve(), lambda part: part.write_bytes(data))


def collect_parameters(options: dict[str, str | None], source: Path | None) -> dict[str, Any]:
    """Return the given parameters, over those of the earlier result if there is one.

    The earlier result's style_weights are dropped: the number of paintings may differ.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if source is None:
        return given
    _, earlier = read_record(source)
    spec = {name: value for name, value in earlier.spec.items() if name != "style_weights"}
    return apply_changes(spec, given)


def print_scales(scales: Iterable[tuple[int, int, int, int | None, float]]) -> None:
    """Print one line per scale: width px, height px, iterations, tile px or None, seconds."""
    for width, height, iterations, tile_px, seconds in scales:
        tiling = f"tiles of {tile_px} px" if tile_px else "whole"
        click.echo(
            f"{width} x {height} px, {iterations} iterations, {tiling}: {describe_seconds(seconds)}"
        )

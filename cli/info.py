"""`impasto info`: prints the record in a result's PNG. Needs no service."""

import json
from pathlib import Path
from typing import Any

import click

from core import errors
from core.images import codec
from core.jobs.models import JobInput


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the record as it is in the file.")
def info(file: Path, as_json: bool) -> None:
    """Show how a PNG from Impasto was made: network, pictures, parameters."""
    record, job_input = read_record(file)
    if as_json:
        click.echo(json.dumps(record, indent=2, ensure_ascii=True))
        return
    for name, value in _list_fields(record, job_input):
        click.echo(f"{_escape(name):<16} {_escape(value)}")


def read_record(file: Path) -> tuple[dict[str, Any], JobInput]:
    """Return the record in a PNG and the job input in it. Raises InvalidProvenance."""
    with file.open("rb") as png:
        record = codec.read_provenance(png)
    if record is None:
        raise errors.InvalidProvenance()
    return record, JobInput.from_provenance(record)


def _escape(value: Any) -> str:
    """JSON in ASCII: the file is untrusted and must not send control characters to a terminal."""
    return json.dumps(value).strip('"')


def _list_fields(record: dict[str, Any], job_input: JobInput) -> list[tuple[str, Any]]:
    """Names and values to print; skips what a record of another version does not have."""
    origin = [("job", record["job"])] if "job" in record else []
    if isinstance(model := record.get("model"), dict):
        origin += [(f"network {name}", model[name]) for name in ("name", "sha256") if name in model]
    pictures = [("content", job_input.content)]
    pictures += [("style", digest) for digest in job_input.styles]
    pictures += [("mask", digest) for digest in job_input.masks]
    pictures += [("style_mask", digest) for digest in job_input.style_masks]
    if job_input.init_image:
        pictures.append(("init_image", job_input.init_image))
    of_run = [
        (name, value)
        for name in ("spec_updates", "style_crops")
        if isinstance(values := record.get(name), list)
        for value in values
    ]
    return [
        *origin,
        *pictures,
        *job_input.spec.items(),
        *of_run,
    ]

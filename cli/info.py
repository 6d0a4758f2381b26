"""`impasto info`: how a result was made, by the record in its PNG. Asks no service."""

import json
from pathlib import Path
from typing import Any

import click

from core import errors
from core.images import codec
from core.jobs.models import JobInput


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="The record as it stands in the file.")
def info(file: Path, as_json: bool) -> None:
    """Tell how a PNG of Impasto was made: network, pictures, parameters."""
    record, made_from = read_record(file)
    if as_json:
        click.echo(json.dumps(record, indent=2, ensure_ascii=True))
        return
    for name, value in _lines(record, made_from):
        click.echo(f"{_plain(name):<16} {_plain(value)}")


def read_record(file: Path) -> tuple[dict[str, Any], JobInput]:
    """The record in a PNG, and what was asked for by it. Raises BadRecord."""
    with file.open("rb") as opened:
        record = codec.read_provenance(opened)
    if record is None:
        raise errors.InvalidProvenance()
    return record, JobInput.from_provenance(record)


def _plain(value: Any) -> str:
    """In characters that do nothing to a terminal, for anybody may have written the file."""
    return json.dumps(value).strip('"')


def _lines(record: dict[str, Any], made_from: JobInput) -> list[tuple[str, Any]]:
    """What is not there is left out: a record of another version may hold less, or more."""
    told = [("job", record["job"])] if "job" in record else []
    if isinstance(model := record.get("model"), dict):
        told += [(f"network {name}", model[name]) for name in ("name", "sha256") if name in model]
    pictures = [("content", made_from.content), *(("style", digest) for digest in made_from.styles)]
    pictures += [("mask", digest) for digest in made_from.masks]
    pictures += [("init_image", made_from.init_image)] if made_from.init_image else []
    spec_updates = record["spec_updates"] if isinstance(record.get("spec_updates"), list) else []
    return [
        *told,
        *pictures,
        *made_from.spec.items(),
        *(("spec_updates", change) for change in spec_updates),
    ]

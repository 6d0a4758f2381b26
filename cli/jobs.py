"""`impasto submit`, `watch`: jobs of a service, over its REST API."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from cli.options import (
    FORMATS,
    check_output,
    collect_parameters,
    existing_file,
    init_option,
    mask_option,
    parameter_options,
    print_scales,
    url_option,
)
from cli.output import ProgressBar
from core import errors
from core.images import validation
from core.jobs.models import Job, Status
from core.storage.blobs import digest_of
from impasto import Client, Estimate

_ADDRESS = re.compile(
    r"(?P<service>https?://.+?)/(?:v1/jobs|j)/(?P<job>[^/?#]+)/?"
)  # the API's, or the page's


@click.command()
@click.argument("content", type=existing_file, required=False)
@click.argument("style", type=existing_file, nargs=-1)
@mask_option
@init_option
@parameter_options
@url_option
@click.option("--wait", is_flag=True, help="Follow the job to its end.")
@click.option(
    "--plan",
    "only_plan",
    is_flag=True,
    help="Say what it would take, and when it would begin, and stop.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write the result.",
)
def submit(
    *,
    content: Path | None,
    style: tuple[Path, ...],
    masks: tuple[Path, ...],
    init_image: Path | None,
    url: str | None,
    wait: bool,
    only_plan: bool,
    output: Path | None,
    source: Path | None,
    **given: Any,
) -> None:
    """Send a job to a service; with --wait, follow it and write the result.

    With --from neither a photo nor a painting needs to be named.
    """
    check_output(output)
    if source is None and not style:
        raise errors.BadInput(
            "Name a photo and one or more paintings, or an earlier result with --from."
        )
    with Client(url) as client:
        if only_plan:
            if content is None or not style:
                raise errors.BadInput("--plan needs a photo and one or more paintings.")
            parameter_options = collect_parameters(given, source)
            _say_estimate(
                client.estimate(
                    content, style, masks=masks, init_image=init_image, **parameter_options
                )
            )
            return
        job = client.submit(
            content, style, source=_sendable(source), masks=masks, init_image=init_image, **given
        )
        click.echo(client.link(job))
        if wait or output:
            follow_and_save(client, client.follow(job.id), output)


def _sendable(source: Path | None) -> Path | str | None:
    """A result that is larger than an upload may be is at the service, if anywhere: its digest will do."""
    if source is None or source.stat().st_size <= validation.MAX_BYTES:
        return source
    return digest_of(source.read_bytes())


def _say_estimate(told: Estimate) -> None:
    if told.refused is not None:
        raise errors.ImpastoError(told.refused.message)
    print_scales(
        (step.width, step.height, step.iterations, step.tile_px, step.seconds)
        for step in told.scales
    )
    begins = told.queue.start_seconds
    start = f"after {told.queue.position} others" if begins is None else f"in {begins:.0f} s"
    memory = f"{(told.memory_bytes or 0) / 1e9:.1f} GB beside the network"
    click.echo(
        f"In all {told.seconds:.0f} s, and {memory} ({told.network}, {told.device}); it would begin {start}."
    )


@click.command()
@click.argument("job")
@url_option
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write the result.",
)
def watch(job: str, url: str | None, output: Path | None) -> None:
    """Follow a job, by its id or address, to its end.

    An address says where the service is. Your key goes only to the one of --url, else of IMPASTO_URL.
    """
    check_output(output)
    address = _ADDRESS.fullmatch(job)
    if address is None:
        with Client(url) as client:
            follow_and_save(client, client.follow(job), output)
        return
    with Client(url) as own:
        known = own.url == address["service"]
    if url is not None and not known:
        raise errors.BadInput("The job's address and --url name two services.")
    with Client(address["service"], key=None if known else "") as client:
        try:
            follow_and_save(client, client.follow(address["job"]), output)
        except errors.Unauthorized:
            if known:
                raise
            words = f"That service asks for an API key; to send yours there, add --url {client.url}"
            raise errors.Unauthorized(words) from None


def follow_and_save(client: Client, states: Iterable[Job], output: Path | None) -> None:
    """Show the job until it has ended, and write what it has painted. Raises ImpastoError where it did not succeed."""
    with ProgressBar() as bar:
        for job in states:
            bar.show_job(job)
        bar.done(job.status)
    if output is not None and job.outputs:
        output.write_bytes(client.result(job.id, FORMATS[output.suffix.lower()]))
        click.echo(output)
    if job.status is not Status.SUCCEEDED:
        raise errors.ImpastoError(job.error.message if job.error else f"The job was {job.status}.")

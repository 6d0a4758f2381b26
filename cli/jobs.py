"""`impasto submit`, `watch`, `cancel`, `retry`, `result`: jobs of a service, through its API."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from cli.options import (
    check_output,
    collect_parameters,
    existing_file,
    force_option,
    from_option,
    init_option,
    mask_option,
    output_format,
    output_option,
    parameter_options,
    print_scales,
    service_options,
    style_mask_option,
    submission_options,
    write_output,
)
from cli.output import ProgressBar, printable
from core import errors
from core.config import Settings, read_settings
from core.images import validation
from core.jobs.models import SubmissionOptions
from core.storage.blobs import digest_of
from core.style.limits import describe_seconds
from core.style.spec import MAX_SIZE_PX
from impasto import Client, Estimate, Job, Status

wait_option = click.option("--wait", is_flag=True, help="Follow the job until it ends.")
job_argument = click.argument("job")

# The URL of a job, in the API (/v1/jobs/ID) or on the page (/j/ID).
_JOB_URL = re.compile(r"(?P<service>https?://.+?)/(?:v1/jobs|j)/(?P<job>[^/?#]+)/?")


@click.command()
@click.argument("content", type=existing_file, required=False)
@click.argument("style", type=existing_file, nargs=-1)
@mask_option
@style_mask_option
@init_option
@parameter_options
@from_option
@submission_options
@service_options
@wait_option
@click.option(
    "--plan",
    "only_plan",
    is_flag=True,
    help="Print time, memory and start of the job without submitting it.",
)
@output_option
@force_option
def submit(
    *,
    content: Path | None,
    style: tuple[Path, ...],
    masks: tuple[Path, ...],
    style_masks: tuple[Path, ...],
    init_image: Path | None,
    url: str | None,
    ca_file: Path | None,
    wait: bool,
    only_plan: bool,
    output: Path | None,
    force: bool,
    source: Path | None,
    **given: Any,
) -> None:
    """Submit a job to a service; with --wait or -o, follow it until it ends.

    CONTENT is the photo and each STYLE is a painting. With --from, both are optional.
    """
    check_output(output, [content, *style, *masks, *style_masks, init_image, source], force=force)
    if source is None and not style:
        raise errors.BadInput(
            "Name a photo and one or more paintings, or an earlier result with --from."
        )
    options = {name: given.pop(name) for name in SubmissionOptions.model_fields}
    with _open_client(url, ca_file) as client:
        if only_plan:
            if content is None or not style:
                raise errors.BadInput("--plan needs a photo and one or more paintings.")
            parameters = collect_parameters(given, source)
            estimate = client.estimate(
                content,
                style,
                masks=masks,
                style_masks=style_masks,
                init_image=init_image,
                **parameters,
            )
            _print_estimate(estimate)
            return
        job = client.submit(
            content,
            style,
            source=_to_uploadable(source),
            masks=masks,
            style_masks=style_masks,
            init_image=init_image,
            **options,
            **given,
        )
        _print_and_follow(client, job, output, wait=wait)


def _check_inputs_kept(job: Job, output: Path | None, *, force: bool) -> None:
    """Raise BadInput if the output is a file that the job was submitted with.

    The file is known by its content: the job may have been submitted elsewhere, or long ago.
    """
    if output is None or force or not output.is_file():
        return
    with output.open("rb") as file:
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    if digest in job.input.digests():
        raise errors.BadInput(
            f"{output} is an input of the job; choose another output, or overwrite it with --force."
        )


def _print_and_follow(client: Client, job: Job, output: Path | None, *, wait: bool) -> None:
    for warning in job.warnings:
        click.echo(printable(warning), err=True)
    click.echo(client.link(job))
    if wait or output:
        with _name_job_of_interrupt(client, job):
            follow_and_save(client, client.follow(job.id), output)


@contextmanager
def _name_job_of_interrupt(client: Client, job: Job) -> Iterator[None]:
    """Say at Ctrl-C that it does not stop the job, and what does."""
    try:
        yield
    except KeyboardInterrupt:
        link = client.link(job)
        raise click.Abort(
            f"stopped; the job is not. `impasto watch {link}` follows it, "
            f"`impasto cancel {link}` cancels it."
        ) from None


def _to_uploadable(source: Path | None) -> Path | str | None:
    """The file, or its digest if the file exceeds the upload limit.

    A result that large can only come from the service, which then still has it by its digest.
    """
    if source is None or source.stat().st_size <= validation.MAX_BYTES:
        return source
    return digest_of(source.read_bytes())


def _print_estimate(estimate: Estimate) -> None:
    if estimate.refused is not None:
        raise errors.ImpastoError(estimate.refused.message)
    print_scales(
        (scale.width, scale.height, scale.iterations, scale.tile_px, scale.seconds)
        for scale in estimate.scales
    )
    start_seconds = estimate.queue.start_seconds
    start = f"after {estimate.queue.position} others"
    if start_seconds is not None:  # known once the service has run some jobs
        start = f"in {describe_seconds(start_seconds)}"
    memory_gb = (estimate.memory_bytes or 0) / 1e9
    network, device = printable(estimate.network), printable(estimate.device)
    click.echo(
        f"Total: {describe_seconds(estimate.seconds or 0)} and {memory_gb:.1f} GB plus the network "
        f"({network}, {device}); the job would start {start}."
    )


@click.command()
@job_argument
@service_options
@output_option
@force_option
def watch(
    job: str, url: str | None, ca_file: Path | None, output: Path | None, *, force: bool
) -> None:
    """Follow a job until it ends. JOB is its id or its URL.

    A URL also names the service. Your API key is sent only to the service of --url or, without
    --url, of IMPASTO_URL.
    """
    check_output(output)
    with _open_job(job, url, ca_file) as (client, job_id):
        found = client.job(job_id)
        _check_inputs_kept(found, output, force=force)
        with _name_job_of_interrupt(client, found):
            follow_and_save(client, client.follow(job_id), output)


@click.command()
@job_argument
@service_options
def cancel(job: str, url: str | None, ca_file: Path | None) -> None:
    """Cancel a job. JOB is its id or its URL. A running job keeps its picture so far."""
    with _open_job(job, url, ca_file) as (client, job_id):
        click.echo(f"{job_id}: {_describe_cancel(client.cancel(job_id))}")


def _describe_cancel(job: Job) -> str:
    return job.status if job.has_ended else "is being canceled"


@click.command()
@job_argument
@parameter_options
@click.option(
    "--continue",
    "continue_from_result",
    is_flag=True,
    help="Begin with the job's result: for more iterations, other weights or a larger size.",
)
@click.option("--webhook", help=SubmissionOptions.model_fields["webhook"].description)
@service_options
@wait_option
@output_option
@force_option
def retry(
    *,
    job: str,
    continue_from_result: bool,
    webhook: str | None,
    url: str | None,
    ca_file: Path | None,
    wait: bool,
    output: Path | None,
    force: bool,
    **given: Any,
) -> None:
    """Run a job that has ended again, with its pictures. JOB is its id or its URL.

    Parameters that are given replace those of the job.
    """
    check_output(output)
    with _open_job(job, url, ca_file) as (client, job_id):
        if output is not None:
            _check_inputs_kept(client.job(job_id), output, force=force)
        new = client.retry(
            job_id, continue_from_result=continue_from_result, webhook=webhook, **given
        )
        _print_and_follow(client, new, output, wait=wait)


@click.command()
@job_argument
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write it; the suffix selects PNG, JPEG or WebP.",
)
@click.option("--width", type=click.IntRange(16, MAX_SIZE_PX), help="In px, for a smaller copy.")
@force_option
@service_options
def result(
    *,
    job: str,
    output: Path,
    width: int | None,
    force: bool,
    url: str | None,
    ca_file: Path | None,
) -> None:
    """Download the result of a job that has ended. JOB is its id or its URL."""
    check_output(output)
    with _open_job(job, url, ca_file) as (client, job_id):
        _check_inputs_kept(client.job(job_id), output, force=force)
        write_output(output, client.result(job_id, output_format(output), width))
    click.echo(output)


def _open_client(url: str | None, ca_file: Path | None) -> Client:
    """A client of the service at `url` or, if None, IMPASTO_URL. Raises BadSettings."""
    config = read_settings(Settings)
    url = config.url if url is None else url
    return Client(url, config.key.get_secret_value(), ca_file=ca_file)


@contextmanager
def _open_job(job: str, url: str | None, ca_file: Path | None) -> Iterator[tuple[Client, str]]:
    """A client of the job's service, and the job's id. job: the id or the URL.

    The API key goes only to the configured service.
    """
    job_url = _JOB_URL.fullmatch(job)
    if job_url is None:
        with _open_client(url, ca_file) as client:
            yield client, job
        return
    with _open_client(url, ca_file) as configured:
        is_trusted = configured.url == job_url["service"]
    if url is not None and not is_trusted:
        raise errors.BadInput("The job's URL and --url name different services; drop --url.")
    key = None if is_trusted else ""
    with Client(job_url["service"], key=key, ca_file=ca_file) as client:
        try:
            yield client, job_url["job"]
        except errors.Unauthorized:
            if is_trusted:
                raise
            message = f"That service requires an API key; to send it yours, add --url {client.url}"
            raise errors.Unauthorized(message) from None


def follow_and_save(client: Client, states: Iterable[Job], output: Path | None) -> None:
    """Show the job's progress until it ends, then write its picture, if it has one, to `output`.

    A canceled job may have a picture too. Raises ImpastoError if the job did not succeed.
    """
    with ProgressBar() as bar:
        for job in states:
            bar.show_job(job)
        bar.finish(job.status)
    if output is not None and job.outputs:
        write_output(output, client.result(job.id, output_format(output)))
        click.echo(output)
    if job.status is not Status.SUCCEEDED:
        raise errors.ImpastoError(job.error.message if job.error else f"The job was {job.status}.")

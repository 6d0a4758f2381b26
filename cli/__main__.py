"""The command `impasto`. Exit codes: 0 done, 1 the work failed, 2 used wrongly.

An error is one line that says what to do, never a traceback. core.neural is reached inside the commands that need it.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import click

from cli.bar import Bar
from cli.dataset import dataset
from cli.info import info
from cli.keys import keys
from cli.order import FORMATS, check_output, existing, init_option, knobs, knobs_of, mask_option, say_legs
from cli.plain import plain
from cli.stylize import stylize
from cli.train import train
from cli.up import LocalService, service_url
from cli.weights import weights
from core import errors
from core.config import Settings, read_settings
from core.images import codec
from core.jobs.models import LOCAL, Job, Status
from core.storage.blobs import digest_of
from core.style.spec import parse_spec
from impasto import Client, Estimate

SAMPLES = Path(__file__).parents[1] / "samples"

_ADDRESS = re.compile(r"(?P<service>https?://.+?)/(?:v1/jobs|j)/(?P<job>[^/?#]+)/?")  # the API's, or the page's
LOOK_SECONDS = 0.5  # between two looks at a job whose service we tend


def main() -> None:
    """The entry point."""
    try:
        impasto.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (errors.BadInput, errors.NotFound, errors.Conflict, errors.BadSettings, errors.Unauthorized) as error:
        sys.exit(_say(error.message, 2))
    except errors.ImpastoError as error:
        sys.exit(_say(error.message, 1))
    except errors.DeviceLost as error:
        sys.exit(_say(f"the device is lost: {error.__cause__}", 1))
    except OSError as error:  # a folder or disk that refuses; told as the system tells it
        sys.exit(_say(f"{error.strerror}: {error.filename}" if error.filename else str(error), 1))
    except (click.Abort, KeyboardInterrupt):
        sys.exit(_say("stopped.", 130))


def _say(words: str, code: int) -> int:
    click.echo("\n".join(plain(line) for line in f"impasto: {words}".split("\n")), err=True)
    return code


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="impasto")
def impasto() -> None:
    """Paint one picture in the style of another."""


impasto.add_command(info)
impasto.add_command(keys)
impasto.add_command(weights)
impasto.add_command(dataset)
impasto.add_command(train)
impasto.add_command(stylize)


host_option = click.option("--host", envvar="IMPASTO_API_HOST", default="127.0.0.1", help="Address to listen on.")
port_option = click.option("--port", envvar="IMPASTO_API_PORT", default=8000, type=click.IntRange(1, 65535))
url_option = click.option("--url", help="Where the service is.  [default: IMPASTO_URL]")


# ---------------------------------------------------------------------- the service


@impasto.command()
@host_option
@port_option
def up(host: str, port: int) -> None:
    """Serve everything on this machine until Ctrl-C."""
    with _local_service(host, port) as service:
        click.echo(f"Impasto serves at {service.url}   (API: {service.url}/docs, Ctrl-C ends it)")
        _sleep_until_told(service)
        click.echo("\nStopping; accepted jobs and results are kept.")


def _local_service(host: str, port: int) -> LocalService:
    config = read_settings(Settings)
    _ensure_weights()
    for ending in (signal.SIGTERM, signal.SIGINT):  # a script's background job is born deaf to SIGINT
        signal.signal(ending, signal.default_int_handler)
    return LocalService(config, host, port)


def _sleep_until_told(service: LocalService) -> None:
    try:
        while True:
            service.mend()
            time.sleep(0.2)
    except KeyboardInterrupt:
        pass


def _ensure_weights() -> None:
    """In a process of its own: this one stays small, without torch."""
    ran = subprocess.run([sys.executable, "-m", "cli", "weights", "fetch"], check=False)
    if ran.returncode:
        sys.exit(ran.returncode)


@impasto.command()
def api() -> None:
    """One API process, against IMPASTO_REDIS_URL."""
    os.execv(sys.executable, [sys.executable, "-m", "api"])  # noqa: S606 - our own program


@impasto.command()
def worker() -> None:
    """One worker, against IMPASTO_REDIS_URL."""
    os.execv(sys.executable, [sys.executable, "-m", "worker"])  # noqa: S606 - our own program


@impasto.command()
def webhooks() -> None:
    """One courier, which sends webhooks, against IMPASTO_REDIS_URL."""
    os.execv(sys.executable, [sys.executable, "-m", "worker.webhooks"])  # noqa: S606 - our own program


@impasto.command()
@click.option("--owner", default=LOCAL, show_default=True, help="Whose webhooks; without keys all jobs are of one.")
def webhook_secret(owner: str) -> None:
    """The secret to verify an owner's webhooks with."""
    click.echo(read_settings(Settings).webhooks.owners_secret(owner))


# ---------------------------------------------------------------------- through the REST API


@impasto.command()
@click.argument("content", type=existing, required=False)
@click.argument("style", type=existing, nargs=-1)
@mask_option
@init_option
@knobs
@url_option
@click.option("--wait", is_flag=True, help="Follow the job to its end.")
@click.option("--plan", "only_plan", is_flag=True, help="Say what it would take, and when it would begin, and stop.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Where to write the result.")
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
        raise errors.BadInput("Name a photo and one or more paintings, or an earlier result with --from.")
    with Client(url) as client:
        if only_plan:
            if content is None or not style:
                raise errors.BadInput("--plan needs a photo and one or more paintings.")
            knobs = knobs_of(given, source)
            _say_estimate(client.estimate(content, style, masks=masks, init_image=init_image, **knobs))
            return
        job = client.submit(content, style, source=_sendable(source), masks=masks, init_image=init_image, **given)
        click.echo(client.link(job))
        if wait or output:
            _fetch(client, client.follow(job.id), output)


def _sendable(source: Path | None) -> Path | str | None:
    """A result that is larger than an upload may be is at the service, if anywhere: its digest will do."""
    if source is None or source.stat().st_size <= codec.MAX_BYTES:
        return source
    return digest_of(source.read_bytes())


def _say_estimate(told: Estimate) -> None:
    if told.refused is not None:
        raise errors.ImpastoError(told.refused.message)
    say_legs((step.width, step.height, step.iterations, step.tile_px, step.seconds) for step in told.scales)
    begins = told.queue.start_seconds
    start = f"after {told.queue.position} others" if begins is None else f"in {begins:.0f} s"
    memory = f"{(told.memory_bytes or 0) / 1e9:.1f} GB beside the network"
    click.echo(f"In all {told.seconds:.0f} s, and {memory} ({told.network}, {told.device}); it would begin {start}.")


@impasto.command()
@click.argument("job")
@url_option
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Where to write the result.")
def watch(job: str, url: str | None, output: Path | None) -> None:
    """Follow a job, by its id or address, to its end.

    An address says where the service is. Your key goes only to the one of --url, else of IMPASTO_URL.
    """
    check_output(output)
    address = _ADDRESS.fullmatch(job)
    if address is None:
        with Client(url) as client:
            _fetch(client, client.follow(job), output)
        return
    with Client(url) as own:
        known = own.url == address["service"]
    if url is not None and not known:
        raise errors.BadInput("The job's address and --url name two services.")
    with Client(address["service"], key=None if known else "") as client:
        try:
            _fetch(client, client.follow(address["job"]), output)
        except errors.Unauthorized:
            if known:
                raise
            words = f"That service asks for an API key; to send yours there, add --url {client.url}"
            raise errors.Unauthorized(words) from None


def _fetch(client: Client, states: Iterable[Job], output: Path | None) -> None:
    """Show the job until it has ended, and write what it has painted. Raises ImpastoError where it did not succeed."""
    with Bar() as bar:
        for job in states:
            bar.show_job(job)
        bar.done(job.status)
    if output is not None and job.outputs:
        output.write_bytes(client.result(job.id, FORMATS[output.suffix.lower()]))
        click.echo(output)
    if job.status is not Status.SUCCEEDED:
        raise errors.ImpastoError(job.error.message if job.error else f"The job was {job.status}.")


@impasto.command()
@click.option("--size", default="384", help="Long side in px.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default=Path("out/harbor.png"))
@host_option
@port_option
def demo(size: str, output: Path, host: str, port: int) -> None:
    """Paint the two sample pictures through a service; starts one for the purpose unless one is running."""
    parse_spec({"size": size})
    output.parent.mkdir(parents=True, exist_ok=True)
    check_output(output)
    with Client(service_url(host, port)) as client:
        if client.ready():
            _demo(client, size, output, client.follow)
        else:
            with _local_service(host, port) as service:
                _demo(client, size, output, partial(_tended, service))


def _demo(client: Client, size: str, output: Path, follow: Callable[[str], Iterable[Job]]) -> None:
    job = client.submit(SAMPLES / "harbor.jpg", SAMPLES / "strokes.jpg", size=size)
    _fetch(client, follow(job.id), output)
    click.echo(client.link(job))


def _tended(service: LocalService, job_id: str) -> Iterator[Job]:
    """The job until it has ended; meanwhile what dies of the service is started again, be it the API that is asked."""
    with Client(service.url, patience_seconds=0) as client:
        while True:
            service.mend()
            with suppress(errors.ServiceUnreachable, errors.Later):
                yield (job := client.job(job_id))
                if job.ended:
                    return
            time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    main()

"""`impasto demo`: runs the sample pictures through a service."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import click

from cli.jobs import follow_and_save
from cli.local_service import LocalService, build_service_url
from cli.options import check_output, host_option, port_option
from cli.service import open_local_service
from core import errors
from core.style.spec import parse_spec
from impasto import Client, Job

SAMPLES = Path(__file__).parents[1] / "samples"
POLL_SECONDS = 0.5  # between two polls of the job, if this process also runs the service


@click.command()
@click.option("--size", default="384", show_default=True, help="Long side in px.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("out/harbor.png"),
    show_default=True,
    help="Where to write the result.",
)
@host_option
@port_option
def demo(size: str, output: Path, host: str, port: int) -> None:
    """Run the two sample pictures through a service.

    Starts a service if none is running, and stops it afterwards.
    """
    parse_spec({"size": size})
    output.parent.mkdir(parents=True, exist_ok=True)
    check_output(output)
    with Client(build_service_url(host, port)) as client:
        if client.alive():
            click.echo(client.link(_run_demo(client, size, output, client.follow)))
        else:
            with open_local_service(host, port) as service:
                _run_demo(client, size, output, partial(_follow_and_restart, service))


def _run_demo(
    client: Client, size: str, output: Path, follow: Callable[[str], Iterable[Job]]
) -> Job:
    job = client.submit(SAMPLES / "harbor.jpg", SAMPLES / "strokes.jpg", size=size)
    follow_and_save(client, follow(job.id), output)
    return job


def _follow_and_restart(service: LocalService, job_id: str) -> Iterator[Job]:
    """Yield the job at each poll until it has ended; restart processes of the service that die.

    The client does not retry: while it waited for a dead API, this loop could not restart the API.
    """
    with Client(service.url, retry_seconds=0) as client:
        while True:
            service.restart_if_dead()
            with suppress(errors.ServiceUnreachable, errors.RetryLater):
                yield (job := client.job(job_id))
                if job.has_ended:
                    return
            time.sleep(POLL_SECONDS)

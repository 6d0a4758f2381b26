"""The command `impasto`. Exit codes: 0 done, 1 the work failed, 2 used wrongly.

An error is one line that says what to do, never a traceback. core.neural is reached inside the commands that need it.
"""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cli.bar import Bar
from cli.dataset import dataset
from cli.info import info, recorded
from cli.keys import keys
from cli.plain import plain
from cli.train import train
from cli.up import LocalService, service_url
from cli.weights import opened as opened_weights
from cli.weights import weights
from core import errors, images, presets, settings
from core.blobs import digest_of
from core.jobs import LOCAL, Job, JobInput, NetworkUsed, Status
from core.settings import Settings
from core.spec import StyleSpec, allowed, parse_spec, varied
from impasto import Client

SAMPLES = Path(__file__).parents[1] / "samples"
_SUFFIXES: dict[str, images.Format] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}

Command = Callable[..., Any]


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


existing = click.Path(exists=True, dir_okay=False, path_type=Path)


def knobs(command: Command) -> Command:
    """One option for each knob of StyleSpec, one for the presets, one for an earlier result."""
    for name, field in reversed(StyleSpec.model_fields.items()):
        default = (
            ",".join(f"{layer}={weight:g}" for layer, weight in field.default.items())
            if isinstance(field.default, dict)
            else field.default
        )
        text = f"{field.description}  [{allowed(name)}; default: {'none' if default == [] else default}]"
        command = click.option(f"--{name.replace('_', '-')}", name, metavar="X", help=text)(command)
    told = " ".join(f"{preset.name}: {preset.words}" for preset in presets.PRESETS.values())
    text = f"Knobs that go together; those given beside it win. {told}"
    command = click.option(f"--{presets.FIELD}", type=click.Choice([*presets.PRESETS]), help=text)(command)
    text = "Take the knobs of an earlier result, a PNG; those given beside it win."
    return click.option("--from", "source", type=existing, help=text)(command)


content_argument = click.argument("content", type=existing)
style_argument = click.argument("style", type=existing, nargs=-1, required=True)
mask_option = click.option(
    "--mask",
    "masks",
    type=existing,
    multiple=True,
    help="Where a painting's style goes (white) and where not (black, transparent); one for each painting.",
)
init_option = click.option("--init-image", type=existing, help="The picture to begin with, for --init picture.")
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
    config = settings.read(Settings)
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
    os.execv(sys.executable, [sys.executable, "-m", "worker.courier"])  # noqa: S606 - our own program


@impasto.command()
@click.option("--owner", default=LOCAL, show_default=True, help="Whose webhooks; without keys all jobs are of one.")
def webhook_secret(owner: str) -> None:
    """The secret to verify an owner's webhooks with."""
    click.echo(settings.read(Settings).webhooks.owners_secret(owner))


# ---------------------------------------------------------------------- through the REST API


@impasto.command()
@content_argument
@style_argument
@mask_option
@init_option
@knobs
@url_option
@click.option("--wait", is_flag=True, help="Follow the job to its end.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Where to write the result.")
def submit(
    *,
    content: Path,
    style: tuple[Path, ...],
    masks: tuple[Path, ...],
    init_image: Path | None,
    url: str | None,
    wait: bool,
    output: Path | None,
    source: Path | None,
    **given: str | None,
) -> None:
    """Send a job to a service; with --wait, follow it and write the result."""
    _check_output(output)
    with _client(url) as client:
        job = client.submit(content, style, masks=masks, init_image=init_image, **_given(given, source))
        click.echo(client.link(job))
        if wait or output:
            _fetch(client, _follow(client, job.id), output)


@impasto.command()
@click.argument("job")
@url_option
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Where to write the result.")
def watch(job: str, url: str | None, output: Path | None) -> None:
    """Follow a job, by its id or address, to its end."""
    _check_output(output)
    with _client(url) as client:
        _fetch(client, _follow(client, job.rstrip("/").rpartition("/")[2]), output)


def _client(url: str | None) -> Client:
    return Client(url)


def _follow(client: Client, job_id: str, between: Callable[[], None] = lambda: None) -> Job:
    """Show the job until it has ended. Raises ImpastoError when it ended without a result."""
    with Bar() as bar:
        for job in client.follow(job_id):
            bar.show_job(job)
            between()
        bar.done(job.status)
    if job.status is not Status.SUCCEEDED:
        raise errors.ImpastoError(job.error.message if job.error else f"The job was {job.status}.")
    return job


def _fetch(client: Client, job: Job, output: Path | None) -> None:
    if output is not None:
        output.write_bytes(client.result(job.id, _SUFFIXES[output.suffix.lower()]))
        click.echo(output)


def _check_output(output: Path | None) -> None:
    if output is None:
        return
    if output.suffix.lower() not in _SUFFIXES:
        raise errors.BadInput(f"The output must end in {', '.join(_SUFFIXES)}.")
    if not output.absolute().parent.is_dir():
        raise errors.BadInput(f"There is no folder {output.absolute().parent}.")
    if not os.access(output if output.exists() else output.absolute().parent, os.W_OK):
        raise errors.BadInput(f"{output} cannot be written.")


def _given(options: dict[str, str | None], source: Path | None) -> dict[str, Any]:
    """The knobs; where an earlier result is named, over its own, but for the shares of its paintings."""
    given = {name: value for name, value in options.items() if value is not None}
    if source is None:
        return given
    earlier = recorded(source)[1].spec
    return varied({name: value for name, value in earlier.items() if name != "style_weights"}, given)


@impasto.command()
@click.option("--size", default="384", help="Long side in px.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default=Path("out/harbor.png"))
@host_option
@port_option
def demo(size: str, output: Path, host: str, port: int) -> None:
    """Paint the two sample pictures through a service; starts one for the purpose unless one is running."""
    parse_spec({"size": size})
    output.parent.mkdir(parents=True, exist_ok=True)
    _check_output(output)
    with _client(service_url(host, port)) as client:
        if client.ready():
            _demo(client, size, output, lambda: None)
        else:
            with _local_service(host, port) as service:
                _demo(client, size, output, service.mend)


def _demo(client: Client, size: str, output: Path, between: Callable[[], None]) -> None:
    job = client.submit(SAMPLES / "harbor.jpg", SAMPLES / "strokes.jpg", size=size)
    _fetch(client, _follow(client, job.id, between), output)
    click.echo(client.link(job))


# ---------------------------------------------------------------------- without a service


@impasto.command()
@content_argument
@style_argument
@mask_option
@init_option
@knobs
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--plan", "only_plan", is_flag=True, help="Say what it would take, and stop.")
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--precision", default="auto", type=click.Choice(["auto", "float32", "bfloat16", "float16"]))
@click.option(
    "--memory-gb",
    default=0.0,
    type=click.FloatRange(0, 10_000),
    help="Memory of the device that the run may take, in GB; 0: what is free.",
)
def stylize(
    *,
    content: Path,
    style: tuple[Path, ...],
    masks: tuple[Path, ...],
    init_image: Path | None,
    output: Path,
    only_plan: bool,
    device: str,
    precision: Any,
    memory_gb: float,
    source: Path | None,
    **given: str | None,
) -> None:
    """Paint on this machine, without a service."""
    _check_output(output)
    if math.isnan(memory_gb):  # which no range keeps out
        raise errors.BadInput("--memory-gb must be a number from 0 to 10000.")
    spec = parse_spec(_given(given, source)).for_pictures(len(style), len(masks), init_image=init_image is not None)

    from core.neural.planner import NOMINAL, Planner, pace_of
    from core.neural.stylize import Moment
    from core.neural.stylize import stylize as paint

    wanted, subject = _read(content, style, masks, init_image, spec)
    cache = opened_weights()
    network = cache.load(spec.model, device, precision)
    pace = pace_of(network, cache.folder / "pace.json") if only_plan else NOMINAL
    planner = Planner(network, pace, int(memory_gb * 1e9) or None)
    if only_plan:
        sizes = subject.content.size, [style.size for style in subject.styles]
        begun = subject.init.size if subject.init else None
        _say_plan(planner.plan(*sizes, subject.fitted(spec), len(masks), init=begun))
        return
    with Bar() as bar:

        def show(moment: Moment) -> None:
            at = moment.progress
            bar.show(
                at.value, (at.scale, at.scales), (at.iteration, at.iterations), at.losses["total"], at.seconds_left
            )

        try:
            painting = paint(subject, spec, network, show, planner)
        except errors.Diverged as error:
            if error.picture is not None:
                output.write_bytes(images.encode(error.picture, _SUFFIXES[output.suffix.lower()]))
            raise
        bar.done("done")
    provenance = wanted.provenance(NetworkUsed(name=network.name, sha256=network.sha256))
    output.write_bytes(images.encode(painting.picture, _SUFFIXES[output.suffix.lower()], provenance))
    click.echo(output)


def _read(
    content: Path, style: tuple[Path, ...], masks: tuple[Path, ...], init_image: Path | None, spec: StyleSpec
) -> tuple[JobInput, Any]:
    """What is asked for, with the pictures' digests, and the pictures themselves. Each file is read once."""
    from core.neural.subject import Subject

    files: dict[str, bytes] = {}

    def take(path: Path) -> str:
        data = path.read_bytes()
        files[digest := digest_of(data)] = data
        return digest

    wanted = JobInput(
        content=take(content),
        styles=[*map(take, style)],
        masks=[*map(take, masks)],
        init_image=take(init_image) if init_image else None,
        spec=spec.model_dump(),
    )
    return wanted, Subject(*wanted.pictures(files.__getitem__))


def _say_plan(plan: Any) -> None:
    for leg in plan.legs:
        way = f"tiles of {leg.route.tile_px} px" if leg.route.tile_px else "whole"
        click.echo(
            f"{leg.scale.width} x {leg.scale.height} px, {leg.scale.iterations} iterations, {way}: {leg.seconds:.0f} s"
        )
    click.echo(f"In all {plan.seconds:.0f} s, and {plan.memory_bytes / 1e9:.1f} GB beside the network.")


if __name__ == "__main__":
    main()

"""`impasto train`: a network from a data set. With several GPUs: `torchrun --nproc-per-node N -m cli train ...`."""

from pathlib import Path
from typing import Any

import click

from cli.options import FiniteFloat
from cli.output import ProgressBar
from core.training.config import TrainingConfig, describe_range, parse_training_config


def settings(command: Any) -> Any:
    """One option for each setting of Recipe."""
    for name, field in reversed(TrainingConfig.model_fields.items()):
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        text = f"{field.description}  [{describe_range(name)}; default: {default}]"
        command = click.option(f"--{name.replace('_', '-')}", name, metavar="X", help=text)(command)
    return command


@click.command()
@click.argument("dataset", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The run's folder.",
)
@settings
@click.option(
    "--start",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A trained VGG-11 (whole.safetensors, .pth) whose first and last layers a deeper network begins with.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option(
    "--workers",
    type=click.IntRange(0, 256),
    help="Processes that read ahead.  [default: by the device]",
)
@click.option(
    "--checkpoint-seconds",
    default=60.0,
    show_default=True,
    type=FiniteFloat(0),
    help="Between two.",
)
@click.option(
    "--log-steps",
    default=10,
    show_default=True,
    type=click.IntRange(1),
    help="Steps for a line of log.csv.",
)
def train(
    *,
    dataset: Path,
    output: Path,
    start: Path | None,
    device: str,
    workers: int | None,
    checkpoint_seconds: float,
    log_steps: int,
    **given: str | None,
) -> None:
    """Train a VGG on DATASET in the folder OUTPUT. Given again, it goes on where the last checkpoint is."""
    recipe = parse_training_config(
        {name: value for name, value in given.items() if value is not None}
    )

    from core.neural.training.distributed import join_process_group, reader_processes
    from core.neural.training.trainer import TrainerOptions, TrainingEvent
    from core.neural.training.trainer import train as teach

    with join_process_group(device) as team, ProgressBar() as bar:

        def show(at: TrainingEvent) -> None:
            known = (
                ""
                if at.validation_top1 is None
                else f", validation {100 * at.validation_top1:.1f} %"
            )
            if team.leads:
                bar.show_work(
                    "training",
                    at.step / at.steps,
                    f"epoch {at.epoch}/{at.epochs}, loss {at.loss:.4g}, top-1 {100 * at.top1:.1f} %, "
                    f"top-5 {100 * at.top5:.1f} %{known}, {at.pictures_per_second:.0f} pictures/s, "
                    f"{at.seconds_left:.0f} s left",
                )

        pacing = TrainerOptions(
            reader_processes(team) if workers is None else workers, checkpoint_seconds, log_steps
        )
        ended = teach(dataset, output, recipe, team, pacing, start=start, on_moment=show)
        if team.leads:
            bar.show_work("done", 1.0, "")
    if team.leads:
        if ended.best >= 0:
            click.echo(
                f"Best validation top-1: {100 * ended.best:.2f} %, after epoch {ended.best_epoch}"
            )
        click.echo(
            f"{output / 'network.safetensors'}  (to paint with: impasto weights import FILE --name NAME)"
        )

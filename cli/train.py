"""`impasto train`: train a network on a data set.

With several GPUs: `torchrun --nproc-per-node N -m cli train ...`.
"""

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from cli.options import FiniteFloat
from cli.output import ProgressBar
from core.training.config import TrainingConfig, describe_range, parse_training_config


def add_config_options(command: Any) -> Any:
    """Add one option for each setting of TrainingConfig."""
    for name, field in reversed(TrainingConfig.model_fields.items()):
        default = field.default
        if isinstance(default, bool):
            default = str(default).lower()
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
@add_config_options
@click.option(
    "--start",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A trained VGG-11 (whole.safetensors, .pth) whose first and last layers a deeper network "
    "starts with.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option(
    "--workers",
    type=click.IntRange(0, 256),
    help="Reader processes; 0 reads in the training process.  [default: depends on the device]",
)
@click.option(
    "--checkpoint-seconds",
    default=60.0,
    show_default=True,
    type=FiniteFloat(0),
    help="Seconds between two checkpoints.",
)
@click.option(
    "--log-steps",
    default=10,
    show_default=True,
    type=click.IntRange(1),
    help="Steps between two lines of log.csv.",
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
    **settings: str | None,
) -> None:
    """Train a VGG on DATASET in the folder OUTPUT. Repeat the command to resume the run."""
    config = parse_training_config(
        {name: value for name, value in settings.items() if value is not None}
    )

    # Imported here because it loads torch, which takes seconds.
    from core.neural.training import trainer
    from core.neural.training.distributed import default_reader_count, join_process_group

    with join_process_group(device) as group, ProgressBar() as bar:

        def show(event: trainer.TrainingEvent) -> None:
            if group.is_main:
                bar.show_work("training", event.step / event.steps, _describe_event(event))

        options = trainer.TrainerOptions(
            default_reader_count(group) if workers is None else workers,
            checkpoint_seconds,
            log_steps,
        )
        position = trainer.train(
            dataset, output, config, group, options, start=start, on_event=show
        )
        if group.is_main:
            bar.show_work("done", 1.0, "")
    if group.is_main:
        if position.best_top1 >= 0:
            click.echo(
                f"Best validation top-1: {100 * position.best_top1:.2f} %, "
                f"after epoch {position.best_epoch}"
            )
        network = output / "network.safetensors"
        click.echo(f"{network}  (to paint with it: impasto weights import FILE --name NAME)")
    if group.shard.world_size > 1:
        _exit_now()


def _exit_now() -> NoReturn:
    """End this process without the interpreter's finalization.

    Threads of Gloo may outlive the process group; finalization then aborts one run in four,
    although all of its files are written.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _describe_event(event: Any) -> str:
    validation = ""
    if event.validation_top1 is not None:
        validation = f", validation {100 * event.validation_top1:.1f} %"
    return (
        f"epoch {event.epoch}/{event.epochs}, loss {event.loss:.4g}, "
        f"top-1 {100 * event.top1:.1f} %, top-5 {100 * event.top5:.1f} %{validation}, "
        f"{event.pictures_per_second:.0f} pictures/s, {event.seconds_left:.0f} s left"
    )

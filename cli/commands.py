"""The command `impasto`: its subcommands, and how their errors become exit codes.

Exit codes: 0 done, 1 the work failed, 2 wrong usage, 130 stopped by Ctrl-C.

An error prints one line that says what to do, never a traceback. Only the commands that need
core.neural import it, inside the command, because torch takes seconds to load.
"""

import sys
from typing import Any

import click

from cli import service
from cli.audit import audit
from cli.backup import backup, restore
from cli.dataset import dataset
from cli.demo import demo
from cli.doctor import doctor
from cli.info import info
from cli.jobs import cancel, result, retry, submit, watch
from cli.keys import keys
from cli.output import printable
from cli.status import status
from cli.stylize import stylize
from cli.train import train
from cli.weights import weights
from cli.workers import workers
from core import errors


class CommandGroup(click.Group):
    """A group that maps errors to one line on standard error and an exit code."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command of the arguments, by default those of the process."""
        try:
            super().main(*args, **{**options, "standalone_mode": False})
        except click.ClickException as error:
            error.show()
            sys.exit(2)
        except (
            errors.BadInput,
            errors.NotFound,
            errors.Conflict,
            errors.BadSettings,
            errors.Unauthorized,
        ) as error:
            sys.exit(_print_error(error.message, 2))
        except errors.ImpastoError as error:
            sys.exit(_print_error(error.message, 1))
        except errors.DeviceLost as error:
            sys.exit(_print_error(f"the device is lost: {error.__cause__}", 1))
        except OSError as error:  # a file, folder or disk; the system's message names the cause
            message = f"{error.strerror}: {error.filename}" if error.filename else str(error)
            sys.exit(_print_error(message, 1))
        except (click.Abort, KeyboardInterrupt) as stop:
            sys.exit(_print_error(str(stop) or "stopped.", 130))


def _print_error(message: str, exit_code: int) -> int:
    lines = f"impasto: {message}".split("\n")
    click.echo("\n".join(printable(line) for line in lines), err=True)
    return exit_code


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="impasto")
def impasto() -> None:
    """Render one picture in the style of another."""


for command in (
    service.up, service.api, service.worker, service.webhooks, service.webhook_secret,
    submit, watch, cancel, retry, result, demo, stylize, info, status, keys, workers, audit,
    backup, restore, weights, dataset, train, doctor,
):  # fmt: skip
    impasto.add_command(command)

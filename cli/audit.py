"""`impasto audit`: prints the audit log, for the operator of the service.

It uses the service's store, not its API.
"""

import json
from collections.abc import Iterable
from contextlib import closing

import click

from cli.output import printable
from cli.store_location import find_store_url
from core.config import Settings, read_settings
from core.jobs.audit import LOGS, AuditEntry, AuditFilter
from core.jobs.store import JobStore

_PAGE = 1000


@click.command()
@click.option("--actor", help="Only entries of this key's id, or of `local`.")
@click.option("--action", help="Only this action, or those that begin so: job.cancel, key.")
@click.option("--target", help="Only entries about this job, batch or key.")
@click.option("--outcome", help="Only entries with this outcome: ok, created, denied …")
@click.option("--log", type=click.Choice(LOGS), help="Only what operators, or callers, have done.")
@click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, help="The newest entries."
)
@click.option("--follow", is_flag=True, help="Then print each new entry, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
def audit(
    *,
    actor: str | None,
    action: str | None,
    target: str | None,
    outcome: str | None,
    log: str | None,
    limit: int,
    follow: bool,
    as_json: bool,
) -> None:
    """Show who has changed what: keys, submissions, cancels, deletions, operators' actions."""
    accept = AuditFilter(actor, action, target, outcome)
    with closing(JobStore(find_store_url(read_settings(Settings)))) as store:
        entries: list[AuditEntry] = []
        before, is_first = None, True
        while len(entries) < limit and (before is not None or is_first):
            wanted = min(limit - len(entries), _PAGE)
            page, before = store.audit.read(wanted, before, accept, log)  # type: ignore[arg-type]
            entries, is_first = entries + page, False
        _print(reversed(entries), as_json=as_json)
        if follow:
            after = entries[0].id if entries else "$"
            new = store.audit.follow(after, accept)
            _print((entry for entry in new if log in (None, entry.log)), as_json=as_json)


def _print(entries: Iterable[AuditEntry], *, as_json: bool) -> None:
    for entry in entries:
        if as_json:
            click.echo(entry.model_dump_json(exclude_none=True))
            continue
        details = f" {json.dumps(entry.details)}" if entry.details else ""
        line = (
            f"{entry.time:%Y-%m-%d %H:%M:%S}  {entry.actor:<20} {entry.address:<15} "
            f"{entry.action:<14} {entry.outcome:<10} {entry.target}{details}"
        )
        click.echo(printable(line).rstrip())

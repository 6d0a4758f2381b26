"""Probes: is this process alive, and can the service do its work?"""

from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel

from api.dependencies import Blobs, Store
from api.http.problems import problem
from core import errors
from core.jobs.store import JobStore

router = APIRouter(tags=["health"])


Check = Literal["functions", "store", "store_settings", "pictures", "worker"]
_Excluded = Annotated[
    frozenset[Check],
    Query(description="Checks to leave out: `worker`, where workers may scale to zero."),
]


class Liveness(BaseModel):
    """The process handles requests."""

    status: str


class Health(Liveness):
    """The result of a probe. `warnings` are for the operator: the service works all the same."""

    checks: dict[str, str] = {}  # by name: ok
    warnings: list[str] = []


@router.get("/livez", summary="Liveness probe")
async def check_liveness() -> Liveness:
    """Return 200 as long as the process handles requests."""
    return Liveness(status="ok")


@router.get("/readyz", summary="Readiness probe", response_model=Health)
def check_readiness(
    store: Store, blobs: Blobs, exclude: _Excluded = frozenset()
) -> Health | Response:
    """Return 200 if the service can accept, run and keep a job; otherwise 503.

    The checks: the store has its functions, takes writes and has safe settings; pictures can be
    written; a worker was seen within the last minute. The body names what fails, and has the
    `warnings` in any case.
    """
    steps: dict[Check, Callable[[], object]] = {
        "functions": store.get_load,
        "store": store.check_writable,
        "store_settings": store.monitor.require_safe,
        "pictures": lambda: _check_pictures(blobs),
        "worker": lambda: _check_worker(store),
    }
    store.monitor.invalidate()
    steps = {name: step for name, step in steps.items() if name not in exclude}
    checks: dict[str, str] = dict.fromkeys(steps, "not checked")
    first_error: errors.Unavailable | None = None
    warnings: list[str] = []
    for name, step in steps.items():
        try:
            step()
            checks[name] = "ok"
        except errors.Unavailable as error:
            checks[name] = error.message
            first_error = first_error or error
            if name == "functions":
                break  # a silent store would keep each further check waiting, too
    else:
        warnings = _list_warnings(store)
    if first_error is not None:
        return problem(first_error, checks=checks, warnings=warnings)
    return Health(status="ok", checks=checks, warnings=warnings)


def _check_pictures(blobs: Blobs) -> None:
    if not blobs.is_writable():
        raise errors.StorageFull()


def _check_worker(store: JobStore) -> None:
    if not store.has_seen_worker():
        raise errors.NoWorker("No worker was seen within the last minute; start one.")


def _list_warnings(store: JobStore) -> list[str]:
    try:
        report = store.monitor.check()
    except errors.Unavailable:  # the checks say why
        return []
    warnings = [f"{problem}; accepted jobs may be lost" for problem in report.problems]
    warnings += report.risks
    warnings += [
        f"{name} cannot be checked: the server does not show it" for name in report.unchecked
    ]
    if store.operations.get_intake_pause():
        warnings.append("the operator has paused the service: it accepts no new jobs")
    identity = report.describe_identity()
    return warnings + ([identity] if identity else [])

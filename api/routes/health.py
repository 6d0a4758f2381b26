"""Probes: is this process alive, and can it serve requests?"""

from fastapi import APIRouter
from pydantic import BaseModel

from api.dependencies import Blobs, Store
from core import errors

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The result of a probe."""

    status: str


@router.get("/livez", summary="Liveness probe")
async def check_liveness() -> Health:
    """Return 200 as long as the process handles requests."""
    return Health(status="ok")


@router.get("/readyz", summary="Readiness probe")
def check_readiness(store: Store, blobs: Blobs) -> Health:
    """Return 200 if the store answers and pictures can be written; otherwise 503."""
    store.ping()
    if not blobs.is_writable():
        raise errors.StorageFull()
    return Health(status="ok")

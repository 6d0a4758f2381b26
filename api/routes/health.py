"""Is this process alive, and can it serve?"""

from fastapi import APIRouter
from pydantic import BaseModel

from api.dependencies import Blobs, Store
from core import errors

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """Only what an operator's probe needs."""

    status: str


@router.get("/livez", summary="Is the process alive?")
async def live() -> Health:
    """Always 200 while it answers."""
    return Health(status="ok")


@router.get("/readyz", summary="Can it serve?")
def ready(store: Store, blobs: Blobs) -> Health:
    """200 when the store answers and pictures can be written; else 503."""
    store.ping()
    if not blobs.is_writable():
        raise errors.StorageFull()
    return Health(status="ok")

"""Looks at jobs on an event loop: the one asynchronous reader of the store (docs/decisions/0002-synchronous-store.md).

Many jobs in one step, over one connection; and a second one, to hear which jobs change. Takes no step of a job's life.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import ResponseError

from core import errors
from core.jobs import store
from core.jobs.models import Job, QueuePosition, ServiceLoad
from core.jobs.serialization import parse_job, parse_load
from core.redis_client import (
    CONNECT_TIMEOUT_SECONDS,
    PREFIX,
    RETRIED_ERRORS,
    TIMEOUT_SECONDS,
    CircuitBreaker,
)

CHANGES = f"{PREFIX}changes"
SILENCE_SECONDS = 5.0  # after which the server is asked whether it is still there


class JobReader:
    """To be used on one event loop. Every method raises StoreUnavailable when the server does not answer in time."""

    def __init__(self, redis_url: str) -> None:
        self._redis: Any = Redis.from_url(
            redis_url,
            decode_responses=True,
            encoding_errors="replace",  # as core/redis_client.py
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
            retry=Retry(ConstantBackoff(0.05), 1, supported_errors=RETRIED_ERRORS),
        )

    async def close(self) -> None:
        """Give the connections back."""
        await self._redis.aclose()

    async def get_if_changed(self, known: Mapping[str, Job | None]) -> dict[str, Job | None]:
        """The jobs with these ids as they are now, None where there is none.

        known: each as it was seen last, if it was; one that has not changed since comes back as the same object.
        """
        words = [
            word for job_id, job in known.items() for word in (job_id, job.version if job else "")
        ]
        with _Unavailable():
            *rows, told = await self._step("read_changed", words)
        load = parse_load(told) if told else None
        return {
            job_id: _read(known[job_id], row, load) for job_id, row in zip(known, rows, strict=True)
        }

    async def watch_changes(self) -> AsyncIterator[str]:
        """Ids of jobs that have changed or are gone; at first an empty one, once nothing is missed any more."""
        with _Unavailable():
            async with self._redis.pubsub() as told:
                await told.subscribe(CHANGES)
                asked = False
                while True:
                    message = await told.get_message(timeout=SILENCE_SECONDS)
                    if message is None and asked:
                        raise errors.StoreUnavailable()
                    asked = message is None
                    if message is None:
                        await told.ping()
                    elif message["type"] == "message":
                        yield message["data"]
                    elif message["type"] == "subscribe":
                        yield ""

    async def _step(self, name: str, words: list[str | int]) -> Any:
        version, code = store.load_library()
        try:
            return await self._redis.fcall(f"{version}_{name}", 1, PREFIX, *words)
        except RuntimeError:  # the line was closed; the next one is new
            pass
        except ResponseError as error:
            if store.NO_FUNCTION not in str(error):
                raise
            await self._redis.function_load(code, replace=True)
        return await self._redis.fcall(f"{version}_{name}", 1, PREFIX, *words)


class _Unavailable(CircuitBreaker):
    """With uvloop's word for a line that was cut, which redis-py does not know."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if isinstance(error, RuntimeError):
            raise errors.StoreUnavailable() from error
        super().__exit__(kind, error, trace)


def _read(known: Job | None, row: list[Any], load: ServiceLoad | None) -> Job | None:
    if not row:
        return None
    if len(row) > 1:
        return parse_job(dict(zip(row[::2], row[1::2], strict=True)), load)
    assert known is not None, "its version was named"
    queue = (
        None
        if row[0] < 0 or load is None
        else QueuePosition(position=row[0], start_seconds=load.start_seconds(row[0]))
    )
    return known if queue == known.queue else known.model_copy(update={"queue": queue})

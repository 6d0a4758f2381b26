"""Who asks, and may they: before anything of a request's body is read. Knows paths, no route.

Where keys are required, all but the page, the documentation and the health checks needs one. Wrong, revoked, malformed
and missing keys get the same answer; too many wrong ones from one address get 429. Without keys everybody is the same
caller, without limits.
"""

import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.problems import problem
from api.rate_limit import RateLimiter, RequestKind
from core import errors
from core.auth.api_keys import ApiKey, ApiKeyStore
from core.jobs.models import LOCAL_OWNER, Priority

OPEN = frozenset({"/", "/livez", "/readyz", "/openapi.json", "/docs"})
OPEN_FOLDERS = ("/web/", "/j/", "/docs/ui/")
CACHE_SECONDS = 1.0  # a revoked key may work for so long
NOTED_SECONDS = 60.0


@dataclass(frozen=True)
class Caller:
    """Whose the request is: the owner of jobs and pictures, and the highest priority they may ask for."""

    owner: str = LOCAL_OWNER
    priority: Priority = Priority.HIGH


ANYBODY = Caller()

Admits = Callable[[], Awaitable[bool]]
"""Whether the caller still may: for an answer that goes on and on."""


async def _always() -> bool:
    return True


class Authentication:
    """Leaves the caller in the request's state, or answers itself: 401, 429, 503."""

    def __init__(self, app: ASGIApp, ring: "ApiKeyCache | None", rates: RateLimiter) -> None:
        """ring: None where keys are not required."""
        self._app, self._ring, self._rates = app, ring, rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            caller, admits = (
                (ANYBODY, _always)
                if self._ring is None
                else await self._admitted(scope, self._ring)
            )
        except errors.ImpastoError as error:
            answer = problem(error)
            if isinstance(error, errors.Unauthorized):
                answer.headers["WWW-Authenticate"] = "Bearer"
            await answer(scope, receive, send)
            return
        scope.setdefault("state", {}).update(caller=caller, admits=admits)
        await self._app(scope, receive, send)

    async def _admitted(self, scope: Scope, ring: "ApiKeyCache") -> tuple[Caller, Admits]:
        secret, address = (
            secret_in(Headers(scope=scope).getlist("authorization")),
            (scope["client"] or ("",))[0],
        )
        if not ring.knows(
            secret
        ):  # who has a key is not held up by who guesses at the same address
            await self._rates.check_guesses(address)
        try:
            key = await ring.find(secret)
        except errors.Unauthorized:
            await self._rates.note_guess(address)
            raise
        await self._rates.count(key.id, kind_of(scope["method"], scope["path"]))
        return Caller(key.id, key.priority), partial(ring.admits, secret)


def secret_in(authorization: list[str]) -> str:
    """What the headers give as a key. Raises Unauthorized where they give none."""
    scheme, _, secret = (authorization[0] if len(authorization) == 1 else "").partition(" ")
    if scheme.lower() != "bearer" or not secret:
        raise errors.Unauthorized()
    return secret


def is_open(path: str) -> bool:
    """Whether everybody may ask for it."""
    return path in OPEN or path.startswith(OPEN_FOLDERS)


def kind_of(method: str, path: str) -> RequestKind:
    """How the request is counted."""
    taking = ("/v1/jobs", "/v1/images", "/v1/batches", "/v1/estimate")
    submits = method == "POST" and (path in taking or path.endswith("/retry"))
    return RequestKind.SUBMISSION if submits else RequestKind.OTHER


@dataclass
class _Known:
    key: ApiKey
    until: float
    noted_at: float


class ApiKeyCache:
    """The keys that were used of late, for a second each: polling asks Redis once a second, not every time."""

    def __init__(self, keys: ApiKeyStore) -> None:
        self._keys = keys
        self._known: dict[
            str, _Known
        ] = {}  # by secret; only real ones, so no stranger can make it grow

    def knows(self, secret: str) -> bool:
        """Whether it was a real key when it was last used here."""
        return secret in self._known

    async def admits(self, secret: str) -> bool:
        """Whether the key is still good. While the store is away, nobody is turned out."""
        with suppress(errors.StoreUnavailable):
            try:
                await self.find(secret)
            except errors.Unauthorized:
                return False
        return True

    async def find(self, secret: str) -> ApiKey:
        """The key with this secret. Raises Unauthorized, StoreUnavailable."""
        known, now = self._known.get(secret), time.monotonic()
        if known is not None and now < known.until:
            return known.key
        key = await run_in_threadpool(self._keys.find, secret)
        if key is None:
            self._known.pop(secret, None)
            raise errors.Unauthorized()
        noted_at = known.noted_at if known else -math.inf
        if now - noted_at >= NOTED_SECONDS:
            noted_at = now
            await run_in_threadpool(self._keys.mark_used, secret)
        self._known[secret] = _Known(key, now + CACHE_SECONDS, noted_at)
        return key

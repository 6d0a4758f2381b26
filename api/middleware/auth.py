"""Authentication: who sends the request, and whether they may, before any byte of its body is read.

Where API keys are required, everything but the page, the documentation and the health checks needs
one. Wrong, revoked, malformed and missing keys get the same answer; too many wrong keys from one
address get 429. A valid key is accepted however many wrong ones came from its address: it has 256
random bits, so nobody finds one by guessing. Without required keys every client is the same caller,
without limits; only where work waits, each address takes turns. The routes under /v1/operator need
the key of an operator in any case.

This module knows paths, but no routes.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.error_page import error_page
from api.http.problems import problem
from api.http.root_path import service_path
from api.rate_limit import RateLimiter, RequestKind, normalize_address
from core import errors
from core.auth.api_keys import ApiKey, ApiKeyStore
from core.jobs import audit
from core.jobs.audit import Actor
from core.jobs.models import LOCAL_OWNER, Priority
from core.log import request_id

PUBLIC_PATHS = frozenset(
    {"/", "/operator", "/share", "/sw.js", "/favicon.ico"}
    | {"/livez", "/readyz", "/openapi.json", "/docs"}
)
PUBLIC_FOLDERS = ("/web/", "/web-", "/j/", "/docs/ui/")
OPERATOR_FOLDER = "/v1/operator/"  # for admin keys only
CACHE_SECONDS = 1.0  # a revoked key works at most this long
_READING = frozenset({"GET", "HEAD", "OPTIONS"})  # methods that change nothing
LAST_USED_SECONDS = 60.0  # precision of a key's last_used_at


@dataclass(frozen=True)
class Caller:
    """The owner of the jobs and images of a request, and the highest priority it may ask for."""

    owner: str = LOCAL_OWNER
    priority: Priority = Priority.HIGH
    address: str = ""  # of the client, where no keys are required and all clients are one owner
    pool: str | None = None  # of its key; its jobs run there and nowhere else

    @property
    def queue_name(self) -> str:
        """Whose turns the request takes where work waits: the key's, or else the address's."""
        return f"{self.owner} {normalize_address(self.address)}"


FindRefusal = Callable[[Scope, str], errors.RetryLater | None]
"""Returns why a request of a caller, by its queue name, is refused before it is counted."""

AccessCheck = Callable[[], Awaitable[bool]]
"""Returns whether the caller still has access: for a response that has no end."""


async def _always_has_access() -> bool:
    return True


class Authentication:
    """Adds `caller` and `has_access` to the request's state, or answers 401, 429 or 503."""

    def __init__(
        self,
        app: ASGIApp,
        keys: "ApiKeyCache",
        rate_limiter: RateLimiter,
        find_refusal: FindRefusal,
        *,
        is_required: bool,
    ) -> None:
        """is_required: whether every request needs a key."""
        self._app, self._keys, self._rate_limiter = app, keys, rate_limiter
        self._find_refusal, self._is_required = find_refusal, is_required

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or is_public(service_path(scope)):
            await self._app(scope, receive, send)
            return
        try:
            await self.identify(scope)
        except errors.ImpastoError as error:
            answer: Response = problem(error)
            if isinstance(error, errors.Unauthorized):
                answer = error_page(scope, 401) or answer
                answer.headers["WWW-Authenticate"] = "Bearer"
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def identify(self, scope: Scope, *, counts_failure: bool = True) -> None:
        """Add `caller` and `has_access` to the request's state, and count the request, once.

        counts_failure: whether to count a wrong key. Raises Unauthorized, AdminRequired,
        RateLimited, StoreUnavailable, RetryLater, Unavailable.
        """
        state, path = scope.setdefault("state", {}), service_path(scope)
        if "caller" in state:  # api/fast_path.py has identified and counted it
            return
        is_operator = path.startswith(OPERATOR_FOLDER)
        if not self._is_required and not is_operator:
            caller = Caller(address=_address_of(scope))
            state.update(caller=caller, has_access=_always_has_access)
            _set_actor(scope, caller.owner)
            return
        secret = read_bearer_token(Headers(scope=scope).getlist("authorization"))
        try:
            key = await self._keys.find(secret)
        except errors.Unauthorized:
            if counts_failure:
                await self._rate_limiter.count_auth_failure(_address_of(scope))
            raise
        caller = Caller(key.id, key.priority, pool=key.pool)
        refusal = None if is_operator else self._find_refusal(scope, caller.queue_name)
        if refusal is not None:
            raise refusal
        await self._rate_limiter.count_request(key.id, classify_request(scope["method"], path))
        if is_operator and not key.admin:
            _set_actor(scope, key.id)
            if scope["method"] not in _READING:
                await run_in_threadpool(self._keys.record_denial, scope["method"])
            raise errors.AdminRequired()
        _set_actor(scope, key.id, is_operator=is_operator)
        has_access = partial(self._keys.is_valid, secret)
        state.update(caller=caller, has_access=has_access)


def _set_actor(scope: Scope, caller_id: str, *, is_operator: bool = False) -> None:
    """Name the caller in the audit log, for what the rest of this request changes."""
    if scope["method"] not in _READING:
        address = _address_of(scope)
        audit.actor.set(Actor(caller_id, address, is_operator, request_id.get()))


def _address_of(scope: Scope) -> str:
    """Return the client's address: behind a trusted proxy, the forwarded one."""
    return (scope["client"] or ("",))[0]


def read_bearer_token(authorization: list[str]) -> str:
    """The token of the Authorization headers. Raises Unauthorized unless there is exactly one."""
    header = authorization[0] if len(authorization) == 1 else ""
    scheme, _, secret = header.partition(" ")
    if scheme.lower() != "bearer" or not secret:
        raise errors.Unauthorized()
    return secret


def is_public(path: str) -> bool:
    """Whether the path needs no API key."""
    return path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDERS)


def classify_request(method: str, path: str) -> RequestKind:
    """The limit that the request counts against."""
    submission_paths = ("/v1/jobs", "/v1/images", "/v1/batches", "/v1/estimate")
    is_update = method == "PATCH"  # it may decode a mask, as a submission does
    if is_update or (method == "POST" and (path in submission_paths or path.endswith("/retry"))):
        return RequestKind.SUBMISSION
    return RequestKind.OTHER


@dataclass
class _CachedKey:
    key: ApiKey
    expires_at: float
    marked_used_at: float


class ApiKeyCache:
    """Caches each recently used key for a second, so that polling reads Redis once a second.

    For one event loop.
    """

    def __init__(self, keys: ApiKeyStore) -> None:
        self._keys = keys
        # By secret. Only valid keys get an entry, so an untrusted client cannot make this grow.
        self._cached: dict[str, _CachedKey] = {}
        self._reads: dict[str, asyncio.Task[ApiKey]] = {}  # by secret; those that go on

    async def is_valid(self, secret: str) -> bool:
        """Whether the key still works.

        True while the store is unavailable, so that an outage ends no stream.
        """
        with suppress(errors.StoreUnavailable):
            try:
                await self.find(secret)
            except errors.Unauthorized:
                return False
        return True

    def record_denial(self, method: str) -> None:
        """Add to the audit log that an operator's route was refused. An outage hides nothing."""
        with suppress(errors.StoreUnavailable):
            self._keys.record_denial(method)

    async def find(self, secret: str) -> ApiKey:
        """The key with this secret. Raises Unauthorized, StoreUnavailable."""
        cached = self._cached.get(secret)
        if cached is not None and time.monotonic() < cached.expires_at:
            return cached.key
        # A crowd of requests with one key shares the read: it must not occupy all threads.
        read = self._reads.get(secret)
        if read is None:
            read = self._reads[secret] = asyncio.create_task(self._read(secret, cached))
            read.add_done_callback(lambda _: self._reads.pop(secret))
        return await asyncio.shield(read)  # a request that is canceled cancels no other

    async def _read(self, secret: str, cached: _CachedKey | None) -> ApiKey:
        now = time.monotonic()
        key = await run_in_threadpool(self._keys.find, secret)
        if key is None:
            self._cached.pop(secret, None)
            raise errors.Unauthorized()
        marked_used_at = cached.marked_used_at if cached else -math.inf
        if now - marked_used_at >= LAST_USED_SECONDS:
            marked_used_at = now
            await run_in_threadpool(self._keys.mark_used, secret)
        self._cached[secret] = _CachedKey(key, now + CACHE_SECONDS, marked_used_at)
        return key

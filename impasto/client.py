"""`Client`: one Impasto service.

    from impasto import Client

    with Client() as client:  # IMPASTO_URL and IMPASTO_KEY, or url= and key=
        job = client.submit("photo.jpg", "painting.jpg", size=512, preset="brushwork")
        client.wait(job.id, lambda job: print(job.status, job.progress and job.progress.value))
        Path("result.png").write_bytes(client.result(job.id))

Every request is safe to repeat, a submission because it carries an Idempotency-Key. So the client
retries a request if the connection was lost or the service is temporarily unavailable. A refusal
raises the error of impasto.errors with the same `code`; its `message` is the service's sentence.
"""

import base64
import hashlib
import json
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeGuard, TypeVar, cast
from urllib.parse import quote

import httpx2

from impasto import errors
from impasto.connection import describe_failure, describe_proxy, open_http
from impasto.models import (
    Batch,
    Estimate,
    Form,
    Format,
    Frame,
    Job,
    ModelInfo,
    Preset,
    Priority,
    Readiness,
    Status,
    SystemInfo,
    WorkerList,
    WorkerState,
    parse,
)

DEFAULT_URL = "http://127.0.0.1:8000"
RETRY_SECONDS = 60.0  # a restart of the service takes less
PAGE_JOBS = 100  # per request for a list
WAIT_SECONDS = 20  # of one long poll (`Prefer: wait`)
PROXY_SECONDS = 10  # for a proxy that was not heard of yet; an answer to a submission takes longer
_WORKERS = "/v1/operator/workers"
MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.25, 8.0  # between retries

Picture = str | os.PathLike[str] | bytes
"""A path, the bytes of a file, or the digest (`sha256:...`) of a picture that the service has."""

Size = tuple[int, int]
"""Width and height in px, enough for an estimate."""

Model = TypeVar("Model")
Followed = TypeVar("Followed", Job, Batch)


class Client:
    """A connection to one service. A context manager; safe to share between threads.

    Each method may raise ServiceUnreachable, Unauthorized, RetryLater or a subclass, BadInput or a
    subclass, and JobNotFound. All of them are ImpastoError.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        ca_file: str | os.PathLike[str] | None = None,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        """Use `url` and `key` or, if None, IMPASTO_URL and IMPASTO_KEY. An empty key is not sent.

        ca_file: PEM file of a CA to trust beside the system's; SSL_CERT_FILE, SSL_CERT_DIR,
        HTTPS_PROXY and NO_PROXY of the environment count, too. retry_seconds: how long a request is
        retried, 0 for no retry. Raises BadSettings.
        """
        if url is None:
            url = os.environ.get("IMPASTO_URL") or DEFAULT_URL
        if key is None:
            key = os.environ.get("IMPASTO_KEY", "")
        self.url = url.rstrip("/")
        self._retry_seconds = retry_seconds
        self._has_answered = False  # whether the service has ever answered this client
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = open_http(self.url, headers, ca_file)
        self._needs_probe = bool(describe_proxy(self.url))  # the proxy may hang

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ready(self) -> bool:
        """Return whether the service is ready. Sends one request and raises nothing."""
        return self._probe("/readyz")

    def alive(self) -> bool:
        """Return whether there is a service, ready or not. Sends one request, raises nothing."""
        return self._probe("/livez")

    def _probe(self, path: str) -> bool:
        try:
            return self._http.get(path, timeout=2).status_code == 200
        except httpx2.HTTPError:
            return False

    def readiness(self) -> Readiness:
        """Return whether the service is ready, and why not. Needs no key, and does not retry."""
        response = self._send("GET", "/readyz")
        try:
            body = response.json()
            fields = {name: body[name] for name in ("checks", "warnings")}
        except (ValueError, KeyError, TypeError):
            raise _not_ours(response) from None
        reason = None if response.is_success else str(body.get("detail"))
        return Readiness(ready=response.is_success, reason=reason, **fields)

    def operator(self, view: str, **parameters: Any) -> Any:
        """Return what GET /v1/operator/{view} shows, as in docs/api.md: status, hours, audit ...

        Raises Unauthorized, AdminRequired: the key must be one of an operator.
        """
        path = f"/v1/operator/{quote(view, safe='')}"
        return self._request("GET", path, params=_drop_none(parameters)).json()

    def link(self, job: Job) -> str:
        """Return the URL of the job."""
        return f"{self.url}{_job_path(job.id)}"

    # ------------------------------------------------------------------ submit

    def submit(
        self,
        content: Picture | None = None,
        styles: Picture | Sequence[Picture] = (),
        *,
        source: Picture | None = None,
        masks: Sequence[Picture] = (),
        style_masks: Sequence[Picture] = (),
        init_image: Picture | None = None,
        priority: Priority | str | None = None,
        deadline_seconds: float | None = None,
        reuse: bool | None = None,
        webhook: str | None = None,
        pool: str | None = None,
        **parameters: Any,
    ) -> Job:
        """Submit a job. `parameters` are those of docs/api.md and `preset`; None means the default.

        source: PNG of a result, whose pictures and parameters the job reuses; the other arguments
        override them. Without it, content and styles are required.
        Raises BadInput, ImageNotFound if the service lacks a digest, InvalidProvenance.
        """
        single = _drop_none({"content": content, "init_image": init_image, "from": source})
        pictures = [
            *single.items(),
            *(("style", style) for style in _as_sequence(styles)),
            *(("mask", mask) for mask in masks),
            *(("style_mask", mask) for mask in style_masks),
        ]
        options = {
            "priority": priority,
            "deadline_seconds": deadline_seconds,
            "reuse": reuse,
            "webhook": webhook,
            "pool": pool,
        }
        return _parse(Job, self._post_form("/v1/jobs", pictures, parameters, options))

    def submit_batch(
        self,
        contents: Sequence[Picture],
        styles: Sequence[Picture],
        *,
        priority: Priority | str | None = None,
        deadline_seconds: float | None = None,
        reuse: bool | None = None,
        webhook: str | None = None,
        pool: str | None = None,
        **parameters: Any,
    ) -> Batch:
        """Submit a job for each content with each style, in this order; all of them or none.

        Raises the same errors as `submit`.
        """
        pictures = [
            *(("content", content) for content in contents),
            *(("style", style) for style in styles),
        ]
        options = {
            "priority": priority,
            "deadline_seconds": deadline_seconds,
            "reuse": reuse,
            "webhook": webhook,
            "pool": pool,
        }
        return _parse(Batch, self._post_form("/v1/batches", pictures, parameters, options))

    def retry(
        self,
        job_id: str,
        *,
        continue_from_result: bool = False,
        webhook: str | None = None,
        **parameters: Any,
    ) -> Job:
        """Submit a job with the pictures and parameters of an ended job; `parameters` override.

        continue_from_result: start from its result, for more iterations, other weights or a larger
        size. Raises JobNotEnded, NoResult, ResultGone if its pictures have expired, BadSpec.
        """
        body = {
            "spec": _drop_none(parameters),
            "continue": continue_from_result,
            **_drop_none({"webhook": webhook}),
        }
        path = f"{_job_path(job_id)}/retry"
        return _parse(Job, self._request("POST", path, json=body, headers=_idempotency_header()))

    def upload(self, picture: Picture) -> str:
        """Upload a picture and return its digest, for use in many jobs. Raises BadImage."""
        response = self._request("POST", "/v1/images", files=[("image", _form_part(picture))])
        return _parse(_Upload, response).id

    def image(self, digest: str, *, width: int | None = None) -> bytes:
        """Download an upload, a job's input or a result by its digest. Raises ImageNotFound.

        width: a WebP that is at most so many px wide, instead of the file itself.
        """
        path = f"/v1/images/{quote(digest, safe='')}"
        return _read_picture(self._request("GET", path, params=_drop_none({"width": width})))

    def estimate(
        self,
        content: Picture | Size,
        styles: Sequence[Picture | Size],
        *,
        masks: Sequence[Picture | Size] = (),
        style_masks: Sequence[Picture | Size] = (),
        init_image: Picture | Size | None = None,
        **parameters: Any,
    ) -> Estimate:
        """Estimate a job's time and memory and when it would start, without submitting it.

        Uploads each picture that is given as a file; its size is enough. Raises NoWorker if no
        worker answers in time, and the same errors as `submit`.
        """
        lists = {
            "styles": [self._digest_or_size(style) for style in styles],
            "masks": [self._digest_or_size(mask) for mask in masks],
            "style_masks": [self._digest_or_size(mask) for mask in style_masks],
        }
        given = _drop_none({"content": content, "init_image": init_image})
        single = {name: self._digest_or_size(picture) for name, picture in given.items()}
        body = {**single, **lists, "spec": _drop_none(parameters)}
        return _parse(Estimate, self._request("POST", "/v1/estimate", json=body))

    def _digest_or_size(self, picture: Picture | Size) -> str | dict[str, int]:
        if isinstance(picture, tuple):
            width, height = picture
            return {"width": width, "height": height}
        return picture if _is_digest(picture) else self.upload(picture)

    # ------------------------------------------------------------------ the service

    def system(self) -> SystemInfo:
        """Return the workers, the queue and the limits of the service."""
        return _parse(SystemInfo, self._request("GET", "/v1/system"))

    def models(self) -> list[ModelInfo]:
        """Return the networks that a job may name as its `model`."""
        return _parse(_Models, self._request("GET", "/v1/models")).models

    def presets(self) -> list[Preset]:
        """Return the named sets of parameters, for `submit(preset=...)`."""
        return _parse(_Presets, self._request("GET", "/v1/presets")).presets

    def form(self) -> Form:
        """Return the JSON schema of each parameter and option, with the limits of the service."""
        return _parse(Form, self._request("GET", "/v1/form"))

    # ------------------------------------------------------------------ read and follow

    def job(self, job_id: str) -> Job:
        """Return the job as it is now."""
        return _parse(Job, self._request("GET", _job_path(job_id)))

    def jobs(self, *status: Status | str) -> Iterator[Job]:
        """Yield your jobs, newest first, optionally only those in these statuses.

        Requests a page at a time, as the caller iterates.
        """
        params = {"limit": PAGE_JOBS, "status": status}
        page = _parse(_Page, self._request("GET", "/v1/jobs", params=params))
        yield from page.jobs
        while page.next:
            # The link may begin with the proxy's path, which the base address has already.
            query = page.next.partition("?")[2]
            page = _parse(_Page, self._request("GET", f"/v1/jobs?{query}"))
            yield from page.jobs

    def batch(self, batch_id: str) -> Batch:
        """Return the batch as it is now. Raises BatchNotFound, also if all its jobs are deleted."""
        return _parse(Batch, self._request("GET", _batch_path(batch_id)))

    def follow(self, job_id: str, timeout_seconds: float | None = None) -> Iterator[Job]:
        """Yield the job now and after each change of status, progress, preview or parameters.

        Ends when the job has ended. Uses long polls if the service supports them; otherwise polls
        at the interval that the service asks for. Some changes may be skipped.
        Raises TimeoutError after timeout_seconds; the job goes on.
        """
        return self._follow(Job, _job_path(job_id), timeout_seconds)

    def wait(
        self,
        job_id: str,
        on_progress: Callable[[Job], object] | None = None,
        timeout_seconds: float | None = None,
    ) -> Job:
        """Return the job once it has ended, whatever its outcome.

        Calls `on_progress` with each state that `follow` yields. Raises TimeoutError after
        timeout_seconds; the job goes on.
        """
        for job in self.follow(job_id, timeout_seconds):
            if on_progress is not None:
                on_progress(job)
        return job

    def follow_batch(self, batch_id: str, timeout_seconds: float | None = None) -> Iterator[Batch]:
        """Yield the batch now and after each change, until all its jobs have ended."""
        return self._follow(Batch, _batch_path(batch_id), timeout_seconds)

    def wait_batch(
        self,
        batch_id: str,
        on_progress: Callable[[Batch], object] | None = None,
        timeout_seconds: float | None = None,
    ) -> Batch:
        """Return the batch once all its jobs have ended; otherwise like `wait`."""
        for batch in self.follow_batch(batch_id, timeout_seconds):
            if on_progress is not None:
                on_progress(batch)
        return batch

    def result(self, job_id: str, format: Format = "png", width: int | None = None) -> bytes:
        """Download the result. width: in px, for a smaller copy.

        Raises JobNotEnded, NoResult, ResultGone.
        """
        params = {"format": format, **_drop_none({"width": width})}
        path = f"{_job_path(job_id)}/result"
        # The service may answer with a link to its bucket, which gets no key of ours.
        response = self._request("GET", path, params=params, follow_redirects=True)
        picture = _read_picture(response)
        if response.history and not _has_digest(picture, response.history[0]):
            raise errors.ImageDamaged("The result was damaged on its way; download it again.")
        return picture

    def preview(self, job_id: str) -> bytes:
        """Download a small JPEG of the current state. Raises NoResult while there is none."""
        return _read_picture(self._request("GET", f"{_job_path(job_id)}/preview"))

    def frames(self, job_id: str) -> list[Frame]:
        """List the saved frames of the run, in order. Raises ResultGone."""
        return _parse(_Frames, self._request("GET", f"{_job_path(job_id)}/frames")).frames

    def frame(self, job_id: str, index: int) -> bytes:
        """Download one frame, a JPEG. Raises ImageNotFound if the service has dropped it."""
        return _read_picture(self._request("GET", f"{_job_path(job_id)}/frames/{index}"))

    def timelapse(self, job_id: str) -> bytes:
        """Download all frames as an animated WebP. Raises NoResult while there are none."""
        return _read_picture(self._request("GET", f"{_job_path(job_id)}/timelapse"))

    # ------------------------------------------------------------------ change

    def cancel(self, job_id: str) -> Job:
        """Cancel the job; the current picture becomes its result. No effect on an ended job."""
        return _parse(Job, self._request("POST", f"{_job_path(job_id)}/cancel"))

    def update(self, job_id: str, **weights: Any) -> Job:
        """Change parameters of a queued or running job; the next preview shows the effect.

        Raises BadSpec, JobAlreadyEnded.
        """
        return _parse(
            Job, self._request("PATCH", _job_path(job_id), json={"spec": _drop_none(weights)})
        )

    def pin(self, job_id: str, *, pinned: bool = True) -> Job:
        """Protect the job from expiry, or end the protection."""
        return _parse(Job, self._request("PATCH", _job_path(job_id), json={"pinned": pinned}))

    def cancel_batch(self, batch_id: str) -> Batch:
        """Cancel each job of the batch."""
        return _parse(Batch, self._request("POST", f"{_batch_path(batch_id)}/cancel"))

    def delete_batch(self, batch_id: str) -> None:
        """Delete each job of the batch."""
        self._delete(_batch_path(batch_id))

    def delete(self, job_id: str) -> None:
        """Delete the job and its pictures. No error if there is no such job."""
        self._delete(_job_path(job_id))

    def _delete(self, path: str) -> None:
        response = self._request("DELETE", path)
        if response.status_code != 204:
            raise _not_ours(response)

    # ------------------------------------------------------------------ for operators

    def workers(self) -> list[WorkerState]:
        """All live workers, and those that are suspended. Raises AdminRequired."""
        return _parse(WorkerList, self._request("GET", _WORKERS)).workers

    def pause_worker(self, worker_id: str) -> list[WorkerState]:
        """Let a worker ("*": all) take no new jobs until it is resumed. Raises WorkerNotFound."""
        return self._control_workers("pause", id=worker_id)

    def drain_worker(self, worker_id: str, *, release: bool = False) -> list[WorkerState]:
        """Let a worker's process ("*": all) end after its job. Raises WorkerNotFound.

        release: it hands its job to another worker at once.
        """
        return self._control_workers("drain", id=worker_id, release=release)

    def resume_worker(self, worker_id: str) -> list[WorkerState]:
        """Let a worker ("*": all) take jobs again. Raises WorkerNotFound."""
        return self._control_workers("resume", id=worker_id)

    def _control_workers(self, action: str, **choice: Any) -> list[WorkerState]:
        response = self._request("POST", f"{_WORKERS}/{action}", json=choice)
        return _parse(WorkerList, response).workers

    # ------------------------------------------------------------------ requests

    def _post_form(
        self,
        path: str,
        pictures: Sequence[tuple[str, Picture]],
        parameters: dict[str, Any],
        options: dict[str, Any],
    ) -> httpx2.Response:
        """Submit a multipart form: the spec and the options as text, then the pictures."""
        values = {"spec": _drop_none(parameters), **_drop_none(options)}
        texts = [(name, (None, _to_text(value))) for name, value in values.items()]
        files = [(name, _form_part(picture)) for name, picture in pictures]
        headers = _idempotency_header()
        return self._request("POST", path, files=[*texts, *files], headers=headers)

    def _follow(
        self, kind: type[Followed], path: str, timeout_seconds: float | None
    ) -> Iterator[Followed]:
        deadline = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
        headers: dict[str, str] = {}  # empty for the first request, which returns at once
        while (left := deadline - time.monotonic()) > 0 or not headers:
            if headers:
                headers["Prefer"] = f"wait={math.floor(min(left, WAIT_SECONDS))}"
            try:
                response = self._request("GET", path, deadline=deadline, headers=headers)
            except TimeoutError:
                break
            if response.status_code != 304:
                yield (current := _parse(kind, response))
                if current.has_ended:
                    return
            if headers and "wait" not in response.headers.get("Preference-Applied", ""):
                # The service (or a proxy) does not support long polls.
                time.sleep(min(_retry_after(response), max(0, deadline - time.monotonic())))
            headers = {"If-None-Match": response.headers.get("ETag", "")}
        raise TimeoutError(
            f"After {timeout_seconds:g} s the {kind.__name__.lower()} has not ended."
        )

    def _request(
        self, method: str, path: str, *, deadline: float = math.inf, **request: Any
    ) -> httpx2.Response:
        """Return the response; retries temporary errors for up to `retry_seconds`.

        Raises TimeoutError if the next retry would be after the deadline (a monotonic time).
        """
        # With tenacity this loop would be longer: Retry-After, the total limit and the deadline
        # each need a callback, and the timeout of a request changes with the time left.
        give_up_at = time.monotonic() + self._retry_seconds
        pause = MIN_PAUSE_SECONDS
        while True:
            left = deadline - time.monotonic()
            try:
                return self._request_once(method, path, timeout=_timeout(left), **request)
            except errors.ImpastoError as error:
                seconds = pause
                if isinstance(error, errors.RetryLater):
                    seconds = max(pause, error.retry_seconds)
                if not self._is_temporary(error) or time.monotonic() + seconds > give_up_at:
                    raise
                if time.monotonic() + seconds > deadline:
                    raise TimeoutError from error
            time.sleep(seconds)
            pause = min(2 * pause, MAX_PAUSE_SECONDS)

    def _request_once(self, method: str, path: str, **request: Any) -> httpx2.Response:
        response = self._send(method, path, **request)
        if response.is_success or response.status_code == 304:
            return response
        raise _to_error(response)

    def _send(self, method: str, path: str, **request: Any) -> httpx2.Response:
        """Return any answer. Raises ServiceUnreachable."""
        try:
            if self._needs_probe:
                self._http.get("/livez", timeout=PROXY_SECONDS)
                self._needs_probe = False
            response = self._http.request(method, path, **request)
        except httpx2.HTTPError as error:
            raise errors.ServiceUnreachable(describe_failure(error, self.url)) from error
        self._has_answered = True
        return response

    def _is_temporary(self, error: errors.ImpastoError) -> bool:
        """Whether a retry may succeed.

        A refused connection is temporary only if the service has answered before: it may be
        restarting. Otherwise the URL is probably wrong, and the caller should know at once.
        """
        if error.__cause__ is None:  # the service has answered, with an error
            return isinstance(error, errors.RetryLater)
        is_refused = isinstance(error.__cause__, httpx2.ConnectError | httpx2.ProxyError)
        hangs = self._needs_probe and isinstance(error.__cause__, httpx2.TimeoutException)
        return self._has_answered or not (is_refused or hangs)


def _to_error(response: httpx2.Response) -> errors.ImpastoError:
    """Convert an error response (application/problem+json) to an exception."""
    status = response.status_code
    try:
        code, message = (str(response.json()[name]) for name in ("code", "detail"))
    except (ValueError, KeyError, TypeError):
        if status in (502, 503, 504):  # from a proxy whose service is down
            return errors.Unavailable()
        return _not_ours(response)
    if code == "not_found" and "/v1/v1/" in response.request.url.path:
        message = "The service has no such path; give its URL without /v1 (--url, IMPASTO_URL)."
    if status == 401:
        message = "The service requires an API key; set IMPASTO_KEY to a valid one."
    kind = _KINDS.get(code) or _kind_by_status(status)
    error = kind(message)
    error.code = code
    for name in ("reason", "parameter"):
        if isinstance(value := response.json().get(name), str):
            setattr(error, name, value)
    if isinstance(error, errors.RetryLater):
        error.retry_seconds = _retry_after(response)
    return error


def _not_ours(response: httpx2.Response) -> errors.ImpastoError:
    """Return the error for an answer that no Impasto service gives, but a server on the way."""
    status, url = response.status_code, response.request.url
    origin = f"{url.scheme}://{url.netloc.decode()}"  # without a password
    if (location := response.headers.get("Location")) and response.is_redirect:
        return errors.ServiceUnreachable(
            f"{origin} redirects to {location}; give the service's own URL (--url, IMPASTO_URL)."
        )
    if status == 413:
        return errors.UploadTooLarge(
            f"A server before the service at {origin} refuses so large a request; send smaller "
            "pictures, or let its operator raise the limit (nginx: client_max_body_size)."
        )
    return errors.ServiceUnreachable(
        f"The server at {origin} is not an Impasto service: it answers {status} with "
        f"{response.headers.get('Content-Type', 'no content type')}. Check the URL (--url, "
        "IMPASTO_URL), and whether the network wants a login."
    )


def _kind_by_status(status: int) -> type[errors.ImpastoError]:
    """The class for a code that this version of the client does not know."""
    if status == 429:
        return errors.RetryLater
    if status == 503:
        return errors.Unavailable
    return errors.BadInput if status < 500 else errors.ImpastoError


def _walk(kind: type[errors.ImpastoError]) -> Iterator[tuple[str, type[errors.ImpastoError]]]:
    yield kind.code, kind
    for child in kind.__subclasses__():
        yield from _walk(child)


_KINDS = dict(_walk(errors.ImpastoError))


def _retry_after(response: httpx2.Response) -> float:
    """Seconds of the Retry-After header, at most a day; 1 if it is missing or a date."""
    value = response.headers.get("Retry-After", "")
    return min(float(value), 86_400.0) if value.isdecimal() else 1.0


def _timeout(left_seconds: float) -> httpx2.Timeout:
    """The timeouts of one request, with 1 s of reserve: a long poll may take all the time left."""
    return httpx2.Timeout(max(1, min(10, left_seconds)), read=max(1, min(60, left_seconds + 1)))


@dataclass(frozen=True)
class _Upload:
    id: str


@dataclass(frozen=True)
class _Models:
    models: list[ModelInfo]


@dataclass(frozen=True)
class _Presets:
    presets: list[Preset]


@dataclass(frozen=True)
class _Page:
    jobs: list[Job]
    next: str | None


@dataclass(frozen=True)
class _Frames:
    frames: list[Frame]


def _parse(kind: type[Model], response: httpx2.Response) -> Model:
    """Raises ServiceUnreachable for an answer of another server, such as a login page."""
    try:
        return cast(Model, parse(kind, response.json()))
    except ValueError as error:
        raise _not_ours(response) from error


def _read_picture(response: httpx2.Response) -> bytes:
    """Raises ServiceUnreachable for an answer of another server, such as a login page."""
    if not response.headers.get("Content-Type", "").startswith("image/"):
        raise _not_ours(response)
    return response.content


def _has_digest(data: bytes, response: httpx2.Response) -> bool:
    """Whether the data are those of the response's Repr-Digest (RFC 9530); True without one."""
    expected = response.headers.get("Repr-Digest")
    encoded = base64.b64encode(hashlib.sha256(data).digest()).decode()
    return expected in (None, f"sha-256=:{encoded}:")


def _job_path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _batch_path(batch_id: str) -> str:
    return f"/v1/batches/{quote(batch_id, safe='')}"


def _idempotency_header() -> dict[str, str]:
    return {"Idempotency-Key": secrets.token_hex(16)}


def _as_sequence(pictures: Picture | Sequence[Picture]) -> Sequence[Picture]:
    return [pictures] if isinstance(pictures, str | bytes | os.PathLike) else pictures


def _is_digest(picture: Picture) -> TypeGuard[str]:
    return isinstance(picture, str) and picture.startswith("sha256:")


def _form_part(picture: Picture) -> tuple[str | None, bytes | str]:
    """The form part of a picture: a file, or a text field with its digest."""
    if isinstance(picture, bytes):
        return "picture", picture
    if _is_digest(picture):
        return None, picture
    return "picture", Path(picture).read_bytes()


def _drop_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _to_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

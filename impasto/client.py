"""`Client`: one Impasto service.

    from impasto import Client

    with Client() as client:  # IMPASTO_URL and IMPASTO_KEY, or url= and key=
        job = client.submit("photo.jpg", "painting.jpg", size=512, preset="brushwork")
        client.wait(job.id, lambda job: print(job.status, job.progress and job.progress.value))
        Path("result.png").write_bytes(client.result(job.id))

Every request may be repeated safely, submissions by a fresh Idempotency-Key, so every request is: where the connection
was cut, and where the service says that it will be able later. What it refuses is raised as the error of core/errors.py
with its `code`, and its sentence as `message`.
"""

import json
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeGuard, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel

from core import errors
from core.config import Settings, read_settings
from core.images.validation import Format
from core.jobs.models import Batch, Frame, Job, Priority, Status
from core.jobs.service_info import Estimate, ModelInfo, SystemInfo
from core.style.presets import Preset

RETRY_SECONDS = 60.0  # a service that restarts is away for less
PAGE_JOBS = 100  # that a list is asked for at a time
WAIT_SECONDS = 20  # that the service may hold its answer back until the job has changed
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 8.0

Picture = str | os.PathLike[str] | bytes
"""A file by its path, a file's bytes, or the digest (`sha256:...`) of a picture that is at the service."""

Size = tuple[int, int]
"""Width and height in px, where a picture itself is not needed."""

Answer = TypeVar("Answer", bound=BaseModel)
Followed = TypeVar("Followed", Job, Batch)


class Client:
    """One service. A context manager. Methods raise ServiceUnreachable, Unauthorized, Later and its kinds, BadInput and

    its kinds, JobNotFound: all are ImpastoError. May be used by several threads.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        """url, key: else IMPASTO_URL and IMPASTO_KEY; an empty key is not sent.

        patience_seconds: how long a request is repeated. Raises BadSettings.
        """
        if url is None or key is None:
            environment = read_settings(Settings)
            url = environment.url if url is None else url
            key = environment.key.get_secret_value() if key is None else key
        self.url, self._patience_seconds = url.rstrip("/"), retry_seconds
        self._has_answered = False
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # No proxy from the environment: the service is usually on this machine.
        self._http = httpx2.Client(base_url=self.url, headers=headers, trust_env=False)

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
        """Give the connections back."""
        self._http.close()

    def ready(self) -> bool:
        """Whether an Impasto answers there and can serve. Asks once, and raises nothing."""
        try:
            return self._http.get("/readyz", timeout=2).status_code == 200
        except httpx2.HTTPError:
            return False

    def link(self, job: Job) -> str:
        """The job's own address."""
        return f"{self.url}{_job(job.id)}"

    # ------------------------------------------------------------------ making jobs

    def submit(
        self,
        content: Picture | None = None,
        styles: Picture | Sequence[Picture] = (),
        *,
        source: Picture | None = None,
        masks: Sequence[Picture] = (),
        init_image: Picture | None = None,
        priority: Priority | str | None = None,
        deadline_seconds: float | None = None,
        reuse: bool | None = None,
        webhook: str | None = None,
        **parameters: Any,
    ) -> Job:
        """A new job. `parameters` are those of docs/api.md, and `preset`; what is None is left to the service.

        source: a result's PNG, to run again but for what else is given; else content and styles are needed.
        Raises BadInput with the service's words, ImageNotFound for a digest that is not there, BadRecord.
        """
        single = _set({"content": content, "init_image": init_image, "from": source})
        pictures = [
            *single.items(),
            *(("style", style) for style in _many(styles)),
            *(("mask", mask) for mask in masks),
        ]
        wishes = {
            "priority": priority,
            "deadline_seconds": deadline_seconds,
            "reuse": reuse,
            "webhook": webhook,
        }
        return _read(Job, self._send("/v1/jobs", pictures, parameters, wishes))

    def submit_batch(
        self,
        contents: Sequence[Picture],
        styles: Sequence[Picture],
        *,
        priority: Priority | str | None = None,
        deadline_seconds: float | None = None,
        reuse: bool | None = None,
        webhook: str | None = None,
        **parameters: Any,
    ) -> Batch:
        """A new job for each content with each style, in this order; all of them or none. Raises as `submit`."""
        pictures = [
            *(("content", content) for content in contents),
            *(("style", style) for style in styles),
        ]
        wishes = {
            "priority": priority,
            "deadline_seconds": deadline_seconds,
            "reuse": reuse,
            "webhook": webhook,
        }
        return _read(Batch, self._send("/v1/batches", pictures, parameters, wishes))

    def retry(
        self,
        job_id: str,
        *,
        continue_from_result: bool = False,
        webhook: str | None = None,
        **parameters: Any,
    ) -> Job:
        """A new job with the pictures and parameters of one that has ended, but for the parameters given.

        continue_from_result: begin with its result, for more iterations, other weights or a larger size.
        Raises JobNotEnded, NoResult, ResultGone where its pictures are no longer kept, BadSpec.
        """
        change = {
            "spec": _set(parameters),
            "continue": continue_from_result,
            **_set({"webhook": webhook}),
        }
        return _read(
            Job, self._ask("POST", f"{_job(job_id)}/retry", json=change, headers=_fresh_key())
        )

    def upload(self, picture: Picture) -> str:
        """Send a picture once, to name it by its digest in many jobs. Raises BadImage and its kinds."""
        answer = self._ask("POST", "/v1/images", files=[("image", _part(picture))])
        return str(answer.json()["id"])

    def image(self, digest: str) -> bytes:
        """The file of an upload, of a job's picture or of a result. Raises ImageNotFound."""
        return self._ask("GET", f"/v1/images/{quote(digest, safe='')}").content

    def estimate(
        self,
        content: Picture | Size,
        styles: Sequence[Picture | Size],
        *,
        masks: Sequence[Picture | Size] = (),
        init_image: Picture | Size | None = None,
        **parameters: Any,
    ) -> Estimate:
        """What a job would take, and when it would begin. A file is uploaded for it; its size does as well.

        Raises NoWorker where none tells in time, and as `submit`.
        """
        lists = {
            "styles": [self._sketched(one) for one in styles],
            "masks": [self._sketched(one) for one in masks],
        }
        single = {"content": content, "init_image": init_image}
        sketch = {name: self._sketched(one) for name, one in _set(single).items()}
        return _read(
            Estimate,
            self._ask("POST", "/v1/estimate", json={**sketch, **lists, "spec": _set(parameters)}),
        )

    def _sketched(self, picture: Picture | Size) -> str | dict[str, int]:
        if isinstance(picture, tuple):
            return dict(zip(("width", "height"), picture, strict=True))
        return picture if _is_digest(picture) else self.upload(picture)

    # ------------------------------------------------------------------ the service

    def system(self) -> SystemInfo:
        """Who works, what waits, what may be sent."""
        return _read(SystemInfo, self._ask("GET", "/v1/system"))

    def models(self) -> list[ModelInfo]:
        """The networks that a job may name as its `model`."""
        return [
            ModelInfo.model_validate(one) for one in self._ask("GET", "/v1/models").json()["models"]
        ]

    def presets(self) -> list[Preset]:
        """Parameters that go together, for `submit(preset=...)`."""
        told = self._ask("GET", "/v1/presets").json()["presets"]
        return [Preset(one["name"], one["description"], one["spec"]) for one in told]

    # ------------------------------------------------------------------ following them

    def job(self, job_id: str) -> Job:
        """How far it is."""
        return _read(Job, self._ask("GET", _job(job_id)))

    def jobs(self, *status: Status | str) -> Iterator[Job]:
        """All that are yours, newest first; or those in one of these statuses. Asks for more as you go."""
        page = self._ask("GET", "/v1/jobs", params={"limit": PAGE_JOBS, "status": status}).json()
        yield from map(Job.model_validate, page["jobs"])
        while page["next"]:
            page = self._ask("GET", page["next"]).json()
            yield from map(Job.model_validate, page["jobs"])

    def batch(self, batch_id: str) -> Batch:
        """How far its jobs are. Raises BatchNotFound, also when all of them are deleted."""
        return _read(Batch, self._ask("GET", _batch(batch_id)))

    def follow(self, job_id: str, timeout_seconds: float | None = None) -> Iterator[Job]:
        """The job now, and after each change that is seen, until it has ended: status, progress, previews, parameters.

        A service that can holds its answers back until there is one; else it is asked as often as it says.
        Raises TimeoutError when that takes longer; the job goes on.
        """
        return self._follow(Job, _job(job_id), timeout_seconds)

    def wait(
        self,
        job_id: str,
        on_progress: Callable[[Job], object] | None = None,
        timeout_seconds: float | None = None,
    ) -> Job:
        """The job when it has ended, however it did. `on_progress` is called with each state that `follow` sees.

        Raises TimeoutError when that takes longer; the job goes on.
        """
        for job in self.follow(job_id, timeout_seconds):
            if on_progress is not None:
                on_progress(job)
        return job

    def follow_batch(self, batch_id: str, timeout_seconds: float | None = None) -> Iterator[Batch]:
        """The same of a batch, until all of its jobs have ended."""
        return self._follow(Batch, _batch(batch_id), timeout_seconds)

    def wait_batch(
        self,
        batch_id: str,
        on_progress: Callable[[Batch], object] | None = None,
        timeout_seconds: float | None = None,
    ) -> Batch:
        """The batch when all of its jobs have ended; as `wait`."""
        for batch in self.follow_batch(batch_id, timeout_seconds):
            if on_progress is not None:
                on_progress(batch)
        return batch

    def result(self, job_id: str, format: Format = "png", width: int | None = None) -> bytes:
        """The finished picture's file. width: in px, to have it smaller. Raises JobNotEnded, NoResult, ResultGone."""
        params = {"format": format, **_set({"width": width})}
        return self._ask("GET", f"{_job(job_id)}/result", params=params).content

    def preview(self, job_id: str) -> bytes:
        """A small JPEG of how far it is. Raises NoResult while there is none."""
        return self._ask("GET", f"{_job(job_id)}/preview").content

    def frames(self, job_id: str) -> list[Frame]:
        """What there is of small pictures of the run, in their order. Raises ResultGone."""
        return [
            Frame.model_validate(one)
            for one in self._ask("GET", f"{_job(job_id)}/frames").json()["frames"]
        ]

    def frame(self, job_id: str, index: int) -> bytes:
        """One of them, a JPEG. Raises ImageNotFound where it has gone to make room."""
        return self._ask("GET", f"{_job(job_id)}/frames/{index}").content

    def timelapse(self, job_id: str) -> bytes:
        """All of them as an animated WebP. Raises NoResult while there are none."""
        return self._ask("GET", f"{_job(job_id)}/timelapse").content

    # ------------------------------------------------------------------ changing them

    def cancel(self, job_id: str) -> Job:
        """Ask the job to stop; what it has painted is its result. One that has ended stays as it is."""
        return _read(Job, self._ask("POST", f"{_job(job_id)}/cancel"))

    def update(self, job_id: str, **weights: Any) -> Job:
        """Give a job that waits or runs other weights; the next preview shows them. Raises BadSpec, JobAlreadyEnded."""
        return _read(Job, self._ask("PATCH", _job(job_id), json={"spec": _set(weights)}))

    def pin(self, job_id: str, *, pinned: bool = True) -> Job:
        """Keep the job for good, or no longer."""
        return _read(Job, self._ask("PATCH", _job(job_id), json={"pinned": pinned}))

    def cancel_batch(self, batch_id: str) -> Batch:
        """Ask each of its jobs to stop."""
        return _read(Batch, self._ask("POST", f"{_batch(batch_id)}/cancel"))

    def delete_batch(self, batch_id: str) -> None:
        """Forget each of its jobs."""
        self._ask("DELETE", _batch(batch_id))

    def delete(self, job_id: str) -> None:
        """Forget the job and its pictures; one that is not there is no error."""
        self._ask("DELETE", _job(job_id))

    # ------------------------------------------------------------------ within

    def _send(
        self,
        path: str,
        pictures: Sequence[tuple[str, Picture]],
        parameters: dict[str, Any],
        wishes: dict[str, Any],
    ) -> httpx2.Response:
        texts = [
            (name, (None, _text(value)))
            for name, value in {"spec": _set(parameters), **_set(wishes)}.items()
        ]
        files = [(name, _part(picture)) for name, picture in pictures]
        return self._ask("POST", path, files=[*texts, *files], headers=_fresh_key())

    def _follow(
        self, kind: type[Followed], path: str, timeout_seconds: float | None
    ) -> Iterator[Followed]:
        end = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
        headers: dict[str, str] = {}
        while (left := end - time.monotonic()) > 0 or not headers:
            if headers:
                headers["Prefer"] = f"wait={math.floor(min(left, WAIT_SECONDS))}"
            try:
                answer = self._ask("GET", path, end=end, headers=headers)
            except TimeoutError:
                break
            if answer.status_code != 304:
                yield (now := _read(kind, answer))
                if now.has_ended:
                    return
            if headers and "wait" not in answer.headers.get("Preference-Applied", ""):
                time.sleep(min(_retry_seconds(answer), max(0, end - time.monotonic())))
            headers = {"If-None-Match": answer.headers.get("ETag", "")}
        raise TimeoutError(
            f"After {timeout_seconds:g} s the {kind.__name__.lower()} has not ended."
        )

    def _ask(
        self, method: str, path: str, *, end: float = math.inf, **request: Any
    ) -> httpx2.Response:
        """The answer; asked for again while that may help and patience lasts. Raises TimeoutError at the end."""
        until, pause = time.monotonic() + self._patience_seconds, FIRST_PAUSE_SECONDS
        while True:
            left = end - time.monotonic()
            try:
                return self._ask_once(method, path, timeout=_timeout(left), **request)
            except errors.ImpastoError as error:
                seconds = max(
                    pause, error.retry_seconds if isinstance(error, errors.RetryLater) else 0
                )
                if not self._passes(error) or time.monotonic() + seconds > until:
                    raise
                if time.monotonic() + seconds > end:
                    raise TimeoutError from error
            time.sleep(seconds)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _ask_once(self, method: str, path: str, **request: Any) -> httpx2.Response:
        try:
            answer = self._http.request(method, path, **request)
        except httpx2.HTTPError as error:
            raise errors.ServiceUnreachable(
                f"No Impasto service answers at {self.url}; start one with `impasto up`, or set --url."
            ) from error
        self._has_answered = True
        if answer.is_success or answer.status_code == 304:
            return answer
        raise _refusal(answer, self.url)

    def _passes(self, error: errors.ImpastoError) -> bool:
        """Whether it may be over the next time. Where nobody has ever been, nobody is waited for."""
        if error.__cause__ is None:
            return isinstance(error, errors.RetryLater)
        return self._has_answered or not isinstance(error.__cause__, httpx2.ConnectError)


def _refusal(answer: httpx2.Response, url: str) -> errors.ImpastoError:
    """What the service says, as an error. Codes that we do not know yet are taken by their status."""
    try:
        code, words = (str(answer.json()[name]) for name in ("code", "detail"))
    except (ValueError, KeyError, TypeError):
        if answer.status_code in (502, 503, 504):  # of a proxy, whose service is away
            return errors.Unavailable()
        return errors.ServiceUnreachable(f"What answers at {url} is not an Impasto service.")
    if answer.status_code == 401:
        words = "The service asks for an API key; set IMPASTO_KEY to one that it knows."
    kind = _KINDS.get(code)
    if kind is None:
        families = {429: errors.RetryLater, 503: errors.Unavailable}
        kind = families.get(
            answer.status_code, errors.BadInput if answer.status_code < 500 else errors.ImpastoError
        )
    error = kind(words)
    error.code = code
    if isinstance(error, errors.RetryLater):
        error.retry_seconds = _retry_seconds(answer)
    return error


def _kinds(kind: type[errors.ImpastoError]) -> Iterator[tuple[str, type[errors.ImpastoError]]]:
    yield kind.code, kind
    for child in kind.__subclasses__():
        yield from _kinds(child)


_KINDS = dict(_kinds(errors.ImpastoError))


def _retry_seconds(answer: httpx2.Response) -> float:
    """When to ask again; a second where nobody says, or in the words of a proxy (a date)."""
    told = answer.headers.get("Retry-After", "")
    return min(float(told), 86_400.0) if told.isdecimal() else 1.0


def _timeout(left_seconds: float) -> httpx2.Timeout:
    """For one request; a moment longer than there is time, for an answer that is held back just so long."""
    return httpx2.Timeout(max(1, min(10, left_seconds)), read=max(1, min(60, left_seconds + 1)))


def _read(kind: type[Answer], answer: httpx2.Response) -> Answer:
    return kind.model_validate_json(answer.content)


def _job(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _batch(batch_id: str) -> str:
    return f"/v1/batches/{quote(batch_id, safe='')}"


def _fresh_key() -> dict[str, str]:
    return {"Idempotency-Key": secrets.token_hex(16)}


def _many(pictures: Picture | Sequence[Picture]) -> Sequence[Picture]:
    return [pictures] if isinstance(pictures, str | bytes | os.PathLike) else pictures


def _is_digest(picture: Picture) -> TypeGuard[str]:
    return isinstance(picture, str) and picture.startswith("sha256:")


def _part(picture: Picture) -> tuple[str | None, bytes | str]:
    """A part of a form: a file, or the text of a digest."""
    if isinstance(picture, bytes):
        return "picture", picture
    if _is_digest(picture):
        return None, picture
    return "picture", Path(picture).read_bytes()


def _set(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

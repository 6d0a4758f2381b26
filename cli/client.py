"""A client of the REST API, as the commands use it: submit, follow, fetch.

Knows the contract (docs/api.md), nothing else.
"""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2

from core import errors
from core.images import Format
from core.jobs import Job

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 60.0  # a service that restarts is away for less
TRIES = 5  # of a submission


class Client:
    """One service. A context manager."""

    def __init__(self, url: str, key: str = "") -> None:
        """key: sent with every request, unless it is empty."""
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # No proxy from the environment: the service is usually on this machine.
        timeout = httpx2.Timeout(10, read=60)
        self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def ready(self) -> bool:
        """Whether an Impasto answers there and can serve."""
        try:
            return self._http.get("/readyz", timeout=2).status_code == 200
        except httpx2.HTTPError:
            return False

    def link(self, job: Job) -> str:
        """The job's own address."""
        return f"{self.url}/v1/jobs/{job.id}"

    def submit(
        self,
        content: Path,
        styles: Sequence[Path],
        knobs: Mapping[str, str],
        masks: Sequence[Path] = (),
        init_image: Path | None = None,
    ) -> Job:
        """Upload the pictures and create the job; once more where the answer was lost: under its key it is one job.

        Raises BadInput with the service's words.
        """
        fields = [("content", content), *(("style", style) for style in styles), *(("mask", mask) for mask in masks)]
        fields += [("init_image", init_image)] if init_image else []
        files = [(name, path.read_bytes()) for name, path in fields]
        key = {"Idempotency-Key": secrets.token_hex(16)}
        answer = self._persistently("POST", "/v1/jobs", files=files, data=dict(knobs), headers=key)
        return Job.model_validate_json(answer.content)

    def get(self, job_id: str) -> Job:
        """Raises BadInput when there is no such job."""
        return Job.model_validate_json(self._ask("GET", f"/v1/jobs/{job_id}").content)

    def follow(self, job_id: str) -> Iterator[Job]:
        """The job now, and every half second until it has ended. A service that restarts meanwhile is waited for."""
        job, last_answer, pause = self.get(job_id), time.monotonic(), POLL_SECONDS
        while True:
            yield job
            if job.status.ended:
                return
            time.sleep(pause)
            pause = POLL_SECONDS
            try:
                job, last_answer = self.get(job_id), time.monotonic()
            except errors.RateLimited as error:
                pause = error.retry_seconds
            except (errors.ServiceUnreachable, errors.Unavailable):
                if time.monotonic() - last_answer > PATIENCE_SECONDS:
                    raise

    def result(self, job_id: str, kind: Format = "png") -> bytes:
        """The finished picture's file."""
        return self._ask("GET", f"/v1/jobs/{job_id}/result", params={"format": kind}).content

    def cancel(self, job_id: str) -> Job:
        """Ask the job to stop."""
        return Job.model_validate_json(self._ask("POST", f"/v1/jobs/{job_id}/cancel").content)

    def _persistently(self, method: str, path: str, **request: Any) -> httpx2.Response:
        """The same again, a few times, where the line was cut or the service asks for patience."""
        for tried in range(1, TRIES):
            try:
                return self._ask(method, path, **request)
            except errors.Later as error:
                if error.retry_seconds > PATIENCE_SECONDS:
                    raise
                time.sleep(error.retry_seconds)
            except errors.ServiceUnreachable as error:
                never_there = tried == 1 and isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout)
                if never_there or error.__cause__ is None:
                    raise
                time.sleep(tried)
        return self._ask(method, path, **request)

    def _ask(self, method: str, path: str, **request: Any) -> httpx2.Response:
        try:
            answer = self._http.request(method, path, **request)
        except httpx2.HTTPError as error:
            raise errors.ServiceUnreachable(
                f"No Impasto service answers at {self.url}; start one with `impasto up`, or set --url."
            ) from error
        if answer.is_success:
            return answer
        try:
            code, words = (str(answer.json()[name]) for name in ("code", "detail"))
        except (ValueError, KeyError, TypeError):
            raise errors.ServiceUnreachable(f"What answers at {self.url} is not an Impasto service.") from None
        if answer.status_code == 401:
            raise errors.Unauthorized("The service asks for an API key; set IMPASTO_KEY to one that it knows.")
        wait_seconds = float(answer.headers.get("Retry-After", 2))
        if code == errors.RateLimited.code:
            raise errors.RateLimited(words, wait_seconds)
        if answer.status_code == 503:
            raise errors.Unavailable(words, wait_seconds)
        raise errors.BadInput(words) if answer.status_code < 500 else errors.ImpastoError(words)

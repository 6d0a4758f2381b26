"""Builds the event body of an ended job and signs it, after the Standard Webhooks specification."""

import hashlib
import hmac
import json
from base64 import b64decode, b64encode
from dataclasses import dataclass
from datetime import datetime

from standardwebhooks import Webhook

from core import errors
from core.jobs.models import Job, Status


@dataclass(frozen=True)
class Signer:
    """Signs webhooks with a secret per owner, derived from the service's secret.

    secret: `whsec_…`; empty if the service sends no webhooks. previous_secret: the one before,
    which receivers may still verify with.
    """

    secret: str = ""
    previous_secret: str = ""

    def owner_secret(self, owner: str) -> str:
        """The secret that an owner's receivers verify with. Raises BadSettings without a secret."""
        if not self.secret:
            raise errors.BadSettings(
                "IMPASTO_WEBHOOK_SECRET is not set; docs/operations.md tells how to make one."
            )
        return _derive_secret(self.secret, owner)

    def sign(self, job: Job, body: str, now: datetime) -> dict[str, str]:
        """Return the headers that identify and sign the event.

        The id is the same for every try. While there is a previous secret, the header carries two
        signatures, and a receiver accepts either. now: with its time zone.
        """
        message_id = f"msg_{job.id.removeprefix('job_')}"
        secrets = [self.owner_secret(job.owner)]
        if self.previous_secret:
            secrets.append(_derive_secret(self.previous_secret, job.owner))
        signatures = [Webhook(secret).sign(message_id, now, body) for secret in secrets]
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signatures),
        }


def _derive_secret(secret: str, owner: str) -> str:
    key = b64decode(secret.removeprefix("whsec_"))
    derived = hmac.digest(key, f"impasto webhooks {owner}".encode(), hashlib.sha256)
    return "whsec_" + b64encode(derived).decode()


def event_body(job: Job) -> str:
    """The JSON body for an ended job. It is small: its links lead to the rest, through the API."""
    assert job.completed_at is not None, "only an ended job has an event"
    path = f"{job.root_path}/v1/jobs/{job.id}"
    links = {"self": path}
    if job.outputs and not job.images_deleted:
        links["result"] = f"{path}/result"
    data = {
        "id": job.id,
        "status": job.status,
        "created_at": _format_time(job.created_at),
        "completed_at": _format_time(job.completed_at),
        "error": None if job.error is None else job.error.model_dump(),
        "links": links,
    }
    event = {
        "type": f"job.{Status(job.status)}",
        "timestamp": _format_time(job.completed_at),
        "data": data,
    }
    return json.dumps(event, separators=(",", ":"))


def _format_time(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")

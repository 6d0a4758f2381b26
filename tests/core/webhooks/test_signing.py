"""The event body of an ended job, and its signature."""

import json
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook

from core import errors
from core.jobs.models import Job, JobError, JobInput, Output, Priority, Status
from core.webhooks.signing import Signer, event_body

SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SIGNER = Signer(SECRET)


def test_without_a_secret_there_are_no_owner_secrets() -> None:
    with pytest.raises(errors.BadSettings, match="IMPASTO_WEBHOOK_SECRET"):
        Signer().owner_secret("anna")


def test_each_owner_has_a_different_secret() -> None:
    anna, ben = SIGNER.owner_secret("anna"), SIGNER.owner_secret("ben")

    assert SIGNER.owner_secret("anna") == anna
    assert len({anna, ben, SECRET}) == 3
    assert Signer("whsec_" + "A" * 32).owner_secret("anna") != anna


def _job(**fields: object) -> Job:
    at = datetime(2026, 11, 23, 12, 0, 0, 250_000, UTC)
    values = dict.fromkeys(Job.model_fields)
    values |= {
        "id": "job_" + "a" * 26,
        "version": 3,
        "created_at": at,
        "completed_at": at,
        "priority": Priority.NORMAL,
    }
    values |= {
        "input": JobInput(content="sha256:a", styles=["sha256:b"], spec={}),
        "outputs": [],
        "owner": "anna",
        "root_path": "",
    }
    return Job.model_construct(**{**values, **fields})  # type: ignore[arg-type]


def test_the_body_has_the_status_the_error_and_the_links() -> None:
    output = Output(id="sha256:c", content_type="image/png", width=4, height=3, size_bytes=9)
    succeeded = json.loads(event_body(_job(status=Status.SUCCEEDED, outputs=[output])))
    failed = json.loads(
        event_body(
            _job(status=Status.FAILED, error=JobError(code="diverged", message="The run diverged."))
        )
    )

    assert (succeeded["type"], succeeded["timestamp"]) == (
        "job.succeeded",
        "2026-11-23T12:00:00.250000Z",
    )
    assert succeeded["data"] == {
        "id": "job_" + "a" * 26,
        "status": "succeeded",
        "created_at": "2026-11-23T12:00:00.250000Z",
        "completed_at": "2026-11-23T12:00:00.250000Z",
        "error": None,
        "links": {"self": f"/v1/jobs/job_{'a' * 26}", "result": f"/v1/jobs/job_{'a' * 26}/result"},
    }
    assert (failed["type"], failed["data"]["error"]) == (
        "job.failed",
        {"code": "diverged", "message": "The run diverged.", "reason": None},
    )
    assert [*failed["data"]["links"]] == ["self"]


def test_during_a_rotation_both_the_old_and_the_new_secret_verify() -> None:
    job = _job(status=Status.CANCELED)
    body = event_body(job)
    new = Signer("whsec_" + "A" * 32, previous_secret=SECRET)
    headers = new.sign(job, body, datetime.now(UTC))

    for secret in (SIGNER.owner_secret("anna"), new.owner_secret("anna")):
        assert Webhook(secret).verify(body, headers) == json.loads(body)
    with pytest.raises(Exception, match="No matching signature"):
        Webhook(new.owner_secret("ben")).verify(body, headers)
    assert new.owner_secret("anna") != SIGNER.owner_secret("anna")


def test_the_signature_verifies_with_the_secret_of_the_owner_only() -> None:
    job = _job(status=Status.CANCELED)
    body, now = event_body(job), datetime.now(UTC)
    headers = SIGNER.sign(job, body, now)

    assert Webhook(SIGNER.owner_secret("anna")).verify(body, headers) == json.loads(body)
    for secret, text in (
        (SIGNER.owner_secret("ben"), body),
        (SIGNER.owner_secret("anna"), body + " "),
    ):
        with pytest.raises(Exception, match="No matching signature"):
            Webhook(secret).verify(text, headers)
    later = SIGNER.sign(job, body, datetime.fromtimestamp(now.timestamp() + 60, UTC))
    assert later["webhook-id"] == headers["webhook-id"]
    assert later["webhook-signature"] != headers["webhook-signature"]

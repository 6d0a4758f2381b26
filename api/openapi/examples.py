"""An example of every request and response body, for the OpenAPI document.

Tests compare each with its schema (test_document.py) and with a real response (test_examples.py).
"""

import json
from typing import Any

from fastapi.sse import format_sse_event

from api.routes.form import describe_form
from api.settings import ApiSettings
from core.config import Settings
from core.jobs.models import Status
from core.style.presets import PRESETS
from core.style.spec import parse_spec

JOB_ID, BATCH_ID = "job_" + "k3v7qd2m5x" * 2 + "ab2cd3", "batch_" + "m5xk3v7qd2" * 2 + "ab2cd3"
PHOTO, PAINTING, RESULT = (f"sha256:{digit * 64}" for digit in "abc")
WEIGHTS = "d" * 64
PREVIEW = f"sha256:{'e' * 64}"

_PARAMETERS = {"preset": "brushwork", "size": 512}
_SELF = f"/v1/jobs/{JOB_ID}"

JOB: dict[str, Any] = {
    "id": JOB_ID,
    "status": "succeeded",
    "version": 42,
    "created_at": "2026-11-23T14:00:00Z",
    "started_at": "2026-11-23T14:00:01Z",
    "completed_at": "2026-11-23T14:00:31Z",
    "expires_at": "2026-12-23T14:00:31Z",
    "deadline_at": None,
    "pinned": False,
    "priority": "normal",
    "pool": None,
    "attempt": 1,
    "max_attempts": 3,
    "retried_from": None,
    "reused_from": None,
    "batch_id": None,
    "cancel_requested": False,
    "input": {
        "content": PHOTO,
        "styles": [PAINTING],
        "masks": [],
        "style_masks": [],
        "init_image": None,
        "spec": parse_spec(_PARAMETERS).for_pictures().model_dump(),
    },
    "queue": None,
    "progress": {
        "value": 1.0,
        "scale": 5,
        "scales": 5,
        "iteration": 245,
        "iterations": 245,
        "iterations_per_second": 12.5,
        "seconds_left": 0.0,
        "loss": {"total": 1.6, "content": 0.6, "style": 1.0, "tv": 0.0},
        "spec_updates": [],
        "style_crops": [[41, 38, 983, 720]],
    },
    "preview": PREVIEW,
    "outputs": [
        {
            "id": RESULT,
            "content_type": "image/png",
            "width": 512,
            "height": 384,
            "size_bytes": 421_337,
        }
    ],
    "model": {"name": "vgg19", "sha256": WEIGHTS},
    "error": None,
    "metrics": {
        "load_seconds": 0.2,
        "run_seconds": 29.6,
        "planned_seconds": 31.0,
        "planned_bytes": 1_210_000_000.0,
        "loss_total": 1.6,
        "loss_content": 0.6,
        "loss_style": 1.0,
        "loss_tv": 0.0,
    },
    "warnings": [],
    "links": {
        "self": _SELF,
        "events": f"{_SELF}/events",
        "retry": f"{_SELF}/retry",
        "preview": f"{_SELF}/preview",
        "result": f"{_SELF}/result",
        "frames": f"{_SELF}/frames",
        "timelapse": f"{_SELF}/timelapse",
    },
}

WAITING: dict[str, Any] = {
    **JOB,
    "status": "queued",
    "version": 1,
    **dict.fromkeys(("started_at", "completed_at", "expires_at", "progress", "preview", "model")),
    "attempt": 0,
    "queue": {"position": 3, "start_seconds": 64.0, "waits_for": None, "has_worker": True},
    "outputs": [],
    "metrics": {},
    "links": {"self": _SELF, "events": f"{_SELF}/events", "cancel": f"{_SELF}/cancel"},
}


CANCELED: dict[str, Any] = {
    **WAITING,
    "status": "canceled",
    "version": 2,
    "completed_at": "2026-11-23T14:00:09Z",
    "expires_at": "2026-12-23T14:00:09Z",
    "queue": None,
    "links": {"self": _SELF, "events": f"{_SELF}/events", "retry": f"{_SELF}/retry"},
}


def _batch(job: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": BATCH_ID,
        "created_at": "2026-11-23T14:00:00Z",
        "counts": {**dict.fromkeys(Status, 0), job["status"]: 1},
        "jobs": [{**job, "batch_id": BATCH_ID}],
        "warnings": [],
        "links": {"self": f"/v1/batches/{BATCH_ID}", "cancel": f"/v1/batches/{BATCH_ID}/cancel"},
    }


_WORKER = {
    "device": "cpu",
    "precision": "bfloat16",
    "network": "vgg19",
    "networks": ["vgg19"],
    "max_size_px": 6144,
}
_WORKER_STATE = {
    "id": "gpu-1/cuda:0",
    "name": "gpu-1:4711",
    "info": _WORKER,
    "pools": ["", "team=a"],
    "suspension": None,
    "seconds_since_heartbeat": 0.4,
    "job_id": JOB_ID,
    "owner": "key_" + "k3" * 8,
    "progress": 0.42,
}

_DEFAULT_FORM = describe_form(
    ApiSettings.model_construct(), Settings.model_construct()
).model_dump()

_KEY = {
    "id": "key_" + "k3" * 8,
    "name": "Ada's laptop",
    "priority": "normal",
    "admin": False,
    "pool": None,
    "created_at": "2026-11-28T09:00:00Z",
    "last_used_at": None,
    "revoked": False,
}
_HOUR = {
    "start": "2026-11-28T09:00:00Z",
    "succeeded": 41,
    "failed": 1,
    "canceled": 2,
    "expired": 0,
    "started": 44,
    "wait_p50_seconds": 1.9,
    "wait_p95_seconds": 12.8,
    "failures": {},  # by error code: {"out_of_memory": 1}
}

# Response bodies, by the name of their schema.
RESPONSES: dict[str, Any] = {
    "JobResource": JOB,
    "JobPage": {"jobs": [JOB], "next": "/v1/jobs?limit=1&cursor=17"},
    "BatchResource": _batch(WAITING),
    "StoredImage": {
        "id": PHOTO,
        "width": 1024,
        "height": 768,
        "size_bytes": 310_224,
        "warnings": [],
    },
    "PresetList": {
        "presets": [
            {"name": name, "description": preset.description, "spec": dict(preset.parameters)}
            for name, preset in PRESETS.items()
        ]
    },
    "Form": _DEFAULT_FORM,
    "Liveness": {"status": "ok"},
    "Health": {"status": "ok", "checks": {"store": "ok"}, "warnings": []},
    "FrameList": {
        "frames": [
            {"index": 0, "iteration": 1, "scale": 1, "seconds": 0.21, "url": f"{_SELF}/frames/0"}
        ]
    },
    "Estimate": {
        "seconds": 41.2,
        "memory_bytes": 1_210_000_000,
        "width": 512,
        "height": 384,
        "scales": [
            {
                "width": 512,
                "height": 384,
                "iterations": 45,
                "seconds": 41.2,
                "memory_bytes": 1_210_000_000,
                "tile_px": None,
            }
        ],
        "refused": None,
        "device": "cpu",
        "network": "vgg19",
        "queue": {"position": 3, "start_seconds": 64.0, "waits_for": None, "has_worker": True},
    },
    "SystemInfo": {
        "version": "0.1.0",
        "queued": 3,
        "running": 1,
        "average_job_seconds": 21.4,
        "workers": [{"busy": True, "info": _WORKER}],
        "limits": _DEFAULT_FORM["limits"],
        "store": {"problems": [], "risks": [], "unchecked": [], "identity": "same"},
        "intake_paused_at": None,
        "queue_work_seconds": 64.2,
        "out_of_service": [],
    },
    "OperatorStatus": {
        "intake_paused_at": None,
        "queue_work_seconds": 64.2,
        "queued": 3,
        "running": 1,
        "average_job_seconds": 21.4,
        "workers": [_WORKER_STATE],
        "webhooks_pending": 0,
        "disk": {"total_bytes": 10**12, "free_bytes": 6 * 10**11, "quota_bytes": None},
        "expiry": {
            "with_pictures": 812,
            "expiring_within_a_day": 27,
            "records_without_pictures": 90,
            "pictures": 4310,
        },
    },
    "HourList": {"total": _HOUR, "hours": [_HOUR]},
    "QueuePage": {
        "jobs": [
            {
                "id": JOB_ID,
                "owner": _KEY["id"],
                "position": 0,
                "priority": "normal",
                "created_at": "2026-11-28T09:15:00Z",
                "size": 512,
                "pool": None,
            }
        ],
        "total": 3,
    },
    "JobState": {"id": JOB_ID, "status": "queued", "position": 0, "cancel_requested": False},
    "IntakeState": {"paused_at": None},
    "AuditPage": {
        "entries": [
            {
                "id": "1795857300000-0",
                "log": "callers",
                "time": "2026-11-28T09:15:00Z",
                "actor": _KEY["id"],
                "address": "192.0.2.7",
                "action": "job.create",
                "target": JOB_ID,
                "outcome": "created",
                "request_id": "5f0c9a1be0a74d31",
                "details": {},
            }
        ],
        "before": "1795857300000-0",
    },
    "WorkerList": {"workers": [_WORKER_STATE]},
    "KeyUsageList": {
        "keys": [
            {
                "key": _KEY,
                "usage": {"queued": 2, "running": 1, "jobs": 90, "uploads": 4, "upload_bytes": 9},
            }
        ],
        "limits": {
            "submissions_per_minute": 600,
            "requests_per_minute": 6000,
            "max_jobs": 2000,
            "max_streams": 200,
            "max_uploads": 10_000,
            "max_upload_bytes": 5 * 10**9,
        },
    },
    "CreatedKey": {"key": _KEY, "secret": "impasto_" + "a2b3" * 13},
    "ModelList": {
        "models": [
            {"name": "auto", "workers": 1, "resolves_to": ["vgg19"]},
            {"name": "vgg19", "workers": 1, "resolves_to": []},
        ]
    },
}

# Response bodies that differ from the example of their schema, by operation and status.
RESPONSES_OF_OPERATION: dict[str, Any] = {
    "POST /v1/jobs 202": WAITING,
    "POST /v1/jobs/{job_id}/retry 202": {
        **WAITING,
        "retried_from": "job_" + "q5n2w7t4r6" * 2 + "ab2cd3",
    },
    "PATCH /v1/jobs/{job_id} 200": WAITING,
    "POST /v1/operator/jobs/{job_id}/cancel 200": {
        "id": JOB_ID,
        "status": "canceled",
        "position": None,
        "cancel_requested": False,
    },
    "POST /v1/operator/workers/drain 200": {
        "workers": [
            {
                **_WORKER_STATE,
                "suspension": {
                    "kind": "draining",
                    "since": "2026-11-28T09:15:00Z",
                    "reason": "",
                    "device": "",
                    "release": False,
                },
            }
        ]
    },
    "POST /v1/operator/intake/pause 200": {"paused_at": "2026-11-28T09:15:00Z"},
    "GET /readyz 200": {
        "status": "ok",
        "checks": dict.fromkeys(
            ("functions", "store", "store_settings", "pictures", "worker"), "ok"
        ),
        "warnings": [],
    },
    "POST /v1/jobs/{job_id}/cancel 200": CANCELED,
    "POST /v1/batches/{batch_id}/cancel 200": _batch(CANCELED),
}


_RUNNING_LINKS = {
    name: link for name, link in JOB["links"].items() if name not in ("retry", "result")
}
_RUNNING_LINKS["cancel"] = f"{_SELF}/cancel"

# The events for a client that knows version 40: progress with a preview, then the end.
_EVENTS: list[tuple[str, dict[str, Any], str | None]] = [
    ("progress", {"version": 41, "progress": JOB["progress"]}, None),
    ("preview", {"version": 41, "preview": PREVIEW, "links": _RUNNING_LINKS}, "41"),
    ("status", JOB, "42"),
]
STREAM = format_sse_event(retry=2000).decode() + "".join(
    format_sse_event(event=name, data_str=json.dumps(data), id=number).decode()
    for name, data, number in _EVENTS
)

_FORM, _JSON = "multipart/form-data", "application/json"

# Request bodies, by operation and media type. In a form, a file name stands for the file.
BODIES: dict[str, dict[str, Any]] = {
    "POST /v1/jobs": {
        _FORM: {"content": "photo.jpg", "style": ["painting.jpg"], **_PARAMETERS},
        _JSON: {"content": PHOTO, "styles": [PAINTING], "spec": _PARAMETERS},
    },
    "POST /v1/batches": {
        _FORM: {"content": ["one.jpg", "two.jpg"], "style": ["painting.jpg"], **_PARAMETERS},
        _JSON: {"contents": [PHOTO], "styles": [PAINTING], "spec": _PARAMETERS},
    },
    "POST /v1/images": {_FORM: {"image": "photo.jpg"}},
    "POST /v1/jobs/{job_id}/retry": {_JSON: {"spec": {"strength": 0.8}}},
    "PATCH /v1/jobs/{job_id}": {_JSON: {"spec": {"strength": 0.9}}},
    "POST /v1/operator/workers/pause": {_JSON: {"id": "gpu-1/cuda:0"}},
    "POST /v1/operator/workers/drain": {_JSON: {"id": "gpu-1/cuda:0"}},
    "POST /v1/operator/workers/resume": {_JSON: {"id": "*"}},
    "POST /v1/operator/keys": {_JSON: {"name": "Ada's laptop", "priority": "normal"}},
    "POST /v1/operator/jobs/{job_id}/move": {_JSON: {"to": "first"}},
    "POST /v1/estimate": {
        _JSON: {
            "content": {"width": 1200, "height": 900},
            "styles": [{"width": 640, "height": 480}],
            "spec": _PARAMETERS,
        }
    },
}

# Path parameters.
PARAMETERS: dict[str, Any] = {
    "job_id": JOB_ID,
    "batch_id": BATCH_ID,
    "digest": PHOTO,
    "index": 0,
    "key_id": _KEY["id"],
}

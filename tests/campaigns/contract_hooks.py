"""Hooks for schemathesis: use real pictures, jobs and digests in half of the valid requests.

A schema cannot express them. Requests that are meant to be invalid stay unchanged.
"""

import itertools
import json
import os
import random
from typing import Any

import schemathesis

from core.jobs.models import is_job_id

PICTURES = [bytes.fromhex(picture) for picture in json.loads(os.environ["CONTRACT_PICTURES"])]
JOBS, DIGESTS = json.loads(os.environ["CONTRACT_JOBS"]), json.loads(os.environ["CONTRACT_DIGESTS"])

ENDED = json.loads(os.environ["CONTRACT_ENDED"])
_STREAM_SUFFIX = "/events"

dice = random.Random(os.environ["CONTRACT_SEED"])
jobs = itertools.cycle(JOBS)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Replace generated values by real ones, and stream events only of an ended job."""
    if case.meta is not None and case.meta.generation.mode.is_negative:
        _make_lists_invalid(case.query or {})
    if case.path.endswith(_STREAM_SUFFIX) and is_job_id(str(case.path_parameters.get("job_id"))):
        case.path_parameters["job_id"] = ENDED
        return
    if case.meta is None or not case.meta.generation.mode.is_positive or dice.random() < 0.5:
        return
    if case.meta.phase.name.value != "stateful":  # stateful tests take ids from earlier responses
        if "job_id" in case.path_parameters:
            case.path_parameters["job_id"] = next(jobs)
        if "digest" in case.path_parameters:
            case.path_parameters["digest"] = dice.choice(DIGESTS)
    if isinstance(case.body, dict):
        _insert_real_values(
            case.body, PICTURES if case.media_type == "multipart/form-data" else DIGESTS
        )
        # Without this, schemathesis validates the body again and treats every file as invalid.
        case._sync_validated_hashes()


def _make_lists_invalid(query: dict[str, Any]) -> None:
    """Make lists in the query invalid: in a URL, [] disappears and [7] is the same as 7."""
    for name, value in query.items():
        if isinstance(value, list):
            query[name] = [*value, "not a number"]


def _insert_real_values(body: dict[str, Any], values: list[Any]) -> None:
    names = ("content", "style", "mask", "style_mask", "init_image", "image")
    for name in (*names, *(f"{name}s" for name in names)):
        if isinstance(body.get(name), list):
            body[name] = [dice.choice(values) for _ in body[name]]
        elif name in body:
            body[name] = dice.choice(values)

"""For schemathesis: what a schema cannot say. Real pictures as files, real jobs and digests as ids, half of the time.

Only in what is meant to be right; what is meant to be wrong stays as it was made.
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
_WAITS_FOR_THE_END = "/events"

chance = random.Random(os.environ["CONTRACT_SEED"])
jobs = itertools.cycle(JOBS)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Exchange what was made up; and never watch a job that does not end."""
    if case.meta is not None and case.meta.generation.mode.is_negative:
        _spoil(case.query or {})
    if case.path.endswith(_WAITS_FOR_THE_END) and is_job_id(
        str(case.path_parameters.get("job_id"))
    ):
        case.path_parameters["job_id"] = ENDED
        return
    if case.meta is None or not case.meta.generation.mode.is_positive or chance.random() < 0.5:
        return
    if case.meta.phase.name.value != "stateful":  # there, an id comes from an earlier answer
        if "job_id" in case.path_parameters:
            case.path_parameters["job_id"] = next(jobs)
        if "digest" in case.path_parameters:
            case.path_parameters["digest"] = chance.choice(DIGESTS)
    if isinstance(case.body, dict):
        _exchange(case.body, PICTURES if case.media_type == "multipart/form-data" else DIGESTS)
        case._sync_validated_hashes()  # else it looks whether the body is still right, and takes any file for wrong


def _spoil(query: dict[str, Any]) -> None:
    """A list, where one value is asked for, is wrong by its type; but in an address [] is nothing, and [7] is 7."""
    for name, value in query.items():
        if isinstance(value, list):
            query[name] = [*value, "no number"]


def _exchange(body: dict[str, Any], things: list[Any]) -> None:
    for name in ("content", "contents", "style", "styles", "mask", "masks", "init_image", "image"):
        if isinstance(body.get(name), list):
            body[name] = [chance.choice(things) for _ in body[name]]
        elif name in body:
            body[name] = chance.choice(things)

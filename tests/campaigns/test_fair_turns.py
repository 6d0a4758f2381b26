"""Short runs of the campaign with its control, its checker, and a client that gives up."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fair_turns import OBSERVED, violations
from keyed_api import KeyedApi

Play = Callable[..., Any]


def test_heavy_uploads_of_one_caller_delay_anothers_by_one_at_most(play: Play) -> None:
    result = play("fair_turns", "--work", "uploads", "--side", "2000", "--count", "3")

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.reliability
def test_heavy_results_of_one_caller_delay_anothers_by_one_at_most(play: Play) -> None:
    result = play("fair_turns", "--work", "results", "--side", "1000", "--count", "3")

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.reliability
@pytest.mark.parametrize(("work", "side"), [("uploads", "2000"), ("results", "1000")])
def test_the_campaign_fails_with_a_plain_limiter(play: Play, work: str, side: str) -> None:
    arguments = ["--work", work, "--side", side, "--count", "1", "--without", "turns"]
    result = play("fair_turns", *arguments)

    assert result.returncode == 1
    assert "heavy requests passed a small one" in result.stdout


@pytest.mark.parametrize(
    ("small", "violation"),
    [
        ([{"status": 201, "passed": 2}], ""),
        ([{"status": 201, "passed": 3}], "3 heavy requests passed"),
        ([{"status": 503, "passed": 0}], "got 503"),
        ([], "no small request"),
    ],
)
def test_the_checker_finds_each_violation(
    tmp_path: Path, small: list[dict[str, Any]], violation: str
) -> None:
    history = tmp_path / "history.jsonl"
    history.write_text("\n".join(json.dumps(line) for line in [{"work": "uploads"}, *small]))

    assert [violation in line for line in violations(history)] == [True] * bool(violation)


def test_a_client_that_disconnects_leaves_its_place(
    tmp_path: Path, until: Callable[..., None]
) -> None:
    """With real connections, and without any decoder that could become free."""
    busy = "import api.submissions.pictures as p\np.decoders = q.FairQueue('pictures', 0)\n"
    log = tmp_path / "api.log"
    body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    body += b"\xff\xd8\xff\r\n--b--\r\n"
    head = (
        "POST /v1/images HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with KeyedApi(tmp_path, OBSERVED + busy, API_KEYS="off") as api:
        with socket.create_connection(("127.0.0.1", api.port)) as connection:
            connection.sendall(head.encode() + body)
            until(lambda: "turn waits" in log.read_text(), "the upload waits")
        until(lambda: "POST /v1/images 499" in log.read_text(), "the upload has left", seconds=15)

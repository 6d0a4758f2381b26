"""Authentication: which keys are valid, what each may do, and how often."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from keyed_api import KeyedApi
from starlette.testclient import TestClient

from api.app import create_app
from api.fair_queue import FairQueue
from api.middleware import auth
from api.middleware.admission import SubmissionLoad
from api.middleware.auth import ApiKeyCache, classify_request
from api.rate_limit import RequestKind
from api.settings import ApiSettings
from core import errors
from core.auth.api_keys import ApiKeyStore
from core.config import Settings
from core.jobs.models import Priority, new_job_id
from core.jobs.store import JobStore
from core.redis_client import PREFIX

Serve = Callable[..., TestClient]


@pytest.fixture
def serve(valkey: Any, tmp_path: Path, connect: Any) -> Serve:
    """Start an API that requires keys, unless the settings say otherwise."""

    def start(url: str = valkey.url, **own: Any) -> TestClient:
        settings = ApiSettings(**{"keys": "required", **own})
        client: TestClient = connect(
            create_app(Settings(redis_url=url, data_dir=tmp_path), settings)
        )
        return client

    return start


@pytest.fixture
def bearer(keys: ApiKeyStore) -> Callable[..., dict[str, str]]:
    """Make the Authorization header of a new key."""

    def make(priority: Priority = Priority.NORMAL) -> dict[str, str]:
        return {"Authorization": f"Bearer {keys.create('a', priority)[1]}"}

    return make


@pytest.mark.parametrize(
    ("keys", "host", "required"),
    [
        ("auto", "127.0.0.1", False),
        ("auto", "::1", False),
        ("auto", "localhost", False),
        ("auto", "127.8.8.8", False),
        ("auto", "0.0.0.0", True),  # noqa: S104
        ("auto", "::", True),
        ("auto", "192.168.1.2", True),
        ("auto", "impasto.example", True),
        ("required", "127.0.0.1", True),
        ("off", "0.0.0.0", False),  # noqa: S104
    ],
)
def test_keys_are_required_unless_the_api_listens_on_loopback(
    keys: Any, host: str, required: bool
) -> None:
    assert ApiSettings(keys=keys, host=host).is_key_required == required


def test_every_wrong_key_gets_the_same_answer(serve: Serve, keys: ApiKeyStore, bearer: Any) -> None:
    client, (key, secret) = serve(), keys.create("revoked")
    keys.revoke(key.id)
    unknown = secret[:-4] + ("aaaa" if not secret.endswith("aaaa") else "bbbb")
    texts = [
        "",
        f"Bearer {secret}",
        f"Bearer {unknown}",
        "Bearer",
        "Bearer x",
        f"Basic {secret}",
        secret,
        "Bearer é",
    ]
    wrong = [{}, *({"Authorization": text.encode()} for text in texts)]
    ways = [
        ("GET", "/v1/jobs"),
        ("POST", "/v1/jobs"),
        ("GET", f"/v1/jobs/{new_job_id()}"),
        ("PUT", "/v1/nothing"),
    ]

    answers = [client.request(*way, headers=headers) for way in ways for headers in wrong]

    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1
    for answer in answers:
        del answer.headers["x-request-id"]
    assert len({tuple(sorted(answer.headers.items())) for answer in answers}) == 1
    assert (answers[0].headers["www-authenticate"], answers[0].json()["code"]) == (
        "Bearer",
        "unauthorized",
    )
    assert "x-content-type-options" in answers[0].headers
    assert client.get("/v1/jobs", headers=bearer()).status_code == 200


def test_a_request_with_two_keys_is_refused(serve: Serve, bearer: Any) -> None:
    headers = [*bearer().items(), *bearer().items()]
    assert serve().get("/v1/jobs", headers=headers).status_code == 401


def test_only_the_page_and_the_health_checks_need_no_key(serve: Serve, store: JobStore) -> None:
    """The OpenAPI document gives the routes, so a new route cannot be public by mistake."""
    client = serve()
    store.heartbeat("worker")  # the service is ready
    for path in (
        "/",
        "/operator",
        "/sw.js",
        "/favicon.ico",
        "/livez",
        "/readyz",
        "/openapi.json",
        "/docs",
        "/j/job_x",
        "/web/app.js",
        "/web/style.css",
    ):
        assert client.get(path).status_code == 200, path
    document = client.get("/openapi.json").json()

    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            needs_key = path not in ("/livez", "/readyz")
            assert (client.request(method, path).status_code == 401) == needs_key, (method, path)
            assert (operation.get("security") == [{"key": []}]) == needs_key
    assert {"type": "http", "scheme": "bearer"}.items() <= document["components"][
        "securitySchemes"
    ]["key"].items()


def test_the_body_is_not_read_before_the_key_is_checked(serve: Serve) -> None:
    def body() -> Iterator[bytes]:
        yield b"x"
        pytest.fail("the body was read")

    assert serve().post("/v1/images", content=body()).status_code == 401


def test_without_required_keys_any_request_is_accepted(client: TestClient) -> None:
    """In the OpenAPI document only the operator's routes do, and an unneeded key does no harm."""
    assert client.get("/v1/jobs", headers={"Authorization": "Bearer x"}).status_code == 200
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) == path.startswith("/v1/operator/"), path


@pytest.mark.parametrize("required", ["required", "off"])
def test_the_operators_routes_need_an_admin_key_in_any_case(
    serve: Serve, keys: ApiKeyStore, required: str
) -> None:
    """The OpenAPI document gives the routes, so none can be forgotten."""
    client = serve(keys=required)
    secrets = {admin: keys.create("a", Priority.HIGH, admin=admin)[1] for admin in (False, True)}
    paths = client.get("/openapi.json").json()["paths"]
    routes = [
        (method, path)
        for path, operations in paths.items()
        if path.startswith("/v1/operator/")
        for method in operations
    ]
    assert len(routes) >= 9
    for method, path in [*routes, ("get", "/v1/operator/nothing")]:
        assert client.request(method, path).json()["code"] == "unauthorized", path
        for admin, secret in secrets.items():
            headers = {"Authorization": f"Bearer {secret}"}
            answer = client.request(method, path, headers=headers)
            assert (answer.status_code == 403) == (not admin), path
            assert admin or answer.json()["code"] == "admin_required"


def test_a_revoked_key_works_for_at_most_a_second(
    serve: Serve, keys: ApiKeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(auth.time, "monotonic", lambda: now)
    client, (key, secret) = serve(), keys.create("a")
    headers = {"Authorization": f"Bearer {secret}"}
    assert client.get("/v1/jobs", headers=headers).status_code == 200
    keys.revoke(key.id)

    monkeypatch.setattr(auth.time, "monotonic", lambda: now + 1)
    assert client.get("/v1/jobs", headers=headers).status_code == 401
    assert keys.list()[0].last_used_at is not None


def test_a_crowd_of_requests_with_one_key_shares_one_read(
    keys: ApiKeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, secret = keys.create("a")
    find, reads, may_read = keys.find, list[str](), threading.Event()

    def spy(text: str) -> Any:
        reads.append(text)
        assert may_read.wait(10)
        return find(text)

    monkeypatch.setattr(keys, "find", spy)

    async def run() -> list[Any]:
        cache = ApiKeyCache(keys)
        texts = [*[secret] * 20, *["wrong"] * 20]
        asked = [asyncio.create_task(cache.find(text)) for text in texts]
        await asyncio.sleep(0)
        asked[0].cancel()
        may_read.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert not cache._reads
        return answers

    canceled, *answers = asyncio.run(run())
    assert isinstance(canceled, asyncio.CancelledError)
    assert len({id(key) for key in answers[:19]}) == 1
    assert answers[0].name == "a"
    assert all(isinstance(error, errors.Unauthorized) for error in answers[19:])
    assert sorted(reads) == sorted([secret, "wrong"])


def test_a_key_cannot_exceed_its_highest_priority(serve: Serve, files: Any, bearer: Any) -> None:
    client = serve()

    def submit(highest: Priority, **parameters: str) -> Any:
        return client.post(
            "/v1/jobs", files=files, data={"size": "64", **parameters}, headers=bearer(highest)
        )

    refused = submit(Priority.NORMAL, priority="high")
    assert (refused.status_code, refused.json()["code"]) == (422, "bad_spec")
    assert "this API key may ask for normal at most" in refused.json()["detail"]
    assert submit(Priority.HIGH, priority="high").json()["priority"] == "high"
    assert [submit(highest).json()["priority"] for highest in Priority] == [
        "normal",
        "normal",
        "low",
    ]
    assert submit(Priority.LOW, priority="normal").status_code == 422


def test_a_retry_has_the_old_priority_unless_the_keys_highest_is_lower_now(
    serve: Serve, files: Any, keys: ApiKeyStore, valkey: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "CACHE_SECONDS", 0.0)
    client, (key, secret) = serve(), keys.create("a", Priority.HIGH)
    headers = {"Authorization": f"Bearer {secret}"}
    old = [
        client.post(
            "/v1/jobs", files=files, data={"size": "64", "priority": priority}, headers=headers
        ).json()
        for priority in ("high", "low")
    ]
    for job in old:
        client.post(job["links"]["cancel"], headers=headers)

    def retry() -> list[str]:
        answers = [client.post(f"/v1/jobs/{job['id']}/retry", headers=headers) for job in old]
        return [answer.json().get("priority", "refused") for answer in answers]

    assert retry() == ["high", "low"]
    # The operator lowers the key's highest priority.
    with redis.Redis.from_url(valkey.url, decode_responses=True) as server:
        server.hset(f"{PREFIX}key:{server.hget(f'{PREFIX}keys', key.id)}", "priority", "normal")
    assert retry() == ["normal", "low"]


def test_all_jobs_of_a_key_with_a_pool_run_there(
    serve: Serve, files: Any, keys: ApiKeyStore
) -> None:
    client = serve()
    headers = {"Authorization": f"Bearer {keys.create('Ada', pool='team=a')[1]}"}

    def submit(**options: str) -> Any:
        return client.post("/v1/jobs", files=files, data={"size": "64"} | options, headers=headers)

    jobs = [submit().json(), submit(pool="team=a").json()]
    assert [job["pool"] for job in jobs] == ["team=a", "team=a"]
    assert jobs[0]["queue"]["waits_for"] == "pool"
    refused = submit(pool="team=b")
    assert (refused.status_code, refused.json()["code"]) == (422, "bad_spec")
    assert "run in the pool team=a" in refused.json()["detail"]
    for pool in ("team a", "a,b", "a/512", "x" * 33):
        assert submit(pool=pool).json()["detail"].startswith("pool must be the label")
    client.post(jobs[0]["links"]["cancel"], headers=headers)
    retried = client.post(f"/v1/jobs/{jobs[0]['id']}/retry", headers=headers)
    assert retried.json()["pool"] == "team=a"
    with pytest.raises(errors.BadInput, match="label of workers"):
        keys.create("Ben", pool="team a")


def test_each_key_sees_only_its_own_jobs(serve: Serve, files: Any, bearer: Any) -> None:
    client, mine, theirs = serve(), bearer(), bearer()
    job = client.post("/v1/jobs", files=files, data={"size": "64"}, headers=theirs).json()
    own = client.post("/v1/jobs", files=files, data={"size": "64"}, headers=mine).json()

    assert [listed["id"] for listed in client.get("/v1/jobs", headers=mine).json()["jobs"]] == [
        own["id"]
    ]
    assert client.get(job["links"]["self"], headers=mine).status_code == 404
    assert client.get(job["links"]["self"], headers=theirs).status_code == 200
    assert own["queue"]["position"] == 1


def test_a_cursor_does_not_reveal_how_many_jobs_others_submit(
    serve: Serve, files: Any, bearer: Any
) -> None:
    client, mine, theirs = serve(), bearer(), bearer()
    for headers in (mine, theirs, theirs, mine):
        client.post("/v1/jobs", files=files, data={"size": "64"}, headers=headers)

    assert (
        client.get("/v1/jobs?limit=1", headers=mine).json()["next"] == "/v1/jobs?limit=1&cursor=2"
    )


def test_requests_above_the_limit_get_429_with_retry_after(serve: Serve, bearer: Any) -> None:
    """Other keys, and requests of the other kind, are still served.

    Two API processes share the counts.
    """
    first, second = (serve(requests_per_minute=3, submissions_per_minute=2) for _ in range(2))
    mine, theirs = bearer(), bearer()
    statuses = [
        client.get("/v1/jobs", headers=mine).status_code for client in (first, second, first)
    ]
    refused = [client.get("/v1/jobs", headers=mine) for client in (first, second)]

    assert statuses == [200, 200, 200]
    assert [(answer.status_code, answer.json()["code"]) for answer in refused] == [
        (429, "rate_limited")
    ] * 2
    assert all(1 <= int(answer.headers["retry-after"]) <= 61 for answer in refused)
    assert first.get("/v1/jobs", headers=theirs).status_code == 200
    tries = [first.post("/v1/jobs", headers=mine).status_code for _ in range(3)]
    assert tries == [400, 400, 429]


def test_a_submission_that_is_refused_for_overload_counts_for_no_limit(
    serve: Serve, bearer: Any, keys: ApiKeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, headers = serve(submissions_per_minute=2), bearer()
    client.get("/v1/jobs", headers=headers)  # reads the key
    before = _count_writes(keys)
    with monkeypatch.context() as patch:
        patch.setattr(SubmissionLoad, "_find_refusal", lambda *_: errors.Unavailable())
        refused = [client.post("/v1/jobs", headers=headers).status_code for _ in range(5)]
        assert client.get("/v1/system", headers=headers).status_code == 200

    assert refused == [503] * 5
    assert _count_writes(keys) == before
    tries = [client.post("/v1/jobs", headers=headers).status_code for _ in range(3)]
    assert tries == [400, 400, 429]


def test_cheap_requests_are_counted_in_memory_and_flushed_to_redis_in_batches(
    serve: Serve, bearer: Any, keys: ApiKeyStore
) -> None:
    """Each write goes to the disk: a thousand polls must not cause a thousand writes."""
    client, headers = serve(requests_per_minute=1000), bearer()

    before = _count_writes(keys)
    for _ in range(35):
        assert client.get("/v1/jobs", headers=headers).status_code == 200
    assert 1 <= _count_writes(keys) - before <= 20


def test_a_caller_above_the_limit_is_refused_from_memory(
    serve: Serve, bearer: Any, keys: ApiKeyStore
) -> None:
    """A flood does not reach the store, and no request passes between two flushes."""
    client, headers = serve(requests_per_minute=500), bearer()
    statuses = [client.get("/v1/jobs", headers=headers).status_code for _ in range(500)]
    while client.get("/v1/jobs", headers=headers).status_code == 200:
        statuses.append(200)
    before = _count_writes(keys)

    refused = [client.get("/v1/jobs", headers=headers).status_code for _ in range(30)]

    assert set(statuses) == {200}
    assert len(statuses) <= 505
    assert (refused, _count_writes(keys)) == ([429] * 30, before)


def _client_from(client: TestClient, address: str) -> TestClient:
    return TestClient(client.app, base_url="http://localhost", client=(address, 1))


def test_wrong_keys_are_refused_after_a_while_and_never_lock_out_a_right_one(
    serve: Serve, bearer: Any, valkey: Any
) -> None:
    """The right one may be new to the process: the API was restarted, or the key just created."""
    first, second = (serve(auth_failures_per_minute=3) for _ in range(2))
    wrong = {"Authorization": f"Bearer impasto_{'a' * 52}"}

    assert [first.get("/v1/jobs").status_code for _ in range(9)] == [401] * 9, (
        "a missing key is not a guess"
    )
    assert [
        client.get("/v1/jobs", headers=wrong).status_code for client in (first, second, first)
    ] == [401, 401, 401]
    for client in (first, second):
        refused = client.get("/v1/jobs", headers=wrong)
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert 1 <= int(refused.headers["retry-after"]) <= 61
        assert client.get("/v1/jobs", headers=bearer()).status_code == 200
    assert _client_from(first, "198.51.100.7").get("/v1/jobs", headers=wrong).status_code == 401
    with redis.Redis.from_url(valkey.url) as server:  # as if a minute had passed
        server.delete(*server.keys("*auth-failures*"))
    assert second.get("/v1/jobs", headers=wrong).status_code == 401


def test_a_flood_of_wrong_keys_writes_nothing_to_the_store(serve: Serve, keys: ApiKeyStore) -> None:
    """Each write goes to the disk, and an untrusted client must not cause as many as it likes."""
    client, wrong = serve(auth_failures_per_minute=2), {"Authorization": "Bearer x"}
    before = _count_writes(keys)
    statuses = [client.get("/v1/jobs", headers=wrong).status_code for _ in range(20)]

    assert statuses == [401] * 2 + [429] * 18
    assert _count_writes(keys) - before == 2


@pytest.mark.parametrize("trusted", ["127.0.0.1", "192.0.2.1"])
def test_wrong_keys_count_for_the_address_that_a_trusted_proxy_forwards(
    trusted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise all clients behind a proxy would share one count."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
    with KeyedApi(tmp_path, API_AUTH_FAILURES_PER_MINUTE="2") as api:
        statuses = [
            httpx2.get(
                f"http://127.0.0.1:{api.port}/v1/jobs",
                headers={"Authorization": "Bearer x", "X-Forwarded-For": address},
                trust_env=False,
            ).status_code
            for address in ["198.51.100.1"] * 3 + ["198.51.100.2"] * 2
        ]

    others = [401, 401] if trusted == "127.0.0.1" else [429, 429]
    assert statuses == [401, 401, 429, *others]


def test_an_ipv6_network_of_64_bits_counts_as_one_address(serve: Serve) -> None:
    client, wrong = serve(auth_failures_per_minute=2), {"Authorization": "Bearer x"}
    addresses = [
        "2001:db8::1",
        "2001:db8::2:2",
        "2001:db8::3",
        "2001:db8:0:1::1",
        "192.0.2.1",
        "192.0.2.2",
        "::ffff:192.0.2.3",  # an IPv4 address, as a dual-stack proxy writes it
        "::ffff:192.0.2.4",
        "::ffff:192.0.2.5",
    ]
    statuses = [
        _client_from(client, address).get("/v1/jobs", headers=wrong).status_code
        for address in addresses
    ]

    assert statuses == [401, 401, 429, 401, 401, 401, 401, 401, 401]


def _count_writes(keys: ApiKeyStore) -> int:
    """How many times a count was written to the store."""
    stats: Any = keys._redis.info("commandstats")
    return int(stats.get("cmdstat_incrby", {}).get("calls", 0))


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/v1/jobs", RequestKind.SUBMISSION),
        ("POST", "/v1/images", RequestKind.SUBMISSION),
        ("POST", "/v1/estimate", RequestKind.SUBMISSION),
        ("POST", "/v1/jobs/job_x/retry", RequestKind.SUBMISSION),
        ("PATCH", "/v1/jobs/job_x", RequestKind.SUBMISSION),  # may decode a mask
        ("POST", "/v1/jobs/job_x/cancel", RequestKind.OTHER),
        ("GET", "/v1/jobs", RequestKind.OTHER),
    ],
)
def test_requests_that_cause_work_are_submissions(
    method: str, path: str, kind: RequestKind
) -> None:
    assert classify_request(method, path) is kind


def test_turns_are_those_of_a_key_or_without_keys_of_an_address(
    serve: Serve, bearer: Any, files: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    stock = FairQueue.turn
    monkeypatch.setattr(
        FairQueue, "turn", lambda queue, one: seen.append(one.caller) or stock(queue, one)
    )
    keyed, one, other = serve(), bearer(), bearer()
    keyless = serve(keys="off")
    for client, address, headers in (
        (keyed, "192.0.2.1", one),
        (keyed, "192.0.2.2", one),
        (keyed, "192.0.2.1", other),
        (keyless, "192.0.2.1", {}),
        (keyless, "192.0.2.2", {}),
        (keyless, "2001:db8::1", {}),
        (keyless, "2001:db8::2", {}),
    ):
        upload = {"image": files["content"]}
        answer = _client_from(client, address).post("/v1/images", files=upload, headers=headers)
        assert answer.status_code == 201

    assert [seen.index(caller) for caller in seen] == [0, 0, 2, 3, 4, 5, 5]


def test_without_keys_there_is_no_rate_limit(serve: Serve) -> None:
    client = serve(keys="off", requests_per_minute=1, submissions_per_minute=1)
    assert [client.get("/v1/jobs").status_code for _ in range(3)] == [200, 200, 200]


def test_every_key_gets_503_while_the_store_is_unavailable(
    serve: Serve, own_valkey: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the key is cached, and in the request that flushes the counts."""
    keys, client = ApiKeyStore(own_valkey.url), serve(own_valkey.url, requests_per_minute=300)
    headers = {"Authorization": f"Bearer {keys.create('a')[1]}"}
    assert client.get("/v1/jobs", headers=headers).status_code == 200
    own_valkey.kill()

    answers = [client.get("/v1/jobs", headers=headers) for _ in range(8)]
    answers.append(client.get("/v1/jobs", headers={"Authorization": "Bearer impasto_" + "a" * 52}))
    answers.append(client.post("/v1/images", headers=headers))

    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {
        (503, "store_unavailable")
    }
    assert all("retry-after" in answer.headers for answer in answers)
    own_valkey.start()
    assert client.get("/v1/jobs", headers=headers).status_code == 200
    keys.close()


def test_only_its_owner_can_fetch_an_image(
    serve: Serve, bearer: Callable[..., dict[str, str]], files: dict[str, Any]
) -> None:
    client, own, foreign = serve(), bearer(), bearer()
    upload = client.post("/v1/images", files={"image": files["content"]}, headers=own)
    address = upload.headers["location"]

    assert [client.get(address, headers=who).status_code for who in (own, foreign, {})] == [
        200,
        404,
        401,
    ]

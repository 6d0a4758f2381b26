"""Whom a webhook may be sent to, by the text of its URL and by an address; and what it says."""

import json
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest
from standardwebhooks import Webhook

from core import errors
from core.jobs.models import Job, JobError, JobInput, Output, Priority, Status
from core.webhooks.policy import WebhookPolicy, body

SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
STRICT = WebhookPolicy(SECRET)
LOOSE = WebhookPolicy(SECRET, frozenset({80, 443, 8080}), allow_http=True, allow_private=True)

HOSTILE_URLS = [
    "",
    " ",
    "x",
    "https://",
    "https:///hook",
    "https:example.org",
    "https:/example.org",
    "//example.org/hook",
    "http://example.org/hook",
    "http://example.org:443/hook",
    "ftp://example.org/",
    "gopher://example.org:443/_SET%20a",
    "file:///etc/passwd",
    "dict://example.org:443/",
    "redis://example.org:443/",
    "javascript:alert(1)",
    "https://user@example.org/",
    "https://user:password@example.org/",
    "https://example.org@127.0.0.1/",
    "https://127.0.0.1\\@example.org/",
    "https://example.org\\.evil.org/",
    "https://example.org#@127.0.0.1/",
    "https://example.org/#part",
    "https://example.org:6379/",
    "https://example.org:0/",
    "https://example.org:99999/",
    "https://example.org:/",
    "https://example.org:443:80/",
    "https://example.org:+443/",
    "https://example.org:४४३/",
    " https://example.org/",
    "https://example.org/ x",
    "https://example.org/\r\nX-Evil: 1",
    "https://example.org/\x00",
    "https://example.org\t/",
    "https://exa\nmple.org/",
    "https://ex%61mple.org/",
    "https://127.0.0.1%00.example.org/",
    "https://bücher.example/",
    "https://１２７.０.０.１/",
    "https://①②⑦.0.0.1/",
    "https://example。org/",
    "https://localhost/",
    "https://LOCALHOST/",
    "https://foo.localhost/",
    "https://redis/",
    "https://printer.local/",
    "https://metadata.google.internal/",
    "https://localhost./",
    "https://example.org./",
    "https://-example.org/",
    "https://example-.org/",
    "https://example..org/",
    "https://.example.org/",
    "https://exam_ple.org/",
    f"https://{'a' * 64}.org/",
    f"https://{'a.' * 127}org/",
    "https://example.org/" + "a" * 2000,
    "https://127.0.0.1/",
    "https://127.1/",
    "https://0/",
    "https://0.0.0.0/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.1/",
    "https://0x7F.0x0.0x0.0x1/",
    "https://0177.0.0.1/",
    "https://017700000001/",
    "https://127.0.0.1.nip.0x/",
    "https://1.2.3.4.5/",
    "https://256.256.256.256/",
    "https://08.8.8.8/",
    "https://10.0.0.1/",
    "https://172.16.0.1/",
    "https://192.168.1.1/",
    "https://100.64.0.1/",
    "https://169.254.169.254/latest/meta-data/",
    "https://168.63.129.16/",
    "https://192.0.0.192/",
    "https://224.0.0.1/",
    "https://255.255.255.255/",
    "https://[::]/",
    "https://[::1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[::127.0.0.1]/",
    "https://[64:ff9b::10.0.0.1]/",
    "https://[2002:a00:1::]/",
    "https://[2001:0:a00:1::]/",
    "https://[fe80::1]/",
    "https://[fe80::1%25eth0]/",
    "https://[fc00::1]/",
    "https://[fd00:ec2::254]/",
    "https://[ff02::1]/",
    "https://[::1/",
    "https://::1/",
    "https://[example.org]/",
    "https://[127.0.0.1]/",
    "https://[]/",
    "https://[2606:4700::1]x/",
]

HOSTILE_ADDRESSES = """
    0.0.0.0 0.1.2.3 10.0.0.0 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1 127.255.255.254
    168.63.129.16 169.254.0.1 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1
    192.168.0.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255
    :: ::1 ::2 ::7f00:1 ::10.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:8.8.8.8 ::ffff:0:127.0.0.1
    64:ff9b::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::169.254.169.254 64:ff9b:1::8.8.8.8 64:ff9b:1::a00:1 100::1
    2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:2::1 2001:10::1 2001:20::1 2001:db8::1 2002:7f00:1:: 2002:a00:1::1
    2002:808:808::1 3fff::1 4000::1 5f00::1 fc00::1 fd00:ec2::254 fdff::1 fe80::1 fe80::1%eth0 fec0::1 ff02::1 ff0e::1
""".split()  # noqa: SIM905

GOOD_ADDRESSES = [
    "1.1.1.1",
    "93.184.216.34",
    "100.63.255.255",
    "172.32.0.1",
    "2606:4700::1111",
    "2a00::1",
    "64:ff9b::808:808",
]


@pytest.mark.parametrize("url", HOSTILE_URLS)
def test_a_hostile_url_is_refused_in_words(url: str) -> None:
    with pytest.raises(errors.BadWebhook) as refused:
        STRICT.receiver(url)

    assert refused.value.message.endswith(".")


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("https://example.org", "https://example.org/"),
        ("HTTPS://Hooks.Example.ORG:443/A?b=C&d=%20", "https://hooks.example.org/A?b=C&d=%20"),
        ("https://example.org?token=1", "https://example.org/?token=1"),
        (
            "https://xn--bcher-kva.example/~me/@x;y,(z)!*'$+:=",
            "https://xn--bcher-kva.example/~me/@x;y,(z)!*'$+:=",
        ),
        ("https://1.1.1.1/x", "https://1.1.1.1/x"),
        ("https://[2606:4700:0:0:0:0:0:1111]/x", "https://[2606:4700:0:0:0:0:0:1111]/x"),
        ("https://0x7f.example.org/", "https://0x7f.example.org/"),
    ],
)
def test_a_usual_url_is_taken_and_written_in_one_way(url: str, plain: str) -> None:
    assert STRICT.receiver(url).url == plain
    assert STRICT.receiver(plain).url == plain


def test_what_a_setting_allows_is_taken_and_no_more() -> None:
    for url in (
        "http://localhost/x",
        "http://redis:8080/",
        "https://10.0.0.1/",
        "https://[::1]:8080/",
    ):
        assert LOOSE.receiver(url).url == url
    for url in (
        "http://localhost:6379/",
        "https://169.254.169.254/",
        "https://0.0.0.0/",
        "https://127.1/",
        "ftp://a.b/",
    ):
        with pytest.raises(errors.BadWebhook):
            LOOSE.receiver(url)


def test_without_a_secret_there_are_no_webhooks() -> None:
    with pytest.raises(errors.BadWebhook, match="IMPASTO_WEBHOOK_SECRET"):
        WebhookPolicy().receiver("https://example.org/")
    with pytest.raises(errors.BadSettings, match="IMPASTO_WEBHOOK_SECRET"):
        WebhookPolicy().owner_secret("anna")


@pytest.mark.parametrize("address", HOSTILE_ADDRESSES)
def test_a_hostile_address_is_out_of_reach(address: str) -> None:
    assert not STRICT.may_reach(ip_address(address))


@pytest.mark.parametrize("address", GOOD_ADDRESSES)
def test_an_address_of_the_internet_may_be_reached(address: str) -> None:
    assert STRICT.may_reach(ip_address(address))


def test_the_intranet_may_be_allowed_but_not_what_belongs_to_the_machines_themselves() -> None:
    allowed = {text for text in HOSTILE_ADDRESSES if LOOSE.may_reach(ip_address(text))}

    assert allowed == {
        "10.0.0.0", "10.255.255.255", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.254", "172.16.0.1",
        "172.31.255.255", "192.168.0.1", "::1", "fc00::1", "fdff::1",
    }  # fmt: skip


def test_each_owner_has_a_secret_of_their_own() -> None:
    anna, ben = STRICT.owner_secret("anna"), STRICT.owner_secret("ben")

    assert STRICT.owner_secret("anna") == anna
    assert len({anna, ben, SECRET}) == 3
    assert WebhookPolicy("whsec_" + "A" * 32).owner_secret("anna") != anna


def _job(**fields: object) -> Job:
    at = datetime(2026, 11, 23, 12, 0, 0, 250_000, UTC)
    usual = dict.fromkeys(Job.model_fields)
    usual |= {
        "id": "job_" + "a" * 26,
        "version": 3,
        "created_at": at,
        "completed_at": at,
        "priority": Priority.NORMAL,
    }
    usual |= {
        "input": JobInput(content="sha256:a", styles=["sha256:b"], spec={}),
        "outputs": [],
        "owner": "anna",
    }
    return Job.model_construct(**{**usual, **fields})  # type: ignore[arg-type]


def test_the_body_is_small_and_tells_the_end() -> None:
    output = Output(id="sha256:c", content_type="image/png", width=4, height=3, size_bytes=9)
    good = json.loads(body(_job(status=Status.SUCCEEDED, outputs=[output])))
    bad = json.loads(
        body(_job(status=Status.FAILED, error=JobError(code="diverged", message="It is over.")))
    )

    assert (good["type"], good["timestamp"]) == ("job.succeeded", "2026-11-23T12:00:00.250000Z")
    assert {
        "id": "job_" + "a" * 26,
        "status": "succeeded",
        "created_at": "2026-11-23T12:00:00.250000Z",
        "completed_at": "2026-11-23T12:00:00.250000Z",
        "error": None,
        "links": {"self": f"/v1/jobs/job_{'a' * 26}", "result": f"/v1/jobs/job_{'a' * 26}/result"},
    } == good["data"]
    assert (bad["type"], bad["data"]["error"]) == (
        "job.failed",
        {"code": "diverged", "message": "It is over."},
    )
    assert [*bad["data"]["links"]] == ["self"]


def test_while_secrets_change_either_verifies() -> None:
    job = _job(status=Status.CANCELED)
    told = body(job)
    new = WebhookPolicy("whsec_" + "A" * 32, previous_secret=SECRET)
    headers = new.headers(job, told, datetime.now(UTC))

    for secret in (STRICT.owner_secret("anna"), new.owner_secret("anna")):
        assert Webhook(secret).verify(told, headers) == json.loads(told)
    with pytest.raises(Exception, match="No matching signature"):
        Webhook(new.owner_secret("ben")).verify(told, headers)
    assert new.owner_secret("anna") != STRICT.owner_secret("anna")


def test_the_signature_verifies_with_the_owners_secret_and_no_other() -> None:
    job = _job(status=Status.CANCELED)
    told, now = body(job), datetime.now(UTC)
    headers = STRICT.headers(job, told, now)

    assert Webhook(STRICT.owner_secret("anna")).verify(told, headers) == json.loads(told)
    for secret, text in (
        (STRICT.owner_secret("ben"), told),
        (STRICT.owner_secret("anna"), told + " "),
    ):
        with pytest.raises(Exception, match="No matching signature"):
            Webhook(secret).verify(text, headers)
    later = STRICT.headers(job, told, datetime.fromtimestamp(now.timestamp() + 60, UTC))
    assert later["webhook-id"] == headers["webhook-id"]
    assert later["webhook-signature"] != headers["webhook-signature"]

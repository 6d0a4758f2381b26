"""Which webhook URLs and which addresses the policy allows."""

from ipaddress import ip_address

import pytest

from core import errors
from core.webhooks.policy import WebhookPolicy

STRICT = WebhookPolicy(enabled=True)
LOOSE = WebhookPolicy(
    enabled=True, ports=frozenset({80, 443, 8080}), allow_http=True, allow_private=True
)

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
    0.0.0.0 0.1.2.3 10.0.0.0 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1
    127.255.255.254 168.63.129.16 169.254.0.1 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1
    192.0.0.192 192.0.2.1 192.88.99.1 192.168.0.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1
    224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255 :: ::1 ::2 ::7f00:1 ::10.0.0.1 ::8.8.8.8
    ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:8.8.8.8 ::ffff:0:127.0.0.1 64:ff9b::127.0.0.1
    64:ff9b::10.0.0.1 64:ff9b::169.254.169.254 64:ff9b:1::8.8.8.8 64:ff9b:1::a00:1 100::1 2001::1
    2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:2::1 2001:10::1 2001:20::1 2001:db8::1 2002:7f00:1::
    2002:a00:1::1 2002:808:808::1 3fff::1 4000::1 5f00::1 fc00::1 fd00:ec2::254 fdff::1 fe80::1
    fe80::1%eth0 fec0::1 ff02::1 ff0e::1
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
def test_a_hostile_url_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(errors.BadWebhook) as refused:
        STRICT.parse_url(url)

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
def test_a_valid_url_is_accepted_and_normalized(url: str, plain: str) -> None:
    assert STRICT.parse_url(url).url == plain
    assert STRICT.parse_url(plain).url == plain


def test_the_settings_allow_more_urls_but_not_metadata_services_or_other_ports() -> None:
    for url in (
        "http://localhost/x",
        "http://redis:8080/",
        "https://10.0.0.1/",
        "https://[::1]:8080/",
    ):
        assert LOOSE.parse_url(url).url == url
    for url in (
        "http://localhost:6379/",
        "https://169.254.169.254/",
        "https://0.0.0.0/",
        "https://127.1/",
        "ftp://a.b/",
    ):
        with pytest.raises(errors.BadWebhook):
            LOOSE.parse_url(url)


def test_a_disabled_policy_refuses_every_url() -> None:
    with pytest.raises(errors.BadWebhook, match="IMPASTO_WEBHOOK_SECRET"):
        WebhookPolicy().parse_url("https://example.org/")


@pytest.mark.parametrize("address", HOSTILE_ADDRESSES)
def test_a_private_or_special_address_is_refused(address: str) -> None:
    assert not STRICT.is_allowed(ip_address(address))


@pytest.mark.parametrize("address", GOOD_ADDRESSES)
def test_a_public_address_is_allowed(address: str) -> None:
    assert STRICT.is_allowed(ip_address(address))


def test_a_setting_allows_intranet_addresses_but_no_link_local_or_metadata_address() -> None:
    allowed = {text for text in HOSTILE_ADDRESSES if LOOSE.is_allowed(ip_address(text))}

    assert allowed == {
        "10.0.0.0", "10.255.255.255", "100.64.0.1", "100.127.255.255", "127.0.0.1",
        "127.255.255.254", "172.16.0.1", "172.31.255.255", "192.168.0.1", "::1", "fc00::1",
        "fdff::1",
    }  # fmt: skip

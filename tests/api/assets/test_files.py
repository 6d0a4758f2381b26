"""The files of the page as the API serves them."""

import gzip
import json
import logging
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from api.assets.files import PageFiles

PLAIN = {"Accept-Encoding": "identity"}


def _addresses(html: str) -> list[str]:
    return re.findall(r'(?:src|href)="(\.{1,2}/web-[^"]+)"', html)


@pytest.mark.parametrize("path", ["/", "/j/job_x"])
def test_every_file_that_the_page_names_is_served_immutable(client: TestClient, path: str) -> None:
    addresses = _addresses(client.get(path).text)

    assert any(address.endswith("/app.js") for address in addresses)
    for address in addresses:
        depth = "." if path == "/" else ".."
        assert address.startswith(f"{depth}/web-"), address
        answer = client.get(address.removeprefix(depth))
        assert answer.status_code == 200, address
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"


def test_a_module_comes_with_its_imports_and_compressed(client: TestClient) -> None:
    (address,) = [name for name in _addresses(client.get("/").text) if name.endswith("/app.js")]
    with client.stream("GET", address[1:], headers={"Accept-Encoding": "br, gzip"}) as answer:
        sent = b"".join(answer.iter_raw())
    plain = client.get(address[1:], headers=PLAIN)

    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert (answer.headers["vary"], plain.headers["vary"]) == ("Accept-Encoding",) * 2
    assert gzip.decompress(sent) == plain.content
    assert len(sent) < len(plain.content) / 3
    assert '$modules["api.js"] ??= ' in plain.text
    assert not re.search(r"^import ", plain.text, re.MULTILINE)


@pytest.mark.parametrize(
    ("accepted", "is_compressed"),
    [
        *(("gzip", True), ("GZIP;q=0.5", True), ("*", True), ("gzip;q=0", False)),
        *(("*, gzip;q=0", False), ("gzip;q=x", False), ("br", False), ("", False)),
    ],
)
def test_only_a_client_that_accepts_gzip_gets_it(
    client: TestClient, accepted: str, is_compressed: bool
) -> None:
    answer = client.get("/", headers={"Accept-Encoding": accepted})

    assert ("content-encoding" in answer.headers) == is_compressed
    assert answer.text.startswith("<!doctype html>")


def test_pictures_are_not_compressed_again(client: TestClient) -> None:
    folder = _addresses(client.get("/").text)[0].split("/")[1]
    answer = client.get(f"/{folder}/gallery/harbor.jpg")

    assert (answer.headers["content-type"], answer.content[:2]) == ("image/jpeg", b"\xff\xd8")
    assert "content-encoding" not in answer.headers


def test_a_client_that_has_the_page_gets_no_body(client: TestClient) -> None:
    first = client.get("/")
    again = client.get("/", headers={"If-None-Match": first.headers["etag"]})
    other = client.get("/j/job_x", headers={"If-None-Match": first.headers["etag"]})

    assert (first.headers["cache-control"], again.headers["cache-control"]) == ("no-cache",) * 2
    assert (again.status_code, again.content, other.status_code) == (304, b"", 200)


def test_code_of_another_version_is_a_module_that_asks_again(client: TestClient) -> None:
    """So that code of two versions never meets, and no cache has one under the other's name."""
    for name in ("app.js", "text-en.js", "gone.js"):
        answer = client.get(f"/web-0123456789abcdef/{name}")
        assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
        assert (answer.headers["cache-control"], answer.headers["vary"]) == ("no-store", "*")
        assert "location.reload()" in answer.text
        assert "$modules" not in answer.text


def test_what_is_not_code_is_the_same_in_every_version(client: TestClient) -> None:
    folder = _addresses(client.get("/").text)[0].split("/")[1]
    for name in ("gallery/harbor.jpg", "style.css"):
        answer = client.get(f"/web-0123456789abcdef/{name}")
        assert (answer.headers["cache-control"], answer.headers["vary"]) == ("no-store", "*")
        assert answer.content == client.get(f"/{folder}/{name}").content


def test_a_file_that_is_nowhere_is_not_found(client: TestClient) -> None:
    folder = _addresses(client.get("/").text)[0].split("/")[1]
    for path in (f"/{folder}/gone.js", f"/{folder}/../app.py", "/web-0123456789abcdef/gone.jpg"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert "immutable" not in answer.headers.get("cache-control", "")


@pytest.mark.parametrize(
    ("languages", "name"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "text-zh.js"),
        ("fr-FR, ZH-TW;q=0.5", "text-zh.js"),
        ("en-US,en;q=0.9,zh;q=0.8", "text-en.js"),
        ("de", "text-en.js"),
        ("", "text-en.js"),
    ],
)
@pytest.mark.parametrize(("path", "start"), [("/", ""), ("/j/job_x", "../")])
def test_the_document_names_the_dictionary_that_its_code_will_ask_for(
    client: TestClient, path: str, start: str, languages: str, name: str
) -> None:
    answer = client.get(path, headers={"Accept-Language": languages})
    folder = _addresses(answer.text)[0].split("/")[1]

    assert answer.headers["link"] == f"<{start}{folder}/{name}>; rel=modulepreload"
    assert client.get(f"/{folder}/{name}").status_code == 200


def test_the_version_changes_with_every_file_and_with_the_form(tmp_path: Path) -> None:
    (tmp_path / "app.js").write_text('import { a } from "./a.js";\n')
    (tmp_path / "a.js").write_text("export const a = 1;\n")
    (tmp_path / "index.html").write_text('<script type="application/json" id="form"></script>')
    versions = {PageFiles(tmp_path).version, PageFiles(tmp_path).version}
    assert len(versions) == 1
    versions.add(PageFiles(tmp_path, b'{"size": 1}').version)
    (tmp_path / "a.js").write_text("export const a = 2;\n")
    versions.add(PageFiles(tmp_path).version)
    (tmp_path / "a.js").rename(tmp_path / "b.js")
    (tmp_path / "app.js").write_text('import { a } from "./b.js";\n')
    versions.add(PageFiles(tmp_path).version)

    assert len(versions) == 4


def test_the_form_cannot_end_the_element_that_carries_it(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('<script type="application/json" id="form"></script>')
    html = PageFiles(tmp_path, b'{"a": "</script>"}').document("index.html").content

    assert html == b'<script type="application/json" id="form">{"a": "\\u003c/script>"}</script>'


def test_modules_that_cannot_be_bundled_are_served_one_by_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sources = {"app.js": 'import { a } from "./a.js";\n', "a.js": "export let a = 1;\n"}
    for name, code in sources.items():
        (tmp_path / name).write_text(code)
    with caplog.at_level(logging.WARNING):
        files = PageFiles(tmp_path)

    served = {name: files.get(name) for name in sources}
    assert {name: file and file.content.decode() for name, file in served.items()} == sources
    assert "one by one: a.js: export let a = 1;" in caplog.text


def test_a_manifest_in_another_language_names_only_what_differs(tmp_path: Path) -> None:
    (tmp_path / "manifest.webmanifest").write_text('{"lang": "en", "icons": [1]}')
    (tmp_path / "manifest.zh-CN.webmanifest").write_text('{"lang": "zh-CN"}')
    file = PageFiles(tmp_path).get("manifest.zh-CN.webmanifest")

    assert file
    assert json.loads(file.content) == {"lang": "zh-CN", "icons": [1]}

"""Forms of old and hand-written clients are accepted, or refused with what to send."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_files
import pytest
from PIL import Image
from starlette.testclient import TestClient

from api.submissions import multipart
from core.images import codec
from core.jobs.store import JobStore

Post = Callable[..., Any]
SIZE = (b'name="size"', b"64")


@pytest.fixture
def post(client: TestClient, notifications: list[int]) -> Post:
    """Send parts as they are: each is what follows `form-data; `, and its content."""

    def send(
        *parts: tuple[bytes, bytes],
        path: str = "/v1/jobs",
        more: bytes = b"",
        charset: str | None = None,
    ) -> Any:
        body = b"".join(
            b"--xYz\r\nContent-Disposition: form-data; " + head + b"\r\n" + more + b"\r\n"
            + content + b"\r\n"
            for head, content in parts
        )  # fmt: skip
        kind = {"Content-Type": "multipart/form-data; boundary=xYz"}
        if charset is not None:
            kind["Content-Type"] += f"; charset={charset}"
        return client.post(path, content=body + b"--xYz--\r\n", headers=kind)

    return send


@pytest.fixture
def pictures(files: dict[str, Any]) -> tuple[bytes, bytes]:
    return files["content"][1], files["style"][1]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(b'; filename="a.jpg"', id="as RFC 7578 says"),
        pytest.param(b"; filename*=utf-8''caf%C3%A9.jpg", id="filename* alone"),
        pytest.param(b"; FileName* = utf-8''a", id="filename* in capitals"),
        pytest.param(b"; filename*0=a; filename*1=b", id="filename in parts"),
        pytest.param('; filename="café 汉.jpg"'.encode(), id="raw UTF-8"),
        pytest.param(b"", id="no filename"),
        pytest.param(b'; filename=""', id="an empty filename"),
    ],
)
@pytest.mark.parametrize("kind", [b"", b"Content-Type: image/jpeg\r\n"], ids=["", "with a type"])
def test_a_file_is_accepted_however_it_is_named(
    post: Post, pictures: tuple[bytes, bytes], name: bytes, kind: bytes
) -> None:
    content, style = pictures
    answer = post((b'name="content"' + name, content), (b'name="style"' + name, style), SIZE)
    uploaded = post((b'name="image"' + name, content), path="/v1/images", more=kind)

    assert (answer.status_code, answer.json().get("detail")) == (202, None)
    assert (uploaded.status_code, uploaded.json()["id"]) == (201, answer.json()["input"]["content"])


def test_a_file_with_an_encoded_name_is_a_file_whatever_it_holds(
    post: Post, pictures: tuple[bytes, bytes]
) -> None:
    head = b"name=\"content\"; filename*=utf-8''a.pdf"
    answer = post((head, b"%PDF-1.7 \xff"), (b'name="style"', pictures[1]))

    assert (answer.status_code, answer.json()["detail"]) == (
        415,
        "content: PDF is not supported; export the picture as PNG or JPEG.",
    )


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (hostile_files.saved(Image.new("RGB", (400, 300)), "BMP"), "BMP"),  # 360 kB
        (b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "SVG"),
        (b"%PDF-1.7\n1 0 obj \xff", "PDF"),
    ],
    ids=["BMP", "SVG", "PDF"],
)
def test_a_file_without_a_name_of_another_format_is_refused_by_its_format(
    post: Post, pictures: tuple[bytes, bytes], data: bytes, name: str
) -> None:
    answer = post((b'name="content"', data), (b'name="style"', pictures[1]))

    assert (answer.status_code, answer.json()["detail"]) == (
        415,
        f"content: {name} is not supported; export the picture as PNG or JPEG.",
    )


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/images", "/v1/batches"])
@pytest.mark.parametrize("cut", [9, 30, 100])  # the last boundary; in the last part; in a file
def test_a_form_that_lacks_its_end_is_refused(
    client: TestClient, tmp_path: Path, pictures: tuple[bytes, bytes], path: str, cut: int
) -> None:
    parts = [(b"image", pictures[0])]
    if path != "/v1/images":
        parts = [(b"content", pictures[0]), (b"style", pictures[1])]
    body = b"".join(
        b'--xYz\r\nContent-Disposition: form-data; name="%s"; filename="a"\r\n\r\n%s\r\n' % part
        for part in parts
    )
    kind = {"Content-Type": "multipart/form-data; boundary=xYz"}
    answer = client.post(path, content=(body + b"--xYz--\r\n")[:-cut], headers=kind)

    assert (answer.status_code, answer.json()["detail"]) == (
        400,
        "The form is incomplete: its last boundary is missing.",
    )
    assert [*(tmp_path / "blobs" / "parts").glob("*")] == []


@pytest.mark.parametrize("chunk", [1, 7, 16_384])
def test_a_file_without_a_name_is_recognized_in_chunks_of_any_size(
    post: Post, pictures: tuple[bytes, bytes], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multipart, "_CHUNK_BYTES", chunk)
    small = codec.encode(Image.new("RGB", (40, 40), "red"))

    assert post((b'name="content"', small), (b'name="style"', small), SIZE).status_code == 202


def test_files_without_a_name_count_as_files(post: Post, pictures: tuple[bytes, bytes]) -> None:
    answer = post(*[(b'name="style"', pictures[1])] * 40)

    assert (answer.status_code, answer.json()["detail"]) == (400, "Send at most 27 files.")


@pytest.mark.parametrize(
    ("charset", "status"),
    [
        ("utf-8", 202),
        ('"UTF8"', 202),
        ("ISO-8859-1", 202),
        ("us-ascii", 202),
        ("undefined", 400),
        ("punycode", 400),
        ("idna", 400),
        ("utf-16", 400),
        ("unicode_escape", 400),
        ("zlib", 400),
        ("nothing", 400),
        ("", 400),
    ],
)
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/images", "/v1/batches"])
def test_the_text_of_a_form_is_decoded_only_with_plain_charsets(
    post: Post, pictures: tuple[bytes, bytes], charset: str, status: int, path: str
) -> None:
    """Starlette decodes with any codec of Python, of which some fail with other errors."""
    content, style = (b'name="content"', pictures[0]), (b'name="style"', pictures[1])
    parts = [(b'name="image"', pictures[0])] if path == "/v1/images" else [content, style, SIZE]
    answer = post(*parts, path=path, charset=charset)

    assert answer.status_code == (201 if path == "/v1/images" and status == 202 else status)
    assert status != 400 or answer.json()["detail"] == "Send the text of the form as UTF-8."


def test_another_content_type_that_begins_like_a_form_is_none(client: TestClient) -> None:
    kind = {"Content-Type": "multipart/form-datax; boundary=b"}
    part = b'Content-Disposition: form-data; name="image"; filename="a"\r\n\r\nhello'
    body = b"--b\r\n" + part + b"\r\n--b--\r\n"
    answer = client.post("/v1/images", content=body, headers=kind)

    assert answer.json()["detail"].startswith("Send the picture as a file in the form field image")


def test_a_field_without_a_chosen_file_is_unset(post: Post, pictures: tuple[bytes, bytes]) -> None:
    """The form of a page sends each field."""
    content, style = pictures
    unset = [(b'name="%s"; filename=""' % name, b"") for name in (b"mask", b"init_image")]
    answer = post(
        (b'name="content"; filename="a"', content), (b'name="style"; filename="b"', style), *unset
    )

    assert (answer.status_code, answer.json()["input"]["masks"]) == (202, [])


DATA_URI = "data:image/png;base64," + base64.b64encode(b"x" * 300).decode()


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/a.jpg",
        DATA_URI,
        "photo.jpg",
        "sha256:12",
        "SHA256:" + "0" * 64,
    ],
)
def test_what_is_no_digest_is_refused_with_what_to_send(
    client: TestClient, store: JobStore, text: str
) -> None:
    digest = "sha256:" + "0" * 64
    for body, part in (
        ({"content": text, "styles": [digest]}, "content"),
        ({"content": digest, "styles": [digest, text]}, "styles"),
        ({"content": digest, "styles": [digest], "init_image": text}, "init_image"),
        ({"from": text}, "from"),
    ):
        answer = client.post("/v1/jobs", json=body)

        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
        assert answer.json()["detail"].startswith(
            f"{part}: send the digest of an upload (POST /v1/images answers with it)"
        )
        assert text not in answer.text
    assert store.get_load().queued == 0


def test_a_form_with_a_url_or_a_name_instead_of_a_file_says_how_to_send_the_file(
    post: Post, client: TestClient, pictures: tuple[bytes, bytes]
) -> None:
    for text in (b"https://example.org/a.jpg", b"photo.jpg", DATA_URI.encode()):
        answer = post((b'name="content"', text), (b'name="style"', pictures[1]))

        assert answer.status_code == 400
        assert "content: send the file itself (with curl: -F content=@photo.jpg)" in answer.text


def test_an_estimate_of_what_is_no_digest_is_refused_with_what_to_send(client: TestClient) -> None:
    body = {"content": {"width": 96, "height": 72}, "styles": ["https://example.org/a.jpg"]}
    answer = client.post("/v1/estimate", json=body)

    assert (answer.status_code, answer.json()["detail"][:28]) == (
        400,
        "style: send the digest of an",
    )


def test_an_upload_that_is_sent_twice_is_named(post: Post, pictures: tuple[bytes, bytes]) -> None:
    part = (b'name="image"; filename="a"', pictures[0])
    answer = post(part, part, path="/v1/images")

    assert (answer.status_code, answer.json()["detail"]) == (
        400,
        "image was sent twice; send one file.",
    )


SMALL, BLACK = (codec.encode(Image.new("RGB", size, "black")) for size in ((20, 30), (40, 40)))
WHITE = codec.encode(Image.new("RGB", (40, 40), "white"))
CLEAR = hostile_files.saved(Image.new("RGBA", (40, 40)), "PNG")


@pytest.mark.parametrize(
    ("field", "sent", "detail"),
    [
        ("content", [SMALL], "The picture has 20 × 30 px; it must have at least 32 px a side."),
        ("content", [b""], "The file is empty."),
        ("content", [CLEAR], "The picture is transparent all over."),
        ("content", [b"%PDF-1.7"], "PDF is not supported; export the picture as PNG or JPEG."),
        ("style", [WHITE, SMALL], "The picture has 20 × 30 px; it must have at least"),
        ("mask", [BLACK], "A mask is black all over."),
        ("mask", [WHITE, BLACK], "A mask is black all over."),
        ("style_mask", [CLEAR], "A mask is black all over."),
        ("init_image", [b"hello"], "Only JPEG, PNG, WebP, HEIC"),
    ],
)
def test_a_refusal_names_the_part_and_what_is_wrong_with_it(
    client: TestClient, field: str, sent: list[bytes], detail: str
) -> None:
    """The last file of the field is the bad one."""
    parts = {"content": [WHITE], "style": [WHITE] * max(1, len(sent)), field: sent}
    form = [(name, ("x", data)) for name, many in parts.items() for data in many]
    init = {"init": "picture"} if field == "init_image" else {}
    answer = client.post("/v1/jobs", files=form, data=init)
    part = f"{field} {len(sent)}" if len(sent) > 1 else field

    assert answer.json()["detail"].startswith(f"{part}: {detail}")


def test_a_doubtful_file_is_accepted_with_a_warning(
    client: TestClient, files: dict[str, Any], notifications: list[int]
) -> None:
    progressive = hostile_files.saved(hostile_files.noise(3), "JPEG", progressive=True)
    cut = progressive[: progressive.rindex(b"\xff\xc4")] + b"\xff\xd9"  # before the last scan
    uploaded = client.post("/v1/images", files={"image": ("x", cut)}).json()
    job = client.post("/v1/jobs", files={**files, "style": ("x", cut)}).json()
    batch = client.post("/v1/batches", files={**files, "content": ("x", cut)}).json()
    whole = client.post("/v1/images", files={"image": ("x", progressive)}).json()

    (warning,) = uploaded["warnings"]
    assert warning.startswith("The JPEG has no scan for its finest details.")
    assert job["warnings"] == [f"style: {warning}"]
    assert batch["warnings"] == [f"content: {warning}"]
    for one, part in ((job, "style"), (batch["jobs"][0], "content")):
        read = client.get(one["links"]["self"]).json()
        assert read["warnings"] == one["warnings"] == [f"{part}: {warning}"]
    retried = client.post(client.post(job["links"]["cancel"]).json()["links"]["retry"]).json()
    assert retried["warnings"] == job["warnings"]
    assert whole["warnings"] == []


def test_a_job_may_choose_the_background_of_a_transparent_picture(
    client: TestClient, files: dict[str, Any], notifications: list[int]
) -> None:
    """An upload is accepted before its background is known."""
    logo = Image.new("RGBA", (64, 48))
    logo.paste("white", (20, 10, 40, 30))
    data = hostile_files.saved(logo, "PNG")
    uploaded = client.post("/v1/images", files={"image": ("x", data)})
    styles = [client.post("/v1/images", files={"image": files["style"]}).json()["id"]]
    body: dict[str, Any] = {"content": uploaded.json()["id"], "styles": styles}
    accepted = client.post("/v1/jobs", json=body | {"spec": {"background": "#102030"}})
    refused = client.post("/v1/jobs", json=body | {"spec": {"background": "white"}})
    wrong = client.post("/v1/jobs", json=body | {"spec": {"background": "pink"}})

    assert uploaded.status_code == 201
    assert (accepted.status_code, accepted.json()["input"]["spec"]["background"]) == (
        202,
        "#102030",
    )
    assert refused.json()["detail"].startswith("content: Nothing of this transparent picture is")
    assert (
        wrong.json()["detail"] == "background must be auto, white, black, or a color like #8090a0."
    )

"""The how-to guides: their commands, their receiver and their page's code, run as they stand.

Blocks of `console` run, as one script for each guide. A block of `text` right after one is what it
prints. Blocks of `sh` are checked in tests/test_doc_commands.py only.
"""

import base64
import os
import re
import subprocess
import sys
import threading
from datetime import UTC, datetime
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from page_actions import needs_chromium
from PIL import Image
from s3_server import S3Server
from standardwebhooks import Webhook

from core.neural.weights.cache import WeightsCache

pytestmark = pytest.mark.e2e

GUIDES = Path(__file__).parents[2] / "docs" / "how-to"
EXAMPLE_URL = "http://127.0.0.1:8000"
EXAMPLE_BUCKET = "s3://impasto/studio?endpoint=https://s3.example.org&region=eu-central-1"
_END = "== the end of a block"


def _blocks(guide: str, language: str) -> str:
    """Return all blocks of a language, without the indentation of lists."""
    text = (GUIDES / f"{guide}.md").read_text(encoding="utf-8")
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return "\n".join(re.sub(rf"^{indent}", "", block, flags=re.M) for indent, block in found)


def _is_run(guide: Path) -> bool:
    return "```console" in guide.read_text(encoding="utf-8")


def _steps(guide: str) -> list[tuple[str, str]]:
    """The script of each block of commands, and what it prints if the guide says so."""
    text = (GUIDES / f"{guide}.md").read_text(encoding="utf-8")
    blocks = re.findall(
        r"^```console\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?", text, re.MULTILINE | re.DOTALL
    )
    return [(re.sub(r"^\$ ", "", script, flags=re.M), printed) for script, printed in blocks]


def _as_pattern(printed: str) -> str:
    """A pattern for an output, in which … stands for some text of a line."""
    return ".+".join(re.escape(part) for part in printed.split("…"))


@pytest.mark.parametrize("guide", [one.stem for one in sorted(GUIDES.glob("*.md")) if _is_run(one)])
def test_the_commands_of_a_guide_run_as_one_script(
    guide: str,
    request: pytest.FixtureRequest,
    valkey: Any,
    s3: S3Server,
    weights: WeightsCache,
    tmp_path: Path,
    photo: Image.Image,
    painting: Image.Image,
) -> None:
    folder, cache = tmp_path / "folder", tmp_path / "cache" / "weights"
    folder.mkdir()
    cache.mkdir(parents=True)
    for file in weights.folder.iterdir():  # what the guide imports must not stay
        (cache / file.name).symlink_to(file)
    photo.save(folder / "photo.jpg")
    painting.save(folder / "painting.jpg")
    steps = _steps(guide)
    script = f"\necho '{_END}'\n".join([*(step for step, _ in steps), ""]).replace("=256", "=64")
    bucket = EXAMPLE_BUCKET
    if EXAMPLE_BUCKET in script:
        bucket = s3.create_bucket()
        script = script.replace(EXAMPLE_BUCKET, bucket)
    if EXAMPLE_URL in script:
        script = script.replace(EXAMPLE_URL, request.getfixturevalue("shared_service").url)
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={
            "HOME": str(tmp_path),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "IMPASTO_CACHE_DIR": str(cache.parent),
            "IMPASTO_DATA_DIR": str(tmp_path / "data"),
            "IMPASTO_REDIS_URL": valkey.url,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=240,  # torch is loaded by each command
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    output = ran.stdout.replace(bucket.partition("?")[0], EXAMPLE_BUCKET.partition("?")[0])
    for (_, expected), printed in zip(steps, output.split(f"{_END}\n"), strict=False):
        if expected:
            assert re.fullmatch(_as_pattern(expected), printed), printed
    for name in re.findall(r"-o (\w+\.(?:png|webp))", script):
        with Image.open(folder / name) as picture:
            assert picture.size == (64, 48), name


@pytest.mark.parametrize(("change", "status"), [("", 204), (" ", 401)], ids=["genuine", "changed"])
def test_the_receiver_accepts_only_what_the_service_has_signed(
    change: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    secret = "whsec_" + base64.b64encode(b"s" * 32).decode()
    (tmp_path / "secret.txt").write_text(secret + "\n")
    monkeypatch.chdir(tmp_path)
    code: dict[str, Any] = {"__name__": "receiver"}
    exec(_blocks("webhooks", "python"), code)  # noqa: S102
    body = '{"type": "job.succeeded", "data": {"id": "job_1"}}'
    now = datetime.now(UTC)
    headers = {
        "webhook-id": "1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign("1", now, body),
    }
    with HTTPServer(("127.0.0.1", 0), code["Receiver"]) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/hook"
        answer = httpx2.post(url, content=body + change, headers=headers, trust_env=False)
        thread.join()

    assert answer.status_code == status
    assert ("job.succeeded job_1" in capsys.readouterr().out) == (status == 204)


@needs_chromium
def test_the_code_of_the_front_end_paints_in_a_browser(
    open_page: Any, shared_service: Any, pictures: tuple[Path, Path]
) -> None:
    code = _blocks("javascript", "js").replace(EXAMPLE_URL, shared_service.url)
    code = code.replace("size: 256", "size: 64")
    files = [base64.b64encode(path.read_bytes()).decode() for path in pictures]
    page = open_page("/docs")
    drive = """
      const [photo, painting] = files.map(
        (file) => new File([Uint8Array.from(atob(file), (one) => one.charCodeAt(0))], "picture"));
      const values = [], statuses = [];
      const address = await paint(photo, painting, (value) => values.push(value));
      const image = new Image();
      image.src = address;
      await image.decode();
      const job = await submit(photo, [painting], { size: 64, iterations: 30, scales: 1 });
      const ended = await follow(job, (state) => statuses.push(state.status));
      const refused = await submit(photo, [painting], { size: 7 }).catch((error) => error.code);
      return { width: image.naturalWidth, values, statuses, last: ended.status, refused };
    """
    seen = page.evaluate(f"async (files) => {{ {code}\n{drive} }}", files)

    assert (seen["width"], seen["last"], seen["refused"]) == (64, "succeeded", "bad_spec")
    assert seen["values"] == sorted(seen["values"])
    assert seen["statuses"][-1] == "succeeded"

"""The curl commands of the documentation, run against a real service."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_process import ApiProcess
from PIL import Image

from api.app import create_app
from api.settings import ApiSettings
from core.auth.api_keys import ApiKeyStore
from core.config import Settings
from impasto import Client

ROOT = Path(__file__).parents[2]
EXAMPLE_URL = "http://127.0.0.1:8000"
_CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)
_COMMAND = re.compile(r"^\$ (curl (?:.*\\\n)*.*)$", re.MULTILINE)


def _commands(page: str) -> list[str]:
    blocks = _CONSOLE.findall((ROOT / page).read_text(encoding="utf-8"))
    return [command for block in blocks for command in _COMMAND.findall(block)]


@pytest.fixture
def folder(tmp_path: Path, photo: Image.Image, painting: Image.Image) -> Path:
    """A folder with the files that the commands name."""
    for name in ("photo.jpg", "one.jpg", "two.jpg", "other.jpg"):
        photo.save(tmp_path / name)
    painting.save(tmp_path / "painting.jpg")
    shutil.copytree(ROOT / "samples", tmp_path / "samples")
    return tmp_path


@pytest.fixture
def keys(service: ApiProcess, client: Client) -> Iterator[ApiKeyStore]:
    """The keys of the service, after `client` has emptied its store."""
    store = ApiKeyStore(service.redis_url)
    yield store
    store.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_every_curl_command_of_a_page_succeeds(
    page: str,
    service: ApiProcess,
    client: Client,
    worker: Any,
    folder: Path,
    keys: ApiKeyStore,
) -> None:
    job = client.submit(folder / "photo.jpg", folder / "painting.jpg", size=64)
    worker.claim()
    worker.progress(0.5)
    worker.frame()
    (folder / "result.png").write_bytes(worker.succeed())
    batch = client.submit_batch([folder / "one.jpg"], [folder / "painting.jpg"], size=64)
    waiting = client.submit(folder / "photo.jpg", folder / "painting.jpg", size=64)
    names = {
        EXAMPLE_URL: service.url,
        "job_…": job.id,
        "batch_…": batch.id,
        "sha256:…": job.input.content,
        "key_…": keys.create("Ada")[0].id,
    }
    admin = f"Authorization: Bearer {keys.create('Operator', admin=True)[1]}"
    # In the order of the page, but deletions last.
    for command in sorted(_commands(page), key=lambda command: " -X DELETE " in command):
        real_command = command.replace("wait=30", "wait=1")
        # These need a job that has not ended.
        if '"strength": 0.9' in real_command or "/move" in real_command:
            real_command = real_command.replace("job_…", waiting.id)
        for name, real in names.items():
            real_command = real_command.replace(name, real)
        script = (
            f'curl() {{ command curl -sS --max-time 20 --fail-with-body "$@"; }}\n{real_command}'
        )
        ran = subprocess.run(
            ["bash", "-c", script],
            cwd=folder,
            env={**os.environ, "admin": admin},
            capture_output=True,
            text=True,
            check=False,
        )
        # No test plays the worker that answers estimate requests.
        has_no_worker = "/v1/estimate" in command and "no_worker" in ran.stdout
        assert ran.returncode == 0 or has_no_worker, (command, ran.stdout, ran.stderr)


def _operation(command: str) -> str:
    """The method and path of a command, as in the OpenAPI document."""
    if explicit := re.search(r"-X (\w+)", command):
        method = explicit[1]
    elif " -I " in command:
        method = "HEAD"
    else:
        method = "POST" if re.search(r" -[Fd] ", command) else "GET"
    path = re.search(re.escape(EXAMPLE_URL) + r"([^?'\s]*)", command)
    assert path is not None, command
    names = {
        "job_…": "{job_id}",
        "batch_…": "{batch_id}",
        "sha256:…": "{digest}",
        "frames/0": "frames/{index}",
        "key_…": "{key_id}",
    }
    return f"{method} {re.sub('|'.join(names), lambda match: names[match[0]], path[1])}"


def test_the_documentation_has_a_curl_command_for_every_operation(tmp_path: Path) -> None:
    app = create_app(Settings(redis_url="redis://127.0.0.1:1/0", data_dir=tmp_path), ApiSettings())
    operations = {
        f"{method.upper()} {path}"
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    }

    assert {_operation(command) for command in _commands("docs/api.md")} == operations

"""impasto-client: built as a wheel, installed alone, and used against a real service."""

import ast
import json
import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from email import message_from_bytes
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
SESSION = """
import json, sys
import impasto
from impasto import Client, errors
with Client() as client:
    job = client.wait(client.submit(sys.argv[1], sys.argv[2], size=64, preset="draft").id)
    picture = client.result(job.id, "webp")
    try:
        client.job("job_" + "a" * 26)
    except errors.JobNotFound as error:
        code = error.code
    names = [preset.name for preset in client.presets()]
used = {name.partition(".")[0] for name in sys.modules}
print(json.dumps([impasto.__file__, job.status, job.input.spec["size"], picture[8:12].decode(),
                  code, names, sorted(used & {"core", "pydantic", "PIL", "torch", "redis"})]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT / "integrations" / "client", check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_has_every_module_of_the_client_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        errors = archive.read("impasto/errors.py")
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        headers = message_from_bytes(archive.read(metadata))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    modules = {f"impasto/{path.name}" for path in (ROOT / "impasto").glob("*.py")}
    assert names == modules | {"impasto/LICENSE"}
    assert errors == (ROOT / "core" / "errors.py").read_bytes()
    assert (headers["Name"], headers["Version"]) == ("impasto-client", project["version"])
    (requirement,) = headers.get_all("Requires-Dist", [])
    assert requirement in project["dependencies"]
    assert requirement.startswith("httpx2")


def _requirements(wheel: Path) -> list[str]:
    """Return the distributions that pip would install for the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        pending = message_from_bytes(archive.read(metadata)).get_all("Requires-Dist", [])
    names: list[str] = []
    while pending:
        requirement = Requirement(pending.pop())
        is_needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if is_needed and requirement.name not in names:
            names.append(requirement.name)
            pending += distribution(requirement.name).requires or []
    return names


def _installed_files(names: list[str]) -> set[Path]:
    """Return the files and folders of these distributions in this environment's site-packages."""
    return {
        Path(str(one.locate_file(file.parts[0])))
        for one in map(distribution, names)
        for file in one.files or []
        if file.parts[0] not in ("..", "__pycache__")
    }


def test_the_installed_wheel_works_without_the_service(
    wheel: Path, tmp_path: Path, shared_service: Any, pictures: tuple[Path, Path]
) -> None:
    venv.create(tmp_path / "env")
    (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    for path in _installed_files(_requirements(wheel)):
        (packages / path.name).symlink_to(path)
    environment = {"PATH": os.environ["PATH"], "IMPASTO_URL": shared_service.url}
    command = [tmp_path / "env" / "bin" / "python", "-I", "-c", SESSION, *pictures]
    ran = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stderr
    file, *seen, names, foreign = json.loads(ran.stdout)
    assert Path(file).is_relative_to(packages)
    assert (seen, foreign) == (["succeeded", 64, "WEBP", "job_not_found"], [])
    assert "brushwork" in names


def test_the_integrations_use_the_client_and_nothing_else_of_the_service() -> None:
    service = {"api", "cli", "core", "worker"}
    for module in (ROOT / "integrations").rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            assert not service & {name.partition(".")[0] for name in names}, module

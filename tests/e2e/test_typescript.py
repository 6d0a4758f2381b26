"""The TypeScript client: generated from the running service's document, compiled, and used."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "integrations" / "typescript"
TOOLS = ROOT / ".venv" / "node" / "node_modules"

needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not TOOLS.exists(),
    reason="Node or the generator is missing: make node",
)
pytestmark = pytest.mark.e2e


@needs_node
def test_the_generated_client_compiles_and_uses_the_service(
    shared_service: Any, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    for source in (*SOURCES.glob("*.ts"), *SOURCES.glob("*.mjs"), *SOURCES.glob("*.json")):
        shutil.copy(source, tmp_path)
    (tmp_path / "node_modules").symlink_to(TOOLS)
    environment = {
        "PATH": os.environ["PATH"],
        "IMPASTO_URL": shared_service.url,
        "PHOTO": str(pictures[0]),
        "PAINTING": str(pictures[1]),
    }

    def run(*command: str) -> str:
        ran = subprocess.run(
            ["node", *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    run("generate.mjs", f"{shared_service.url}/openapi.json", "schema.ts")
    run(str(TOOLS / "typescript" / "bin" / "tsc"), "--project", ".")
    tested = run("--test", "--test-reporter=tap", "build/client.test.js")

    assert "# pass 3" in tested
    # A body of type `unknown` accepts anything: the compiler would find no mistake.
    types = (tmp_path / "schema.ts").read_text(encoding="utf-8")
    # Free maps may have any values, and events are read as a stream.
    bodies = re.sub(r'(\[(key|name): string\]|"text/event-stream"): unknown;', "", types)
    assert not re.search(r"(: |\| )unknown\b", bodies)


def test_the_lock_file_pins_every_package_and_names_no_registry() -> None:
    lock = json.loads((SOURCES / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    wanted = json.loads((SOURCES / "package.json").read_text(encoding="utf-8"))

    for name, version in {**wanted["dependencies"], **wanted["devDependencies"]}.items():
        assert lock[f"node_modules/{name}"]["version"] == version
    del lock[""]
    assert all("integrity" in package and "resolved" not in package for package in lock.values())

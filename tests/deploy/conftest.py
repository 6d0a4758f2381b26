"""The Kubernetes overlays as kustomize renders them, shared by the tests of this folder."""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
Manifest = dict[str, Any]


@cache
def render(overlay: str) -> tuple[Manifest, ...]:
    """Return the objects of an overlay. Skips the test where kubectl is missing."""
    if not (kubectl := shutil.which("kubectl")):
        pytest.skip("kubectl, which contains kustomize, is not installed")
    command = [kubectl, "kustomize", str(KUBERNETES / "overlays" / overlay)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return tuple(yaml.safe_load_all(ran.stdout))


@pytest.fixture(params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> tuple[Manifest, ...]:
    return render(request.param)

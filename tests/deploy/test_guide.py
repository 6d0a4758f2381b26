"""The overlay that docs/how-to/kubernetes.md tells its reader to write."""

import re
import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "how-to" / "kubernetes.md"
needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl, which contains kustomize, is not installed"
)


def _render(folder: Path, kustomization: str) -> list[Any]:
    shutil.copytree(ROOT / "deploy" / "kubernetes", folder / "kubernetes")
    overlay = folder / "kubernetes" / "overlays" / "mine"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(kustomization)
    command = ["kubectl", "kustomize", str(overlay)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    return [*yaml.safe_load_all(ran.stdout)]


@needs_kubectl
def test_the_overlay_of_the_guide_with_keda_and_without_a_gpu_renders(tmp_path: Path) -> None:
    own, without_gpu = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    own = own.replace("components:\n", "components:\n  - ../../components/keda\n")
    manifests = _render(tmp_path, own + textwrap.indent(textwrap.dedent(without_gpu), "  "))
    (worker,) = [
        one
        for one in manifests
        if (one["kind"], one["metadata"]["name"]) == ("Deployment", "worker")
    ]
    (container,) = worker["spec"]["template"]["spec"]["containers"]
    (ingress,) = [one for one in manifests if one["kind"] == "Ingress"]

    assert container["image"] == "registry.mine.example/impasto-worker:0.1.0"
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert {"name": "IMPASTO_WORKER_DEVICE", "value": "cpu"} in container["env"]
    assert "replicas" not in worker["spec"]  # KEDA's
    assert ingress["spec"]["rules"][0]["host"] == "pictures.mine.example"
    assert ingress["spec"]["tls"][0]["hosts"] == ["pictures.mine.example"]
    for manifest in manifests:
        if not manifest["apiVersion"].startswith("keda.sh/"):
            kubernetes_validate.validate(manifest, "1.30", strict=True)

"""Processes that train together: what they agree on, and how they part."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]
ALIKE = """
import os
from pathlib import Path
import torch
from core.neural.training.distributed import join_process_group

def threads():
    return [name for thread in Path("/proc/self/task").glob("*/comm") if "gloo" in (name := thread.read_text())]

with join_process_group("cpu") as team:
    torch.manual_seed(team.share.rank)
    model = torch.nn.Linear(3, 2)
    team.agree(model.parameters())
    pictures = torch.arange(6.0).view(2, 3)  # of the batch of two each has one
    model(pictures[team.share.rank]).square().sum().backward()
    team.average(model)
    torch.manual_seed(0)
    alone = torch.nn.Linear(3, 2)
    alone(pictures).square().sum(1).mean().backward()
    for mine, right in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(mine, right) and torch.allclose(mine.grad, right.grad), (mine, right)
    assert threads()
assert not threads(), threads()
"""


def test_two_processes_have_the_same_weights_and_gradients_and_leave_no_thread(
    tmp_path: Path,
) -> None:
    """A thread of the group that outlives the interpreter aborts the process, now and then, when all is done."""
    script = tmp_path / "alike.py"
    script.write_text(ALIKE)

    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            str(script),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr

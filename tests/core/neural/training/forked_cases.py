"""A program that runs cases in forked processes, so that several cases cost one import of torch.

`python forked_cases.py CASES`: CASES is a JSON list of {"function", "arguments", "processes"}. The
cases run one after the other, and the processes of a case at once, with the environment that
torchrun would set. Prints a JSON list with the exit codes of each case; a negative code is the
number of a signal.
"""

import importlib
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

import torch

from core.neural.training.distributed import ProcessGroup, join_process_group
from core.neural.training.trainer import TrainerOptions, TrainingEvent, train
from core.neural.weights.torchvision_registry import import_torchvision
from core.training.config import TrainingConfig

TIMEOUT_SECONDS = 60  # a process that waits forever for another is killed by SIGALRM
EVERY_STEP = TrainerOptions(workers=0, checkpoint_seconds=0, log_steps=1)


def train_until_killed(
    dataset: str, folder: str, config: str, step: int, where: str, threads: int
) -> None:
    """Train alone; SIGKILL at a step, or when half of the step's checkpoint is written."""
    torch.set_num_threads(threads)
    saves, replace = 0, Path.replace

    def kill_at_step(event: TrainingEvent) -> None:
        if where == "step" and event.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def kill_in_save(part: Path, target: Path) -> Path:
        nonlocal saves
        saves += part.name == "checkpoint.pt.part"
        if where == "save" and saves == step:
            os.truncate(part, part.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(part, target)

    Path.replace = kill_in_save  # type: ignore[method-assign, assignment]
    parsed = TrainingConfig.model_validate_json(config)
    train(Path(dataset), Path(folder), parsed, ProcessGroup(), EVERY_STEP, on_event=kill_at_step)


def train_together(dataset: str, folder: str, config: str, exit_step: int | None = None) -> None:
    """Train in a process group; every process exits with code 1 at a step."""
    torch.set_num_threads(1)

    def exit_at_step(event: TrainingEvent) -> None:
        if event.step == exit_step:
            os._exit(1)

    parsed = TrainingConfig.model_validate_json(config)
    with join_process_group("cpu") as group:
        train(Path(dataset), Path(folder), parsed, group, EVERY_STEP, on_event=exit_at_step)


def compare_with_one_process() -> None:
    """Check weights, gradients and threads of two processes with one sample each."""
    before = _threads()
    with join_process_group("cpu") as group:
        of_the_group = _threads() - before
        torch.manual_seed(group.shard.rank)
        model = torch.nn.Linear(3, 2)
        group.broadcast(model.parameters())
        samples = torch.arange(6.0).view(2, 3)
        model(samples[group.shard.rank]).square().sum().backward()
        group.average_gradients(model)
        torch.manual_seed(0)
        alone = torch.nn.Linear(3, 2)
        alone(samples).square().sum(1).mean().backward()
        for actual, expected in zip(model.parameters(), alone.parameters(), strict=True):
            assert torch.equal(actual, expected)
            assert torch.allclose(actual.grad, expected.grad)
    assert of_the_group
    assert not of_the_group & _threads()


def _threads() -> set[str]:
    """The ids of this process's threads, also of those that Python does not know."""
    return {path.name for path in Path("/proc/self/task").iterdir()}


FUNCTIONS = {
    function.__name__: function
    for function in (train_until_killed, train_together, compare_with_one_process)
}


def _fork(case: dict[str, object], rank: int, port: int) -> int:
    """Start one process of a case. Returns its id."""
    child = os.fork()
    if child:
        return child
    signal.alarm(TIMEOUT_SECONDS)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(case["processes"])}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code = 1
    try:
        FUNCTIONS[case["function"]](**case["arguments"])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _import_for_training() -> None:
    """Import what the first training step would import, 1.2 s for each process of each case."""
    importlib.import_module("torch._dynamo")  # by the optimizer
    for submodule in ("models.vgg", "transforms.v2"):
        import_torchvision(submodule)


def main() -> None:
    """Run the cases, and print their exit codes."""
    cases = json.loads(sys.argv[1])
    if any(case["function"] != "compare_with_one_process" for case in cases):
        _import_for_training()
    codes = []
    for case in cases:
        port = _free_port()
        children = [_fork(case, rank, port) for rank in range(case["processes"])]
        codes.append([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
    print(json.dumps(codes))


if __name__ == "__main__":
    main()

"""What workers report of themselves: sizes and pools, for tests of who may take which job."""

from core.jobs.models import NO_POOL, WorkerReport


def describe_worker(size_px: int = 8192, *pools: str, name: str = "w") -> WorkerReport:
    """Return the report of a worker that holds this size. No pools: the jobs of none."""
    return WorkerReport(
        device="cpu",
        precision="float32",
        network="vgg19",
        networks=["vgg19"],
        max_size_px=size_px,
        id=name,
        pools=list(pools) or [NO_POOL],
    )

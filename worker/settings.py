"""The settings of a worker."""

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class WorkerSettings(BaseSettings):
    """IMPASTO_WORKER_*."""

    model_config = SettingsConfigDict(
        env_prefix="IMPASTO_WORKER_", env_ignore_empty=True, frozen=True
    )

    device: str = Field(
        "auto",
        pattern="^(auto|cpu|mps|cuda(:[0-9]+)?)$",
        description="auto, cpu, mps, cuda, or cuda:1 and so on.",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description=(
            "Of the network; auto: bfloat16 or float16 where the processor is faster with it."
        ),
    )
    memory_gb: float = Field(
        0,
        ge=0,
        le=10_000,
        description="Memory of the device that a job may take, in GB; 0: what is free.",
    )
    threads: int = Field(0, ge=0, le=256, description="CPU threads of the network; 0: all cores.")
    checkpoint_seconds: float = Field(
        2.0, ge=0.05, le=3600, description="Between two checkpoints of a running job, at the least."
    )
    preview_seconds: float = Field(
        1.0, ge=0.1, le=600, description="Between two previews of a running job."
    )
    preview_px: int = Field(384, ge=32, le=1024, description="Long side of a preview.")

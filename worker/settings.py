"""The settings of a worker."""

import socket
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from core.jobs.models import LABEL_PATTERN, NO_POOL


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
    devices: str = Field(
        "",
        pattern="^(all|([0-9]+|cpu)(,([0-9]+|cpu))*)?$",
        description=(
            "One worker for each of these devices instead of IMPASTO_WORKER_DEVICE: all cards, or "
            "numbers of nvidia-smi and cpu, separated by commas."
        ),
    )
    name: str = Field(
        "",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}$|^$",
        description="How the operator names it; empty: its host name and device.",
    )
    labels: str = Field(
        "",
        pattern=rf"^({LABEL_PATTERN}(,{LABEL_PATTERN}){{0,7}})?$",
        description="Pools that it serves, separated by commas: team=a,fast; at most 8.",
    )
    dedicated: bool = Field(False, description="Whether it serves only these pools.")
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
        1.0,
        ge=0.1,
        le=600,
        description="Between two previews of a running job; the first ones come sooner.",
    )
    preview_px: int = Field(384, ge=32, le=1024, description="Long side of a preview.")

    @property
    def worker_id(self) -> str:
        """How the operator names the worker, whatever its process: its host and device."""
        return self.name or f"{socket.gethostname()}/{self.device}"

    def id_of(self, device: str) -> str:
        """The id of one worker of several, by its device."""
        return f"{self.name or socket.gethostname()}/{device}"

    @property
    def pools(self) -> list[str]:
        """The pools of the jobs that it takes."""
        labels = self.labels.split(",") if self.labels else []
        return labels if self.dedicated and labels else [NO_POOL, *labels]

"""What an API process needs to know."""

from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def _split(text: object) -> object:
    return (
        [part.strip() for part in text.split(",") if part.strip()]
        if isinstance(text, str)
        else text
    )


Name = Annotated[str, Field(pattern=r"^([A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\])$")]
Origin = Annotated[str, Field(pattern=r"^https?://[^/\s]+$")]


class ApiSettings(BaseSettings):
    """IMPASTO_API_*."""

    model_config = SettingsConfigDict(env_prefix="IMPASTO_API_", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    allowed_hosts: Annotated[list[Name], NoDecode, BeforeValidator(_split)] = Field(
        [],
        description="Names by which the service may be called, with commas between, without ports.",
    )
    cors_origins: Annotated[list[Origin], NoDecode, BeforeValidator(_split)] = Field(
        [],
        description="Origins whose pages may use the API, with commas between: https://example.org.",
    )
    client_timeout_seconds: float = Field(
        15.0,
        ge=1,
        le=600,
        description="How long a connection is borne that is silent, or slower than min_client_bytes_per_second.",
    )
    min_client_bytes_per_second: int = Field(
        1000, ge=1, description="Bytes a second that a client must send or read on average."
    )
    keys: Literal["auto", "required", "off"] = Field(
        "auto",
        description="Whether requests need an API key; auto: unless the API listens on loopback.",
    )
    submissions_per_minute: int = Field(
        600,
        ge=1,
        description="Uploads, submissions and retries of one key in a minute; more get 429.",
    )
    requests_per_minute: int = Field(
        6_000, ge=1, description="All other requests of one key in a minute."
    )
    auth_failures_per_minute: int = Field(
        30, ge=1, description="Wrong API keys from one address in a minute; more get 429."
    )
    max_queued: int = Field(
        10_000, ge=1, description="Jobs that may wait, of all callers; more get 503."
    )
    max_jobs_per_caller: int = Field(
        2_000, ge=1, description="Jobs of one caller that may wait and run; more get 429."
    )
    max_streams_per_caller: int = Field(
        200,
        ge=1,
        description="Streams of events of one caller that one API process serves; more get 429.",
    )
    result_retention_days: float = Field(
        30.0,
        ge=0,
        le=36_500,
        description="How long an ended job keeps its pictures; 0: while there is room for them.",
    )
    job_retention_days: float = Field(
        30.0,
        ge=0,
        le=36_500,
        description="How long after that its record, without pictures, is still told of.",
    )
    storage_quota_gb: float = Field(
        0.0,
        ge=0,
        description="What pictures and checkpoints may take; when it is more, the oldest results go; 0: all.",
    )
    upload_retention_hours: float = Field(
        24.0, gt=0, le=8760, description="How long an uploaded picture is kept that no job uses."
    )
    upload_quota_gb_per_caller: float = Field(
        5.0,
        gt=0,
        description="What the uploads of one caller may take while they are kept; more get 429.",
    )

    @property
    def keys_required(self) -> bool:
        """Whether a request without an API key is refused."""
        return self.keys == "required" or (self.keys == "auto" and not is_loopback(self.host))


def is_loopback(host: str) -> bool:
    """Whether who listens there can be reached from this machine only."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False

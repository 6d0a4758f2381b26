"""The settings of an API process."""

from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from api.http.root_path import parse_root_path


def _split(text: object) -> object:
    """Split the comma-separated list of an environment variable."""
    if not isinstance(text, str):
        return text
    return [part.strip() for part in text.split(",") if part.strip()]


HostName = Annotated[str, Field(pattern=r"^([A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\])$")]
Origin = Annotated[str, Field(pattern=r"^https?://[^/\s]+$")]


class ApiSettings(BaseSettings):
    """IMPASTO_API_*."""

    model_config = SettingsConfigDict(env_prefix="IMPASTO_API_", env_ignore_empty=True, frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    allowed_hosts: Annotated[list[HostName], NoDecode, BeforeValidator(_split)] = Field(
        [],
        description="Host names that clients may use for the service: comma-separated, no ports.",
    )
    cors_origins: Annotated[list[Origin], NoDecode, BeforeValidator(_split)] = Field(
        [],
        description="Origins whose pages may use the API: comma-separated (https://example.org).",
    )
    root_path: Annotated[str, AfterValidator(parse_root_path)] = Field(
        "",
        description="Path under which a proxy serves the API, such as /impasto.",
    )
    client_timeout_seconds: float = Field(
        15.0,
        ge=1,
        le=600,
        description=(
            "Seconds until a connection is closed that is silent or slower than "
            "min_client_bytes_per_second."
        ),
    )
    min_client_bytes_per_second: int = Field(
        1000, ge=1, description="Bytes per second that a client must send or read on average."
    )
    keys: Literal["auto", "required", "off"] = Field(
        "auto",
        description="Whether requests need an API key; auto: unless the API listens on loopback.",
    )
    submissions_per_minute: int = Field(
        600,
        ge=1,
        description="Uploads, submissions, retries, updates, estimates of one key per minute.",
    )
    requests_per_minute: int = Field(
        6_000, ge=1, description="All other requests of one key per minute; more get 429."
    )
    auth_failures_per_minute: int = Field(
        30, ge=1, description="Wrong API keys from one address per minute; more get 429."
    )
    max_queued: int = Field(
        10_000, ge=1, description="Jobs of all callers that may wait in the queue; more get 503."
    )
    max_jobs_per_caller: int = Field(
        2_000, ge=1, description="Jobs of one caller that may be queued or running; more get 429."
    )
    max_wait_seconds: float = Field(
        1.0,
        gt=0,
        le=600,
        description="Seconds that a submission or list may wait for its turn; more get 503.",
    )
    max_streams_per_caller: int = Field(
        200,
        ge=1,
        description="Event streams per caller and API process; more get 429.",
    )
    result_retention_days: float = Field(
        30.0,
        ge=0,
        le=36_500,
        description="Days for which an ended job keeps its images; 0: while the quota allows it.",
    )
    job_retention_days: float = Field(
        30.0,
        ge=0,
        le=36_500,
        description="Days for which the job record stays available after its images are deleted.",
    )
    storage_quota_gb: float = Field(
        0.0,
        ge=0,
        description=(
            "Gigabytes for images and checkpoints; above it the oldest results are deleted; "
            "0: no limit."
        ),
    )
    upload_retention_hours: float = Field(
        24.0,
        gt=0,
        le=8760,
        description="Hours for which an uploaded image is kept that no job uses.",
    )
    upload_quota_gb_per_caller: float = Field(
        5.0,
        gt=0,
        description=(
            "Gigabytes that the uploads of one caller may take, and as many again the pictures of "
            "its unfinished jobs, and those of its unfinished requests; more get 429."
        ),
    )

    result_links: bool = Field(
        False,
        description=(
            "Whether programs get a link to the bucket instead of the bytes of a result; needs "
            "IMPASTO_BLOBS_URL."
        ),
    )
    max_uploads_per_caller: int = Field(
        10_000, ge=1, description="Stored uploads of one caller; more get 429."
    )

    @property
    def is_key_required(self) -> bool:
        """Whether requests need an API key."""
        return self.keys == "required" or (self.keys == "auto" and not is_loopback(self.host))


def is_loopback(host: str) -> bool:
    """Whether a server on this host can be reached from this machine only."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False

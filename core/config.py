"""The settings that all processes share, and the reader of IMPASTO_* variables.

A process reads its settings once, at start. An unknown or invalid variable is an error.
"""

import os
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from core import errors, log
from core.blobs_url import check_blobs_url
from core.redis_url import check_redis_url
from core.style.limits import JobLimits
from core.style.spec import MAX_ITERATIONS, MAX_SIZE_PX, MIN_SIZE_PX
from core.webhooks.policy import WebhookPolicy
from core.webhooks.signing import Signer

# The form of the Standard Webhooks specification: 24 to 64 bytes in base64.
_WHSEC = r"^(whsec_([A-Za-z0-9+/]{4}){8,21}([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)?$"


def _user_dir(variable: str, fallback: str) -> Path:
    """The XDG folder of this kind, or its default under the home folder, plus `impasto`."""
    return Path(os.environ.get(variable) or Path.home() / fallback) / "impasto"


class Settings(BaseSettings):
    """IMPASTO_*: the settings of every process."""

    model_config = SettingsConfigDict(env_prefix="IMPASTO_", env_ignore_empty=True, frozen=True)

    redis_url: Annotated[str, AfterValidator(check_redis_url)] = Field(
        "redis://127.0.0.1:6379/0",
        repr=False,
        description="redis://:password@host:port/0; Redis or Valkey 7 or newer, no cluster.",
    )
    store_unsafe: Literal["refuse", "accept"] = Field(
        "refuse",
        description="Whether to accept jobs although a setting of the store may lose them.",
    )
    store_replicas: int = Field(
        0,
        ge=0,
        le=10,
        description="How many replicas of the store must have a job before it is accepted.",
    )
    data_dir: Path = Field(
        default_factory=lambda: _user_dir("XDG_DATA_HOME", ".local/share"),
        description="Folder for pictures, checkpoints and the embedded server's data; "
        "the API and the workers must share it.",
    )
    blobs_url: Annotated[str, AfterValidator(check_blobs_url)] = Field(
        "",
        description="s3://bucket/prefix?endpoint=...&region=...: the bucket of the pictures; "
        "empty: a folder in data_dir.",
    )
    blobs_cache_gb: float = Field(
        2.0,
        gt=0,
        allow_inf_nan=False,
        description="Gigabytes of a bucket's pictures that this machine keeps as copies.",
    )
    cache_dir: Path = Field(
        default_factory=lambda: _user_dir("XDG_CACHE_HOME", ".cache"),
        description="Folder for the weights of the networks.",
    )
    log_format: log.LogFormat = Field(
        "text", description="Log format: text for people, json for machines."
    )
    traces_url: str = Field(
        "",
        pattern=r"^(https?://\S+)?$",
        description="OTLP/HTTP endpoint of an OpenTelemetry collector, "
        "http://collector:4318/v1/traces; if empty, traces are off.",
    )
    url: str = Field(
        "http://127.0.0.1:8000",
        description="URL of the service for clients (submit, watch and so on).",
    )
    key: SecretStr = Field(
        SecretStr(""), description="API key that clients send, if the service requires one."
    )
    webhook_secret: str = Field(
        "",
        repr=False,
        pattern=_WHSEC,
        description="Signs webhooks: whsec_ and the base64 of 24 to 64 random bytes; "
        "if empty, webhooks are off.",
    )
    webhook_previous_secret: str = Field(
        "",
        repr=False,
        pattern=_WHSEC,
        description="The previous secret; webhooks carry its signature too, until all receivers "
        "have the new secret.",
    )
    webhook_ports: str = Field(
        "443",
        pattern=r"^[0-9]{1,5}(,[0-9]{1,5})*$",
        description="Ports that webhooks may use, separated by commas.",
    )
    webhook_allow_http: bool = Field(
        False, description="Whether http:// webhooks are allowed too (for development)."
    )
    webhook_allow_private: bool = Field(
        False,
        description="Whether webhooks may go to private addresses (an intranet or this machine).",
    )

    max_size_px: int = Field(
        MAX_SIZE_PX, ge=MIN_SIZE_PX, le=MAX_SIZE_PX, description="Largest `size` of a job, in px."
    )
    max_iterations: int = Field(
        MAX_ITERATIONS,
        ge=1,
        le=MAX_ITERATIONS,
        description="Most iterations of a job at one scale.",
    )
    max_job_seconds: float = Field(
        3600.0,
        ge=0,
        allow_inf_nan=False,
        description="Most seconds of a job's run; 0: no limit.",
    )

    @property
    def job_limits(self) -> JobLimits:
        """What one job may take."""
        return JobLimits(self.max_size_px, self.max_iterations, self.max_job_seconds)

    @property
    def webhooks(self) -> WebhookPolicy:
        """Which webhook destinations are allowed; none without a secret."""
        return WebhookPolicy(
            enabled=bool(self.webhook_secret),
            ports=frozenset(map(int, self.webhook_ports.split(","))),
            allow_http=self.webhook_allow_http,
            allow_private=self.webhook_allow_private,
        )

    @property
    def webhook_signer(self) -> Signer:
        """Signs webhooks with the secrets of these settings."""
        return Signer(self.webhook_secret, self.webhook_previous_secret)

    @property
    def throughput_file(self) -> Path:
        """The measured speeds of this machine's devices.

        Beside the weights, or in the data folder where that cannot be written, as in a container.
        """
        is_read_only = self.weights_dir.exists() and not os.access(self.weights_dir, os.W_OK)
        return (self.data_dir if is_read_only else self.weights_dir) / "throughput.json"

    @property
    def weights_dir(self) -> Path:
        """The folder of the networks' weights."""
        return self.cache_dir / "weights"


AnySettings = TypeVar("AnySettings", bound=BaseSettings)

# The API and the worker have their own settings class; the shared class ignores their prefixes.
_PROCESS_PREFIXES = ("IMPASTO_API_", "IMPASTO_WORKER_")


def read_settings(kind: type[AnySettings]) -> AnySettings:
    """Read the settings from the environment.

    Raises BadSettings, which names the variable. An unknown variable is an error, because a
    misspelled name would otherwise leave the default in force.
    """
    prefix = kind.model_config["env_prefix"]
    known = {prefix + name.upper() for name in kind.model_fields}
    for variable in os.environ:
        is_foreign = prefix not in _PROCESS_PREFIXES and variable.startswith(_PROCESS_PREFIXES)
        if variable.startswith(prefix) and variable not in known and not is_foreign:
            raise errors.BadSettings(
                f"There is no setting {variable}; the settings are {', '.join(sorted(known))}."
            )
    try:
        return kind()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        variable = prefix + str(first["loc"][0]).upper()
        reason = _describe_values(kind, str(first["loc"][0]))
        if first["type"] == "value_error":
            reason = str(first["ctx"]["error"])  # without pydantic's prefix
        raise errors.BadSettings(f"{variable}: {reason}") from error


def _describe_values(kind: type[BaseSettings], name: str) -> str:
    """Return a sentence with the values that a setting may have."""
    schema = kind.model_json_schema()["properties"][name]
    if "enum" in schema:
        return f"It must be one of {', '.join(schema['enum'])}."
    if schema["type"] == "boolean":
        return "It must be true or false."
    if schema["type"] not in ("integer", "number"):
        return str(schema["description"])
    number = "a whole number" if schema["type"] == "integer" else "a number"
    bounds = [
        f"{words} {schema[limit]:.10g}"
        for limit, words in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
        )
        if limit in schema
    ]
    return f"It must be {number}, {' and '.join(bounds)}."

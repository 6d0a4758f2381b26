"""Settings that every process needs, and how settings are read: from IMPASTO_* variables, once, at start, strictly."""

import os
from pathlib import Path
from typing import TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from core import errors, log
from core.webhooks.policy import WebhookPolicy
from core.webhooks.signing import Signer

_WHSEC = r"^(whsec_([A-Za-z0-9+/]{4}){8,21}([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)?$"


def _home(variable: str, fallback: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / fallback) / "impasto"


class Settings(BaseSettings):
    """IMPASTO_*: where things are."""

    model_config = SettingsConfigDict(env_prefix="IMPASTO_", frozen=True)

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        pattern="^rediss?://.",
        description="redis://:password@host:port/0; Redis or Valkey 7 or newer.",
    )
    data_dir: Path = Field(
        default_factory=lambda: _home("XDG_DATA_HOME", ".local/share"),
        description="Pictures, checkpoints, and the embedded server's data; API and workers must see the same folder.",
    )
    cache_dir: Path = Field(
        default_factory=lambda: _home("XDG_CACHE_HOME", ".cache"),
        description="The networks' weights.",
    )
    log_format: log.Format = Field(
        "text", description="How to log: text for people, json for machines."
    )
    url: str = Field(
        "http://127.0.0.1:8000", description="Where clients find the service (submit, watch)."
    )
    key: SecretStr = Field(
        SecretStr(""), description="The API key that clients send, if the service asks for one."
    )
    webhook_secret: str = Field(
        "",
        repr=False,
        pattern=_WHSEC,
        description="whsec_ and the base64 of 24 to 64 random bytes, to sign webhooks with; none: no webhooks.",
    )
    webhook_previous_secret: str = Field(
        "",
        repr=False,
        pattern=_WHSEC,
        description="The secret before this one, to sign with as well until all receivers know the new one.",
    )
    webhook_ports: str = Field(
        "443",
        pattern=r"^[0-9]{1,5}(,[0-9]{1,5})*$",
        description="Ports that webhooks may go to, with commas between.",
    )
    webhook_allow_http: bool = Field(
        False, description="Whether webhooks may go to http:// as well: for development."
    )
    webhook_allow_private: bool = Field(
        False,
        description="Whether webhooks may go to private addresses, of an intranet or this machine.",
    )

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
    def blobs_dir(self) -> Path:
        """Where the blobs are."""
        return self.data_dir / "blobs"

    @property
    def checkpoints_dir(self) -> Path:
        """Where workers leave what the next one goes on from."""
        return self.data_dir / "checkpoints"

    @property
    def weights_dir(self) -> Path:
        """Where the networks are."""
        return self.cache_dir / "weights"


AnySettings = TypeVar("AnySettings", bound=BaseSettings)

# Settings of one kind of process have a prefix of their own, read by its own class.
_PROCESS_PREFIXES = ("IMPASTO_API_", "IMPASTO_WORKER_")


def read_settings(kind: type[AnySettings]) -> AnySettings:
    """The settings from the environment. Raises BadSettings, naming the variable: a typing error is no default."""
    prefix = kind.model_config["env_prefix"]
    known = {prefix + name.upper() for name in kind.model_fields}
    for variable in os.environ:
        elsewhere = prefix not in _PROCESS_PREFIXES and variable.startswith(_PROCESS_PREFIXES)
        if variable.startswith(prefix) and variable not in known and not elsewhere:
            raise errors.BadSettings(
                f"There is no setting {variable}; there are {', '.join(sorted(known))}."
            )
    try:
        return kind()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        variable = prefix + str(first["loc"][0]).upper()
        field = kind.model_fields[str(first["loc"][0])]
        words = (
            field.description if first["type"] == "string_pattern_mismatch" else f"{first['msg']}."
        )
        raise errors.BadSettings(f"{variable}: {words}") from error

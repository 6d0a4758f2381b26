"""What an API process needs to know."""

from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def _split(text: object) -> object:
    return [part.strip() for part in text.split(",") if part.strip()] if isinstance(text, str) else text


Name = Annotated[str, Field(pattern=r"^([A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\])$")]
Origin = Annotated[str, Field(pattern=r"^https?://[^/\s]+$")]


class ApiSettings(BaseSettings):
    """IMPASTO_API_*."""

    model_config = SettingsConfigDict(env_prefix="IMPASTO_API_", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    hosts: Annotated[list[Name], NoDecode, BeforeValidator(_split)] = Field(
        [], description="Names by which the service may be called, with commas between, without ports."
    )
    origins: Annotated[list[Origin], NoDecode, BeforeValidator(_split)] = Field(
        [], description="Origins whose pages may use the API, with commas between: https://example.org."
    )
    patience_seconds: float = Field(
        15.0, ge=1, le=600, description="How long a connection is borne that is silent, or slower than min_rate."
    )
    min_rate: int = Field(1000, ge=1, description="Bytes a second that a client must send or read on average.")
    upload_keep_hours: float = Field(
        24.0, gt=0, le=8760, description="How long an uploaded picture is kept that no job uses."
    )

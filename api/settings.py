"""What an API process needs to know."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ApiSettings(BaseSettings):
    """IMPASTO_API_*."""

    model_config = SettingsConfigDict(env_prefix="IMPASTO_API_", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    upload_keep_hours: float = Field(
        24.0, gt=0, le=8760, description="How long an uploaded picture is kept that no job uses."
    )

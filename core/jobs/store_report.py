"""What a check of the store has found: the API fills it, clients read it. Opens no connection."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from core.blobs_url import IDENTITY_FILE

Identity = Literal["same", "missing", "changed", "unknown", "unchecked"]


class StoreReport(BaseModel):
    """What a check has found.

    problems: settings by which accepted jobs may be lost. risks: what may lose them in a failover.
    unchecked: settings that the server does not show. identity: `same` as that of the picture
    folder; `missing`: the store is empty; `changed`: it is another store; `unknown`: the folder
    cannot be read; `unchecked`: this process has no folder of pictures.
    """

    model_config = ConfigDict(frozen=True)

    problems: list[str] = []
    risks: list[str] = []
    unchecked: list[str] = []
    identity: Identity = "unchecked"

    @property
    def may_delete_blobs(self) -> bool:
        """Whether a blob that the store does not know is really unused."""
        return self.identity in ("same", "unchecked")

    def describe_identity(self) -> str | None:
        """Return a sentence for the operator about a store that is not the known one, or None."""
        if self.may_delete_blobs:
            return None
        if self.identity == "unknown":
            return "The folder of the pictures cannot be read and written. No picture is deleted."
        found = "is empty" if self.identity == "missing" else "is another one"
        return (
            f"The store {found}: its jobs are not those of the pictures. No picture is deleted. "
            f"Restore the store, or delete {IDENTITY_FILE} beside the pictures to go on with it."
        )

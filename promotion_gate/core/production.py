"""Where production is: the one table of a policy that a rollback needs, which waits for no other."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Table(BaseModel):
    """A table of the policy: a key it does not know is a fault."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class Production(Table):
    """The alias that serving reads, and whether the legacy stage ``Production`` follows it."""

    alias: str = Field(default="production", pattern=r"^[A-Za-z0-9_\-]+$")
    mirror_stage: Literal["auto", "always", "never"] = "auto"

    @field_validator("alias")
    @classmethod
    def _not_reserved(cls, alias: str) -> str:
        if alias.lower() == "latest" or (alias[:1] in "vV" and alias[1:].isdigit()):
            raise ValueError("MLflow reserves 'latest' and 'v<number>'; choose another alias")
        return alias

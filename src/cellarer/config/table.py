"""What every table of the config has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Table(BaseModel):
    """A table of the config: known keys only, values exactly as typed, never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

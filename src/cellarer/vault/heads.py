"""How far the vault's chains went when this host last looked, in a small file on this host.

Whoever can write to all replicas can serve yesterday's vault whole, and nothing in it shows that.
Only who saw today's can tell. The file is a cache: losing it loses nothing but this check.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from cellarer import places


class SeenHeads:
    """The file of one vault; `directory` is made when something is kept."""

    def __init__(self, directory: Path, vault_id: str) -> None:
        self.file = directory / f"{vault_id}.json"

    def load(self) -> dict[str, set[str]]:
        """Chain -> hashes of its heads; empty where nothing was kept, or nothing readable."""
        try:
            value = json.loads(self.file.read_text())
            return {str(chain): set(map(str, hashes)) for chain, hashes in value["heads"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def keep(self, heads: Mapping[str, set[str]]) -> None:
        """Remember these instead. Raises `OSError`."""
        told = {"heads": {chain: sorted(found) for chain, found in heads.items()}}
        places.keep(self.file, json.dumps(told))

"""The golden vaults, on stores in memory, with their keys."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cellarer.vault.keys import CollectKey, Identity, WriteKey
from stand_ins import Founded, Objects

ROOT = Path(__file__).resolve().parent / "golden"


def text_of(vault: str, name: str) -> str:
    """A file that lies beside a golden vault."""
    return (ROOT / vault / name).read_text(encoding="utf-8")


def expected_of(vault: str) -> dict[str, Any]:
    """What has to be found in it."""
    found: dict[str, Any] = json.loads(text_of(vault, "expected.json"))
    return found


def golden_vault(name: str) -> Founded:
    """A copy that may be changed."""
    replica = ROOT / name / "replica"
    files = (path for path in replica.rglob("*") if path.is_file())
    objects = {path.relative_to(replica).as_posix(): path.read_bytes() for path in files}
    collect_key = ROOT / name / "collect-key.json"
    return Founded(
        {"a": Objects("a", objects)},
        1,
        WriteKey.from_text(text_of(name, "write-key.json")),
        Identity.from_text(text_of(name, "identity.txt")),
        lambda: datetime(2026, 4, 1, tzinfo=UTC),
        CollectKey.from_text(collect_key.read_text("utf-8")) if collect_key.exists() else None,
    )

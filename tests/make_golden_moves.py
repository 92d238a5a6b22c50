"""Makes the golden vault with repacks.

    PYTHONPATH=src:tests python tests/make_golden_moves.py tests/golden/vault-with-moves

Like `make_golden_vault.py` it is run once for a version of the format, never to repair a test.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import UTC
from pathlib import Path

from cellarer.domain.retention import Policy
from cellarer.domain.snapshot import Check, Proof, ProofRecord
from cellarer.flows.keys import rotate
from cellarer.flows.retain import Rules, hold, retain
from cellarer.flows.scrub import Wanted, scrub
from cellarer.vault import packer, placing, repack
from cellarer.vault.keys import Identity
from cellarer.vault.ledger import record_proof
from cellarer.vault.vault import Vault
from make_golden_vault import Silent, Story, backup, write
from stand_ins import Founded, found, noise

WHOLE = noise(1, 240_000)
FILES = {"logo.png": noise(7, 900), "caf\u00e9 \u732b": b"\0", "empty": b""}


def small_packs() -> None:
    """Records of 8 KiB and packs of 24 KiB: little data lies in many packs."""
    vars(placing)["RECORD_BYTES"] = 8 << 10
    for module in (packer, repack):
        vars(module)["PACK_BYTES"] = 24 << 10


def scattered(width: int) -> dict[str, bytes]:
    """A little out of each part of `WHOLE`: what a point with this needs lies in many packs."""
    parts = (WHOLE[at : at + width] for at in range(0, len(WHOLE), 48_000))
    return {"shop/data/public/customers": b"".join(parts), "roles.sql": b"CREATE ROLE shop;\n"}


def kept(told: Story, source: str, contents: Mapping[str, bytes]) -> str:
    """A point that is there in the end."""
    session = backup(told.scene, source, contents).session
    told.points[session] = contents
    return session


def keep_last(scene: Founded) -> str:
    """Give up all but the newest point of each source and the held one, repack and collect; the
    repack's session."""
    vault = Vault.open(scene.replicas(), None, None, scene.collect_key)
    before = {each.session for each in vault.repacks()}
    done = retain(vault, Rules(Policy(last=1), {}, UTC, 1 << 30), scene.now, Silent())
    assert done.repacked.repacked_bytes
    assert all(collected.swept_bytes for collected in done.replicas.values())
    (new,) = {each.session for each in vault.repacks()} - before
    return new


def prove(scene: Founded, source: str, point: str) -> None:
    """An identity states that a point was restored and is equal."""
    checks = (Check("restore", True, "", ""),)
    proof = ProofRecord(point, source, Proof.PROVEN, True, scene.now(), 1.5, checks)
    record_proof(scene.open(), proof)


def dead_repack(scene: Founded) -> str:
    """A repack whose host dies when it has announced itself; the next one closes it."""
    vault = Vault.open(scene.replicas(), None, None, scene.collect_key)
    session = repack._Session(vault, scene.now)
    session._undecided = False
    session.abandon()
    return session._id


def story(directory: Path) -> Story:
    """Records that move up to three times, and an identity that takes the place of another."""
    scene = found()
    told = Story(scene, scene.write_key.admin)
    repacks: list[str] = []
    backup(scene, "shop", {"shop/data/public/customers": WHOLE})
    held = kept(told, "shop", scattered(4_000))
    hold(scene.open(), held, "for the auditor", scene.now())
    prove(scene, "files", kept(told, "files", FILES))
    for width in (32_000, 16_000):
        backup(scene, "shop", scattered(width))
        repacks.append(keep_last(scene))
    told.keys["retired-identity.txt"] = scene.identity.to_text()
    new = Identity.generate()
    rotate(scene.open(), new, scene.now())
    scene.identity = new
    scrub(scene.open(), Wanted(), Silent(), scene.now)
    told.more["aborted"] = dead_repack(scene)
    kept(told, "shop", scattered(5_000))
    repacks.append(keep_last(scene))
    kept(told, "shop", {**scattered(5_000), "more": noise(9, 5_000)})
    told.more["repacks"] = repacks
    return told


if __name__ == "__main__":
    small_packs()
    write(Path(sys.argv[1]), story)

"""A server that was brought back to an earlier moment lives on: both its lives stay reachable."""

from __future__ import annotations

import shutil
from pathlib import Path

import psycopg

from recovery.life import Life, commanded, copy_of, restored, rows_of, served, state_of
from targets.base_points import digests
from wal_places import Place


def handed_over(place: Place, out: Path, dsn: str) -> None:
    """What a server has switched away from goes into the vault, as its archive_command does it."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_switch_wal()")
    ready = out / "pg_wal" / "archive_status"
    names = [path.name.removesuffix(".ready") for path in sorted(ready.glob("*.ready"))]
    assert "00000002.history" in names
    for name in names:
        done = place.run("wal", "push", out / "pg_wal" / name, cwd=out)
        assert done.returncode == 0, done.stderr


def test_before_and_after_a_fork(life: Life, whole: dict[str, str], tmp_path: Path) -> None:
    copy, forked = copy_of(life, tmp_path), tmp_path / "forked"
    half = [each for each in life.committed if each.time >= life.ready]
    left = half[len(half) // 2]
    restored(copy, forked, "--at", left.time.isoformat())
    try:
        with served(life, forked, archive_mode="on") as dsn:
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute("INSERT INTO rows VALUES (1000001, 'another life')")
                connection.execute("UPDATE state SET last = 1000001")
            after = digests(dsn)
            handed_over(copy, forked, dsn)
    finally:
        copy.end_agent()
    shutil.rmtree(forked)

    def recovered(*wishes: str) -> dict[str, str]:
        out = tmp_path / "out"
        restored(copy, out, *wishes)
        found = state_of(life, out)
        shutil.rmtree(out)
        return found

    # What is newest is the other life; the first one is there when it is asked for.
    assert recovered() == after
    assert (
        recovered("--timeline", "1", "--lsn", life.lsn, "--point", life.points["direct"]) == whole
    )
    before = tmp_path / "before"
    early = half[len(half) // 4]
    restored(copy, before, "--at", early.time.isoformat())
    with served(life, before) as dsn:
        expected = life.by(early.time)
        assert rows_of(dsn) == (expected, expected[-1])
    # So does its proof: the base backup of the first life leads into the second one.
    claim = '[[sources.cluster.assertions]]\nname = "lived on"\ndatabase = "postgres"\n'
    claim += 'sql = "SELECT count(*) FROM rows WHERE id = 1000001"\nexpect = 1\n'
    copy.config.write_text(copy.config.read_text() + claim)
    code, document = commanded(copy, "verify", "cluster", "--point", life.points["direct"])
    assert code == 0, document
    assert document["results"][0]["passed"], document
    # A moment of the first life after it was left is not on the way of the second.
    code, document = commanded(
        copy, "restore", "cluster", "--to", f"pgdata:{tmp_path}/no", "--lsn", life.lsn
    )
    assert code == 1, document
    assert not (tmp_path / "no" / "PG_VERSION").exists() or not list(
        (tmp_path / "no" / "pg_wal").glob("00000003*")
    )
    # Without its history nobody knows what leads to the second life; the first one is there.
    for replica in ("one", "two"):
        (history,) = (copy.directory / replica / "wal").rglob("00000002.history")
        history.unlink()
    out = tmp_path / "blind"
    code, document = commanded(copy, "restore", "cluster", "--to", f"pgdata:{out}")
    assert (code, "00000002.history" in document["error"]["message"]) == (1, True)
    assert "--timeline 1" in document["error"]["hint"]
    assert not out.exists()
    assert (
        recovered("--timeline", "1", "--lsn", life.lsn, "--point", life.points["direct"]) == whole
    )

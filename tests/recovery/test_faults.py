"""What goes wrong between a vault and a data directory: damage, gaps, SIGKILL, another cluster."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from cellarer import bootstrap
from cellarer.config import load
from cellarer.domain.log_retention import LogDecision
from cellarer.flows.points import survey
from cellarer.postgres.cluster import sandbox_cluster
from cellarer.postgres.private_server import PrivateServer
from cellarer.postgres.wal_feed import WalFeed
from cellarer.targets.pgdata import account_for
from cellarer.vault.log_removal import LogRemover
from recovery.life import (
    Life,
    commanded,
    copy_of,
    killed_restore,
    restored,
    rows_of,
    served,
    settings_of,
    state_of,
)
from wal_places import Place, ask, wait_for

REPLICAS = ("one", "two")


def damaged(path: Path) -> None:
    """A bit in the middle of a stored object is another one."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.chmod(0o600)
    path.write_bytes(data)


def log_of(copy: Place, replica: str) -> list[Path]:
    """The whole segments on a replica, in their order."""
    return sorted(p for p in (copy.directory / replica / "wal").rglob("*") if len(p.name) == 24)


def the_segment_in_the_middle(copy: Place, replica: str) -> list[Path]:
    return log_of(copy, replica)[-2:-1]


def every_pack(copy: Place, replica: str) -> list[Path]:
    return [p for p in (copy.directory / replica / "packs").rglob("*") if p.is_file()]


@pytest.mark.parametrize("chosen", [the_segment_in_the_middle, every_pack])
def test_a_flipped_bit_is_read_around_and_never_believed(
    life: Life,
    whole: dict[str, str],
    tmp_path: Path,
    chosen: Callable[[Place, str], list[Path]],
) -> None:
    copy = copy_of(life, tmp_path)
    paths = [chosen(copy, replica) for replica in REPLICAS]
    assert all(paths)
    for path in paths[0]:
        damaged(path)
    restored(copy, tmp_path / "out", *life.wishes)
    assert state_of(life, tmp_path / "out") == whole
    for path in paths[1]:
        damaged(path)
    bad = tmp_path / "bad"
    code, document = commanded(copy, "restore", "cluster", "--to", f"pgdata:{bad}", *life.wishes)
    assert (code, document["error"]["kind"]) == (6, "damaged"), document
    # Nothing was promoted: no server starts there and calls what it has the whole.
    assert not list(bad.glob("pg_wal/00000002*"))
    assert (
        not (bad / "PG_VERSION").exists()
        or (bad / "recovery.signal").exists()
        or (not (bad / "global" / "pg_control").exists())
    )


@pytest.mark.parametrize("by", ["lsn", "time"])
def test_a_segment_that_is_gone_is_refused_before_anything_is_written(
    life: Life, tmp_path: Path, by: str
) -> None:
    copy = copy_of(life, tmp_path)
    for replica in REPLICAS:
        (gone,) = the_segment_in_the_middle(copy, replica)
        gone.unlink()
    out = tmp_path / "out"
    wishes = life.wishes
    if by == "time":
        wishes = (*life.wishes[:2], "--at", life.committed[-1].time.isoformat())
    code, document = commanded(copy, "restore", "cluster", "--to", f"pgdata:{out}", *wishes)
    assert code == 1, document
    assert gone.name in document["error"]["detail"]
    assert not out.exists()


def test_the_directory_of_another_cluster_is_not_taken_for_this_one(
    life: Life, tmp_path: Path
) -> None:
    with sandbox_cluster(life.installation, tmp_path) as other:
        ask(other, "CREATE TABLE precious AS SELECT 7 AS n")
        other.stop()
        data = other.data_directory
        before = {p: p.stat().st_mtime_ns for p in data.rglob("*")}
        code, document = commanded(
            life.place, "restore", "cluster", "--to", f"pgdata:{data}", "--delta"
        )
        assert code != 0, document
        assert "another database system" in document["error"]["message"]
        assert {p: p.stat().st_mtime_ns for p in data.rglob("*")} == before
        other.start()
        assert ask(other, "SELECT n FROM precious") == 7


def test_another_cluster_under_the_same_name_keeps_out_of_the_way(
    life: Life, whole: dict[str, str], tmp_path: Path
) -> None:
    """The server was made anew, and nobody renamed the source."""
    copy = copy_of(life, tmp_path)
    with sandbox_cluster(
        life.installation, tmp_path, settings=settings_of(life.installation)
    ) as other:
        ask(other, "CREATE TABLE precious AS SELECT 7 AS n")
        copy.write_config(
            f'[sources.cluster]\nkind = "postgres_base"\ndsn = "{other.dsn("postgres")}"\n'
        )
        code, document = commanded(copy, "backup", "cluster")
        assert code == 0, document
    restored(copy, tmp_path / "new")
    assert state_of(life, tmp_path / "new").keys() == {"public.precious"}
    restored(copy, tmp_path / "old", *life.wishes)
    assert state_of(life, tmp_path / "old") == whole
    # What the log of the first one leads to is not reached from the second.
    code, document = commanded(
        copy, "restore", "cluster", "--to", f"pgdata:{tmp_path}/x", "--lsn", "F/0"
    )
    assert code == 1, document
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("seed", range(2))
def test_a_restore_that_is_killed_is_finished_with_delta(
    life: Life, whole: dict[str, str], tmp_path: Path, seed: int
) -> None:
    chance, out = random.Random(seed), tmp_path / "out"
    wishes = life.wishes
    files = chance.choice([1, 300, 800])
    moments: list[Callable[[], bool]] = [
        lambda: sum(p.is_file() for p in out.rglob("*")) >= files,
        (out / "recovery.signal").exists,
        (out / "global" / "pg_control").exists,
        (out / "postmaster.pid").exists,
    ]
    chance.shuffle(moments)
    killed = killed_restore(life.place, out, *wishes, when=moments[0])
    again = [
        killed_restore(life.place, out, *wishes, "--delta", when=moment) for moment in moments[1:3]
    ]
    assert killed or any(again)
    restored(life.place, out, *wishes, "--delta")
    assert state_of(life, out) == whole


def test_two_restores_do_not_work_on_one_directory(life: Life, tmp_path: Path) -> None:
    out = tmp_path / "out"
    restored(life.place, out, *life.wishes)
    feed = WalFeed(lambda _name: None, 1 << 24)
    with PrivateServer(life.installation, out, account_for(out), feed, {}) as server:
        code, document = commanded(
            life.place, "restore", "cluster", "--to", f"pgdata:{out}", *life.wishes, "--delta"
        )
        connection = wait_for(server.connect)
        connection.close()
    assert code == 1
    assert "by another process" in document["error"]["message"]


def test_delta_after_a_life_of_its_own(life: Life, whole: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    restored(life.place, out, "--point", life.points["direct"], "--immediate")
    with served(life, out) as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        for statement in (
            "UPDATE still SET m = 'other' WHERE n % 7 = 0",
            "DELETE FROM rows WHERE id % 2 = 0",
            "VACUUM FULL rows",
            "TRUNCATE state",
            "DROP TABLE still",
            "CREATE TABLE later AS SELECT n FROM generate_series(1, 50000) n",
            "CREATE DATABASE more",
        ):
            connection.execute(statement)
    restored(life.place, out, *life.wishes, "--delta")
    assert state_of(life, out) == whole
    restored(life.place, tmp_path / "fresh", *life.wishes)
    assert relations(out) == relations(tmp_path / "fresh")


def relations(data: Path) -> set[str]:
    """The files of all databases, but for what a server makes and removes as it goes."""
    found = {str(p.relative_to(data)) for p in (data / "base").rglob("*") if p.is_file()}
    return {name for name in found if not name.endswith(("_fsm", "_vm", "pg_internal.init"))}


def test_a_base_backup_older_than_the_log_comes_back_to_its_own_end(
    life: Life, tmp_path: Path
) -> None:
    """As retention leaves it: the log begins with the next base backup."""
    copy = copy_of(life, tmp_path)
    vault = bootstrap.open_vault(load(copy.config))
    bases = {point.id: point for point in survey(vault).points}
    old, new = bases[life.points["direct"]], bases[life.points["replication"]]
    assert old.wal is not None
    assert new.wal is not None
    decision = LogDecision(new.wal.system, new.wal.start_lsn, "older than the window")
    removed = LogRemover(vault, [decision]).run(bootstrap.now, lambda size: None)
    assert removed["one"].removed_objects > 0
    done = restored(copy, tmp_path / "out", "--point", old.id, "--immediate")
    recovered = datetime.fromisoformat(done["recovered_to"])
    assert recovered <= life.ready
    with served(life, tmp_path / "out") as dsn:
        assert rows_of(dsn)[0] == life.by(recovered)
    # Which moments can be reached is told from the newer one on.
    window = commanded(copy, "points")[1]["windows"][0]
    ended = new.time + timedelta(seconds=new.seconds)
    assert abs(datetime.fromisoformat(window["from"]) - ended) < timedelta(seconds=1)
    code, document = commanded(
        copy, "restore", "cluster", "--to", f"pgdata:{tmp_path}/no", "--point", old.id
    )
    assert (code, f"--immediate --point {old.id}" in document["error"]["hint"]) == (1, True)


def test_log_alone_restores_to_nothing(life: Life, tmp_path: Path) -> None:
    for command in ("restore", "standby"):
        code, document = commanded(life.place, command, "log", "--to", f"pgdata:{tmp_path}/out")
        assert (code, document["error"]["kind"]) == (2, "usage")
        assert document["error"]["hint"].endswith("cluster")

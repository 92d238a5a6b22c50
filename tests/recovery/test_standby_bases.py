"""Base backups of a standby whose primary does nothing: the log ends where they do."""

from __future__ import annotations

import shutil
from pathlib import Path

import psycopg
import pytest

from cellarer.postgres.cluster import Cluster, sandbox_cluster
from recovery.life import commanded, restored, settings_of
from server_copies import standby_of
from targets.base_points import serving
from wal_places import Place, ask, wait_for


@pytest.mark.parametrize("read", ["direct", "replication"])
def test_a_base_backup_of_an_idle_standby_comes_back_and_is_proven(
    cluster: Cluster, tmp_path: Path, read: str
) -> None:
    place, installation = Place(tmp_path), cluster.installation
    place.write_config()
    assert place.run("init").returncode == 0
    settings = settings_of(installation) | {"full_page_writes": "on"}
    with sandbox_cluster(installation, tmp_path, settings=settings) as primary:
        ask(primary, "CREATE TABLE wines AS SELECT generate_series(1, 100) AS n", "CHECKPOINT")
        standby = standby_of(primary, tmp_path / "standby")
        try:
            standby.start()
            ask(primary, "CHECKPOINT")
            end = ask(primary, "SELECT pg_current_wal_lsn()::text")
            replayed = f"SELECT pg_last_wal_replay_lsn() >= '{end}'"
            wait_for(lambda: ask(standby, replayed))
            ask(standby, "CHECKPOINT")
            dsn = standby.dsn("postgres")
            place.write_config(
                f'[sources.cluster]\nkind = "postgres_base"\ndsn = "{dsn}"\nread = "{read}"\n'
            )
            assert "points" in place.document("backup", "cluster")
        finally:
            standby.remove()
    for wishes in (["--immediate"], []):
        out = tmp_path / "out"
        restored(place, out, *wishes)
        with serving(installation, out) as address:
            dsn = address.replace("chief@", "postgres@", 1)
            with psycopg.connect(dsn) as connection:
                assert connection.execute("SELECT count(*) FROM wines").fetchone() == (100,)
        shutil.rmtree(out)
    code, document = commanded(place, "verify", "cluster")
    assert code == 0, document

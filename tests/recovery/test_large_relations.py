"""A relation of more than a gigabyte lies in several files: all of them come back, as they were."""

from __future__ import annotations

import shutil
from pathlib import Path

import psycopg
import pytest

from cellarer.postgres.cluster import Cluster, sandbox_cluster
from recovery.life import check_indexes, restored, settings_of
from targets.base_points import serving
from wal_places import Place, ask

ROWS, SEGMENT_BYTES = 150_000, 1 << 30
# A row to a page, most of which is empty: much to read, and little to store.
LARGE = (
    "CREATE TABLE large (id integer PRIMARY KEY, filler text) WITH (fillfactor = 10)",
    f"INSERT INTO large SELECT n, repeat(md5(n::text), 25) FROM generate_series(1, {ROWS}) n",
    "VACUUM large",  # else whoever reads it first changes every page
)
SUM = "SELECT count(*)::text || ' ' || sum(hashtext(t::text)::bigint)::text FROM large t"


def backed_up(place: Place) -> str:
    document = place.document("backup", "cluster")
    assert "points" in document, document
    return str(document["points"][0]["id"])


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("read", ["direct", "replication"])
def test_all_files_of_a_large_relation(cluster: Cluster, tmp_path: Path, read: str) -> None:
    place = Place(tmp_path)
    place.write_config()
    assert place.run("init").returncode == 0
    out = tmp_path / "out"
    with sandbox_cluster(
        cluster.installation, tmp_path, settings=settings_of(cluster.installation)
    ) as server:
        dsn = server.dsn("postgres")
        place.write_config(
            f'[sources.cluster]\nkind = "postgres_base"\ndsn = "{dsn}"\nread = "{read}"\n'
        )
        ask(server, *LARGE, "CHECKPOINT")
        file = str(ask(server, "SELECT pg_relation_filepath('large')"))
        assert (server.data_directory / file).stat().st_size == SEGMENT_BYTES
        assert (server.data_directory / f"{file}.1").stat().st_size > 0
        states = {backed_up(place): ask(server, SUM)}
        # A page of each file, and then an end that lies in the first one.
        ask(server, f"UPDATE large SET filler = 'other' WHERE id IN (7, {ROWS - 7})", "CHECKPOINT")
        states[backed_up(place)] = ask(server, SUM)
        ask(server, f"DELETE FROM large WHERE id > {ROWS // 2}", "VACUUM large", "CHECKPOINT")
        states[backed_up(place)] = ask(server, SUM)
        assert (server.data_directory / file).stat().st_size < SEGMENT_BYTES
    assert len(set(states.values())) == 3
    # Each over the one before: the file that was cut has to grow again, and the other one, too.
    for point in [*reversed(states), list(states)[1]]:
        wishes = ["--delta"] if out.exists() else []
        result = restored(place, out, "--point", point, "--immediate", *wishes)
        with serving(cluster.installation, out) as address:
            dsn = address.replace("chief@", "postgres@", 1)
            with psycopg.connect(dsn) as connection:
                assert connection.execute(SUM).fetchone() == (states[point],)
            check_indexes(cluster.installation, dsn)
    assert result["restored_bytes"] < SEGMENT_BYTES // 4
    shutil.rmtree(out)

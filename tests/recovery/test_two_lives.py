"""A cluster that is recovered twice to the same moment: two lives under one timeline."""

from __future__ import annotations

import shutil
from pathlib import Path

import psycopg

from recovery.life import Life, commanded, copy_of, restored, served
from wal_places import Place


def lived(life: Life, place: Place, out: Path, word: str) -> None:
    """Recover, begin to serve, write something, and take a base backup of that."""
    restored(place, out, "--point", life.points["direct"], "--immediate")
    with served(life, out, archive_mode="on") as dsn:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(f"CREATE TABLE {word} AS SELECT 1 AS n")
        place.config.write_text(
            f"{place.config.read_text().split('[sources.')[0]}"
            f'[sources.cluster]\nkind = "postgres_base"\ndsn = "{dsn}"\nread = "direct"\n'
        )
        document = place.document("backup", "cluster")
        assert "points" in document, document
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(f"INSERT INTO {word} VALUES (2)")
            connection.execute("SELECT pg_switch_wal()")


def test_the_log_of_one_life_is_never_replayed_on_the_other(life: Life, tmp_path: Path) -> None:
    copy, first, second = copy_of(life, tmp_path), tmp_path / "first", tmp_path / "second"
    lived(life, copy, first, "one")
    point = copy.document("points", "cluster")["points"][0]["id"]
    lived(life, copy, second, "two")
    try:
        for path in sorted((second / "pg_wal").iterdir()):
            if path.name.startswith("00000002") and path.is_file():
                done = copy.run("wal", "push", path, cwd=second)
                assert done.returncode == 0, done.stderr
    finally:
        copy.end_agent()

    def tables(*wishes: str) -> tuple[set[str], list[str]]:
        out = tmp_path / "out"
        code, document = commanded(copy, "restore", "cluster", "--to", f"pgdata:{out}", *wishes)
        assert code == 0, document
        with served(life, out) as dsn, psycopg.connect(dsn) as connection:
            rows = connection.execute(
                "SELECT relname FROM pg_class WHERE relname IN ('one', 'two')"
            ).fetchall()
        shutil.rmtree(out)
        return {str(name) for (name,) in rows}, document["plan"]["reasons"]

    # The newest base backup is of the second life, and so is the log.
    assert tables()[0] == {"two"}
    found, reasons = tables("--point", point)
    assert found == {"one"}
    assert any("another branch" in reason for reason in reasons)
    code, document = commanded(copy, "verify", "cluster", "--point", point)
    assert code == 3
    failed = [c["name"] for c in document["results"][0]["checks"] if not c["passed"]]
    assert failed == ["branch"]

"""The commands as people type them, on a real database of each version and two directories."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from cellarer import bootstrap
from cellarer.cli.main import run
from cellarer.config import Config
from cellarer.errors import ToolMissing
from cellarer.ports import Prover
from cellarer.vault.vault import Vault
from cli.conftest import Cli, two_replicas

SCHEMA = """
create table users (id int primary key, name text not null);
create table wines (id int primary key, user_id int not null references users, label text);
insert into users select n, 'user ' || n from generate_series(1, 50) n;
insert into wines select n, n % 50 + 1, repeat('wine ' || n || ' ', 20)
  from generate_series(1, 5000) n;
"""


@pytest.fixture
def place(tmp_path: Path, database: str) -> Path:
    """A directory with a config for the test database, not initialised yet."""
    with psycopg.connect(database) as connection:
        connection.execute(SCHEMA)
    (tmp_path / "cellarer.toml").write_text(
        f"{two_replicas(tmp_path)}"
        f'[sources.db]\nkind = "postgres_dump"\ndsn = "{database}"\n'
        '[[sources.db.assertions]]\nname = "five thousand wines"\n'
        'sql = "select count(*) from wines"\nexpect = 5000\n'
    )
    return tmp_path


def rows_of(dsn: str, query: str) -> list[tuple[Any, ...]]:
    """The answer to a query."""
    with psycopg.connect(dsn) as connection:
        return connection.execute(query).fetchall()


def test_the_whole_way(
    cellarer: Cli, place: Path, database: str, capfd: pytest.CaptureFixture[str]
) -> None:
    code, made = cellarer("init")
    assert code == 0
    assert sorted(made) == [
        "collect_key_file",
        "config_file",
        "identity_file",
        "recipients",
        "replicas",
        "vault_id",
        "write_key_file",
    ]
    for key in ("write.key", "collect.key", "identity.age"):
        assert (place / key).stat().st_mode & 0o777 == 0o600
    code, again = cellarer("init")
    assert (code, again["error"]["kind"]) == (1, "store")

    code, found = cellarer("doctor")
    assert (code, [f for f in found["findings"] if f["level"] == "error"]) == (0, [])

    code, taken = cellarer("backup")
    assert code == 0
    (point,) = taken["points"]
    assert point["replicas"] == {"one": "stored", "two": "stored"}
    assert {
        "id",
        "source",
        "kind",
        "time",
        "seconds",
        "read_bytes",
        "added_bytes",
        "stored_bytes",
    } <= set(point)

    code, shown = cellarer("show", point["id"])
    paths = [entry["path"] for entry in shown["entries"]]
    name = conninfo_to_dict(database)["dbname"]
    assert f"{name}/data/public/wines" in paths

    capfd.readouterr()
    config = ["--config", str(place / "cellarer.toml")]
    assert run([*config, "cat", point["id"], f"{name}/data/public/users"]) == 0
    text = capfd.readouterr().out
    assert text.startswith("1\tuser 1\n")
    assert text.count("\n") == 50

    code, status = cellarer("status")
    assert (code, len(status["alarms"])) == (3, 1)
    code, verified = cellarer("verify")
    (result,) = verified["results"]
    assert (code, result["proof"]) == (0, "proven"), [
        check for check in result["checks"] if not check["passed"]
    ]
    assert "assertion five thousand wines" in [check["name"] for check in result["checks"]]
    code, listed = cellarer("points")
    assert (listed["points"][0]["proof"], listed["points"][0]["expires"]) == ("proven", None)
    code, status = cellarer("status")
    assert (code, status["alarms"]) == (0, [])


def test_restore_refuses_then_brings_back(cellarer: Cli, place: Path, database: str) -> None:
    cellarer("init")
    cellarer("backup", "db")
    before = rows_of(database, "select * from wines order by id")
    code, plan = cellarer("restore", "db", "--to", database)
    assert (code, plan["error"]["kind"]) == (1, "target")
    with psycopg.connect(database) as connection:
        connection.execute("delete from wines where id > 10")
    name = conninfo_to_dict(database)["dbname"]
    code, plan = cellarer("restore", "db", "--to", database, "--overwrite", "--dry-run")
    assert (code, plan["plan"]["replaces"], plan["result"]) == (0, [name], None)
    assert rows_of(database, "select count(*) from wines") == [(10,)]
    code, done = cellarer("restore", "db", "--to", database, "--overwrite")
    assert code == 0, done
    assert done["plan"]["replaces"] == [name]
    assert done["result"]["restored_bytes"] > 100_000
    assert rows_of(database, "select * from wines order by id") == before
    code, done = cellarer("restore", "db", "--to", str(place / "files"), "--only", "public.users")
    assert code == 0, done


def test_a_sandbox_without_room_proves_and_disproves_nothing(
    cellarer: Cli, place: Path, small_disk: Callable[[int], Path]
) -> None:
    cellarer("init")
    cellarer("backup")
    config = str(place / "cellarer.toml")
    command = [sys.executable, "-m", "cellarer", "--config", config, "verify"]
    environment = os.environ | {"TMPDIR": str(small_disk(20))}
    ended = subprocess.run(
        [*command, "--json"], env=environment, capture_output=True, text=True, check=False
    )
    answer = json.loads(ended.stdout)
    assert (ended.returncode, answer["error"]["kind"]) == (1, "target")
    assert "was not judged" in answer["error"]["message"]
    assert "TMPDIR" in answer["error"]["hint"]
    assert [list((place / name).glob("ledger/**/*")) for name in ("one", "two")] == [[], []]
    (listed,) = cellarer("points")[1]["points"]
    assert (listed["proof"], listed["proof_time"]) == ("stored", None)


def test_a_lost_replica_and_a_damaged_one(cellarer: Cli, place: Path) -> None:
    cellarer("init")
    cellarer("backup")
    shutil.rmtree(place / "two")
    code, verified = cellarer("verify", "--level", "scrubbed")
    assert (code, verified["results"][0]["proof"]) == (0, "scrubbed")
    code, synced = cellarer("sync")
    assert (code, synced["replicas"]["two"]["behind"]) == (0, False)
    packs = [pack for pack in (place / "one" / "packs").rglob("*") if pack.is_file()]
    good = [pack.read_bytes() for pack in packs]

    def damage() -> None:
        for pack in packs:
            data = bytearray(pack.read_bytes())
            data[len(data) // 3] ^= 1
            pack.chmod(0o600)
            pack.write_bytes(data)

    damage()
    code, verified = cellarer("verify", "--level", "scrubbed")
    assert (code, verified["results"][0]["proof"]) == (0, "scrubbed")
    assert [pack.read_bytes() for pack in packs] == good, "healed from the other replica"
    damage()
    shutil.rmtree(place / "two")
    code, verified = cellarer("verify", "--level", "scrubbed")
    assert (code, verified["results"][0]["proof"]) == (6, "stored")
    code, found = cellarer("doctor")
    assert (code, {"vault-absent"} <= {f["id"] for f in found["findings"]}) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (("backup", "nothing"), 2, "usage"),
        (("points", "--at", "yesterday"), 2, "usage"),
        (("show", "nonsense"), 2, "usage"),
        (("restore", "db", "--to", "s3://bucket"), 2, "usage"),
        (("restore", "db", "--to", "host=h password=hush"), 2, "usage"),
        (("restore", "db", "--to", "postgresql://me:ha@hush@h/d", "--dry-run"), 2, "usage"),
        (("restore", "db", "--to", "/tmp/x", "--lsn", "0/1"), 2, "usage"),
        (("verify", "--level", "perfect"), 2, "usage"),
    ],
)
def test_nonsense_is_a_usage_error(
    cellarer: Cli, postgres15: object, arguments: tuple[str, ...], code: int, kind: str
) -> None:
    cellarer("init")
    found, document = cellarer(*arguments)
    assert (found, document["error"]["kind"]) == (code, kind)
    assert document["error"]["hint"]
    assert "hush" not in json.dumps(document)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--to", "/tmp/x", "--tablespace", "old=/new"), "--tablespace is for base backups"),
        (("--to", "/tmp/x", "--name", "latest"), "--name is for base backups"),
        (("--to", "/tmp/x", "--no-recover"), "--no-recover is for base backups"),
        (("--to", "/tmp/x", "--at", "2026-01-01", "--point", "a"), "exclude each other"),
        (("--to", "s3://bucket"), "cannot be restored to yet"),
        (("--to", "pgdata:"), "names no directory"),
        (("--to", "pgdata:/x", "--lsn", "0/1", "--xid", "7"), "only one moment"),
        (("--to", "pgdata:/x", "--tablespace", "old"), "does not say what goes where"),
    ],
)
def test_what_is_wrong_with_a_restore_is_told_before_the_vault_is_opened(
    cellarer: Cli, postgres15: object, arguments: tuple[str, ...], said: str
) -> None:
    found, document = cellarer("restore", "db", *arguments)  # there is no vault
    assert (found, document["error"]["kind"]) == (2, "usage")
    assert said in document["error"]["message"]


def test_keys(cellarer: Cli, place: Path) -> None:
    cellarer("init")
    (place / "identity.age").rename(place / "away")
    code, answer = cellarer("points")
    assert (code, answer["error"]["kind"]) == (5, "key")
    (place / "identity.age").write_text("nonsense")
    code, answer = cellarer("points")
    assert (code, answer["error"]["kind"]) == (5, "key")
    assert "nonsense" not in json.dumps(answer)


def test_no_vault_there(cellarer: Cli, place: Path) -> None:
    cellarer("init")
    for name in ("one", "two"):
        shutil.rmtree(place / name)
    code, answer = cellarer("points")
    assert (code, answer["error"]["kind"]) == (4, "vault_unreachable")
    assert "cellarer init" in answer["error"]["hint"]


def test_yesterdays_replicas_served_whole_are_noticed(cellarer: Cli, place: Path) -> None:
    assert cellarer("init")[0] == 0
    assert cellarer("backup")[0] == 0
    replicas = ("one", "two")
    for name in replicas:
        shutil.copytree(place / name, place / f"yesterday-{name}")
    assert cellarer("backup")[0] == 0
    code, found = cellarer("points")
    assert (code, len(found["points"]), found["warnings"]) == (0, 2, [])
    for name in replicas:
        shutil.rmtree(place / name)
        (place / f"yesterday-{name}").rename(place / name)
    code, found = cellarer("status")
    assert (code, "rolled back" in str(found["alarms"])) == (3, True)
    code, found = cellarer("doctor")
    assert (code, "rolled-back" in [f["id"] for f in found["findings"]]) == (3, True)
    code, found = cellarer("points")
    assert (code, len(found["points"])) == (0, 1)
    assert "rolled back" in found["warnings"][0]


def test_verifying_several_sources_says_all_that_was_found(
    cellarer: Cli, place: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = place / "cellarer.toml"
    other = f'[sources.other]\nkind = "postgres_dump"\ndsn = "{database}"\n'
    config.write_text(config.read_text() + other)
    cellarer("init")
    assert cellarer("backup")[0] == 0
    open_prover = bootstrap.open_prover

    def lacking(settings: Config, vault: Vault, source: str, kind: str) -> Prover:
        if source == "other":
            raise ToolMissing("no server here", hint="install one")
        return open_prover(settings, vault, source, kind)

    monkeypatch.setattr(bootstrap, "open_prover", lacking)
    code, verified = cellarer("verify", "other", "db")
    assert code == ToolMissing.exit_code
    assert [result["source"] for result in verified["results"]] == ["db"]
    assert verified["results"][0]["passed"]
    assert verified["errors"]["other"]["hint"] == "install one"


def test_a_part_of_a_point_is_planned_as_such(cellarer: Cli, place: Path, database: str) -> None:
    cellarer("init")
    cellarer("backup", "db")
    assert cellarer("verify", "--point", "latest")[0] == 0
    files = ("restore", "db", "--to", str(place / "files"), "--dry-run")
    code, whole = cellarer(*files)
    assert (code, whole["plan"]["forecast_seconds"]) == (0, None)
    code, part = cellarer(*files, "--only", "users", "--only", "public.users")
    assert 0 < part["plan"]["restore_bytes"] < 2000 < whole["plan"]["restore_bytes"]
    assert not (place / "files").exists()
    elsewhere = ("restore", "db", "--to", f"{database}".replace("test_", "new_", 1), "--dry-run")
    assert cellarer(*elsewhere)[1]["plan"]["forecast_seconds"] > 0
    assert cellarer(*elsewhere, "--only", "users")[1]["plan"]["forecast_seconds"] is None
    refused, _ = cellarer("restore", "db", "--to", database, "--only", "users", "--dry-run")
    assert refused == 1

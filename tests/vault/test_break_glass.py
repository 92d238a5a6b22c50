"""The page `Without Cellarer`, carried out word for word on a dump of a real server."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from bare_machine import BENEATH, LIBRARIES, START, age_path, link_library
from cellarer import bootstrap
from cellarer.cli.main import run
from cellarer.config import load
from cellarer.domain.wal import Kind, kind_of
from cellarer.postgres.account import service_account
from cellarer.postgres.cluster import Cluster
from sources.base_servers import ask, server
from sources.base_servers import run as execute

__all__ = ["server"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "break-glass.md"

SCHEMA = """
create table wines (id int primary key, label text not null);
insert into wines select n, repeat('wine ' || n || ' ', 20) from generate_series(1, 5000) n;
create table "a table" (x text);
create table "a table with % and / in it" (x text);
create table "two
lines" (x text);
create table empty (x text);
insert into "a table" values ('one'), (E'a\\tb\\nc\\\\.');
insert into "a table with % and / in it" values ('two');
insert into "two
lines" values ('three');
create schema "a";
create table "a"."table" (x text);
insert into "a"."table" values ('four');
select lo_from_bytea(0, convert_to('large ' || n, 'UTF8')) from generate_series(1, 3) n;
"""

QUESTIONS = (
    "select count(*), md5(string_agg(id || label, ',' order by id)) from wines",
    'select x from "a table" order by x',
    'select x from "a table with % and / in it"',
    'select x from "two\nlines"',
    "select x from empty",
    'select x from "a"."table"',
    "select oid, lo_get(oid) from pg_largeobject_metadata order by oid",
    "select conname from pg_constraint where conrelid = 'wines'::regclass order by conname",
)


def answers(dsn: str) -> list[object]:
    with psycopg.connect(dsn) as connection:
        return [connection.execute(question).fetchall() for question in QUESTIONS]


def blocks(language: str, chapter: str = "") -> list[str]:
    """The blocks of the page up to the base backup, or of that chapter."""
    text, _, base = PAGE.read_text(encoding="utf-8").partition("## A base backup")
    text = base if chapter else text
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def shop(cluster: Cluster) -> Iterator[str]:
    """The name of a database as the page has it, which is gone afterwards."""
    name = f"shop_{secrets.token_hex(4)}"
    with psycopg.connect(cluster.dsn("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        with psycopg.connect(cluster.dsn(name)) as made:
            made.execute(SCHEMA)
        yield name
        connection.execute(
            sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
        )


def bare_python(directory: Path) -> Path:
    """A directory for PATH whose `python` has the three libraries and nothing of ours."""
    libraries, programs = directory / "libraries", directory / "programs"
    libraries.mkdir()
    programs.mkdir()
    for name in (*LIBRARIES, *BENEATH):
        link_library(libraries, name)
    (directory / "start.py").write_text(START, encoding="utf-8")
    python = programs / "python"
    command = f'exec {sys.executable} -I -S {directory}/start.py {libraries} "$@"'
    python.write_text(f"#!/bin/sh\n{command}\n", encoding="utf-8")
    python.chmod(0o755)
    return programs


def backed_up(cluster: Cluster, name: str, directory: Path) -> Path:
    """A machine: a directory with a copy of a replica, `vault`, and `identity.age`."""
    config = ["--config", str(directory / "cellarer.toml")]
    assert run([*config, "init", "--replica", f"here={directory / 'replica'}"]) == 0
    with (directory / "cellarer.toml").open("a", encoding="utf-8") as file:
        dsn = cluster.dsn(name)
        file.write(f'\n[sources.shop]\nkind = "postgres_dump"\ndsn = "{dsn}"\n')
    assert run([*config, "backup"]) == 0
    machine = directory / "machine"
    machine.mkdir()
    shutil.copytree(directory / "replica", machine / "vault")
    shutil.copy(directory / "identity.age", machine)
    return machine


def bare_environment(cluster: Cluster, directory: Path) -> dict[str, str]:
    programs = [bare_python(directory), cluster.installation.bin_directory, age_path(directory)]
    return {
        "PATH": os.pathsep.join(map(str, programs)),
        "LC_ALL": "C.UTF-8",
        "PGHOST": str(cluster.socket_directory),
        "PGPORT": str(cluster.port),
        "PGUSER": cluster.superuser,
    }


@pytest.fixture
def machine(cluster: Cluster, shop: str, tmp_path: Path) -> Callable[[str], str]:
    """Runs commands of a shell in the directory of such a machine, and gives what they complain."""
    directory = backed_up(cluster, shop, tmp_path)
    (join,) = blocks("python")
    (directory / "join.py").write_text(join, encoding="utf-8")
    environment = bare_environment(cluster, tmp_path)

    def shell(commands: str) -> str:
        done = subprocess.run(
            ["/bin/sh", "-ec", re.sub(r"\bshop\b", shop, commands)],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    return shell


def test_the_page_brings_a_database_back(
    cluster: Cluster, shop: str, machine: Callable[[str], str]
) -> None:
    before = answers(cluster.dsn(shop))
    machine("dropdb --force shop")
    assert "EMPTY" not in machine("".join(blocks("sh")))
    assert answers(cluster.dsn(shop)) == before
    machine("pg_restore -j 4 --clean -d shop shop.dump")
    assert answers(cluster.dsn(shop)) == before


def test_what_is_damaged_leaves_the_rest(
    cluster: Cluster, shop: str, machine: Callable[[str], str]
) -> None:
    before = answers(cluster.dsn(shop))
    machine("dropdb --force shop")
    reading, loading = blocks("sh")[:-1], blocks("sh")[-1]
    machine("".join(reading) + "rm rescued/shop/data/public/wines")
    assert "EMPTY: " in machine(loading)
    assert answers(cluster.dsn(shop)) == [[(0, None)], *before[1:]]


def test_the_page_brings_a_cluster_back_with_all_its_log(server: Cluster, tmp_path: Path) -> None:
    """A base backup with a tablespace, whole segments of log, and the pieces of the last one."""
    config = tmp_path / "cellarer.toml"
    assert run(["--config", str(config), "init", "--replica", f"here={tmp_path / 'replica'}"]) == 0
    with config.open("a", encoding="utf-8") as file:
        dsn = server.dsn("postgres")
        file.write(f'\n[sources.shop]\nkind = "postgres_base"\ndsn = "{dsn}"\n')
    assert run(["--config", str(config), "backup"]) == 0
    execute(server, "INSERT INTO rows SELECT n, 'later' FROM generate_series(1, 70000) n")
    execute(server, "SELECT pg_switch_wal()")
    execute(server, "INSERT INTO moved SELECT n, 'last' FROM generate_series(1, 500) n")
    store_log(server, config)
    question = "SELECT (SELECT count(*) FROM rows) || ' ' || (SELECT count(*) FROM moved)"
    before = ask(server, question)
    server.stop()
    shutil.copytree(tmp_path / "replica", tmp_path / "machine" / "vault")
    machine = tmp_path / "machine"
    shutil.copy(tmp_path / "identity.age", machine)
    account = service_account()
    account.own(machine)
    (assemble,) = blocks("python", "base")
    (machine / "assemble.py").write_text(assemble, encoding="utf-8")
    restoring, giving, starting = blocks("sh", "base")
    environment = bare_environment(server, tmp_path) | {"PGUSER": account.name}
    reading = blocks("sh")[1] + restoring
    for commands in (reading, giving if account.uid is not None else giving.splitlines()[0]):
        done = subprocess.run(
            ["/bin/sh", "-ec", commands],
            cwd=machine,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    start, wait = starting.splitlines()
    program = server.installation.program("pg_ctl")
    answer = account.run([program, *start.split()[1:]], machine)
    assert answer.returncode == 0, answer.stdout
    try:
        environment["PGUSER"] = server.superuser
        subprocess.run(["/bin/sh", "-ec", wait], env=environment, check=True, timeout=60)
        assert ask(server, question) == before
        assert ask(server, "SELECT pg_is_in_recovery()") == "False"
        links = list((machine / "rescued" / "data" / "pg_tblspc").iterdir())
        assert [link.resolve().parent.parent for link in links] == [machine / "rescued"]
    finally:
        account.run([program, "-D", "rescued/data", "-m", "immediate", "stop"], machine)


def store_log(server: Cluster, config: Path) -> None:
    """All that the server has written by now: whole segments, and the last one in two pieces."""
    system = ask(server, "SELECT system_identifier FROM pg_control_system()")
    last, end = ask(
        server,
        "SELECT file_name || ' ' || file_offset FROM pg_walfile_name_offset("
        "pg_current_wal_flush_lsn())",
    ).split()
    writer = bootstrap.open_log_writer(bootstrap.open_vault(load(config)), system)
    for path in sorted((server.data_directory / "pg_wal").iterdir()):
        if kind_of(path.name) is Kind.SEGMENT and path.name < last:
            writer.put(path.name, path.read_bytes())
    data = (server.data_directory / "pg_wal" / last).read_bytes()
    for start, stop in ((0, 8192), (8192, int(end))):
        writer.put_piece(last, start, data[start:stop])

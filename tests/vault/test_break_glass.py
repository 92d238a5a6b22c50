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
from cellarer.cli.main import run
from cellarer.postgres.cluster import Cluster

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


def blocks(language: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
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


@pytest.fixture
def machine(cluster: Cluster, shop: str, tmp_path: Path) -> Callable[[str], str]:
    """Runs commands of a shell in the directory of such a machine, and gives what they complain."""
    directory = backed_up(cluster, shop, tmp_path)
    (join,) = blocks("python")
    (directory / "join.py").write_text(join, encoding="utf-8")
    programs = [bare_python(tmp_path), cluster.installation.bin_directory, age_path(tmp_path)]
    environment = {
        "PATH": os.pathsep.join(map(str, programs)),
        "LC_ALL": "C.UTF-8",
        "PGHOST": str(cluster.socket_directory),
        "PGPORT": str(cluster.port),
        "PGUSER": cluster.superuser,
    }

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

"""What `pg_restore` says is judged: only errors that are known to be harmless are let pass."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cellarer.errors import TargetFailed
from cellarer.postgres.binaries import client_for
from cellarer.postgres.cluster import Cluster
from cellarer.postgres.restore import Report, run_pg_restore
from targets.recorded_points import capture

UNKNOWN = 'ERROR:  unrecognized configuration parameter "transaction_timeout"'
TIMEOUT = f"""\
pg_restore: connecting to database for restore
pg_restore: while INITIALIZING:
pg_restore: error: could not execute query: {UNKNOWN}
Command was: SET transaction_timeout = 0;
"""
OWNER = """\
pg_restore: creating TABLE "public.t"
pg_restore: while PROCESSING TOC:
pg_restore: from TOC entry 214; 1259 16385 TABLE t nobody
pg_restore: error: could not execute query: ERROR:  role "nobody" does not exist
Command was: ALTER TABLE public.t OWNER TO nobody;

"""


def ignored(count: int) -> str:
    return f"pg_restore: warning: errors ignored on restore: {count}\n"


def report(text: str) -> Report:
    return Report().read(text.splitlines(keepends=True))


def test_a_timeout_that_the_server_lacks_is_harmless() -> None:
    found = report(TIMEOUT + ignored(1))
    assert found.clean
    assert (found.error_count, found.harmless_count) == (0, 1)


def test_an_error_is_told_with_the_entry_it_belongs_to() -> None:
    found = report(TIMEOUT + OWNER + ignored(2))
    assert not found.clean
    (error,) = found.errors
    assert str(error) == (
        'TABLE t nobody: could not execute query: ERROR:  role "nobody" does not exist'
    )


def test_an_error_that_was_counted_but_not_understood_is_none_to_ignore() -> None:
    assert not report(TIMEOUT + ignored(2)).clean


def test_the_same_message_about_another_statement_is_an_error() -> None:
    text = TIMEOUT.replace("SET transaction_timeout = 0;", "SELECT f();")
    assert not report(text + ignored(1)).clean


def test_memory_is_bounded() -> None:
    found = report(OWNER * 1000 + ignored(1000))
    assert found.error_count == 1000
    assert len(found.errors) == 10


@pytest.fixture
def point_and_dsn(cluster: Cluster, make_database: Callable[..., str]) -> tuple[bytes, str]:
    name = make_database(cluster)
    toc = capture(cluster, name).streams[f"{name}/toc"][1]
    return toc, cluster.dsn(make_database(cluster, "SELECT 1"))


def program() -> Path:
    return client_for(18).program("pg_restore")


def test_errors_make_the_restore_fail(point_and_dsn: tuple[bytes, str]) -> None:
    toc, dsn = point_and_dsn
    run_pg_restore(program(), dsn, ["--section=pre-data"], [toc])
    with pytest.raises(TargetFailed) as caught:
        run_pg_restore(program(), dsn, ["--section=pre-data"], [toc])
    assert "TYPE colour" in caught.value.detail
    assert "already exists" in caught.value.detail
    assert re.search(r"\nand \d+ more$", caught.value.detail)


def test_an_archive_that_fails_to_read_stops_the_program(
    point_and_dsn: tuple[bytes, str],
) -> None:
    toc, dsn = point_and_dsn

    class Torn(Exception):  # stands for any error of a reader
        pass

    def archive() -> Iterator[bytes]:
        yield toc
        raise Torn

    with pytest.raises(Torn):
        run_pg_restore(program(), dsn, ["--section=data"], archive())


def test_an_archive_cut_short_fails(point_and_dsn: tuple[bytes, str]) -> None:
    toc, dsn = point_and_dsn
    with pytest.raises(TargetFailed):
        run_pg_restore(program(), dsn, ["--section=pre-data"], [toc[: len(toc) // 2]])


def test_a_program_that_ends_early_is_judged_by_its_words(
    point_and_dsn: tuple[bytes, str],
) -> None:
    toc, dsn = point_and_dsn
    wrong = dsn.replace("postgres@", "nobody_of_this_name@")
    with pytest.raises(TargetFailed) as caught:
        run_pg_restore(program(), wrong, ["--section=pre-data"], [toc, *[bytes(1 << 20)] * 8])
    assert "nobody_of_this_name" in caught.value.detail

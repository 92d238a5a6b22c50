"""Connection strings in the forms that programs want, without a secret where others may look."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from functools import partial
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cellarer.errors import UsageError
from cellarer.postgres.binaries import client_for
from cellarer.postgres.connection import connect
from cellarer.postgres.conninfo import described, for_database, for_programs, parameters
from cellarer.targets.postgres import PostgresTarget

values = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)


@given(values, values, values)
def test_a_password_goes_into_the_environment(user: str, password: str, database: str) -> None:
    dsn = make_conninfo(host="h", user=user, password=password, dbname=database)
    conninfo, environment = for_programs(dsn)
    assert conninfo_to_dict(conninfo) == {"host": "h", "user": user, "dbname": database}
    assert environment["PGPASSWORD"] == password
    assert described(dsn) == "h"


def test_both_forms_are_read() -> None:
    uri = "postgresql://u:p%2Fw@h:6543/d?sslmode=require"
    keywords = "user=u password=p/w host=h port=6543 dbname=d sslmode=require"
    assert parameters(uri) == parameters(keywords)
    assert parameters(for_database(uri, "other d")) == parameters(uri) | {"dbname": "other d"}
    assert described(uri) == "h:6543"


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:cret@r:et@h:5432:1/d",
        "postgresql://u:12/cret@h/d",
        "postgresql://u:cret/d",
        "postgresql://u:se%zzcret@h/d",
        "password='secret host=h",
        "postgresql://u:pa@cret@h/d",
        "postgres://u:pa@cret@h:5432/d?sslmode=require",
        "postgresql://u:pa@x,cret@h/d",
        "postgresql://u:pa@@cret@h",
        "postgresql://u:pa?x@cret@h/d",
        "postgresql://u:pa@se/cret@h/d",
        "postgresql://cret@tenant@h/d",
        "postgresql://u:cret%80@h/d",
    ],
)
def test_a_dsn_that_cannot_be_read_is_not_quoted(dsn: str) -> None:
    ways: list[Callable[[], object]] = [
        *(partial(read, dsn) for read in (parameters, described, for_programs, connect)),
        partial(PostgresTarget(dsn, 1).prepare, overwrite=False),
    ]
    for way in ways:
        with pytest.raises(UsageError, match="malformed") as caught:
            way()
        assert "cret" not in str(caught.value.as_json())
        assert "%40" in caught.value.hint


part = st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1)


@given(part, part, part)
def test_no_part_of_a_password_is_taken_for_something_else(
    user: str, password: str, database: str
) -> None:
    """Whatever somebody pastes into a URI unencoded, its password is read whole or not at all."""
    dsn = f"postgresql://{quote(user)}:@{password}@example.org/{quote(database, safe='')}"
    with pytest.raises(UsageError, match="malformed"):
        parameters(dsn)


@pytest.mark.parametrize(
    ("dsn", "host"),
    [
        ("postgresql://u:p%40ss%2F@h/d", "h"),
        ("postgresql://u:p?ss@h/d", "h"),
        ("postgresql://h:5432/d?user=me@tenant", "h"),
        ("postgresql://u:p@%40abstract/d", "@abstract"),
    ],
)
def test_signs_that_mean_what_they_say_are_read(dsn: str, host: str) -> None:
    assert parameters(dsn)["host"] == host


@pytest.mark.parametrize("name", ["sslpassword", "scram_client_key"])
def test_secrets_that_only_fit_on_a_command_line_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        for_programs(f"host=h {name}=secret")


def test_programs_understand_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "nonsense")
    conninfo, environment = for_programs("postgresql://u:w@%2Fnowhere/d%20d")
    program = client_for(15).program("psql")
    answer = subprocess.run(
        [program, "-d", conninfo], env=environment, capture_output=True, text=True, check=False
    )
    assert "/nowhere/.s.PGSQL.5432" in answer.stderr
    assert os.environ["PGCLIENTENCODING"] == "nonsense"

"""Connection strings in the forms that programs want, without a secret where others may look."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cellarer.errors import UsageError
from cellarer.postgres.binaries import client_for
from cellarer.postgres.conninfo import described, for_database, for_programs, parameters

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
    ],
)
def test_a_dsn_that_cannot_be_read_is_not_quoted(dsn: str) -> None:
    with pytest.raises(UsageError) as caught:
        parameters(dsn)
    assert "cret" not in str(caught.value.as_json())


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

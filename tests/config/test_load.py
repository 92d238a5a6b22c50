"""The config as a whole: what is right is read, what is wrong is told, all of it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from datetime import timedelta
from pathlib import Path
from zoneinfo import available_timezones

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellarer.config import Cron, PostgresDump, SecretReference, find, load, unbuilt
from cellarer.errors import UsageError

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "config"
EXAMPLE = ROOT / "examples" / "pourtrait" / "cellarer.toml"
SMALLEST = """
[product]
name = "pourtrait"
[vault]
write_key = { file = "write.key" }
[[vault.replicas]]
name = "primary"
url = "file:///srv/vault"
[sources.database]
kind = "postgres_dump"
dsn = "host=/run/postgresql dbname=pourtrait"
"""


def written(directory: Path, text: str) -> Path:
    path = directory / "cellarer.toml"
    path.write_bytes(text.encode())
    return path


def refused(directory: Path, text: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load(written(directory, text))
    return caught.value


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.toml")), ids=lambda path: str(path.stem))
def test_problems_read_as_agreed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a wanted change, CELLARER_GOLDEN=write renews the files; read them then."""
    monkeypatch.chdir(GOLDEN)
    with pytest.raises(UsageError) as caught:
        load(Path(path.name))
    error = caught.value
    said = f"{error.message}\n{error.detail}\n{error.hint}\n"
    golden = path.with_suffix(".txt")
    if os.environ.get("CELLARER_GOLDEN") == "write":
        golden.write_text(said)
    assert said == golden.read_text()
    assert "hunter2" not in said.lower()


def test_the_smallest_config_is_enough(tmp_path: Path) -> None:
    config = load(written(tmp_path, SMALLEST))
    database = config.sources["database"]
    assert isinstance(database, PostgresDump)
    assert database.dsn == "host=/run/postgresql dbname=pourtrait"
    assert config.vault.write_quorum == 1
    assert config.vault.write_key == SecretReference(file="write.key")
    assert config.directory == tmp_path
    assert [finding.subject for finding in unbuilt(config)] == []


def test_the_reference_users_config_says_what_was_promised() -> None:
    config = load(EXAMPLE)
    assert config.objectives.rto == {
        "critical": timedelta(hours=4),
        "database": timedelta(hours=2),
        "application": timedelta(hours=1),
        "full": timedelta(hours=6),
    }
    assert config.objectives.availability == 0.999
    rpo = {name: data_class.rpo for name, data_class in config.classes.items()}
    assert rpo == {
        "critical": timedelta(minutes=15),
        "important": timedelta(hours=1),
        "standard": timedelta(days=1),
    }
    kept = config.retention
    assert (kept.daily, kept.weekly, kept.monthly, kept.yearly) == (30, 12, 12, 7)
    assert config.schedule.drill == Cron("0 4 1 * *")
    assert config.sources["database"].every == timedelta(hours=6)
    assert len({replica.url.split(":")[0] for replica in config.vault.replicas}) == 2
    used = {source.kind for source in config.sources.values()}
    assert used == {
        *("postgres_dump", "postgres_base", "wal", "managed"),
        *("git", "settings", "bucket", "files"),
    }


def test_what_is_not_built_is_said_and_what_is_built_is_not() -> None:
    findings = unbuilt(load(EXAMPLE))
    assert {finding.id for finding in findings} == {"not-built"}
    subjects = {finding.subject for finding in findings}
    assert subjects >= {"sources.images", "platforms", "channels", "schedule"}
    assert not subjects & {"sources.database", "sources.wal", "vault", "product"}
    unprotected = [finding for finding in findings if "not backed up" in finding.message]
    assert {finding.level for finding in unprotected} == {"warning"}


def test_a_class_alone_takes_everything(tmp_path: Path) -> None:
    text = SMALLEST + 'class = "standard"\n[classes]\nstandard = { rpo = "24h" }\n'
    config = load(written(tmp_path, text))
    assert config.sources["database"].classes == {"standard": ("*",)}


def test_a_literal_secret_is_refused_even_in_tables_not_yet_built(tmp_path: Path) -> None:
    error = refused(tmp_path, SMALLEST + '[channels.team]\nwebhook = "https://x/hunter2"\n')
    assert "channels.team.webhook: a secret is never written here" in error.detail
    assert "hunter2" not in str(error)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://me:hunter2@db/pourtrait",
        "postgresql://db/pourtrait?user=me&password=hunter2",
        "host=db password = 'hunter2'",
        "host=db sslpassword=hunter2",
        "postgresql://me:hunter2@[::1/pourtrait",
    ],
)
def test_a_password_in_a_connection_string_is_refused(tmp_path: Path, dsn: str) -> None:
    error = refused(tmp_path, SMALLEST.replace("host=/run/postgresql dbname=pourtrait", dsn))
    assert 'sources.database.dsn: the connection string holds a password; write { env = "' in (
        error.detail
    )
    assert "hunter2" not in str(error)


@pytest.mark.parametrize(
    "dsn", ["postgresql://me@db:5433/pourtrait", "service=pourtrait", "host=db passfile=/x"]
)
def test_a_connection_string_without_password_is_fine(tmp_path: Path, dsn: str) -> None:
    load(written(tmp_path, SMALLEST.replace("host=/run/postgresql dbname=pourtrait", dsn)))


def test_a_time_zone_has_to_exist(tmp_path: Path) -> None:
    text = SMALLEST + '[schedule]\ntimezone = "Europe/Berln"\n'
    if available_timezones():
        assert '"Europe/Berln" is not a time zone' in refused(tmp_path, text).detail
    else:
        load(written(tmp_path, text))


def test_one_problem_stays_on_one_line(tmp_path: Path) -> None:
    error = refused(tmp_path, '"a\\nb\\u001b" = 1\n' + SMALLEST)
    assert len(error.detail.splitlines()) == 1
    assert error.detail.isprintable()


def test_windows_newlines_count_as_one(tmp_path: Path) -> None:
    error = refused(tmp_path, (SMALLEST + "evrey = 1\n").replace("\n", "\r\n"))
    assert f"cellarer.toml:{SMALLEST.count(chr(10)) + 1}: sources.database.evrey" in error.detail


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'a = "\xff"', "cellarer.toml:1: not UTF-8 text"),
        (b"a = " + b"[" * 10_000 + b"]" * 10_000, "nested too deeply"),
        (b"a = " + b"9" * 10_000, "a number is too long"),
    ],
)
def test_strange_files_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "cellarer.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load(path)
    assert said in caught.value.detail


def test_a_config_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path)
    assert str(tmp_path) in caught.value.detail


def test_the_config_is_found_in_the_documented_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CELLARER_CONFIG", raising=False)
    with pytest.raises(UsageError) as caught:
        find(None)
    assert "/etc/cellarer/cellarer.toml" in caught.value.detail
    assert "cellarer init" in caught.value.hint
    written(tmp_path, SMALLEST)
    assert find(None) == Path("cellarer.toml")
    shutil.copy("cellarer.toml", "other.toml")
    monkeypatch.setenv("CELLARER_CONFIG", "other.toml")
    assert find(None) == Path("other.toml")
    shutil.copy("cellarer.toml", "third.toml")
    assert find("third.toml") == Path("third.toml")


@pytest.mark.parametrize("by", ["--config", "$CELLARER_CONFIG"])
def test_a_named_config_has_to_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, SMALLEST)
    monkeypatch.setenv("CELLARER_CONFIG", "absent.toml")
    with pytest.raises(UsageError) as caught:
        find("absent.toml" if by == "--config" else None)
    assert caught.value.detail == f"absent.toml, named by {by}, is not a file"


_LINES = EXAMPLE.read_text().splitlines() + (GOLDEN / "broken.toml").read_text().splitlines()
_LITERALS = [
    '"text"',
    '""',
    "5",
    "-1",
    "1.5",
    "true",
    "[]",
    "{}",
    '[""]',
    '{ env = "A" }',
    "1979-05-27",
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10**9), st.integers(1, 12))
def test_a_config_with_changes_is_read_or_refused(seed: int, changes: int) -> None:
    """Whatever a person makes of a config, it loads or says why not; it never crashes."""
    choice = random.Random(seed)
    lines = EXAMPLE.read_text().splitlines()
    for _ in range(changes):
        index = choice.randrange(len(lines))
        key, equals, _ = lines[index].partition(" = ")
        lines[index] = choice.choice(
            [
                "",
                choice.choice(_LINES),
                f"{key}{equals}{choice.choice(_LITERALS)}",
                lines[index].replace("e", "a", 1),
                lines[index] + "\n" + choice.choice(_LINES),
            ]
        )
    _loads_or_says_why("\n".join(lines))


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="abk.=[]{}\"'\\#\n ,015-_:TZ", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    _loads_or_says_why(text)


_ANY = st.recursive(
    st.one_of(st.text(max_size=5), st.integers(), st.booleans(), st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
_TABLES = [
    *("product", "vault", "objectives", "classes", "sources"),
    "retention",
    "schedule",
    "contacts",
]


def _inline(value: object) -> str:
    if isinstance(value, dict):
        members = (f"{_inline(key)} = {_inline(member)}" for key, member in value.items())
        return "{" + ", ".join(members) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(character):08x}" for character in value) + '"'
    return "1979-05-27" if value is None else str(value).lower()


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.one_of(st.sampled_from(_TABLES), st.text(max_size=4)), _ANY, max_size=6))
def test_any_document_is_read_or_refused(document: dict[str, object]) -> None:
    _loads_or_says_why("\n".join(f"{_inline(key)} = {_inline(document[key])}" for key in document))


def _loads_or_says_why(text: str) -> None:
    path = Path("/tmp", f"cellarer-config-{os.getpid()}.toml")
    try:
        path.write_bytes(text.encode())
        with contextlib.suppress(UsageError):
            load(path)
    finally:
        path.unlink(missing_ok=True)

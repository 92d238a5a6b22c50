"""Base backups of real servers, restored and recovered to moments; every table has to be equal."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from cellarer.domain.recovery_target import RecoveryTarget, recovery_target
from cellarer.errors import DamagedData, TargetFailed, VaultUnreachable
from cellarer.ports import Restored
from cellarer.postgres.account import service_account
from cellarer.postgres.cluster import Cluster
from cellarer.postgres.data_directory import read_control
from cellarer.postgres.wal_feed import Read
from cellarer.targets.pgdata import PgdataTarget
from cellarer.targets.recovery import Course
from targets.base_points import FilePoint, Primary, base_point, digests, primary, serving
from targets.recorded_points import Listener


@dataclass(frozen=True)
class Moment:
    """A state of the source: all tables, and the names of the transaction that made it."""

    tables: dict[str, str]
    xid: str
    committed: datetime
    commit_lsn: str
    after_lsn: str


@dataclass(frozen=True)
class Told:
    """A server's life: a base backup, then three transactions, the second of them named."""

    source: Primary
    point: FilePoint
    base: dict[str, str]
    moments: list[Moment]
    last: str


@pytest.fixture(scope="module", params=[15, 18], ids=["pg15", "pg18"])
def told(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Told]:
    cluster: Cluster = request.getfixturevalue(f"postgres{request.param}")
    installation = cluster.installation
    directory = Path(tempfile.mkdtemp(prefix="cel-", dir="/tmp"))
    directory.chmod(0o711)
    space = directory / "space"
    space.mkdir()
    service_account().own(space)
    with primary(installation, directory, track_commit_timestamp="on") as source:
        source.run(
            f"CREATE TABLESPACE cellar LOCATION '{space}'",
            "CREATE TABLE wines (id integer PRIMARY KEY, note text)",
            "CREATE TABLE far (id integer PRIMARY KEY) TABLESPACE cellar",
            "CREATE UNLOGGED TABLE fleeting (id integer)",
            "INSERT INTO wines SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 20000) n",
            "INSERT INTO far SELECT generate_series(1, 500)",
        )
        point = base_point(source, directory / "base")
        base = digests(source.cluster.dsn("postgres"))
        moments = []
        for number in range(1, 4):
            moments.append(_transaction(source, number))
            if number == 2:
                source.run("SELECT pg_create_restore_point('second')")
        last = source.archived()
        lsns = _commits(source)
        moments = [Moment(m.tables, m.xid, m.committed, lsns[m.xid], m.after_lsn) for m in moments]
        yield Told(source, point, base, moments, last)
    shutil.rmtree(directory)


def _transaction(source: Primary, number: int) -> Moment:
    source.run(
        f"INSERT INTO wines VALUES ({number + 100_000}, 'step');"
        f"INSERT INTO far VALUES ({number + 1000});"
        f"UPDATE wines SET note = 'changed {number}' WHERE id % 1000 = {number}"
    )
    xid = str(source.ask(f"SELECT xmin::text FROM far WHERE id = {number + 1000}"))
    committed = source.ask(f"SELECT pg_xact_commit_timestamp('{xid}'::xid)")
    assert isinstance(committed, datetime)
    tables = digests(source.cluster.dsn("postgres"))
    return Moment(tables, xid, committed, "", str(source.ask("SELECT pg_current_wal_lsn()")))


def _commits(source: Primary) -> dict[str, str]:
    """Where each transaction's commit record begins."""
    program = str(source.cluster.installation.program("pg_waldump"))
    segments = sorted(path for path in source.archive.iterdir() if len(path.name) == 24)
    found = {}
    for segment in segments:
        answer = subprocess.run(
            [program, "-r", "Transaction", str(segment)],
            capture_output=True,
            text=True,
            check=False,
        )
        for line in answer.stdout.splitlines():
            if "COMMIT" in line:
                found[line.split("tx:")[1].split(",")[0].strip()] = (
                    line.split("lsn:")[1].split(",")[0].strip()
                )
    return found


def restore(
    told: Told,
    out: Path,
    target: RecoveryTarget,
    *,
    read: Read | None = None,
    timeline: str = "1",
    point: FilePoint | None = None,
    overwrite: bool = False,
    delta: bool = False,
) -> Restored:
    last = told.last if target.kind == "latest" else None
    course = Course(target, timeline, read or told.source.read, "", last)
    moved = {"cellar": out.with_name(f"{out.name}-space")}
    goal = PgdataTarget(out, course, moved, 2, delta=delta)
    goal.prepare(overwrite)
    goal.look(point or told.point, ())
    return goal.restore(point or told.point, (), Listener())


def tables(told: Told, out: Path) -> dict[str, str]:
    with serving(told.source.cluster.installation, out) as dsn:
        return digests(dsn)


def target_of(told: Told, what: str) -> tuple[RecoveryTarget, dict[str, str]]:
    """A recovery target, and the tables that must be there then."""
    first, second, third = told.moments
    return {
        "latest": (recovery_target(), third.tables),
        "immediate": (recovery_target(moment="immediate"), told.base),
        "time": (recovery_target(at=second.committed), second.tables),
        "before a time": (recovery_target(at=second.committed, exclusive=True), first.tables),
        "lsn": (recovery_target(lsn=second.commit_lsn), second.tables),
        "before an lsn": (recovery_target(lsn=second.commit_lsn, exclusive=True), first.tables),
        "xid": (recovery_target(xid=first.xid), first.tables),
        "before an xid": (recovery_target(xid=first.xid, exclusive=True), told.base),
        "name": (recovery_target(name="second"), second.tables),
    }[what]


@pytest.mark.parametrize(
    "what",
    ["latest", "immediate", "time", "before a time", "lsn", "before an lsn", "xid",
     "before an xid", "name"],
)  # fmt: skip
def test_every_table_is_as_it_was_at_that_moment(told: Told, what: str, tmp_path: Path) -> None:
    target, expected = target_of(told, what)
    out = tmp_path / "out"
    done = restore(told, out, target)
    assert out.stat().st_mode & 0o777 == 0o700
    control = read_control(out)
    assert control is not None
    assert control.shut_down
    left = {path.name for path in out.iterdir()}
    assert not left & {"recovery.signal", "postmaster.opts", "cellarer-restore.json"}
    assert "recovery_target" not in (out / "postgresql.auto.conf").read_text()
    assert tables(told, out) == expected
    if what in ("latest", "time"):
        moment = told.moments[2 if what == "latest" else 1].committed
        assert datetime.fromisoformat(done.recovered_to) == moment
    # What the backup left out, and what was moved.
    assert (tmp_path / "out-space").is_dir()
    (link,) = (out / "pg_tblspc").iterdir()
    assert link.readlink() == tmp_path / "out-space"


def test_wal_that_ends_early_is_never_called_success(told: Told, tmp_path: Path) -> None:
    later = told.moments[2].committed.replace(year=2999)
    with pytest.raises(TargetFailed, match="the WAL ends before") as caught:
        restore(told, tmp_path / "out", recovery_target(at=later))
    assert "last completed transaction was at log time" in caught.value.detail
    with pytest.raises(TargetFailed, match="the WAL ends before"):
        restore(told, tmp_path / "other", recovery_target(name="nobody gave this name"))


def test_a_missing_segment_does_not_end_the_recovery(told: Told, tmp_path: Path) -> None:
    def read(name: str) -> bytes | None:
        return None if name == told.last else told.source.read(name)

    with pytest.raises(TargetFailed, match="recovery"):
        restore(told, tmp_path / "out", recovery_target(), read=read)
    assert not list((tmp_path / "out" / "pg_wal").glob("00000002*"))


def test_an_unreachable_vault_stops_and_does_not_promote(told: Told, tmp_path: Path) -> None:
    def read(name: str) -> bytes | None:
        if name == told.last:
            raise VaultUnreachable("no replica answers")
        return told.source.read(name)

    with pytest.raises(VaultUnreachable, match="no replica answers"):
        restore(told, tmp_path / "out", recovery_target(), read=read)
    out = tmp_path / "out"
    assert not list((out / "pg_wal").glob("00000002*"))
    assert (out / "recovery.signal").exists()
    # The cause is gone: it goes on, over what is there.
    restore(told, out, recovery_target(), delta=True)
    assert tables(told, out) == told.moments[2].tables


@pytest.mark.long
@pytest.mark.parametrize("what", ["immediate", "latest"])
def test_a_base_needs_no_log_for_the_wal_that_it_has(told: Told, what: str, tmp_path: Path) -> None:
    """Retention removed it from the log, or the log began later: to the log that WAL is lost."""
    own = {entry.path.removeprefix("wal/") for entry in told.point.entries() if entry.kind == "wal"}
    assert own

    def read(name: str) -> bytes | None:
        if name in own:
            raise DamagedData(f"{name} is not in the vault any more")
        return told.source.read(name)

    target, expected = target_of(told, what)
    restore(told, tmp_path / "out", target, read=read)
    assert tables(told, tmp_path / "out") == expected


def test_a_moment_before_the_base_is_refused(told: Told, tmp_path: Path) -> None:
    too_early = recovery_target(lsn="0/1000000")
    with pytest.raises(TargetFailed, match="the base backup ended after"):
        restore(told, tmp_path / "out", too_early)


@pytest.mark.long
def test_timelines_before_and_after_a_fork(told: Told, tmp_path: Path) -> None:
    """The server was recovered to its first transaction and lived on: its WAL is timeline 2."""
    first, second, _ = told.moments
    restore(told, tmp_path / "forked", recovery_target(xid=first.xid))
    source, archive = told.source, tmp_path / "archive"
    shutil.copytree(source.archive, archive)
    archive.chmod(0o777)
    command = f'cp "%p" {archive}/%f.new && mv {archive}/%f.new {archive}/%f'
    installation = source.cluster.installation
    with serving(installation, tmp_path / "forked", archive_command=command) as dsn:
        forked = Primary(_At(dsn, installation), archive)  # type: ignore[arg-type]
        forked.run("INSERT INTO far VALUES (5000)")
        after = digests(dsn)
        lsn = str(forked.ask("SELECT pg_current_wal_lsn()"))
        last = forked.archived()
    assert (archive / "00000002.history").exists()
    assert last.startswith("00000002")

    def recovered(out: str, target: RecoveryTarget, timeline: str) -> dict[str, str]:
        restore(told, tmp_path / out, target, read=forked.read, timeline=timeline)
        found = tables(told, tmp_path / out)
        shutil.rmtree(tmp_path / out)
        shutil.rmtree(tmp_path / f"{out}-space")
        return found

    assert recovered("1", recovery_target(lsn=lsn), "2") == after
    assert recovered("2", recovery_target(xid=first.xid), "2") == first.tables
    assert recovered("3", recovery_target(xid=second.xid), "1") == second.tables
    with pytest.raises(TargetFailed, match="the WAL ends before"):
        restore(
            told, tmp_path / "4", recovery_target(name="second"), read=forked.read, timeline="2"
        )


@dataclass(frozen=True)
class _At:
    """A running server that is no cluster of ours."""

    address: str
    installation: object

    def dsn(self, _database: str) -> str:
        return self.address

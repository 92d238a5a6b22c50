"""Proves a base backup: restores it, recovers it, and lets PostgreSQL look at every page of it.

What is restored is what was stored, as every stream is compared with its sum. What was stored is a
cluster in order, if it recovers, `pg_amcheck` finds every table and index sound, every foreign key
holds, and what the user claims of the data is true.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import psycopg

from cellarer.domain.assertion import Assertion
from cellarer.domain.snapshot import Check
from cellarer.domain.wal import lsn_text, parse_lsn
from cellarer.errors import TargetFailed, ToolMissing
from cellarer.ports import Judgement, PointReader, Progress, Restored, phase
from cellarer.postgres.basebackup import BackupFacts, read_facts
from cellarer.postgres.cluster import claimed_directory
from cellarer.postgres.private_server import PrivateServer
from cellarer.postgres.wal_feed import WalFeed
from cellarer.targets.assertions import check_assertions
from cellarer.targets.database import connect
from cellarer.targets.foreign_keys import check_foreign_keys
from cellarer.targets.host_faults import hint_of_host_fault
from cellarer.targets.pgdata import PgdataTarget, account_for, installation_for
from cellarer.targets.recovery import Course

RESTORE = "restore"
_EXPECTED = "restored and recovered without an error"
_SOUND = "every table and index sound"
_LINES = 5
_PAUSE_SECONDS = 0.1
_START_SECONDS = 300.0
# Nobody misses a sandbox after a power cut.
_SETTINGS = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}

CourseOf = Callable[[PointReader, BackupFacts], Course]


class BaseProver:
    """Restores into a sandbox below `workspace`, which is removed whatever happens.

    `course_of` says how far each point is recovered, and where its WAL comes from.
    """

    def __init__(
        self,
        assertions: Sequence[Assertion],
        workspace: Path,
        jobs: int,
        course_of: CourseOf,
    ) -> None:
        self._assertions = assertions
        self._workspace = workspace
        self._jobs = jobs
        self._course_of = course_of

    def prove(self, reader: PointReader, progress: Progress) -> Judgement:
        """The checks, that of the restore itself first; see `cellarer.ports.Prover`.

        Names are stable: `pages`, `checksums`, `branch`, `moment`, `amcheck DB`, `assertion NAME`,
        `foreign key DB.SCHEMA.TABLE.CONSTRAINT`. Raises `ToolMissing` without programs of the
        source's major version, `DamagedData` where the point cannot be read, and `TargetFailed`
        where the sandbox fails.
        """
        facts = read_facts(reader)
        if installation_for(facts) is None:
            raise ToolMissing(
                f"no programs of PostgreSQL {facts.major} are here",
                detail="the files of a cluster need a server of the same major version",
                hint=f"install PostgreSQL {facts.major}, or verify on a host that has it",
            )
        try:
            with claimed_directory(self._workspace) as directory:
                directory.mkdir(mode=0o711, exist_ok=True)
                return self._judged(directory, facts, reader, progress)
        except (TargetFailed, OSError, psycopg.Error) as error:
            text = str(error).strip()
            raise TargetFailed(
                f"the sandbox in {self._workspace} failed, so the point was not judged",
                detail=text,
                hint=hint_of_host_fault(text) or "Remove the cause on this host, then run again.",
            ) from error

    def _judged(
        self, directory: Path, facts: BackupFacts, reader: PointReader, progress: Progress
    ) -> Judgement:
        data = directory / "data"
        course = self._course_of(reader, facts)
        moved = {space.path: directory / f"space{space.oid}" for space in facts.tablespaces}
        target = PgdataTarget(data, course, moved, self._jobs, settings=_SETTINGS)
        began = time.monotonic()
        try:
            target.prepare(overwrite=False)
            restored = target.restore(reader, (), progress)
        except TargetFailed as error:
            problem = "\n".join(part for part in (error.message, error.detail, error.hint) if part)
            if hint_of_host_fault(error.detail) is not None:
                raise
            return Judgement([Check(RESTORE, False, _EXPECTED, problem)])
        seconds = time.monotonic() - began
        found = f"in {seconds:.1f} s, recovered to {restored.recovered_to}"
        checks = [Check(RESTORE, True, _EXPECTED, found), _pages(facts)]
        checks += [*_checksums(data, facts), *_branch(course), *_moment(course, restored)]
        checks += self._served(data, facts, progress)
        return Judgement(checks, restored.loss_seconds)

    def _served(self, data: Path, facts: BackupFacts, progress: Progress) -> Iterator[Check]:
        installation = installation_for(facts)
        assert installation is not None
        account = account_for(data)
        feed = WalFeed(lambda _name: None, facts.wal_segment_size)
        with PrivateServer(installation, data, account, feed, _SETTINGS) as server:
            databases = _databases(server)
            with phase(progress, "checking tables and indexes", None):
                for name in databases:
                    yield from _amcheck(server.dsn(name), name)
                    with closing(connect(server.dsn(name))) as connection:
                        yield from check_foreign_keys(connection, name)
                yield from check_assertions(self._assertions, databases, server.dsn)


def _pages(facts: BackupFacts) -> Check:
    """Whether what was read had pages that were damaged already."""
    expected = "0 pages damaged when they were read"
    found = [f"block {p.block} of {p.relation or p.path}" for p in facts.damaged_pages]
    if not found:
        told = expected if facts.checksums else "the cluster has no checksums"
        return Check("pages", True, expected, told)
    return Check("pages", False, expected, f"{len(found)}: {', '.join(found[:_LINES])}")


def _checksums(data: Path, facts: BackupFacts) -> Iterator[Check]:
    """Whether every page of the recovered cluster, which is stopped, fits its checksum."""
    installation = installation_for(facts)
    assert installation is not None
    if not facts.checksums:
        return
    expected = "every page of the recovered cluster fits its checksum"
    try:
        program = installation.program("pg_checksums")
    except ToolMissing:
        yield Check("checksums", True, expected, "not looked at: pg_checksums is not here")
        return
    answer = account_for(data).run([program, "--check", "-D", data], data.parent)
    failed = [line for line in answer.stdout.splitlines() if "verification failed" in line]
    if answer.returncode == 0:
        yield Check("checksums", True, expected, expected)
    else:
        told = [line.partition(": error: ")[2] for line in failed] or [answer.stdout.strip()]
        yield Check("checksums", False, expected, "; ".join(told[:_LINES]))


def _branch(course: Course) -> Iterator[Check]:
    """Where the log in the vault does not lead on from this base backup, but from another one."""
    if course.conflict:
        yield Check("branch", False, "the log in the vault leads on from it", course.conflict)


def _moment(course: Course, restored: Restored) -> Iterator[Check]:
    """Whether what the source was seen to have done by the end of that log is there."""
    sighting = course.seen_before(parse_lsn(course.expected_lsn)) if course.expected_lsn else None
    if sighting is None:
        return
    expected = (
        f"all transactions before {sighting.xid}, which were over at {sighting.time.isoformat()},"
        f" and LSN {lsn_text(sighting.lsn)}"
    )
    found = f"transaction {restored.next_xid} comes next, LSN {restored.recovered_lsn}"
    if restored.loss_seconds is not None:
        found += f"; {restored.loss_seconds} s of what is known of the source are not there"
    reached = parse_lsn(restored.recovered_lsn), restored.next_xid or 0
    there = reached[0] >= sighting.lsn and reached[1] >= sighting.xid
    yield Check("moment", there, expected, found)


def _databases(server: PrivateServer) -> list[str]:
    """Those that can be connected to, templates aside, once the server serves."""
    deadline = time.monotonic() + _START_SECONDS
    while (connection := server.connect()) is None:
        if not server.running or time.monotonic() > deadline:
            raise server.failure("the recovered server does not start again")
        time.sleep(_PAUSE_SECONDS)
    with connection:
        rows = connection.execute(
            "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1"
        ).fetchall()
    return [str(name) for (name,) in rows]


def _amcheck(dsn: str, database: str) -> Iterator[Check]:
    """One check of all tables and indexes of a database, by the server's own extension."""
    name = f"amcheck {database}"
    with closing(connect(dsn)) as connection:
        offered = connection.execute(
            "SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'"
        ).fetchone()
        if not offered or not offered[0]:
            told = "not looked at: this server has no extension amcheck"
            yield Check(name, True, _SOUND, told)
            return
        connection.execute("CREATE SCHEMA cellarer_check")
        connection.execute("CREATE EXTENSION amcheck SCHEMA cellarer_check")
        problems: list[str] = []
        looked = 0
        for query in (_HEAPS, _INDEXES):
            for oid, relation in connection.execute(query).fetchall():
                looked += 1
                problems += _problems(connection, query is _HEAPS, int(oid), str(relation))
    found = f"{looked} tables and indexes, all sound"
    if problems:
        found = f"{len(problems)} problems: {'; '.join(problems[:_LINES])}"
    yield Check(name, not problems, _SOUND, found)


_HEAPS = """
SELECT c.oid::int8, c.oid::regclass::text FROM pg_class c JOIN pg_am a ON a.oid = c.relam
WHERE c.relkind IN ('r', 'm', 't') AND a.amname = 'heap' AND c.relpersistence = 'p' ORDER BY 1
"""
_INDEXES = """
SELECT c.oid::int8, c.oid::regclass::text FROM pg_class c JOIN pg_am a ON a.oid = c.relam
JOIN pg_index i ON i.indexrelid = c.oid
WHERE c.relkind = 'i' AND a.amname = 'btree' AND c.relpersistence = 'p' AND i.indisvalid ORDER BY 1
"""


def _problems(
    connection: psycopg.Connection[tuple[object, ...]], heap: bool, oid: int, relation: str
) -> list[str]:
    """What is wrong with one table or index."""
    try:
        if heap:
            rows = connection.execute(
                "SELECT blkno, msg FROM cellarer_check.verify_heapam(%s::oid::regclass)", [oid]
            ).fetchall()
            return [f"{relation} block {block}: {message}" for block, message in rows]
        connection.execute(
            "SELECT cellarer_check.bt_index_check(%s::oid::regclass, heapallindexed => true)", [oid]
        )
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        return [f"{relation}: {error.diag.message_primary or error}"]
    return []

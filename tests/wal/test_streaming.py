"""`wal stream` on real servers: seconds behind, and what is killed, cut off or full goes on."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cellarer.domain.wal import parse_lsn
from cellarer.postgres.cluster import Cluster
from wal_places import Place, ask, bring_back, system_of, wait_for

FILL = (
    "CREATE TABLE IF NOT EXISTS t (id int, filler text)",
    "INSERT INTO t SELECT n, repeat('x', 200) FROM generate_series(1, 2000) n",
)
SWITCH = "SELECT pg_walfile_name(pg_switch_wal())"


def configure(place: Place, dsn: str, **settings: str) -> None:
    extra = "".join(f'{key} = "{value}"\n' for key, value in settings.items())
    place.write_config(
        f'[sources.log]\nkind = "wal"\ndsn = "{dsn}"\nflush_every = "1s"\n'
        f'spool = "{place.directory}/spool"\n{extra}'
    )


@contextmanager
def streaming(place: Place) -> Iterator[subprocess.Popen[str]]:
    """A stream that runs; it is told to end, and killed if it does not."""
    with place.running("stream.log", "wal", "stream", "log") as process:
        yield process


def status_of(place: Place) -> dict[str, Any]:
    document = place.document("wal", "status")
    assert "sources" in document, document
    found: dict[str, Any] = document["sources"]["log"]
    return found


def findings_of(place: Place) -> set[str]:
    return {each["id"] for each in place.document("wal", "status")["findings"]}


def flushed(server: Cluster) -> int:
    return parse_lsn(ask(server, "SELECT pg_current_wal_flush_lsn()::text"))


def caught_up(place: Place, server: Cluster) -> None:
    """Wait until the slot has been moved to all that the server has flushed by now."""
    goal = flushed(server)
    slot = "SELECT coalesce(max(restart_lsn), '0/0')::text FROM pg_replication_slots"
    wait_for(lambda: parse_lsn(ask(server, slot)) >= goal, 90)


def read_back(place: Place, system: str, name: str) -> bytes:
    found = place.directory / "found"
    done = place.run("wal", "fetch", "--system", system, name, found)
    assert done.returncode == 0, done.stderr
    return found.read_bytes()


def receivers(place: Place) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                arguments = (entry / "cmdline").read_bytes()
                running = (entry / "stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
            except OSError:
                continue
            if b"/pg_receivewal\0" in arguments and str(place.directory).encode() in arguments:
                found += [int(entry.name)] * running
    return found


@pytest.fixture
def streamed(place: Place, server: Cluster) -> Place:
    """A place whose source is streamed by a role that may do no more than it must."""
    ask(server, "CREATE ROLE streamer LOGIN REPLICATION", "GRANT pg_read_all_stats TO streamer")
    configure(place, server.dsn("postgres").replace("postgres@", "streamer@", 1))
    return place


def test_pieces_and_segments_come_at_once(streamed: Place, server: Cluster) -> None:
    system = system_of(server)
    with streaming(streamed):
        wait_for(lambda: ask(server, "SELECT count(*) FROM pg_replication_slots"))
        name = ask(server, *FILL, "SELECT pg_walfile_name(pg_current_wal_lsn())")
        caught_up(streamed, server)
        pieces = {one for one in streamed.stored(system) if one.startswith(f"{name}.")}
        assert pieces
        assert name not in streamed.stored(system)
        path = server.data_directory / "pg_wal" / name
        known = flushed(server) % (1 << 24)
        written = path.read_bytes()[:known]
        # The server writes a little by itself, which comes with the next piece.
        wait_for(lambda: read_back(streamed, system, name)[:known] == written)
        # An idle server is not late, however long it is idle.
        found = wait_for(lambda: (s := status_of(streamed))["lag_bytes"] == 0 and s)
        assert (found["lag_seconds"], found["slot"], found["gaps"]) == (0.0, "reserved", [])
        ask(server, SWITCH)
        wait_for(lambda: name in streamed.stored(system))
        assert findings_of(streamed) == set()
    assert not receivers(streamed)
    assert read_back(streamed, system, name) == path.read_bytes()


@pytest.mark.long
def test_what_is_killed_goes_on(streamed: Place, server: Cluster) -> None:
    """SIGKILL of the receiver, of the streamer, of the server, and a spool that is lost."""
    system, names = system_of(server), []
    with streaming(streamed) as process:
        (receiver,) = wait_for(lambda: receivers(streamed))
        names.append(ask(server, *FILL, SWITCH))
        os.kill(receiver, signal.SIGKILL)
        names.append(ask(server, *FILL, SWITCH))
        wait_for(lambda: receivers(streamed) not in ([], [receiver]))
        caught_up(streamed, server)
        process.kill()
        process.wait()
    names.append(ask(server, *FILL, SWITCH))
    assert "wal-server" not in findings_of(streamed)
    with streaming(streamed) as process:
        caught_up(streamed, server)
        assert len(receivers(streamed)) == 1
        server.kill()
        server.start()
        names.append(ask(server, *FILL, SWITCH))
        caught_up(streamed, server)
    names.append(ask(server, *FILL, SWITCH))
    subprocess.run(["rm", "-rf", streamed.directory / "spool"], check=True)
    with streaming(streamed):
        caught_up(streamed, server)
        assert status_of(streamed)["gaps"] == []
    assert set(names) <= streamed.stored(system)
    for name in names:
        path = server.data_directory / "pg_wal" / name
        assert read_back(streamed, system, name) == path.read_bytes()


@pytest.mark.long
def test_a_store_that_was_away_is_caught_up_with(streamed: Place, server: Cluster) -> None:
    system = system_of(server)
    replicas = [streamed.directory / name for name in ("one", "two")]
    with streaming(streamed):
        ask(server, *FILL)
        caught_up(streamed, server)
        for replica in replicas:
            replica.rename(f"{replica}-away")
        names = [ask(server, *FILL, SWITCH) for _ in range(3)]
        kept = parse_lsn(ask(server, "SELECT restart_lsn::text FROM pg_replication_slots"))
        assert kept < flushed(server)
        for replica in replicas:
            bring_back(replica)
        caught_up(streamed, server)
    assert set(names) <= streamed.stored(system)


@pytest.mark.long
def test_a_new_timeline_is_followed(
    streamed: Place, server: Cluster, standby_of: Callable[[Cluster], Cluster]
) -> None:
    system = system_of(server)
    standby = standby_of(server)
    configure(streamed, standby.dsn("postgres").replace("postgres@", "streamer@", 1))
    with streaming(streamed):
        wait_for(lambda: receivers(streamed))
        before = ask(server, *FILL, SWITCH)
        goal = flushed(server)
        replayed = "SELECT pg_last_wal_replay_lsn()::text"
        wait_for(lambda: parse_lsn(ask(standby, replayed)) >= goal)
        wait_for(lambda: before in streamed.stored(system))
        ask(server, *FILL)
        server.stop()
        ask(standby, "SELECT pg_promote()")
        after = ask(standby, *FILL, SWITCH)
        assert after.startswith("00000002")
        caught_up(streamed, standby)
        assert {"00000002.history", after} <= streamed.stored(system)
        assert status_of(streamed)["gaps"] == []
        path = standby.data_directory / "pg_wal" / after
        assert read_back(streamed, system, after) == path.read_bytes()


@pytest.mark.long
def test_a_server_that_was_promoted_on_purpose_is_no_alarm(
    streamed: Place, server: Cluster, standby_of: Callable[[Cluster], Cluster]
) -> None:
    """It never had the slot that was the old primary's, and nothing is missing."""
    standby = standby_of(server)
    with streaming(streamed):
        ask(server, *FILL)
        caught_up(streamed, server)
    goal = flushed(server)
    replayed = "SELECT pg_last_wal_replay_lsn()::text"
    wait_for(lambda: parse_lsn(ask(standby, replayed)) >= goal)
    server.stop()
    ask(standby, "SELECT pg_promote()")
    configure(streamed, standby.dsn("postgres").replace("postgres@", "streamer@", 1))
    with streaming(streamed):
        ask(standby, *FILL, SWITCH)
        wait_for(lambda: receivers(streamed))
        caught_up(streamed, standby)
        wait_for(lambda: findings_of(streamed) == set())
        assert status_of(streamed)["gaps"] == []


@pytest.mark.long
def test_a_slot_that_is_dropped_is_loud_and_its_gap_is_filled(
    streamed: Place, server: Cluster
) -> None:
    system = system_of(server)
    drop = "SELECT pg_drop_replication_slot(slot_name)::text FROM pg_replication_slots"
    with streaming(streamed):
        ask(server, *FILL)
        caught_up(streamed, server)
    ask(server, drop)
    assert status_of(streamed)["slot"] is None
    missed = [ask(server, *FILL, SWITCH) for _ in range(3)]
    ask(server, "CHECKPOINT")
    with streaming(streamed):
        assert wait_for(lambda: "wal-happened" in findings_of(streamed))
        last = ask(server, *FILL, SWITCH)
        # The server still has what was missed, though it was not kept for us.
        wait_for(lambda: {*missed, last} <= streamed.stored(system))
        wait_for(lambda: status_of(streamed)["gaps"] == [])
        # Dropped while it streams: noticed, and made anew.
        ask(server, drop)
        wait_for(lambda: ask(server, "SELECT count(*) FROM pg_replication_slots"))
    done = streamed.run("wal", "stream", "log", "--drop-slot")
    assert (done.returncode, done.stdout) == (0, "the slot is dropped\n")
    assert ask(server, "SELECT count(*) FROM pg_replication_slots") == 0


@pytest.mark.long
def test_a_gap_that_the_server_cannot_fill_is_named(streamed: Place, server: Cluster) -> None:
    system = system_of(server)
    ask(server, "ALTER SYSTEM SET wal_keep_size = 0", "SELECT pg_reload_conf()")
    with streaming(streamed):
        ask(server, *FILL)
        caught_up(streamed, server)
    ask(server, "SELECT pg_drop_replication_slot(slot_name)::text FROM pg_replication_slots")
    missed = [ask(server, *FILL, SWITCH) for _ in range(4)]
    ask(server, "CHECKPOINT", *FILL, SWITCH)
    ask(server, "CHECKPOINT")
    assert not (server.data_directory / "pg_wal" / missed[1]).exists()
    with streaming(streamed):
        ask(server, *FILL, SWITCH)
        gaps = wait_for(lambda: status_of(streamed)["gaps"])
        assert missed[1] in {gap["first"] for gap in gaps} | {gap["last"] for gap in gaps} or any(
            gap["first"] <= missed[1] <= gap["last"] for gap in gaps
        )
    assert missed[1] not in streamed.stored(system)
    done = streamed.run("wal", "fetch", "--system", system, missed[1], "found")
    assert (done.returncode, done.stdout) == (200, "")


@pytest.mark.long
@pytest.mark.parametrize("when_full", ["hold", "drop-slot"])
def test_what_gives_way_when_the_spool_is_full(
    streamed: Place, server: Cluster, small_disk: Callable[[int], Path], when_full: str
) -> None:
    disk, system = small_disk(100), system_of(server)
    configure(
        streamed,
        server.dsn("postgres").replace("postgres@", "streamer@", 1),
        spool_limit="64MiB",
        when_full=when_full,
    )
    text = streamed.config.read_text().replace(f"{streamed.directory}/spool", str(disk))
    streamed.config.write_text(text)
    replicas = [streamed.directory / name for name in ("one", "two")]
    slots = "SELECT count(*) FROM pg_replication_slots"
    with streaming(streamed):
        ask(server, *FILL)
        caught_up(streamed, server)
        for replica in replicas:
            replica.rename(f"{replica}-away")
        names = [ask(server, *FILL, SWITCH) for _ in range(7)]
        if when_full == "drop-slot":
            wait_for(lambda: ask(server, slots) == 0, 40)
        else:
            report = streamed.directory / "state" / "cellarer" / "streams" / "log.json"
            wait_for(lambda: '"full": true' in report.read_text(), 150)
            assert ask(server, slots) == 1
        used = sum(path.stat().st_size for path in disk.rglob("0*"))
        assert used <= 64 << 20
        for replica in replicas:
            bring_back(replica)
        # Nothing was removed by the server yet, so all of it is there in the end either way.
        wait_for(lambda: set(names) <= streamed.stored(system), 150)
        caught_up(streamed, server)
    if when_full == "drop-slot":
        assert "wal-happened" in findings_of(streamed)


@pytest.mark.long
def test_a_disk_that_holds_one_segment_is_told_of_and_the_slot_gives_way(
    streamed: Place, server: Cluster, small_disk: Callable[[int], Path]
) -> None:
    """What is stored makes no room there: the segment that is being written takes all of it."""
    disk = small_disk(24)
    dsn = server.dsn("postgres").replace("postgres@", "streamer@", 1)
    configure(streamed, dsn, spool_limit="64MiB", when_full="drop-slot")
    text = streamed.config.read_text().replace(f"{streamed.directory}/spool", str(disk))
    streamed.config.write_text(text)
    slots = "SELECT count(*) FROM pg_replication_slots"
    with streaming(streamed):
        wait_for(lambda: ask(server, slots) == 1)
        for _ in range(6):
            ask(server, *FILL, SWITCH)
        report = streamed.directory / "state" / "cellarer" / "streams" / "log.json"

        def told(what: str) -> bool:
            return report.exists() and what in report.read_text()

        wait_for(lambda: told("was dropped, as when_full says: the spool has no room"))
        assert ask(server, slots) == 0
        wait_for(lambda: told("no room for another segment"))
    assert "wal-happened" in findings_of(streamed)


def test_one_stream_of_a_source_is_enough(streamed: Place, server: Cluster) -> None:
    with streaming(streamed):
        wait_for(lambda: receivers(streamed))
        done = streamed.run("wal", "stream", "log")
        assert (done.returncode, "in use" in done.stderr) == (2, True)


def test_a_role_that_may_too_little_is_told(place: Place, server: Cluster) -> None:
    ask(server, "CREATE ROLE weak LOGIN")
    configure(place, server.dsn("postgres").replace("postgres@", "weak@", 1))
    found = {each["id"]: each for each in place.document("doctor")["findings"]}
    assert "replication" in found["source"]["message"] + found["source"]["hint"]
    ask(server, "ALTER ROLE weak REPLICATION")
    found = {each["id"]: each for each in place.document("doctor")["findings"]}
    assert "pg_read_all_stats" in found["wal-privilege"]["hint"]
    with psycopg.connect(server.dsn("postgres")) as connection:
        connection.execute("GRANT pg_read_all_stats TO weak")
    found = {each["id"]: each for each in place.document("doctor")["findings"]}
    assert "wal-privilege" not in found
    assert found["wal-not-streamed"]["level"] == "error"

"""`standby` on real servers: fed from the vault alone, through every death, and promoted."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator

import pytest

from cellarer.postgres.cluster import Cluster
from cellarer.postgres.processes import kill_server, server_pid
from standbys import ROWS, Warm, configure, write
from wal.test_streaming import caught_up, streaming
from wal_places import Place, ask, bring_back, wait_for


@pytest.fixture
def warm(place: Place, server: Cluster) -> Iterator[Warm]:
    """A primary whose log is streamed, with a base backup in the vault."""
    configure(place, server.dsn("postgres"))
    made = Warm(place, server)
    write(server)
    with streaming(place) as made.stream:
        wait_for(lambda: ask(server, "SELECT count(*) FROM pg_replication_slots"))
        done = place.run("backup", "base")
        assert done.returncode == 0, done.stderr
        yield made
    made.end()


def test_it_follows_within_a_segment_and_tells_how_far_it_is(warm: Warm) -> None:
    with warm.kept() as process:
        rows = write(warm.primary)
        warm.wait_for_rows(rows)
        # No segment was completed for these: they came in pieces.
        for _ in range(2):
            rows = write(warm.primary)
            warm.wait_for_rows(rows)
        assert warm.ask("SELECT pg_is_in_recovery()") is True
        wait_for(lambda: warm.status()["lag_seconds"] == 0)
        found = warm.status()
        assert found["role"] == "standby"
        assert found["replayed_to"].endswith("Z")
        # An idle primary is not late.
        wait_for(lambda: warm.status()["lag_seconds"] == 0)
        assert warm.place.run(*warm.arguments()).returncode == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    assert server_pid(warm.data) is None
    assert "does not run" in warm.status()["problem"]
    # Whole segments, and a second life of the standby.
    for _ in range(3):
        rows = write(warm.primary, 2000)
        ask(warm.primary, "SELECT pg_switch_wal()")
    with warm.kept():
        warm.wait_for_rows(rows)


@pytest.mark.long
def test_it_is_given_the_room_that_its_primary_got(warm: Warm) -> None:
    """PostgreSQL pauses before it replays what was written with more than the standby has."""
    with warm.kept():
        warm.wait_for_rows(write(warm.primary))
        ask(warm.primary, "ALTER SYSTEM SET max_connections = 400")
        warm.primary.stop()
        warm.primary.start()
        warm.wait_for_rows(write(warm.primary))
        wait_for(lambda: not warm.status()["problem"])
    ask(warm.primary, "ALTER SYSTEM SET max_connections = 500")
    warm.primary.stop()
    warm.primary.start()
    rows = write(warm.primary)
    caught_up(warm.place, warm.primary)
    warm.primary.stop()
    done = warm.place.run(*warm.arguments("--promote", "--yes"))
    assert done.returncode == 0, done.stderr
    assert warm.ask(ROWS) == rows


@pytest.mark.long
def test_it_outlives_what_is_killed_and_a_vault_that_is_away(warm: Warm) -> None:
    place = warm.place
    with warm.kept() as process:
        warm.wait_for_rows(write(warm.primary))
        # The server, as a power cut would.
        assert kill_server(warm.data, 10)
        warm.wait_for_rows(write(warm.primary))
        # The vault is away: it waits, serves, and is not promoted.
        before = warm.ask("SELECT count(*) FROM t")
        for replica in ("one", "two"):
            (place.directory / replica).rename(place.directory / f"{replica}-away")
        rows = write(warm.primary)
        wait_for(lambda: warm.status()["problem"])
        wait_for(lambda: (warm.status()["lag_seconds"] or 0) > 2)
        assert warm.ask("SELECT pg_is_in_recovery()") is True
        assert warm.ask("SELECT count(*) FROM t") == before
        for replica in ("one", "two"):
            bring_back(place.directory / replica)
        warm.wait_for_rows(rows)
        wait_for(lambda: not warm.status()["problem"])
        # Whoever keeps it: the server stays and serves, and the next keeper takes it over.
        process.kill()
        process.wait()
        pid = server_pid(warm.data)
        assert warm.ask("SELECT pg_is_in_recovery()") is True
    rows = write(warm.primary)
    with warm.kept():
        warm.wait_for_rows(rows)
        assert server_pid(warm.data) == pid
        # The primary is killed and comes back.
        warm.primary.kill()
        warm.primary.start()
        warm.wait_for_rows(write(warm.primary))
    assert not list((warm.data / "pg_wal").glob("00000002*"))


@pytest.mark.parametrize("kept", [False, True], ids=["made for it", "kept until then"])
def test_a_dead_primary_and_a_vault_are_enough(warm: Warm, kept: bool) -> None:
    place = warm.place
    rows = [write(warm.primary, 3000)]

    def promoted() -> None:
        caught_up(place, warm.primary)
        refused = warm.promote()
        assert refused.returncode == 1
        assert "the primary may live" in refused.stdout
        assert "answers at" in refused.stdout
        if kept:  # it goes on being fed
            warm.wait_for_rows(write(warm.primary))
            rows[0] = write(warm.primary)
            caught_up(place, warm.primary)
        warm.primary.kill()
        done = warm.promote("--yes")
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads(done.stdout)
        assert (found["role"], found["timeline"], found["lag_seconds"]) == ("primary", 2, 0)

    if kept:
        with warm.kept() as process:
            warm.wait_for_rows(write(warm.primary))
            promoted()
            assert process.wait(60) == 0
    else:
        promoted()
    warm.wait_for_rows(rows[0], 1)
    assert warm.ask("INSERT INTO t (filler) VALUES ('new') RETURNING 1") == 1
    assert warm.ask("SHOW restore_command") == ""
    assert warm.ask("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'cellarer%'") == 0
    assert not (warm.data / "standby.signal").exists()
    assert not (warm.data / "pg_wal" / "cellarer").exists()
    assert "restore_command" not in (warm.data / "postgresql.auto.conf").read_text()
    # What is a primary now is never made a standby again.
    again = place.run(*warm.arguments())
    assert again.returncode == 1
    assert "no standby of cellarer's" in again.stderr


@pytest.mark.long
def test_a_failover_of_the_primary_is_followed(
    warm: Warm, standby_of: Callable[[Cluster], Cluster]
) -> None:
    """The log is streamed from a standby of the primary, which becomes the primary."""
    place, other = warm.place, standby_of(warm.primary)
    warm.end_stream()
    configure(place, other.dsn("postgres"))
    with streaming(place), warm.kept():
        rows = write(warm.primary)
        warm.wait_for_rows(rows)
        wait_for(lambda: ask(other, ROWS) == rows)
        warm.primary.stop()
        ask(other, "SELECT pg_promote()")
        warm.wait_for_rows(write(other))
        assert wait_for(lambda: warm.status()["timeline"] == 2)
        assert not warm.status()["problem"]
        warm.wait_for_rows(write(other))


@pytest.mark.long
def test_what_a_loser_wrote_behind_a_fork_is_never_replayed(
    warm: Warm, standby_of: Callable[[Cluster], Cluster]
) -> None:
    """A primary that was cut off goes on writing; a standby without that is the primary now."""
    place, other = warm.place, standby_of(warm.primary)
    rows = write(warm.primary)
    wait_for(lambda: ask(other, ROWS) == rows)
    caught_up(place, warm.primary)
    ask(other, "SELECT pg_promote()")
    # The one that it has replayed too much on, and the one that was away meanwhile.
    early, late = Warm(place, warm.primary, "early"), Warm(place, warm.primary, "late")
    with early.kept():
        lost = write(warm.primary)
        early.wait_for_rows(lost)
        caught_up(place, warm.primary)
        warm.end_stream()
        warm.primary.stop()
        configure(place, other.dsn("postgres"))
        with streaming(place):
            rows = write(other)
            caught_up(place, other)
            wait_for(lambda: "cannot follow" in early.status()["problem"])
            with late.kept():
                late.wait_for_rows(rows)
                assert late.status()["timeline"] == 2
    done = early.promote("--yes")
    assert done.returncode == 1
    assert "cannot follow" in done.stdout
    early.end()
    late.end()


def held(place: Place, replica: str) -> set[str]:
    return {path.name for path in (place.directory / replica / "wal").glob("*/*/*")}


@pytest.mark.long
def test_a_replica_that_is_silent_is_the_users_to_decide(warm: Warm) -> None:
    """It might hold more than the other one."""
    place = warm.place
    with warm.kept():
        warm.wait_for_rows(write(warm.primary))
    rows = write(warm.primary)
    caught_up(place, warm.primary)
    wait_for(lambda: held(place, "one") == held(place, "two"))
    warm.primary.kill()
    (place.directory / "two").rename(place.directory / "two-away")
    done = warm.promote()
    assert done.returncode == 4, done.stdout
    assert "--yes" in done.stdout
    assert warm.ask("SELECT pg_is_in_recovery()") is True
    done = warm.promote("--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" in done.stderr
    warm.wait_for_rows(rows, 1)


@pytest.mark.long
def test_a_gap_keeps_it_from_being_promoted(warm: Warm) -> None:
    place = warm.place
    with warm.kept():
        warm.wait_for_rows(write(warm.primary))
    write(warm.primary)
    lost = ask(warm.primary, "SELECT pg_walfile_name(pg_switch_wal())")
    write(warm.primary)
    caught_up(place, warm.primary)
    warm.primary.kill()
    for found in place.directory.rglob(f"{lost}*"):
        if "wal" in found.parts:
            found.unlink()
    done = warm.promote("--yes")
    assert done.returncode == 6, done.stdout + done.stderr
    assert lost in done.stdout
    assert warm.ask("SELECT pg_is_in_recovery()") is True


@pytest.mark.parametrize("there", ["file", "foreign", "primary", "other cluster"])
def test_what_is_no_standby_is_refused_and_left_alone(
    place: Place, postgres15: Cluster, there: str
) -> None:
    configure(place, postgres15.dsn("postgres"))
    warm = Warm(place, postgres15)
    if there == "file":
        warm.data.write_text("mine")
    elif there == "foreign":
        warm.data.mkdir()
        (warm.data / "mine").write_text("mine")
    elif there == "primary":
        warm.data.symlink_to(postgres15.data_directory)
    else:
        shutil.copytree(postgres15.data_directory, warm.data, symlinks=True)
        (warm.data / "postmaster.pid").unlink()
    done = place.run(*warm.arguments())
    assert done.returncode == 1, done.stderr
    assert "hint:" in done.stderr
    assert not (warm.data / "standby.signal").exists()


def test_arguments_that_cannot_be_meant(place: Place) -> None:
    warm = Warm(place, None)  # type: ignore[arg-type]
    for more in (["--yes"], ["--status", "--promote"], ["--set", "port"], ["--status"],
                 ["--set", "Recovery_target_time=2026-01-01"]):  # fmt: skip
        done = place.run(*warm.arguments(*more))
        assert (done.returncode, "hint:" in done.stderr) == (2, True), done.stderr
    done = place.run("standby", "base", "--to", str(warm.data))
    assert (done.returncode, "pgdata:" in done.stderr) == (2, True)

"""What would be lost is read back from the recovered cluster, on real servers and a real vault."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from cellarer import bootstrap
from cellarer.config import load
from cellarer.domain.sightings import Sighting
from cellarer.domain.wal import History, parse_lsn
from cellarer.postgres.cluster import Cluster
from cellarer.vault.log_reader import LogReader, systems
from cellarer.vault.log_sightings import Sightings
from cellarer.wal.upstream import Upstream
from wal.test_streaming import caught_up, findings_of, flushed, streaming
from wal_places import Place, ask, wait_for

NEXT = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
ROWS = "CREATE TABLE rows (id integer PRIMARY KEY)"


def now(server: Cluster) -> datetime:
    moment: datetime = ask(server, "SELECT clock_timestamp()")
    return moment


def commit(server: Cluster, number: int) -> tuple[str, datetime]:
    """A row more: its transaction, and when that was committed."""
    ask(server, f"INSERT INTO rows VALUES ({number})")
    xid = str(ask(server, f"SELECT xmin::text FROM rows WHERE id = {number}"))
    return xid, ask(server, f"SELECT pg_xact_commit_timestamp('{xid}'::xid)")


@pytest.fixture
def based(place: Place, server: Cluster) -> Callable[[str], Place]:
    """A place with a base backup of the server, which keeps the times of its commits."""

    def configure(heartbeat: str) -> Place:
        ask(server, "ALTER SYSTEM SET track_commit_timestamp = on")
        server.stop()
        server.start()
        dsn = server.dsn("postgres")
        place.write_config(
            f'[sources.cluster]\nkind = "postgres_base"\ndsn = "{dsn}"\n'
            f'[sources.log]\nkind = "wal"\ndsn = "{dsn}"\nflush_every = "1s"\n'
            f'spool = "{place.directory}/spool"\nheartbeat = "{heartbeat}"\n'
        )
        ask(server, ROWS)
        return place

    return configure


def caught_up_and_seen(place: Place, server: Cluster) -> None:
    """As `caught_up`, and the server was seen at a position that is stored.

    A look at the very moment when something unflushed lies behind it comes with the next log.
    """

    def seen() -> bool:
        caught_up(place, server)
        vault = bootstrap.open_vault(load(place.config), reading=True)
        (system,) = systems(vault)
        log = LogReader(vault, system)
        (window,) = log.continuity().windows
        looks = Sightings(log, History(window.timeline), log.segment_bytes())
        if looks.before(window.to_lsn) is None:
            ask(server, "CHECKPOINT")
            return False
        return True

    wait_for(seen)


def backed_up(place: Place) -> None:
    done = place.run("backup", "cluster")
    assert done.returncode == 0, done.stderr


def verified(place: Place) -> tuple[dict[str, Any], dict[str, Any]]:
    """The result of a verification, and its check of the moment."""
    (result,) = place.document("verify", "cluster")["results"]
    assert result["passed"], result
    return result, {check["name"]: check for check in result["checks"]}["moment"]


def restored(place: Place, name: str, *wishes: str) -> dict[str, Any]:
    out = place.directory / name
    document = place.document("restore", "cluster", "--to", f"pgdata:{out}", *wishes)
    assert "result" in document, document
    found: dict[str, Any] = document["result"]
    return found


def test_what_is_lost_is_measured_and_not_inferred(
    based: Callable[[str], Place], server: Cluster
) -> None:
    place = based("none")
    with streaming(place):
        backed_up(place)
        first, then = commit(server, 1)
        begun = now(server)
        _, last = commit(server, 2)
        caught_up_and_seen(place, server)
    ended = now(server)
    # The last transaction is there, whatever was seen of the server after it.
    result, moment = verified(place)
    assert 0 <= result["loss_seconds"] <= (ended - begun).total_seconds()
    assert "transactions before" in moment["expected"]
    assert "comes next" in moment["found"]
    whole = restored(place, "whole")
    assert datetime.fromisoformat(whole["recovered_to"]) == last
    assert whole["loss_seconds"] <= (ended - begun).total_seconds()
    # An earlier moment lacks what came after it, by the source's own clock.
    early = restored(place, "early", "--xid", first)
    assert datetime.fromisoformat(early["recovered_to"]) == then
    lost = timedelta(seconds=early["loss_seconds"])
    assert last - then <= lost <= ended - then
    assert int(early["next_xid"]) > int(first)


def test_an_idle_server_with_a_heartbeat_comes_back_to_any_time(
    based: Callable[[str], Place], server: Cluster
) -> None:
    place = based("message")
    relations = "SELECT string_agg(relname, ',' ORDER BY oid) FROM pg_class"
    with streaming(place):
        backed_up(place)
        _, last = commit(server, 1)
        before, known = ask(server, NEXT), ask(server, relations)
        wait_for(lambda: ask(server, NEXT) > before)
        idle = now(server)
        beats = ask(server, NEXT)
        wait_for(lambda: ask(server, NEXT) > beats)
        caught_up(place, server)
        assert findings_of(place) == set()
    assert ask(server, relations) == known
    done = restored(place, "idle", "--at", idle.isoformat())
    assert last < datetime.fromisoformat(done["recovered_to"]) <= idle
    _, moment = verified(place)
    assert int(moment["expected"].split("before ")[1].split(",")[0]) > before


def sighted(upstream: Upstream, timeline: int) -> Sighting:
    sighting = upstream.observe("", timeline).sighting
    assert sighting is not None
    return sighting


def test_a_look_says_what_is_over_and_where_the_log_of_that_ends(
    server: Cluster, standby_of: Callable[[Cluster], Cluster]
) -> None:
    upstream = Upstream(server.dsn("postgres"), "slot")
    ask(server, ROWS)
    standby = standby_of(server)
    beside = Upstream(standby.dsn("postgres"), "slot")
    for number in range(3):
        ask(server, f"INSERT INTO rows VALUES ({number})", "SELECT pg_switch_wal()")
        # Of a page that was begun only the header is there: nothing that could be lost.
        seen = wait_for(lambda: (s := sighted(upstream, 7)).lsn == flushed(server) and s)
        assert (seen.timeline, seen.xid) == (1, ask(server, NEXT))
    replayed = "SELECT pg_last_wal_replay_lsn()::text"
    wait_for(lambda: parse_lsn(ask(standby, replayed)) >= seen.lsn)
    copy = sighted(beside, 1)
    assert (copy.timeline, copy.lsn, copy.xid) == (1, seen.lsn, seen.xid)
    assert not beside.beat()
    assert upstream.beat()
    assert sighted(upstream, 1).xid == seen.xid + 1
    upstream.close()
    beside.close()


def test_a_heartbeat_that_may_not_be_is_told_and_log_is_received(
    place: Place, server: Cluster
) -> None:
    function = "pg_logical_emit_message(boolean, text, text)"
    if server.installation.major >= 17:
        function = "pg_logical_emit_message(boolean, text, text, boolean)"
    ask(server, "CREATE ROLE weak LOGIN REPLICATION", "GRANT pg_read_all_stats TO weak")
    ask(server, f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC")
    dsn = server.dsn("postgres").replace("postgres@", "weak@", 1)
    place.write_config(
        f'[sources.log]\nkind = "wal"\ndsn = "{dsn}"\nflush_every = "1s"\n'
        f'spool = "{place.directory}/spool"\nheartbeat = "message"\n'
    )
    with streaming(place):
        ask(server, ROWS)
        caught_up(place, server)
        assert wait_for(lambda: "wal-problem" in findings_of(place))
        problem = next(
            f for f in place.document("wal", "status")["findings"] if f["id"] == "wal-problem"
        )
        assert "pg_logical_emit_message" in problem["hint"]

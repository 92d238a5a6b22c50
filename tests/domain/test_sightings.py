"""What is lost, by what was seen of a server and what a recovered one says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellarer.domain.sightings import Sighting, loss_seconds, moment_held

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
seconds = st.integers(0, 10**6)


def seen(second: int, lsn: int = 1) -> Sighting:
    return Sighting(NOON + timedelta(seconds=second), 1, lsn, 700)


@given(seconds, st.none() | seconds, st.none() | seconds)
def test_only_what_is_held_counts(newest: int, committed: int | None, held: int | None) -> None:
    commit = None if committed is None else NOON + timedelta(seconds=committed)
    moment = moment_held(commit, None if held is None else seen(held))
    lost = loss_seconds(seen(newest), moment, seen(newest).lsn)
    known = [each for each in (committed, held) if each is not None]
    if not known:
        assert (moment, lost) == (None, None)
    else:
        assert lost == max(newest - max(known), 0)
    assert loss_seconds(None, moment, 0) is None
    # What was not replayed is lost, whatever a clock says that was set back.
    behind = loss_seconds(seen(newest), moment, seen(newest).lsn - 1)
    assert behind == (lost or None)


@given(st.datetimes(timezones=st.just(UTC)), st.integers(1, 99), st.integers(0, 2**64 - 1))
def test_what_is_stored_is_read_back(time: datetime, timeline: int, number: int) -> None:
    sighting = Sighting(time, timeline, number, number)
    assert Sighting.parse(sighting.as_json()) == sighting


@pytest.mark.parametrize(
    "change", [{"time": "2026-03-01T12:00:00"}, {"lsn": "nowhere"}, {"xid": "many"}, {"time": 7}]
)
def test_what_says_nothing_is_refused(change: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Sighting.parse({**seen(1).as_json(), **change})

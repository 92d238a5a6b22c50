"""Which locks are extended, and until when: everything that a restore point needs stays locked.

An object is locked as it is written, for a *period*. Twice in a period its turn comes, at moments
that follow from its name, so that what was written in one night is not extended in one night. What
is still needed then is locked for a whole period from its turn on. So after each run everything
needed is locked for half a period at least, and what nobody needs any more can be deleted a period
after it was last needed, at the latest.

The time is an argument, and a lock never gets shorter: a clock that is wrong for a day locks for
a day too long or too short, and the next run mends it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

_TURNS = 2
_SECOND = timedelta(seconds=1)


def plan_extensions(
    held: Mapping[str, datetime | None], now: datetime, period: timedelta
) -> dict[str, datetime]:
    """Of objects that are needed, those to lock for longer: name -> until when.

    `held` says until when each is locked, None for not at all. Stores count in whole seconds.
    """
    until = (now + period).replace(microsecond=0) + _SECOND
    return {
        name: until
        for name, lock in held.items()
        if lock is None or lock < now + period - _since_turn(name, now, period)
    }


def looking_order(names: Iterable[str], now: datetime, period: timedelta) -> list[str]:
    """In which order to ask for locks: those first whose turn was last.

    So that runs that cannot ask for all come to each in its turn all the same.
    """
    return sorted(names, key=lambda name: _since_turn(name, now, period))


def _since_turn(name: str, now: datetime, period: timedelta) -> timedelta:
    """How long ago the turn of an object was: less than half a period."""
    between = period / _TURNS
    digest = hashlib.sha256(name.encode()).digest()[:4]
    first = between * (int.from_bytes(digest, "big") / (1 << 32))
    return (now - datetime.fromtimestamp(0, UTC) - first) % between

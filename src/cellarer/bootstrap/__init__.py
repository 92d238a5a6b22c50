"""The composition root: the one place where config meets adapters.

Commands ask here for what they need; nothing else in the program constructs an adapter.
"""

from cellarer.bootstrap.examinations import examinations
from cellarer.bootstrap.sources import (
    PGDATA,
    assertions,
    built_sources,
    jobs,
    open_prover,
    open_sources,
    open_target,
    open_target_of,
    presentations,
    retention,
)
from cellarer.bootstrap.vaults import (
    look_back,
    make_vault,
    now,
    open_for_sync,
    open_log_reader,
    open_log_writer,
    open_replica,
    open_replicas,
    open_vault,
    person,
    seen_heads,
)
from cellarer.bootstrap.wal import (
    command_of_recovery,
    look_at_streams,
    open_agent,
    open_streamer,
    refuse_log,
    wal_status,
)

__all__ = [
    "PGDATA",
    "assertions",
    "built_sources",
    "command_of_recovery",
    "examinations",
    "jobs",
    "look_at_streams",
    "look_back",
    "make_vault",
    "now",
    "open_agent",
    "open_for_sync",
    "open_log_reader",
    "open_log_writer",
    "open_prover",
    "open_replica",
    "open_replicas",
    "open_sources",
    "open_streamer",
    "open_target",
    "open_target_of",
    "open_vault",
    "person",
    "presentations",
    "refuse_log",
    "retention",
    "seen_heads",
    "wal_status",
]

"""`cellarer retain`: apply the retention and collect what nobody needs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from cellarer.cli.frame import Session, command
from cellarer.cli.locks import lock_document, lock_lines
from cellarer.cli.render import iso_time, table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from cellarer.flows.retain import Retained
    from cellarer.vault.repack import Repacked

_SHOWN_PACKS = 20


@command("retain")
@click.option("--dry-run", is_flag=True, help="Only show what would be kept and what would go.")
def retain(session: Session, dry_run: bool) -> int:
    """Give up the restore points that no rule wants, and delete what nobody needs any more."""
    from cellarer import bootstrap
    from cellarer.flows import retain as flow

    vault = bootstrap.open_vault(session.config, collecting=not dry_run)
    rules = bootstrap.retention(session.config)
    seen = bootstrap.seen_heads(vault)
    done = flow.retain(vault, rules, bootstrap.now, session.progress, dry_run=dry_run, seen=seen)
    session.emit(_document(done, dry_run), lambda: _text(done, dry_run))
    return flow.worst(done)


def _document(done: Retained, dry_run: bool) -> dict[str, Any]:
    from cellarer.domain.wal import lsn_text

    return {
        "dry_run": dry_run,
        "keep": [
            {"point": d.point.id, "source": d.point.source, "reasons": d.reasons} for d in done.keep
        ],
        "remove": [
            {"point": d.point.id, "source": d.point.source, "reasons": d.reasons}
            for d in done.remove
        ],
        "condemned_bytes": done.condemned_bytes,
        "swept_bytes": done.swept_bytes,
        "repack": [dataclasses.asdict(each) for each in done.repacked.plan.packs],
        "repacked_bytes": done.repacked.repacked_bytes,
        "repack_left_dead_bytes": done.repacked.plan.left_dead_bytes,
        "repack_off": done.repacked.off,
        "repack_failed": done.repacked.left,
        "repack_problem": done.repacked.problem.as_json() if done.repacked.problem else None,
        "wal": [
            {
                "system": each.system,
                "before": lsn_text(each.before) if each.before else None,
                "point": each.point or None,
                "reason": each.reason,
                "warning": each.warning or None,
            }
            for each in done.wal
        ],
        "wal_removal": {
            name: {
                **{f.name: getattr(each, f.name) for f in dataclasses.fields(each)},
                "locked_until": iso_time(each.locked_until) if each.locked_until else None,
                "problem": each.problem.as_json() if each.problem else None,
            }
            for name, each in done.wal_removal.items()
        },
        "replicas": {
            name: {
                **{f.name: getattr(each, f.name) for f in dataclasses.fields(each)},
                "waiting_until": iso_time(each.waiting_until) if each.waiting_until else None,
                "problem": each.problem.as_json() if each.problem else None,
                "immutability": lock_document(done.locks[name]) if name in done.locks else None,
            }
            for name, each in done.replicas.items()
        },
    }


def _text(done: Retained, dry_run: bool) -> str:
    from cellarer.domain.quantity import about_size

    rows = [
        [verb, d.point.id, d.point.source, iso_time(d.point.time)[:16], "; ".join(d.reasons)]
        for verb, decisions in (("keep", done.keep), ("remove", done.remove))
        for d in decisions
    ]
    lines = [table(["", "point", "source", "time (UTC)", "why"], rows)] if rows else ["no points"]
    lines += _wal_lines(done, dry_run)
    lines += _repack_lines(done.repacked, dry_run)
    for name, each in done.replicas.items():
        if dry_run:
            told = f"{about_size(each.condemned_bytes)} would go"
        else:
            told = f"{about_size(each.swept_bytes)} in {each.swept_objects} objects deleted"
        lines.append(f"{name}: {told}")
        if each.grows_only:
            lines.append("  grows only: nothing is ever deleted here")
        if each.locked_until:
            kept = about_size(each.locked_bytes)
            lines.append(
                f"  {kept} more are locked by the store until {iso_time(each.locked_until)}"
            )
        if each.waiting_until:
            lines += _waiting_lines(each.waiting, each.waiting_until)
        if each.problem:
            lines.append(f"  {each.problem}\n  hint: {each.problem.hint}")
        if name in done.locks:
            lines += lock_lines(done.locks[name])
    return "\n".join(lines)


def _waiting_lines(sessions: Sequence[str], until: datetime) -> list[str]:
    """Which backups have to end first, and when the last of them is taken for dead."""
    lines = [f"  waits for the backup {name}, under way or killed" for name in sessions]
    return [
        *lines,
        "  run this again when it has ended; one that was killed is closed by the next "
        f"`cellarer backup` on its host, or after {iso_time(until)}",
    ]


def _wal_lines(done: Retained, dry_run: bool) -> list[str]:
    from cellarer.domain.quantity import about_size

    lines = [f"WAL of cluster {each.system}: {each.reason}" for each in done.wal]
    lines += [f"  warning: {each.warning}" for each in done.wal if each.warning]
    for name, each in done.wal_removal.items():
        if dry_run and each.objects:
            lines.append(f"{name}: {about_size(each.bytes)} of WAL would go")
        elif each.removed_objects:
            size = about_size(each.removed_bytes)
            lines.append(f"{name}: {size} of WAL in {each.removed_objects} objects deleted")
        if each.locked_objects:
            until = f" until {iso_time(each.locked_until)}" if each.locked_until else ""
            lines.append(f"  {each.locked_objects} files of WAL are locked by the store{until}")
        if each.problem:
            lines.append(f"  {each.problem}\n  hint: {each.problem.hint}")
    return lines


def _repack_lines(done: Repacked, dry_run: bool) -> list[str]:
    from cellarer.domain.quantity import about_size

    lines = []
    if done.plan.packs:
        verb = "would be repacked" if dry_run else "were repacked"
        dead = sum(each.dead_bytes for each in done.plan.packs)
        lines.append(
            f"repack: {len(done.plan.packs)} packs {verb}: {about_size(done.plan.live_bytes)} are "
            f"copied so that {about_size(dead)} can go"
        )
        if dry_run:
            lines += [f"  {each.pack}: {each.reason}" for each in done.plan.packs[:_SHOWN_PACKS]]
    if done.plan.left_dead_bytes:
        left = about_size(done.plan.left_dead_bytes)
        lines.append(f"  {left} more are dead and left for a later run: see retention.repack")
    if done.off:
        lines.append(f"repack: nothing, as {done.off}")
    for pack, why in done.left.items():
        lines.append(f"  {pack} stays as it is: {why}\n  hint: see `cellarer verify` and `sync`")
    if done.problem:
        lines.append(f"repack: {done.problem}\n  hint: {done.problem.hint}")
    return lines

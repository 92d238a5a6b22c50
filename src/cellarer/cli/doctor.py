"""`cellarer doctor`: what a backup or a recovery would stumble over."""

from __future__ import annotations

import click

from cellarer.cli.frame import Session, command


@command("doctor")
def doctor(session: Session) -> int:
    """Check config, keys, replicas, sources and tools. Exit code 3 where something is wrong."""
    from cellarer import bootstrap
    from cellarer.flows.doctor import examine

    findings = examine(bootstrap.examinations(session.config))
    errors = sum(finding.level == "error" for finding in findings)

    def text() -> str:
        colours = {"error": "red", "warning": "yellow", "info": "green"}
        lines = []
        for finding in findings:
            level = click.style(f"{finding.level:7}", fg=colours[finding.level])
            lines.append(f"{level}  {finding.subject}: {finding.message}")
            if finding.hint:
                lines.append(f"         {finding.hint}")
        warnings = sum(finding.level == "warning" for finding in findings)
        return "\n".join([*lines, f"{_counted(errors, 'error')}, {_counted(warnings, 'warning')}"])

    session.emit({"findings": findings}, text)
    return 3 if errors else 0


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"

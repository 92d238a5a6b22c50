"""The commands that PostgreSQL runs to hand segments over and to get them back."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


def restore_command(config: Path, system: str, spool: Path) -> str:
    """The `restore_command` of a recovery from the vault, not yet quoted for a file of settings.

    A segment that was fetched ahead lies in `spool`, whole and checked, and only has to be moved;
    so `spool` should lie on the file system of the data directory. Everything else is asked for.
    PostgreSQL takes the end code 1 for the end of the log, and would promote what it has; a
    program that does not even come up ends so. So 1 counts only with the word "absent", and all
    else ends with 200, which stops the recovery.
    """
    place = _escaped(spool / system)
    program = " ".join(
        _escaped(word)
        for word in (
            *(sys.executable, "-P", "-m", "cellarer", "--config", config.absolute()),
            *("wal", "fetch", "--system", system, "--spool", spool.absolute()),
        )
    )
    return (
        f'mv {place}/%f "%p" 2>/dev/null || {{ said=$({program} %f "%p"); code=$?; '
        'if [ $code -eq 1 ] && [ "$said" = absent ]; then exit 1; fi; '
        "if [ $code -ne 0 ]; then exit 200; fi; }"
    )


def _escaped(word: object) -> str:
    """For the shell, and for PostgreSQL, to which a percent sign means something."""
    return shlex.quote(str(word)).replace("%", "%%")

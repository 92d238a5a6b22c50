"""Where the program starts, installed or as `python -m cellarer`.

What PostgreSQL calls for every segment is answered before the command line is even imported.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Runs the command line of this process and exits."""
    if "wal" in sys.argv:
        from cellarer.wal import client

        called = client.recognised(sys.argv[1:])
        if called is not None:
            sys.exit(client.run(*called))
    # numpy's linear algebra, which nothing here uses, would start a thread for each core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from cellarer.cli.main import main as whole

    whole()


if __name__ == "__main__":
    main()

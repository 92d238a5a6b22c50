"""`python -m cellarer.demo.pourtrait --dsn … --size 200MB`: make the sample product anywhere."""

from __future__ import annotations

import argparse
import sys

import psycopg

from cellarer.demo.pourtrait.generate import generate
from cellarer.domain.quantity import parse_size
from cellarer.errors import CellarerError


def main(arguments: list[str] | None = None) -> int:
    """Make it in the database that the arguments name; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cellarer.demo.pourtrait",
        description="Make the Pourtrait sample product in an empty PostgreSQL database.",
    )
    parser.add_argument("--dsn", required=True, help="where: a connection string or URI")
    parser.add_argument("--size", default="200MB", help="how large, such as 5MB or 1GB")
    parser.add_argument("--seed", type=int, default=1, help="other seeds make other content")
    given = parser.parse_args(arguments)
    try:
        counts = generate(given.dsn, size_bytes=parse_size(given.size), seed=given.seed)
    except ValueError as error:
        parser.error(str(error))
    except CellarerError as error:
        sys.stderr.write(f"{error}\n{error.hint}\n")
        return error.exit_code
    except psycopg.Error as error:
        sys.stderr.write(f"PostgreSQL refused: {str(error).strip()}\n")
        return 1
    for name, count in counts.items():
        sys.stdout.write(f"{count:>12,}  {name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

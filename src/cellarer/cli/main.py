"""The command line's entry: parses, calls one command, turns every outcome into an exit code.

0 done · 1 failed · 2 usage or config · 3 check missed · 4 vault unreachable
5 key missing or wrong · 6 damaged data · 7 waiting for approval · 130 interrupted
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import click

from cellarer import __version__
from cellarer.cli.registry import LazyGroup
from cellarer.cli.render import write_error
from cellarer.errors import CellarerError, UsageError
from cellarer.wal.client import is_fetch
from cellarer.wal.messages import STOP_RECOVERY

PROGRAM = "cellarer"
COMPLETION_VARIABLE = "_CELLARER_COMPLETE"
DEBUG_VARIABLE = "CELLARER_DEBUG"
INTERRUPTED = 130
TERMINATED = 143
CLEANING_UP_SECONDS = 75.0
"""How long a command that is told to end may take for it; systemd kills after 90."""

STANDARD_OUTPUT = 1
_PACKAGE = Path(__file__).parents[1]

_OBJECTS_BETWEEN_COLLECTIONS = 20_000
"""Hardly anything here lies in cycles. With Python's own 700 a short command spends a tenth of its
time on looking for them."""

_ARENA_MAX, _ARENAS = -8, 2
"""The parameter of glibc's `mallopt`, and its value. By default every thread up to eight for each
core gets a heap of its own, which keeps what was freed: reading a long stream then takes 235 to
272 MB instead of 212 to 228, in the same time."""


class Interrupted(CellarerError):
    """Someone pressed Ctrl-C, or ended the input at a question."""

    kind = "interrupted"
    exit_code = INTERRUPTED


class InternalError(CellarerError):
    """A mistake of the program's, not of whoever runs it."""

    kind = "internal"


@click.group(PROGRAM, cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    metavar="FILE",
    help="The config; else $CELLARER_CONFIG, ./cellarer.toml, /etc/cellarer/cellarer.toml.",
)
@click.version_option(__version__, prog_name=PROGRAM)
def cli(config: str | None) -> None:
    """Backs up all that a product is made of, proves that it restores, and brings it back."""


def main() -> None:
    """Runs the command line of this process and exits."""
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, _interrupt)
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    limit_heaps()
    exit_code = run(sys.argv[1:])
    gc.freeze()  # what lives now goes with the process: the interpreter need not look through it
    sys.exit(exit_code)


def limit_heaps() -> None:
    """Let the threads of this process share few heaps. To be called before there are any."""
    with suppress(AttributeError):  # another C library than glibc has no such parameter
        ctypes.CDLL(None).mallopt(_ARENA_MAX, _ARENAS)


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code; errors are on the screen by then."""
    completing = os.environ.get(COMPLETION_VARIABLE)
    if completing:
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, PROGRAM, COMPLETION_VARIABLE, completing)
    try:
        return _invoke(arguments)
    except CellarerError as error:
        with suppress(BrokenPipeError):
            write_error(error, _wants_json(arguments))
        # Any code up to 125 would let PostgreSQL promote a database that lacks its end.
        return STOP_RECOVERY if is_fetch([*arguments]) else error.exit_code
    except BrokenPipeError:
        return STOP_RECOVERY if is_fetch([*arguments]) else 1


def _invoke(arguments: Sequence[str]) -> int:
    """Calls the command; whatever goes wrong comes out as a `CellarerError`.

    But `BrokenPipeError`, where nobody reads our output any more.
    """
    try:
        with cli.make_context(PROGRAM, list(arguments)) as context:
            outcome = cli.invoke(context)
            return outcome if isinstance(outcome, int) else 0
    except CellarerError:
        raise
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        raise _usage_error(error) from None
    except click.ClickException as error:
        raise CellarerError(error.format_message()) from None
    except (KeyboardInterrupt, EOFError, click.Abort):
        # The terminal has just printed ^C without ending the line.
        click.echo(err=True)
        raise Interrupted("interrupted") from None
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            raise
        raise CellarerError("the operating system refused", detail=str(error)) from error
    except Exception as error:  # noqa: BLE001 - the last resort, so that nobody meets a traceback
        raise _internal_error(error) from None


def _reader_has_gone() -> bool:
    """Whether whoever read our standard output has left, as `head` does.

    A broken pipe may also be one to a program that we feed, and that is a real failure.
    """
    poll = select.poll()
    poll.register(STANDARD_OUTPUT, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _usage_error(error: click.UsageError) -> UsageError:
    usage = error.ctx.get_usage() if error.ctx else ""
    path = error.ctx.command_path if error.ctx else PROGRAM
    # Click breaks the line after some messages, and lists choices below each other.
    message = " ".join(error.format_message().split()).rstrip(".")
    return UsageError(message, detail=usage, hint=f"see `{path} --help`")


def _internal_error(error: Exception) -> InternalError:
    """Says where it happened, not what the exception says: that may repeat a secret."""
    if os.environ.get(DEBUG_VARIABLE) == "1":
        traceback.print_exception(error, file=sys.stderr)
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)] or frames
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
    return InternalError(
        "this is a mistake in cellarer, not yours",
        detail=f"{type(error).__name__} at {place}, version {__version__}",
        hint=f"run it again with {DEBUG_VARIABLE}=1 and report what it prints, without secrets",
    )


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether `--json` was asked for, even where the rest could not be understood."""
    options = list(arguments)
    return "--json" in (options[: options.index("--")] if "--" in options else options)


def _terminate(signal_number: int, frame: FrameType | None) -> None:
    """A polite end: what is open gets closed, what is temporary gets removed."""
    _end_soon(TERMINATED)
    sys.exit(TERMINATED)


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    """The same for Ctrl-C."""
    _end_soon(INTERRUPTED)
    raise KeyboardInterrupt


def _end_soon(code: int) -> None:
    """Wait for no disk and no store that hangs: whatever is left open then, SIGKILL may leave."""

    def end() -> None:
        sys.stderr.write(
            "error: a disk or a store does not answer, or cleaning up takes too long\n"
        )
        os._exit(code)

    timer = threading.Timer(CLEANING_UP_SECONDS, end)
    timer.daemon = True
    timer.start()

"""`wal push` and `wal fetch` as PostgreSQL calls them, for every segment.

Starting the whole program takes longer than storing a segment. So this imports next to nothing and
asks an agent, which holds config, keys and connections; where none runs, it starts one.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
import zlib

from cellarer import __version__
from cellarer.errors import CellarerError, UsageError
from cellarer.places import find_config, state_directory
from cellarer.wal.messages import (
    ABSENT,
    DONE,
    OUTDATED,
    STOP_RECOVERY,
    Answer,
    Request,
    packed,
    parse_answer,
)

ANSWER_SECONDS = 600.0
"""How long an answer may take. Stores have shorter limits of their own; this ends what hangs."""

_START_SECONDS = 60.0
_ATTEMPTS = 4
_PAUSE_SECONDS = 0.05
_OPTIONS = ("--config", "--system", "--spool")
_OPERANDS = {"push": 1, "fetch": 2}


def is_fetch(arguments: list[str]) -> bool:
    """Whether a command line is of `wal fetch`, understood or not."""
    return any(arguments[at : at + 2] == ["wal", "fetch"] for at in range(len(arguments)))


def recognised(arguments: list[str]) -> tuple[str, Request] | None:
    """The config and the request of a command line of the plain form, None for any other.

    What is none, such as `--help`, is for the whole program to answer.
    """
    options = dict.fromkeys(_OPTIONS, "")
    words = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name in _OPTIONS:
            options[name] = value if equals else next(rest, "")
            if not options[name]:
                return None
        elif argument.startswith("-"):
            return None
        else:
            words.append(argument)
    if len(words) < 2 or words[0] != "wal" or len(words) - 2 != _OPERANDS.get(words[1]):
        return None
    name = words[2] if words[1] == "fetch" else ""
    made = request(words[1], name, words[-1], options["--system"], options["--spool"])
    return options["--config"], made


def request(verb: str, name: str, path: str, system: str, spool: str) -> Request:
    """What is asked for, in the directory where this process runs; the config comes with `ask`."""
    here = os.getcwd()
    spool = os.path.join(here, spool) if spool else ""
    return Request(__version__, "", verb, name, os.path.join(here, path), here, system, spool)


def run(config: str, wanted: Request) -> int:
    """Ask, and tell people what went wrong. Returns the exit code of the command."""
    fetching = wanted.verb == "fetch"
    try:
        answer = ask(config or None, wanted)
    except CellarerError as error:
        code = STOP_RECOVERY if fetching else error.exit_code
        answer = Answer(code, error.kind, error.message, error.detail, error.hint)
    except Exception as error:  # noqa: BLE001 - a traceback ends with 1, which means "absent"
        code = STOP_RECOVERY if fetching else 1
        answer = Answer(code, "failed", "the operating system refused", str(error))
    if fetching and answer.code == ABSENT:
        # Said twice, by code and by word: an interpreter that does not come up ends with 1, too.
        sys.stdout.write("absent\n")
    elif answer.code != DONE:
        detail = "".join(f"  {line}\n" for line in answer.detail.splitlines())
        hint = f"hint: {answer.hint}\n" if answer.hint else ""
        sys.stderr.write(f"error: {answer.message}\n{detail}{hint}")
    return answer.code


def ask(config: str | None, wanted: Request) -> Answer:
    """The agent's answer; it is started where none runs. Raises `CellarerError`, `OSError`."""
    wanted = wanted._replace(config=os.path.abspath(find_config(config)))
    directory = agent_directory()
    for _ in range(_ATTEMPTS):
        try:
            answer = _answer(directory, wanted)
        except ConnectionRefusedError:
            _start(directory, wanted.config)
        except (ConnectionError, ValueError):
            # It ended, as idle ones do, between listening and answering.
            time.sleep(_PAUSE_SECONDS)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            _start(directory, wanted.config)
        else:
            if answer.kind != OUTDATED:
                return answer
            time.sleep(_PAUSE_SECONDS)
    raise CellarerError(
        "the agent does not answer",
        detail=f"its socket and its last words are in {directory}",
        hint="run `cellarer wal agent` by hand and read what it says",
    )


def agent_directory() -> str:
    """Where sockets of agents lie, made for its owner alone."""
    directory = os.path.join(state_directory(), "agent")
    os.makedirs(directory, mode=0o700, exist_ok=True)
    return directory


def agent_name(config: str) -> str:
    """What the agent of a config is called; that the config is this one, it checks itself."""
    return f"{zlib.crc32(os.fsencode(config)):08x}"


def _answer(directory: str, wanted: Request) -> Answer:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_SECONDS)
        _connect(connection, directory, f"{agent_name(wanted.config)}.sock")
        connection.sendall(packed(wanted))
        connection.shutdown(socket.SHUT_WR)
        received = bytearray()
        while block := connection.recv(1 << 16):
            received += block
        return parse_answer(bytes(received))


def _connect(connection: socket.socket, directory: str, name: str) -> None:
    """A path of a socket may have some 100 bytes; from within its directory any is short."""
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(directory)
        connection.connect(name)
    finally:
        os.fchdir(here)
        os.close(here)


def _start(directory: str, config: str) -> None:
    """Start an agent and wait until it listens. Raises `CellarerError` with what it says."""
    reading, writing = os.pipe()
    log = os.path.join(directory, f"{agent_name(config)}.log")
    # Not the current directory's modules: that is PostgreSQL's data.
    command = [sys.executable, "-P", "-m", "cellarer", "--config", config, "wal", "agent"]
    os.posix_spawn(
        sys.executable,
        command,
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, writing, 1),
            (os.POSIX_SPAWN_OPEN, 2, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
        ],
        setsid=True,
    )
    os.close(writing)
    said = _said(reading)
    if said != "ready":
        with open(log, errors="replace") as file:
            last_words = file.read(10_000).strip()
        raise UsageError(
            "the agent does not start",
            detail=last_words or "it said nothing",
            hint="run `cellarer doctor`, as the user that runs PostgreSQL",
        )


def _said(descriptor: int) -> str:
    import select

    said = b""
    deadline = time.monotonic() + _START_SECONDS
    while b"\n" not in said and (left := deadline - time.monotonic()) > 0:
        if select.select([descriptor], [], [], left)[0]:
            block = os.read(descriptor, 100)
            if not block:
                break
            said += block
    os.close(descriptor)
    return said.decode().strip()

"""Secrets are named in the config and fetched when they are used; they are never written there."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import cast

from cellarer.errors import CellarerError, UsageError

COMMAND_TIMEOUT_SECONDS = 60
FORMS = '{ env = "NAME" }, { file = "PATH" } or { command = ["PROGRAM", "ARGUMENT"] }'


@dataclass(frozen=True, repr=False)
class SecretReference:
    """Where a secret is to be had. Exactly one of the three fields is set."""

    env: str | None = None
    file: str | None = None
    command: tuple[str, ...] | None = None

    @property
    def place(self) -> str:
        """The place in words, for messages; of a command only the program, never its arguments."""
        if self.env is not None:
            return f"environment variable {self.env}"
        if self.file is not None:
            return f"file {self.file}"
        return f"command {self.command[0]}" if self.command else "no place"

    def __repr__(self) -> str:
        return f"<secret in {self.place}>"


def reference_from(value: object) -> SecretReference:
    """The reference that a TOML value stands for.

    Raises `ValueError` with a message for people. What was found is never repeated in it: it may
    be the secret itself.
    """
    if not isinstance(value, dict):
        raise ValueError(f"a secret is never written here; write {FORMS}")
    unknown = [key for key in value if key not in ("env", "file", "command")]
    if unknown:
        near = get_close_matches(unknown[0], ("env", "file", "command"), 1)
        meant = f'; did you mean "{near[0]}"?' if near else f"; write {FORMS}"
        raise ValueError(f'unknown key "{unknown[0]}"{meant}')
    if len(value) != 1:
        raise ValueError(f"a secret names exactly one place; write {FORMS}")
    key, place = next(iter(value.items()))
    if key == "command":
        words = place if isinstance(place, list) else []
        if not words or not all(isinstance(word, str) and word for word in words):
            raise ValueError('command is a list of words, such as ["pass", "show", "vault"]')
        return SecretReference(command=tuple(cast(list[str], words)))
    if not isinstance(place, str) or not place:
        raise ValueError(f'"{key}" is text, such as {FORMS}')
    if key == "file":
        return SecretReference(file=place)
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", place):
        raise ValueError('"env" holds the name of an environment variable, not the secret itself')
    return SecretReference(env=place)


def resolve(
    reference: SecretReference,
    base_directory: Path,
    error: type[CellarerError] = UsageError,
) -> str:
    """The secret itself, without one trailing newline.

    Relative files, and the working directory of commands, are taken from `base_directory` (the
    config's). Raises `error` where there is nothing to be had; for keys pass `KeyUnusable`, so
    that the exit code says so. A command has 60 seconds and may write to standard error.
    """
    if reference.env is not None:
        secret = _from_environment(reference.env, error)
    elif reference.file is not None:
        secret = _from_file(base_directory / Path(reference.file).expanduser(), error)
    else:
        secret = _from_command(reference.command or (), base_directory, error)
    secret = secret.removesuffix("\n").removesuffix("\r")
    if not secret:
        raise error(
            "a secret is empty",
            detail=f"{reference.place} holds nothing",
            hint="put the secret there, or name another place in the config",
        )
    return secret


def _from_environment(name: str, error: type[CellarerError]) -> str:
    value = os.environ.get(name)
    if value is None:
        raise error(
            "a secret is missing",
            detail=f"environment variable {name} is not set",
            hint=f"set {name} where cellarer runs, or name another place in the config",
        )
    return value


def _from_file(path: Path, error: type[CellarerError]) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as failure:
        raise error(
            "a secret cannot be read",
            detail=f"{path}: {failure.strerror}",
            hint="put the secret into this file, or name another place in the config"
            if isinstance(failure, FileNotFoundError)
            else "let the user that runs cellarer read this file",
        ) from None
    except UnicodeDecodeError:
        raise error(
            "a secret cannot be read",
            detail=f"{path} is not UTF-8 text",
            hint="name the file that holds the secret as text",
        ) from None


def _from_command(
    command: tuple[str, ...], base_directory: Path, error: type[CellarerError]
) -> str:
    hint = f"run the command {command[0]} by hand, as the same user, and see what it says"
    try:
        done = subprocess.run(
            command,
            cwd=base_directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=COMMAND_TIMEOUT_SECONDS,
            check=False,
        )
    except OSError as failure:
        detail = f"{command[0]} does not start: {failure.strerror}"
        raise error("a secret cannot be fetched", detail=detail, hint=hint) from None
    except subprocess.TimeoutExpired:
        detail = f"{command[0]} did not finish in {COMMAND_TIMEOUT_SECONDS} seconds"
        raise error("a secret cannot be fetched", detail=detail, hint=hint) from None
    if done.returncode != 0:
        detail = f"{command[0]} ended with exit code {done.returncode}"
        raise error("a secret cannot be fetched", detail=detail, hint=hint)
    try:
        return done.stdout.decode()
    except UnicodeDecodeError:
        detail = f"{command[0]} printed something that is not UTF-8 text"
        raise error("a secret cannot be fetched", detail=detail, hint=hint) from None

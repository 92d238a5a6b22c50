"""Repositories for tests, made by `git`, and a server of them that wants to know who asks."""

from __future__ import annotations

import base64
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = "hunter2-token"
_WHO = {
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.com",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.com",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_ALLOW_PROTOCOL": "file:http:ssh",
}


def git(directory: Path, *arguments: str | Path, text: str | None = None) -> str:
    """A run of `git` by somebody who works there."""
    done = subprocess.run(
        ["git", "-c", "protocol.file.allow=always", *map(str, arguments)],
        cwd=directory,
        env={**os.environ, **_WHO},
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (arguments, done.stderr)
    return done.stdout.strip()


def made(directory: Path, *, commits: int = 3, options: tuple[str, ...] = ()) -> Path:
    """A repository with a work tree, a branch, a tag, a note and a ref of a pull request."""
    directory.mkdir(parents=True)
    git(directory, "init", "-q", "-b", "main", *options)
    for number in range(commits):
        commit(directory, f"file{number}.txt", f"content {number}\n" * 200)
    git(directory, "branch", "topic", "HEAD~1")
    git(directory, "tag", "-a", "v1", "-m", "the first")
    git(directory, "notes", "add", "-m", "a note")
    git(directory, "update-ref", "refs/pull/7/head", "HEAD~1")
    return directory


def commit(directory: Path, name: str, content: str) -> str:
    """One more commit; its id."""
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    git(directory, "add", "-A")
    git(directory, "commit", "-q", "-m", f"changed {name}")
    return git(directory, "rev-parse", "HEAD")


def refs(directory: Path) -> dict[str, str]:
    """Every ref of a repository."""
    listed = git(directory, "for-each-ref", "--format=%(objectname) %(refname)").splitlines()
    return {name: oid for oid, _, name in (line.partition(" ") for line in listed)}


class _Handler(BaseHTTPRequestHandler):
    """Hands requests to `git http-backend`, if they come with the token."""

    protocol_version = "HTTP/1.0"
    root: Path
    asked: list[str]
    token: str | None

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _serve(self, body: bytes) -> None:
        given = self.headers.get("Authorization", "")
        self.asked.append(given)
        wanted = self.token and base64.b64encode(f"git:{self.token}".encode()).decode()
        if wanted and given != f"Basic {wanted}":
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        done = subprocess.run(
            ["git", "http-backend"],
            env={
                **os.environ,
                "GIT_PROJECT_ROOT": str(self.root),
                "GIT_HTTP_EXPORT_ALL": "1",
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "REQUEST_METHOD": self.command,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "safe.directory",
                "GIT_CONFIG_VALUE_0": "*",
            },
            input=body,
            capture_output=True,
            check=False,
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        lines = [line.decode().partition(": ") for line in head.split(b"\r\n")]
        status = next((int(v.split()[0]) for k, _, v in lines if k == "Status"), 200)
        self.send_response(status)
        for key, _, value in lines:
            if key != "Status":
                self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_arguments: object) -> None:
        pass


@contextmanager
def served(root: Path, token: str | None = TOKEN) -> Iterator[tuple[str, list[str]]]:
    """The repositories below a directory over HTTP; the address, and who asked."""
    asked: list[str] = []
    handler = type("Handler", (_Handler,), {"root": root, "asked": asked, "token": token})
    with _running(handler) as address:
        yield address, asked


@contextmanager
def redirecting(elsewhere: str, *, asks: bool) -> Iterator[str]:
    """A server that sends everybody to another one, and may ask first who is there."""

    class Redirecting(_Handler):
        def _serve(self, body: bytes) -> None:
            known = self.headers.get("Authorization") or not asks
            self.send_response(307 if known else 401)
            if known:
                self.send_header("Location", f"{elsewhere}{self.path}")
            else:
                self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.end_headers()

    with _running(Redirecting) as address:
        yield address


@contextmanager
def _running(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

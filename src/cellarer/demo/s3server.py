"""An S3 server on loopback for as long as a `with` block: what a bucket is to the demo.

The server is moto's, in a process of its own. It keeps objects in memory, larger ones in unnamed
files, and forgets all when it stops. The credentials are for tests; it takes any.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from cellarer.errors import CellarerError, ToolMissing

ACCESS_KEY_ID = "demo"
SECRET_ACCESS_KEY = "demo-secret"
REGION = "us-east-1"

START_TIMEOUT_SECONDS = 30.0
"""Starting takes 0.4 seconds on two idle cores."""

STOP_TIMEOUT_SECONDS = 5.0

_LOG = "s3server.log"
_LOCKS = 64


@contextmanager
def serve_s3(directory: Path, bucket: str) -> Iterator[str]:
    """Run a server with one empty bucket; yields its endpoint, `http://127.0.0.1:PORT`.

    `directory` is made if absent; the server's log and its unnamed files lie there. It answers when
    the block begins, and is gone when it ends, also where this process is killed. Raises
    `ToolMissing` without moto, `CellarerError` where it does not start.
    """
    for module in ("moto", "flask", "flask_cors"):
        if find_spec(module) is None:
            raise ToolMissing(
                "the demo's S3 server is not installed",
                detail=f"there is no module {module}",
                hint="pip install 'cellarer[demo]'",
            )
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (directory / _LOG).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, bucket],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=_environment(directory),
            # Ctrl-C at a terminal is for the story, which ends the server once it is done with it.
            start_new_session=True,
        )
    try:
        yield f"http://127.0.0.1:{_port(process, directory / _LOG)}"
    finally:
        _stop(process)


def _environment(directory: Path) -> dict[str, str]:
    package_root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path, "TMPDIR": str(directory.resolve())}


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    """What the server writes once it answers."""
    output: IO[bytes] | None = process.stdout
    assert output is not None
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        line = output.readline() if selector.select(START_TIMEOUT_SECONDS) else b""
    if not line.strip().isdigit():
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise CellarerError(
            "the demo's S3 server did not start", detail=said[-1] if said else "", hint=f"see {log}"
        )
    return int(line)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server: it leaves when its standard input ends."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(STOP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def _one_writer_per_key(application: Application) -> Application:
    """Let requests for the same path pass one after the other.

    moto looks whether an object is there and then stores it, which two requests at once may do in
    step; S3 decides in one.
    """
    locks = [threading.Lock() for _ in range(_LOCKS)]

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("REQUEST_METHOD") != "PUT":
            return application(environ, start_response)
        with locks[hash(environ.get("PATH_INFO")) % _LOCKS]:
            return list(application(environ, start_response))

    return serve


def _main(bucket: str) -> None:
    """Serve until standard input ends, which it does when the parent goes, however it goes."""
    import http.client
    import logging

    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = _one_writer_per_key(DomainDispatcherApplication(create_backend_app))
    server = make_server(
        "127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    connection.request("PUT", f"/{bucket}", body=b"", headers={"Content-Length": "0"})
    reply = connection.getresponse()
    body = reply.read().decode(errors="replace")
    if reply.status != http.client.OK:
        sys.exit(f"the bucket {bucket} cannot be made: {' '.join(body.split())}")
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()
    # Without waiting for requests in flight: nobody is left to read the replies.
    os._exit(0)


if __name__ == "__main__":
    _main(sys.argv[1])

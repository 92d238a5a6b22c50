"""The demo's S3 server: there when the block begins, gone when it ends, however it ends."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cellarer.demo.s3server import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY, serve_s3
from cellarer.errors import CellarerError, ToolMissing
from cellarer.ports import Store
from cellarer.stores import open_store

SOURCE = Path(__file__).resolve().parents[2] / "src"


def bucket(endpoint: str, name: str = "demo-bucket") -> Store:
    options = {
        "region": REGION,
        "endpoint": endpoint,
        "access_key_id": ACCESS_KEY_ID,
        "secret_access_key": SECRET_ACCESS_KEY,
    }
    return open_store(f"s3://{name}/vault", options)


def connection(endpoint: str) -> socket.socket:
    address = urlsplit(endpoint)
    assert address.hostname
    assert address.port
    return socket.create_connection((address.hostname, address.port))


def answers(endpoint: str) -> bool:
    try:
        connection(endpoint).close()
    except ConnectionRefusedError:
        return False
    return True


def test_it_answers_at_once_and_is_gone_afterwards(tmp_path: Path) -> None:
    with serve_s3(tmp_path / "s3", "demo-bucket") as endpoint:
        store = bucket(endpoint)
        store.create("one", b"content")
        assert store.read("one") == b"content"
        assert endpoint.startswith("http://127.0.0.1:")
    assert not answers(endpoint)


def test_it_is_gone_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), serve_s3(tmp_path / "s3", "demo-bucket") as endpoint:
        raise KeyError
    assert not answers(endpoint)


def test_two_at_once_have_nothing_in_common(tmp_path: Path) -> None:
    with (
        serve_s3(tmp_path / "a", "demo-bucket") as first,
        serve_s3(tmp_path / "b", "demo-bucket") as second,
    ):
        bucket(first).create("one", b"content")
        assert list(bucket(second).list("")) == []


@pytest.mark.timeout(60)
def test_it_goes_with_a_killed_parent(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from cellarer.demo.s3server import serve_s3\n"
        "with serve_s3(Path(sys.argv[1]), 'demo-bucket') as endpoint:\n"
        "    print(endpoint, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "s3")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        text=True,
    ) as parent:
        assert parent.stdout
        endpoint = parent.stdout.readline().strip()
        parent.kill()
        # The server sends nothing unasked, so a connection is a way to wait for its end.
        while True:
            try:
                with connection(endpoint) as waiting:
                    waiting.settimeout(20)
                    assert waiting.recv(1) == b""
            except ConnectionResetError:
                continue
            except ConnectionRefusedError:
                break


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(CellarerError) as caught, serve_s3(tmp_path / "s3", "B"):
        pass
    assert "InvalidBucketName" in caught.value.detail
    assert "s3server.log" in caught.value.hint


def test_without_the_server_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "moto", None)
    with pytest.raises(ToolMissing) as caught, serve_s3(tmp_path / "s3", "demo-bucket"):
        pass
    assert "cellarer[demo]" in caught.value.hint


def test_only_the_owner_may_look(tmp_path: Path) -> None:
    with serve_s3(tmp_path / "s3", "demo-bucket"):
        assert (tmp_path / "s3").stat().st_mode & 0o077 == 0

"""Reads a Cellarer vault (format 1) without Cellarer.

    python rescue.py VAULT IDENTITY                 lists the restore points
    python rescue.py VAULT IDENTITY POINT OUT       writes every stream of a point below OUT
    python rescue.py VAULT IDENTITY wal/SYSTEM OUT  writes the write-ahead log of a cluster there

VAULT is a directory. A bucket is first downloaded with any tool, such as `rclone copy`. IDENTITY is
an age identity file; one that neither founded the vault nor replaced another needs the environment
variable CELLARER_FOUNDER as well, the public key that signed config/00000000. OUT is made here and
must not be there yet; modes and times of files are not set. Needs Python 3.9, the program `age` and
`pip install zstandard cryptography blake3`. Everything is authenticated and compared with its
sum: a damaged stream is not written, the others are, and the exit code is 1.

Prefer a copy of this file from a release to the one in the vault: that one is not signed.
"""

# ruff: noqa: T201 - it runs where no renderer is

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric import ed25519, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

HASHERS: dict[str, Callable[[], Any]] = {"blake3": blake3, "sha256": hashlib.sha256}
RECORD = struct.Struct(">16sIIII")  # id, pack, offset, length, session
STREAM = struct.Struct(">16sBI")  # name id, bits, runs
RUN = struct.Struct(">III")  # record, first chunk, chunks
MOVE = struct.Struct(">IIIII")  # pack, offset, length, and the pack and offset it was copied to
LARGEST_RECORD, LARGEST_SEALED = 64 << 20, 1 << 30
BROKEN = (
    InvalidSignature, InvalidTag, IndexError, KeyError, OSError, RecursionError,
    TypeError, ValueError, struct.error, zstandard.ZstdError,
)  # fmt: skip


def derive(key: bytes, info: str) -> bytes:
    """HKDF-SHA256 with an empty salt."""
    return HKDF(SHA256(), 32, salt=None, info=info.encode()).derive(key)


def require(condition: bool, problem: str) -> None:
    """Stop here unless the condition holds."""
    if not condition:
        raise ValueError(problem)


def signed(purpose: str, data: bytes, trusted: list[str]) -> dict[str, Any]:
    """The body of a signed object, if a trusted key signed it."""
    value = json.loads(data)
    body: dict[str, Any] = value["body"]
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    require(value["signed_by"] in trusted, f"{purpose}: signed by a key that is not trusted")
    key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(value["signed_by"]))
    key.verify(bytes.fromhex(value["signature"]), f"cellarer/1/{purpose}\n{text}".encode())
    return body


def decompress(packed: bytes, largest: int) -> bytes:
    """A zstd frame that claims no more than that."""
    require(0 <= zstandard.frame_content_size(packed) <= largest, "an impossible size is claimed")
    return zstandard.ZstdDecompressor().decompress(packed)


def unframe(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a frame and its arrays."""
    (length,) = struct.unpack_from(">I", data)
    return json.loads(data[4 : 4 + length]), data[4 + length :]


class Vault:
    """A local copy of a vault, opened with an identity."""

    def __init__(self, directory: Path, identity: Path) -> None:
        self.directory, self.identity = directory, identity
        marker = json.loads(self.read("format.json"))
        known = (marker["format"], marker["version"]) == ("cellarer-vault", 1)
        require(known, "not a Cellarer vault of format 1")
        self.id: str = marker["vault"]
        keys = self.envelope("vault")
        self.index_key, self.chunk_ids = (bytes.fromhex(keys[k]) for k in ("index", "chunk_ids"))
        config, admins = self.configuration()
        self.writers = [writer["public"] for writer in config["writers"]]
        collectors = [collector["public"] for collector in config.get("collectors", [])]
        self.keepers = [*collectors, *admins]
        self.closers = [*self.writers, *self.keepers]
        self.retired = {retired["public"]: retired for retired in config.get("retired", [])}
        self.roots: dict[str, bytes] = {}

    def configuration(self) -> tuple[dict[str, Any], list[str]]:
        """The end of the chain of configurations, and the keys that may change it."""
        lines = [line.strip() for line in self.identity.read_text().splitlines()]
        seeds = [derive(line.encode(), "cellarer/1/admin") for line in lines if line[:4] == "AGE-"]
        keys = [ed25519.Ed25519PrivateKey.from_private_bytes(seed).public_key() for seed in seeds]
        own = [key.public_bytes_raw().hex() for key in keys]
        founder = [os.environ.get("CELLARER_FOUNDER", "")]
        names = sorted(p.name for p in (self.directory / "config").iterdir() if p.name.isdigit())
        require(bool(names), "config/ is empty")
        config: dict[str, Any] = {}
        admins: list[str] = []
        sha256 = ""
        for name in names:
            data = self.read(f"config/{name}")
            signer = json.loads(data)["signed_by"]
            start = [*own, *(founder if int(name) == 0 else [])]
            if not config and signer not in start:
                continue  # whoever holds this identity came later
            trusted = admins if config else start
            following = self.ours(signed("config", data, trusted))
            require(name == f"{following['epoch']:08d}", f"config/{name} is of another epoch")
            linked = not config or following["previous"] == sha256
            require(linked, f"config/{name} does not follow upon the one before it")
            config, sha256 = following, hashlib.sha256(data).hexdigest()
            admins = [a["public"] for a in config.get("admins", [{"public": signer}])]
        require(bool(config), "config/ has a signer that is not trusted: see CELLARER_FOUNDER")
        return config, admins

    def signed(self, name: str, purpose: str, trusted: list[str]) -> dict[str, Any]:
        """The body of a signed object; a retired key counts for what was there at its time."""
        data = self.read(name)
        data = data[12 : 12 + int.from_bytes(data[8:12], "big")] if purpose == "wal" else data
        signer = json.loads(data)["signed_by"]
        if signer in self.retired and signer not in trusted:
            sha256 = self.retired[signer]["vouched"]
            listed = self.read(f"config/vouched-{sha256}")
            require(hashlib.sha256(listed).hexdigest() == sha256, "a list of objects is not whole")
            known = json.loads(listed)["objects"].get(name, [])
            require(hashlib.sha256(data).hexdigest() in known, f"{name}: signed by a retired key")
            trusted = [signer]
        return signed(purpose, data, trusted)

    def read(self, name: str) -> bytes:
        """A whole object."""
        return (self.directory / name).read_bytes()

    def ours(self, value: dict[str, Any], session: str = "") -> dict[str, Any]:
        """`value`, if it says that it belongs to this vault and session."""
        same = value["vault"] == self.id and (not session or value["session"] == session)
        require(same, "an object belongs to another vault or session")
        return value

    def envelope(self, name: str, commitment: str = "") -> dict[str, Any]:
        """The keys in the newest age file of this name that the identity opens and that fits."""
        require(shutil.which("age") is not None, "the program `age` is needed; please install it")
        problem = f"keys/{name}.0.age is missing"
        files = (self.directory / "keys").glob(f"{name}.*.age")
        for path in sorted(files, key=lambda path: -int(path.name.split(".")[-2])):
            command = ["age", "-d", "-i", str(self.identity), str(path)]
            done = subprocess.run(command, capture_output=True, check=False)
            said = done.stderr.decode(errors="replace").strip()
            if done.returncode != 0:
                problem = f"age does not open keys/{path.name}: {said}"
                continue
            value = self.ours(json.loads(done.stdout), name if commitment else "")
            if not commitment or blake3(bytes.fromhex(value["root"])).hexdigest() == commitment:
                return value
            problem = f"the key of session {name} is not the one it announced"
        raise ValueError(problem)

    def unseal(self, data: bytes, purpose: str, key: bytes = b"") -> bytes:
        """What is sealed, with the index key where no other is given."""
        padded = AESGCM(key or self.index_key).decrypt(data[:12], data[12:], purpose.encode())
        (length,) = struct.unpack_from(">I", padded)
        return decompress(padded[4 : 4 + length], LARGEST_SEALED)

    def sessions(self) -> list[str]:
        """All sessions that have ended."""
        return sorted(path.name for path in (self.directory / "snapshots").glob("*"))

    def commit(self, session: str) -> dict[str, Any]:
        """What the COMMIT of a session says; empty where the session was aborted."""
        name = f"snapshots/{session}"
        body = self.signed(name, "snapshot", self.closers)
        if self.ours(body, session)["outcome"] != "commit":
            return {}
        self.signed(name, "snapshot", self.writers)
        sealed = base64.b64decode(body["sealed"], validate=True)
        return dict(json.loads(self.unseal(sealed, f"snapshot {session}")))

    @functools.cached_property
    def moves(self) -> dict[tuple[str, int, int], list[tuple[str, int]]]:
        """Where repacks copied records to, by pack, offset and length; read when one is missed."""
        found: dict[tuple[str, int, int], list[tuple[str, int]]] = {}
        for session in self.sessions():
            try:
                body = self.signed(f"snapshots/{session}", "snapshot", self.keepers)
                if self.ours(body, session)["outcome"] != "repack":
                    continue
                sealed = base64.b64decode(body["sealed"], validate=True)
                name = json.loads(self.unseal(sealed, f"snapshot {session}"))["moves"]
                data = self.read(name)
                require(name.endswith("/" + hashlib.sha256(data).hexdigest()), "not what it was")
            except BROKEN:
                continue  # no repack, or its table is gone and so is the need for it
            header, rows = unframe(self.unseal(data, "cellarer/1/moves"))
            for old, offset, length, new, at in MOVE.iter_unpack(rows):
                key = (header["packs"][old], offset, length)
                found.setdefault(key, []).append((header["packs"][new], at))
        return found

    def root(self, session: str) -> bytes:
        """The root key of a session, compared with what the session announced."""
        if session in self.roots:
            return self.roots[session]
        announced = self.signed(f"sessions/{session}", "session", self.writers)
        commitment = self.ours(announced, session)["commitment"]
        root = bytes.fromhex(self.envelope(session, commitment)["root"])
        self.roots[session] = root
        return root

    def open_record(self, session: str, record_id: bytes, sealed: bytes) -> list[bytes]:
        """The chunks of a record."""
        suite, encoding, lane, counter = struct.unpack_from(">BBHQ", sealed)
        require(suite == 1 and encoding in (0, 1), "a record of an unknown suite or encoding")
        key = derive(self.root(session), f"cellarer/1/records/{lane}")
        aad = b"cellarer/record/1" + bytes.fromhex(self.id) + session.encode() + record_id
        nonce = struct.pack(">IQ", lane, counter)
        plain = AESGCM(key).decrypt(nonce, sealed[12:], aad + sealed[:12])
        if encoding == 1:
            plain = decompress(plain, LARGEST_RECORD)
        (count,) = struct.unpack_from(">I", plain)
        lengths, at = struct.unpack_from(f">{count}I", plain, 4), 4 + 4 * count
        require(at + sum(lengths) == len(plain), "a record's chunk table is wrong")
        chunks = io.BytesIO(plain[at:])
        return [chunks.read(length) for length in lengths]

    def log(self, path: Path) -> bytes:
        """A file of write-ahead log."""
        name, data = path.relative_to(self.directory).as_posix(), path.read_bytes()
        magic, length = struct.unpack_from(">8sI", data)
        told = self.ours(self.signed(name, "wal", self.writers))
        require((magic, told["name"]) == (b"CLRWAL01", name), "it belongs under another name")
        root = derive(self.root(told["session"]), "cellarer/1/wal")
        private = x25519.X25519PrivateKey.from_private_bytes(root)
        peer = x25519.X25519PublicKey.from_public_bytes(bytes.fromhex(told["ephemeral"]))
        public = private.public_key().public_bytes_raw().hex()
        key = derive(private.exchange(peer), f"cellarer/1/wal/{told['ephemeral']}/{public}")
        return self.unseal(data[12 + length :], f"wal {self.id} {told['session']} {name}", key)


class Point:
    """One restore point."""

    def __init__(self, vault: Vault, session: str) -> None:
        self.vault = vault
        commit = vault.commit(session)
        require(bool(commit), f"{session} was aborted: it is no restore point")
        self.domain = derive(vault.chunk_ids, f"cellarer/1/domain/{commit['source']}")
        data = vault.read(commit["references"])
        named = commit["references"].endswith("/" + hashlib.sha256(data).hexdigest())
        require(named, "the references are not those of the point")
        self.header, arrays = unframe(vault.unseal(data, "cellarer/1/references"))
        streams_at = self.header["records"] * RECORD.size
        self.runs_at = streams_at + self.header["streams"] * STREAM.size
        self.arrays = arrays
        self.streams, end = [], self.runs_at
        for name_id, _, runs in STREAM.iter_unpack(arrays[streams_at : self.runs_at]):
            self.streams.append((name_id, end, end + runs * RUN.size))
            end += runs * RUN.size
        require(end == len(arrays), "the references contradict themselves")
        self.record = functools.lru_cache(maxsize=32)(self._record)
        lines = b"".join(self.read(len(self.streams) - 1, "contents")).splitlines()
        self.entries = [json.loads(line) for line in lines]
        require(len(self.entries) == len(self.streams) - 1, "contents and references differ")

    def _record(self, number: int) -> list[bytes]:
        require(number < self.header["records"], "a run points at no record")
        row = RECORD.unpack_from(self.arrays, number * RECORD.size)
        record_id, pack, offset, length, session = row
        places, problem = [(self.header["packs"][pack], offset)], BaseException()
        for name, start in places:  # and then where it was moved to
            try:
                with (self.vault.directory / name).open("rb") as file:
                    file.seek(start)
                    sealed = file.read(length)
                return self.vault.open_record(self.header["sessions"][session], record_id, sealed)
            except BROKEN as error:
                problem = error if len(places) == 1 else problem
                further = self.vault.moves.get((name, start, length), [])
                places += [place for place in further if place not in places]
        raise problem

    def read(self, number: int, path: str) -> Iterator[bytes]:
        """The chunks of the stream of this number, which must have this path."""
        name_id, start, end = self.streams[number]
        expected = blake3(f"name/{path}".encode(), key=self.domain).digest(16)
        require(name_id == expected, "the references name another stream")
        for record, first, count in RUN.iter_unpack(self.arrays[start:end]):
            chunks = self.record(record)
            require(first + count <= len(chunks), "a run points past the end of a record")
            yield from chunks[first : first + count]

    def write(self, number: int, out: Path) -> None:
        """Write a stream into a file; a damaged one leaves none."""
        entry = self.entries[number]
        segments = entry["path"].split("/")
        for segment in segments:
            sane = segment not in ("", "..") and Path(segment).name == segment
            require(sane and "\0" not in segment, "the name is not safe as a file name")
        target = out.joinpath(*segments)
        target.parent.mkdir(parents=True, exist_ok=True)
        kind = next(kind for kind in HASHERS if kind in entry)
        digest, size = HASHERS[kind](), 0
        with target.open("xb") as file:
            try:
                for chunk in self.read(number, entry["path"]):
                    file.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
                same = (size, digest.hexdigest()) == (entry["size"], entry[kind])
                require(same, "size or sum differ from what was backed up")
            except BaseException:
                target.unlink()
                raise


def complain(what: str, error: BaseException) -> int:
    """Say what is wrong; 1, for counting."""
    print(f"error: {what!r}: {str(error) or 'does not authenticate'}", file=sys.stderr)
    return 1


def list_points(vault: Vault) -> int:
    """Print the restore points; the number of damaged registers."""
    problems = 0
    for session in vault.sessions():
        try:
            commit = vault.commit(session)
        except BROKEN as error:
            problems += complain(f"snapshots/{session}", error)
            continue
        if commit:
            columns = ("finished", "source", "kind", "streams", "read_bytes")
            # What retention gave up may not be whole.
            marks = ["forgotten"] * (vault.directory / "forgotten" / session).exists()
            print(session, *(commit[column] for column in columns), *marks, sep="\t")
    return problems


def write_point(vault: Vault, session: str, out: Path) -> int:
    """Write all streams; the number of those that could not be."""
    point = Point(vault, session)
    out.mkdir(mode=0o700, parents=True)
    problems = 0
    for number, entry in enumerate(point.entries):
        try:
            point.write(number, out)
        except BROKEN as error:
            problems += complain(entry["path"], error)
    print(f"{len(point.entries) - problems} of {len(point.entries)} streams written to {out}")
    return problems


def write_log(vault: Vault, system: str, out: Path) -> int:
    """Write the files of a cluster's write-ahead log; the number of those that could not be."""
    out.mkdir(mode=0o700, parents=True)
    problems = 0
    for path in sorted(vault.directory.glob(f"{system}/*/*")):
        try:
            (out / path.name).write_bytes(vault.log(path))
        except BROKEN as error:
            problems += complain(path.name, error)
    return problems


def main(arguments: list[str]) -> int:
    """Run the command line; the exit code."""
    if len(arguments) not in (2, 4):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        vault = Vault(Path(arguments[0]), Path(arguments[1]))
        if len(arguments) == 2:
            return 1 if list_points(vault) else 0
        write = write_log if arguments[2].startswith("wal/") else write_point
        return 1 if write(vault, arguments[2], Path(arguments[3])) else 0
    except BROKEN as error:
        return complain(arguments[0], error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

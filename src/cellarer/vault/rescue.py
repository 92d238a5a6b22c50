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

A dump comes as DATABASE/toc and the data of its tables. Put together they are an archive for
`pg_restore`: toc, then for each TABLE DATA (BLOBS) of `pg_restore -l toc` a byte 1 (3), a byte 0,
the number that its line begins with as 4 bytes, lowest first, its file in data/ (large-objects/,
counted from 0), and five bytes 0.

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
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric import ed25519, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEEPERS = ("collector", "administrator")
RECORD = struct.Struct(">16sIIII")  # id, pack, offset, length, session
STREAM = struct.Struct(">16sBI")  # name id, bits, runs
RUN = struct.Struct(">III")  # record, first chunk, chunks
MOVE = struct.Struct(">IIIII")  # pack, offset, length, and the pack and offset it was copied to
LARGEST_RECORD, LARGEST_SEALED = 64 << 20, 1 << 30
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
BROKEN = (
    AttributeError, InvalidSignature, InvalidTag, IndexError, KeyError, OSError, RecursionError,
    TypeError, ValueError, struct.error, zstandard.ZstdError,
)  # fmt: skip


def derive(key: bytes, info: str) -> bytes:
    """HKDF-SHA256 with an empty salt."""
    return HKDF(SHA256(), 32, salt=None, info=info.encode()).derive(key)


def require(condition: bool, problem: str) -> None:
    """Stop here unless the condition holds."""
    if not condition:
        raise ValueError(problem)


def signed(purpose: str, data: bytes) -> dict[str, Any]:
    """The body of a signed object; whether its signer is trusted is another question."""
    value = json.loads(data)
    body: dict[str, Any] = value["body"]
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
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
        config, admins = self.configuration()
        self.generation: int = config.get("generation", 0)
        self.trusted = {
            "writer": {writer["public"]: writer["id"] for writer in config["writers"]},
            "collector": {each["public"]: each["id"] for each in config.get("collectors", [])},
            "administrator": dict.fromkeys(admins, ""),
        }
        self.retired = {retired["public"]: retired for retired in config.get("retired", [])}
        keys = self.envelope("vault")
        self.index_key, self.chunk_ids = (bytes.fromhex(keys[k]) for k in ("index", "chunk_ids"))
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
            try:
                data = self.read(f"config/{name}")
                signer = json.loads(data)["signed_by"]
                if not config and signer not in [*own, *(founder if int(name) == 0 else [])]:
                    continue  # whoever holds this identity came later
                following = self.ours(signed("config", data))
                require(name == f"{following['epoch']:08d}", "it is of another epoch")
                linked = not config or (signer in admins and following["previous"] == sha256)
                require(linked, "it does not follow upon the epoch before it")
            except BROKEN as error:
                complain(f"config/{name}", error)  # nobody knows what it changes, if anything
                continue
            config, sha256 = following, hashlib.sha256(data).hexdigest()
            admins = [a["public"] for a in config.get("admins", [{"public": signer}])]
        require(
            bool(config),
            "the configuration is signed by a key that is not trusted: the identity is of another "
            "vault, or was added later and needs CELLARER_FOUNDER, which signed config/00000000",
        )
        return config, admins

    def signed(self, name: str, purpose: str, *roles: str) -> tuple[dict[str, Any], str]:
        """The body of a signed object, and its signer's id; a retired key counts for its time."""
        data = self.read(name)
        data = data[12 : 12 + int.from_bytes(data[8:12], "big")] if purpose == "wal" else data
        signer = json.loads(data)["signed_by"]
        for role in roles:
            if signer in self.trusted[role]:
                return signed(purpose, data), self.trusted[role][signer]
        retired = self.retired.get(signer, {"role": ""})
        require(retired["role"] in roles, f"{name}: signed by a key that is not trusted")
        listed = self.read(f"config/vouched-{retired['vouched']}")
        require(hashlib.sha256(listed).hexdigest() == retired["vouched"], "a list is not whole")
        known = json.loads(listed)["objects"].get(name, [])
        require(hashlib.sha256(data).hexdigest() in known, f"{name}: signed by a retired key")
        return signed(purpose, data), retired["id"]

    def read(self, name: str) -> bytes:
        """A whole object."""
        return self.path(name).read_bytes()

    def path(self, name: str) -> Path:
        """Where an object of this name lies; never outside of the vault."""
        require(NAME.fullmatch(name) is not None, f"{name!r} is no name of an object")
        return self.directory / name

    def ours(self, value: dict[str, Any], session: str = "") -> dict[str, Any]:
        """`value`, if it says that it belongs to this vault and session."""
        same = value["vault"] == self.id and (not session or value["session"] == session)
        require(same, "an object belongs to another vault or session")
        return value

    def envelope(self, name: str, commitment: str = "") -> dict[str, Any]:
        """The keys in the newest age file of this name that the identity opens and that fits."""
        require(shutil.which("age") is not None, "the program `age` is needed; please install it")
        problem = f"keys/{name}.{self.generation}.age is missing"
        numbers = (*range(self.generation, -1, -1), self.generation + 1)  # of those that can be
        for path in (self.path(f"keys/{name}.{number}.age") for number in numbers):
            if not path.exists():
                continue
            command = ["age", "-d", "-i", str(self.identity), str(path)]
            done = subprocess.run(command, capture_output=True, check=False)
            said = done.stderr.decode(errors="replace").strip()
            try:
                require(done.returncode == 0, f"age does not open keys/{path.name}: {said}")
                value = self.ours(json.loads(done.stdout), name if commitment else "")
                root = bytes.fromhex(value.get("root", ""))
                same = blake3(root).hexdigest() == commitment or not commitment
                require(same, f"the key of session {name} is not the one it announced")
                return value
            except BROKEN as error:  # anyone could have added it: another one may be right
                problem = str(error)
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
        body, _ = self.signed(name, "snapshot", "writer", *KEEPERS)
        if self.ours(body, session)["outcome"] != "commit":
            return {}
        body, writer = self.signed(name, "snapshot", "writer")
        require(body["writer"] == writer, "it is not signed by the writer that it names")
        sealed = base64.b64decode(body["sealed"], validate=True)
        return dict(json.loads(self.unseal(sealed, f"snapshot {session}")))

    @functools.cached_property
    def moves(self) -> dict[tuple[str, int, int], list[tuple[str, int]]]:
        """Where repacks copied records to, by pack, offset and length; read when one is missed."""
        found: dict[tuple[str, int, int], list[tuple[str, int]]] = {}
        for session in self.sessions():
            try:
                body, _ = self.signed(f"snapshots/{session}", "snapshot", *KEEPERS)
                if self.ours(body, session)["outcome"] != "repack":
                    continue
                sealed = base64.b64decode(body["sealed"], validate=True)
                name = json.loads(self.unseal(sealed, f"snapshot {session}"))["moves"]
                data = self.read(name)
                require(name.endswith("/" + hashlib.sha256(data).hexdigest()), "not what it was")
                header, rows = unframe(self.unseal(data, "cellarer/1/moves"))
                for old, offset, length, new, at in MOVE.iter_unpack(rows):
                    key = (header["packs"][old], offset, length)
                    found.setdefault(key, []).append((header["packs"][new], at))
            except BROKEN:
                continue  # no repack, or its table is gone and so is the need for it
        return found

    def root(self, session: str) -> bytes:
        """The root key of a session, compared with what the session announced."""
        if session not in self.roots:
            announced, _ = self.signed(f"sessions/{session}", "session", "writer")
            commitment = self.ours(announced, session)["commitment"]
            self.roots[session] = bytes.fromhex(self.envelope(session, commitment)["root"])
        return self.roots[session]

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
        told = self.ours(self.signed(name, "wal", "writer")[0])
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
        self.header, self.arrays = unframe(vault.unseal(data, "cellarer/1/references"))
        streams_at = self.header["records"] * RECORD.size
        self.runs_at = streams_at + self.header["streams"] * STREAM.size
        self.streams, end = [], self.runs_at
        for name_id, _, runs in STREAM.iter_unpack(self.arrays[streams_at : self.runs_at]):
            self.streams.append((name_id, end, end + runs * RUN.size))
            end += runs * RUN.size
        require(end == len(self.arrays), "the references contradict themselves")
        self.record = functools.lru_cache(maxsize=32)(self._record)
        contents = self.read(len(self.streams) - 1, "contents", LARGEST_SEALED)
        lines = b"".join(contents).splitlines()
        self.entries = [json.loads(line) for line in lines]
        require(len(self.entries) == len(self.streams) - 1, "contents and references differ")

    def _record(self, number: int) -> list[bytes]:
        require(number < self.header["records"], "a run points at no record")
        row = RECORD.unpack_from(self.arrays, number * RECORD.size)
        record_id, pack, offset, length, session = row
        require(length <= LARGEST_RECORD + 64, "a record is longer than a record can be")
        places, problem = [(self.header["packs"][pack], offset)], BaseException()
        for name, start in places:  # and then where it was moved to
            try:
                with self.vault.path(name).open("rb") as file:
                    file.seek(start)
                    sealed = file.read(length)
                return self.vault.open_record(self.header["sessions"][session], record_id, sealed)
            except BROKEN as error:
                problem = error if len(places) == 1 else problem
                further = self.vault.moves.get((name, start, length), [])
                places += [place for place in further if place not in places]
        raise problem

    def read(self, number: int, path: str, largest: int) -> Iterator[bytes]:
        """The chunks of the stream of this number, which must have this path, and no more bytes."""
        name_id, start, end = self.streams[number]
        expected = blake3(f"name/{path}".encode(), key=self.domain).digest(16)
        require(name_id == expected, "the references name another stream")
        for record, first, count in RUN.iter_unpack(self.arrays[start:end]):
            chunks = self.record(record)
            require(first + count <= len(chunks), "a run points past the end of a record")
            largest -= sum(map(len, chunks[first : first + count]))
            require(largest >= 0, "there is more of it than was backed up")
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
        kinds = ("blake3", "sha256", *(key for key in entry if key.startswith("blake3-")))
        kind, size = next((kind for kind in kinds if kind in entry), "blake3"), 0
        digest = hashlib.sha256() if kind == "sha256" else blake3()
        with target.open("xb") as file:
            try:
                for chunk in self.read(number, entry["path"], entry["size"]):
                    file.write(chunk)
                    # A stream that changes in pages may have the sum of the ids of its chunks.
                    by_ids = kind.startswith("blake3-")
                    digest.update(blake3(chunk, key=self.domain).digest(16) if by_ids else chunk)
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
            names = ("finished", "source", "kind", "streams", "read_bytes") if commit else ()
            columns = [session, *(str(commit[name]) for name in names)]
            require("".join(columns).isprintable(), "it holds what cannot be printed")
        except BROKEN as error:
            problems += complain(f"snapshots/{session}", error)
            continue
        if commit:
            gone = (vault.directory / "forgotten" / session).exists()
            marks = ["forgotten"] if gone else []  # retention gave it up; it may not be whole
            print(*columns, *marks, sep="\t")
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

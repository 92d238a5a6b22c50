"""A product is made, backed up, destroyed, recovered and proven; nothing in it is pretended.

Everything that the story makes lies in one directory, which is marked so that it can be removed by
name later without fear for anything else.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cellarer import bootstrap
from cellarer.config import load
from cellarer.demo import pourtrait, s3server
from cellarer.demo.tables import TableState, lost_rows, table_states
from cellarer.demo.teller import Teller
from cellarer.domain.assertion import Assertion
from cellarer.domain.quantity import about_duration, about_size
from cellarer.domain.snapshot import Proof, ProofRecord, RestorePoint
from cellarer.errors import UsageError
from cellarer.flows.backup import back_up
from cellarer.flows.points import list_points
from cellarer.flows.verify import verify
from cellarer.ports import Judgement, PointReader, Progress
from cellarer.postgres.binaries import SERVER_PROGRAMS, Installation, installations, server_for
from cellarer.postgres.cluster import Cluster, discard
from cellarer.targets.sandbox import restore_and_check

MARKER = ".cellarer-demo"
DATABASE = "pourtrait"
BUCKET = "pourtrait-backups"
_PRODUCT, _RECOVERED = "product", "recovered"


@dataclass(frozen=True)
class Outcome:
    """What the story measured. `proof` is `proven` only if every check passed."""

    directory: Path
    proof: str
    lost_rows: int
    rto_seconds: float
    rpo_seconds: float
    source_bytes: int
    first: RestorePoint
    second: RestorePoint
    changed_rows: int
    checks: int
    failed_checks: tuple[str, ...]
    seconds: float


def tell(directory: Path, size_bytes: int, teller: Teller) -> Outcome:
    """Tell the story in `directory`, which was claimed for it."""
    began = time.monotonic()
    teller.chapter("A product is born")
    with _product(directory, size_bytes, teller) as cluster:
        dsn = cluster.dsn(DATABASE)
        with s3server.serve_s3(directory / "s3", BUCKET) as endpoint:
            config_file = _write_config(directory, dsn, endpoint)
            return _protect_and_lose(cluster, config_file, teller, began)


def remove(directory: Path) -> None:
    """Delete what an earlier story left, and end its servers if it was killed.

    Raises `UsageError` for any other directory.
    """
    if not (directory / MARKER).is_file():
        raise UsageError(
            f"{directory} is not the directory of a demo", hint="it lacks the file " + MARKER
        )
    for name in (_PRODUCT, _RECOVERED):
        discard(directory.resolve() / name)
    shutil.rmtree(directory)


def _protect_and_lose(cluster: Cluster, config_file: Path, teller: Teller, began: float) -> Outcome:
    dsn = cluster.dsn(DATABASE)
    first, second, changed = _protect(config_file, dsn, teller)
    before, source_bytes = table_states(dsn)
    teller.chapter("Disaster")
    destroyed = time.monotonic()
    rpo_seconds = (bootstrap.now() - second.time).total_seconds()
    cluster.kill()
    shutil.rmtree(cluster.data_directory)
    teller.say(
        f"PostgreSQL killed with SIGKILL, {cluster.data_directory} deleted: "
        f"{about_size(source_bytes)} of product are gone"
    )
    record, rto_seconds, after = _recover(config_file, cluster, destroyed, teller)
    return Outcome(
        directory=config_file.parent,
        proof=record.proof.word,
        lost_rows=lost_rows(before, after),
        rto_seconds=round(rto_seconds, 3),
        rpo_seconds=round(rpo_seconds, 3),
        source_bytes=source_bytes,
        first=first,
        second=second,
        changed_rows=changed,
        checks=len(record.checks),
        failed_checks=tuple(check.name for check in record.checks if not check.passed),
        seconds=round(time.monotonic() - began, 3),
    )


@contextmanager
def _product(directory: Path, size_bytes: int, teller: Teller) -> Iterator[Cluster]:
    installation = _newest_server()
    cluster = Cluster.create(installation, directory / _PRODUCT)
    try:
        cluster.start()
        teller.say(f"PostgreSQL {installation.version} started in {cluster.directory}")
        pourtrait.make(cluster.dsn("postgres"), DATABASE, size_bytes, teller.progress)
        teller.say(f"{about_size(size_bytes)} of wines, people and tasting notes made up")
        yield cluster
    finally:
        if cluster.pid is not None:
            cluster.stop()


def _protect(config_file: Path, dsn: str, teller: Teller) -> tuple[RestorePoint, RestorePoint, int]:
    config = load(config_file)
    teller.chapter("It is protected")
    made = bootstrap.make_vault(
        config, *(config.directory / name for name in ("identity.age", "write.key", "collect.key"))
    )
    teller.say(f"vault {made.vault_id} made on a directory and an S3 bucket")
    first = _back_up(config_file, teller)
    teller.say(
        f"first backup: {about_size(first.read_bytes)} read, {about_size(first.stored_bytes)} "
        f"stored on each replica, in {about_duration(first.seconds)}"
    )
    changed = pourtrait.busy(dsn)
    teller.say(f"a day passes: {changed:,} rows are added or changed")
    second = _back_up(config_file, teller)
    share = second.stored_bytes / first.stored_bytes
    teller.say(
        f"second backup: {about_size(second.stored_bytes)} stored, {share:.1%} of the first, "
        f"in {about_duration(second.seconds)}"
    )
    return first, second, changed


def _back_up(config_file: Path, teller: Teller) -> RestorePoint:
    config = load(config_file)
    (source,) = bootstrap.open_sources(config, ["database"])
    return back_up(bootstrap.open_vault(config), source, teller.progress, bootstrap.now)


def _recover(
    config_file: Path, lost: Cluster, destroyed: float, teller: Teller
) -> tuple[ProofRecord, float, dict[str, TableState]]:
    teller.chapter("Recovery")
    config = load(config_file)
    vault = bootstrap.open_vault(config, reading=True)
    point = list_points(vault, "database")[0]
    installation = server_for(lost.installation.major)
    cluster = Cluster.create(installation, config.directory / _RECOVERED)
    try:
        cluster.start()
        teller.say(f"a new PostgreSQL {installation.version} started in {cluster.directory}")
        answered: list[float] = []
        prover = _Recovery(cluster, bootstrap.assertions(config, "database"), answered)
        record = verify(vault, point, Proof.PROVEN, prover, teller.progress, bootstrap.now)
        rto_seconds = (answered[0] if answered else time.monotonic()) - destroyed
        teller.say(f"recovered from {point.id} in {about_duration(rto_seconds)}")
        teller.chapter("Proof")
        after, _ = table_states(cluster.dsn(DATABASE))
    finally:
        if cluster.pid is not None:
            cluster.stop()
    return record, rto_seconds, after


@dataclass(frozen=True)
class _Recovery:
    """A prover whose sandbox is the new home of the product: it stays when the proof is done."""

    cluster: Cluster
    assertions: Sequence[Assertion]
    answered: list[float]

    def prove(self, reader: PointReader, progress: Progress) -> Judgement:
        """Recover, note the moment when the database answers, then compare everything."""
        checks = restore_and_check(
            self.cluster,
            reader,
            progress,
            self.assertions,
            bootstrap.jobs(),
            restored=lambda: self.answered.append(time.monotonic()),
        )
        return Judgement(checks)


def _write_config(directory: Path, dsn: str, endpoint: str) -> Path:
    config_file = directory / "cellarer.toml"
    config_file.write_text(
        _CONFIG.format(vault=directory / "vault", dsn=dsn, endpoint=endpoint, bucket=BUCKET)
    )
    for name, secret in (
        ("s3-access.key", s3server.ACCESS_KEY_ID),
        ("s3-secret.key", s3server.SECRET_ACCESS_KEY),
    ):
        path = directory / name
        path.touch(mode=0o600)
        path.write_text(secret)
    return config_file


def claim(directory: Path) -> None:
    """Mark a directory, which must be empty or absent, as a story's. Raises `UsageError`."""
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        earlier = (directory / MARKER).is_file()
        clean = f", or remove this demo with `cellarer demo --clean {directory}`" if earlier else ""
        raise UsageError(
            f"{directory} is not empty",
            hint=f"name another directory{clean}",
        )
    (directory / MARKER).write_text("made by `cellarer demo`; may be deleted\n")


def _newest_server() -> Installation:
    able = [one for one in installations() if one.has(SERVER_PROGRAMS)]
    return max(able, key=lambda one: one.major) if able else server_for(18)


_CONFIG = """\
# Written by `cellarer demo`. A real one looks much the same.
[product]
name = "pourtrait"

[vault]
write_key = {{ file = "write.key" }}
identity  = {{ file = "identity.age" }}
write_quorum = 2

[[vault.replicas]]
name = "local"
url  = "file://{vault}"

[[vault.replicas]]
name = "s3"
url  = "s3://{bucket}/vault"
[vault.replicas.options]
region = "us-east-1"
endpoint = "{endpoint}"
access_key_id = {{ file = "s3-access.key" }}
secret_access_key = {{ file = "s3-secret.key" }}

[sources.database]
kind = "postgres_dump"
dsn = "{dsn}"

[[sources.database.assertions]]
name = "every wine has its user"
sql = \"\"\"select count(*) from wines w
  left join user_profiles u on u.id = w.user_id where u.id is null\"\"\"
expect = 0
"""

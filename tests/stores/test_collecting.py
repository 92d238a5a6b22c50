"""Forgetting, collecting and copying over the wire: an S3 server and a directory as replicas."""

from __future__ import annotations

from collections.abc import Callable

from cellarer.ports import Store, Stream
from cellarer.vault.catchup import catch_up
from cellarer.vault.collect import Collector
from cellarer.vault.founding import make, prepare
from cellarer.vault.genuine import Trust
from cellarer.vault.keys import Identity
from cellarer.vault.replicas import Replica, ReplicaSet
from cellarer.vault.tombstones import forget
from cellarer.vault.vault import Vault
from cellarer.vault.writer import SnapshotWriter
from stand_ins import all_restored, noise, ticking


def test_from_backup_to_collection_on_real_stores(
    open_s3: Callable[[], Store], open_local: Callable[[], Store]
) -> None:
    now, identity = ticking(), Identity.generate()
    cloud, disk = Replica("cloud", open_s3()), Replica("disk", open_local())
    made = prepare(identity, now())
    make(ReplicaSet([cloud, disk], 2), made)

    def vault(*replicas: Replica) -> Vault:
        return Vault.open(ReplicaSet(replicas, 1), made.write_key, identity, made.collect_key)

    def backup(*contents: bytes) -> str:
        writer = SnapshotWriter(vault(cloud, disk), "db", "test", now)
        for number, content in enumerate(contents):
            writer.add(Stream(str(number), "test", iter([content]), len(content)))
        return writer.commit().session

    shared, gone, added = noise(1, 200_000), noise(2, 300_000), noise(3, 100_000)
    first, second = backup(gone), backup(shared)
    third = backup(shared, added)
    forget(vault(cloud, disk), first, "no rule wants it", now())
    both = vault(cloud, disk)
    collector = Collector(both, now)
    planned = collector.plan(cloud).condemned_bytes
    swept = [collector.collect(replica) for replica in (cloud, disk)]
    assert [done.swept_bytes for done in swept] == [planned, planned]
    assert planned > 300_000
    expected = {second: {"0": shared}, third: {"0": shared, "1": added}}
    for replica in (cloud, disk):
        assert all_restored(vault(replica)) == expected
    fourth = backup(shared, added)
    expected[fourth] = expected[third]
    done = catch_up(both.replicas, lambda copied_bytes: None, Trust.of(both))
    assert all(each.problem is None for each in done.values())
    assert all_restored(vault(cloud)) == expected

"""A store behaves as a dict does that never replaces a value, whatever is done in which order."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cellarer.errors import DamagedData, ObjectExists, ObjectMissing
from cellarer.ports import Store
from cellarer.stores.local import LocalStore
from cellarer.stores.memory import MemoryStore

# Few names, so that they meet; none is the directory of another, which a disk cannot hold.
KEYS = st.sampled_from(["a", "a-b/c", "a.b", "b/a", "b/a.c/d", "b/a-c", "b/c/d", "b.c/d"])
PREFIXES = st.sampled_from(["", "b/", "b/c/", "a-b/", "none/"])
CONTENTS = st.sampled_from([b"", b"x", b"y", b"content", b"contents", bytes(100_000)])
NUMBERS = st.integers(0, 110_000)


class StoreMachine(RuleBasedStateMachine):
    """Does the same to a store and to a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, bytes] = {}
        self.store = self.new_store()

    def new_store(self) -> Store:
        return MemoryStore()

    def reopened(self) -> Store:
        return self.store

    @initialize()
    def nothing_is_there(self) -> None:
        assert list(self.store.list("")) == []

    @rule(key=KEYS, data=CONTENTS)
    def create(self, key: str, data: bytes) -> None:
        if self.model.setdefault(key, data) == data:
            self.store.create(key, data)
        else:
            with pytest.raises(ObjectExists):
                self.store.create(key, data)

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        self.model.pop(key, None)
        self.store.delete(key)

    @rule(key=KEYS)
    def read(self, key: str) -> None:
        if key in self.model:
            assert self.store.read(key) == self.model[key]
        else:
            with pytest.raises(ObjectMissing):
                self.store.read(key)

    @rule(key=KEYS, offset=NUMBERS, length=NUMBERS)
    def read_range(self, key: str, offset: int, length: int) -> None:
        if key not in self.model:
            with pytest.raises(ObjectMissing):
                self.store.read_range(key, offset, length)
        elif offset + length > len(self.model[key]):
            with pytest.raises(DamagedData):
                self.store.read_range(key, offset, length)
        else:
            expected = self.model[key][offset : offset + length]
            assert self.store.read_range(key, offset, length) == expected

    @rule(prefix=PREFIXES)
    def list(self, prefix: str) -> None:
        expected = sorted((k, len(v)) for k, v in self.model.items() if k.startswith(prefix))
        assert [(info.key, info.size_bytes) for info in self.store.list(prefix)] == expected

    @rule()
    def reopen(self) -> None:
        self.store = self.reopened()

    @invariant()
    def the_same_keys_are_there(self) -> None:
        assert [info.key for info in self.store.list("")] == sorted(self.model)


class LocalMachine(StoreMachine):
    """The same on a disk, where the store may also be opened anew."""

    def new_store(self) -> Store:
        self.parent = tempfile.TemporaryDirectory(prefix="cel-model-")
        return self.reopened()

    def reopened(self) -> Store:
        return LocalStore(Path(self.parent.name, "store"))

    def teardown(self) -> None:
        self.parent.cleanup()


steps = settings(max_examples=25, stateful_step_count=30, deadline=None)
StoreMachine.TestCase.settings = steps
LocalMachine.TestCase.settings = steps
TestMemory = StoreMachine.TestCase
TestLocal = LocalMachine.TestCase

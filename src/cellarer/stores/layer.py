"""What the layers around a store have in common: where it is, and that they do not grow only."""

from __future__ import annotations

from cellarer.ports import Store


class StoreLayer:
    """A store around another one; a subclass adds the one thing that it is for."""

    grows_only = False

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    @property
    def inner(self) -> Store:
        """The store that is asked in the end."""
        return self._inner

    @property
    def url(self) -> str:
        return self._inner.url

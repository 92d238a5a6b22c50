"""Vaults of many small records and packs, so that small data meets every seam."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cellarer.vault import packer, placing, repack


@pytest.fixture(scope="module")
def small_packs() -> Iterator[None]:
    """Records of 8 KiB and packs of 24 KiB."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placing, "RECORD_BYTES", 8 << 10)
        for module in (packer, repack):
            patch.setattr(module, "PACK_BYTES", 24 << 10)
        yield

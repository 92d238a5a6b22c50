"""Bech32 (BIP 173), in which age writes its keys."""

from __future__ import annotations

from collections.abc import Iterable

_ALPHABET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECKSUM = 6


def encode(prefix: str, data: bytes) -> str:
    """Bytes as text, in lower case."""
    values = _regroup(data, 8, 5)
    check = _polymod([*_expanded(prefix), *values, *[0] * _CHECKSUM]) ^ 1
    values += [check >> 5 * (_CHECKSUM - 1 - n) & 31 for n in range(_CHECKSUM)]
    return f"{prefix}1{''.join(_ALPHABET[value] for value in values)}"


def decode(text: str) -> tuple[str, bytes]:
    """Prefix (in lower case) and bytes. Raises `ValueError` for anything mistyped."""
    prefix, _, encoded = text.lower().rpartition("1")
    values = [_ALPHABET.index(character) for character in encoded]
    if len(values) < _CHECKSUM or _polymod([*_expanded(prefix), *values]) != 1:
        raise ValueError("the checksum does not match")
    data, spare = values[:-_CHECKSUM], len(values[:-_CHECKSUM]) * 5 % 8
    whole = bytes(_regroup(data, 5, 8)[: len(data) * 5 // 8])
    if spare > 4 or _regroup(whole, 8, 5) != data:
        raise ValueError("there are bits left over")
    return prefix, whole


def _expanded(prefix: str) -> list[int]:
    return [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix]


def _polymod(values: Iterable[int]) -> int:
    checksum = 1
    for value in values:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(_GENERATOR):
            checksum ^= generator if top >> bit & 1 else 0
    return checksum


def _regroup(values: Iterable[int], from_bits: int, to_bits: int) -> list[int]:
    """The same bits in groups of another size, zeros behind the last."""
    bits = "".join(f"{value:0{from_bits}b}" for value in values)
    bits += "0" * (-len(bits) % to_bits)
    return [int(bits[at : at + to_bits], 2) for at in range(0, len(bits), to_bits)]

"""An identity in shares for paper: any `threshold` of them bring it back, fewer say nothing of it.

The words of a share are SLIP-0039, so other programs than this one can combine them, too: what
comes out are the 32 bytes that `AGE-SECRET-KEY-1…` writes in Bech32.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from shamir_mnemonic import MnemonicError, combine_mnemonics, generate_mnemonics

from cellarer.errors import KeyUnusable, UsageError
from cellarer.vault import bech32
from cellarer.vault.age import X25519
from cellarer.vault.keys import Identity

TITLE = "Cellarer recovery share"
LARGEST = 16
"""SLIP-0039 has four bits for the number of a share."""

_PREFIX = "age-secret-key-"
_FIELDS = ("vault", "recipient", "set", "share", "of", "needed", "check")


@dataclass(frozen=True, repr=False)
class Share:
    """One share: whose it is, which one, and its words."""

    vault: str
    recipient: str
    set: str
    share: int
    of: int
    needed: int
    words: str

    @property
    def check(self) -> str:
        """Eight hex digits over everything else, to find what was mistyped."""
        fields = [self.vault, self.recipient, self.set, self.share, self.of, self.needed]
        text = "\n".join([*map(str, fields), self.words])
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def to_text(self) -> str:
        """The share as it is printed."""
        lines = [f"{name + ':':11}{getattr(self, name)}" for name in _FIELDS]
        words = textwrap.indent(textwrap.fill(self.words, 76), "  ")
        told = (
            f"Any {self.needed} of the {self.of} shares of this set bring the identity back:\n"
            "cellarer keys combine FILE... --to identity.age\n"
            "Fewer tell nothing of it. Keep each with somebody else."
        )
        return "\n".join([TITLE, "", *lines, "", "words:", words, "", told, ""])

    @classmethod
    def from_text(cls, text: str, name: str) -> Share:
        """A share as it was printed, or typed from paper. Raises `KeyUnusable`; `name` is told."""
        lowered = text.lower()
        found = {f: re.search(rf"^\s*{f}:\s*(\S+)\s*$", lowered, re.MULTILINE) for f in _FIELDS}
        words = re.search(r"^\s*words:\s*\n((?:[ \t]+[a-z \t]+\n?)+)", lowered, re.MULTILINE)
        missing = [field for field, match in found.items() if match is None]
        if missing or words is None:
            raise KeyUnusable(
                f"{name} is no recovery share",
                detail=f"it lacks: {', '.join([*missing, *([] if words else ['words'])])}",
                hint="it has the lines that `cellarer keys split` printed; the words are indented",
            )
        values = {field: match[1] for field, match in found.items() if match}
        try:
            number, of, needed = (int(values[field]) for field in ("share", "of", "needed"))
        except ValueError:
            raise KeyUnusable(f"{name} is mistyped: a number is none", hint=_COMPARE) from None
        vault, recipient, belongs = (values[field] for field in ("vault", "recipient", "set"))
        plain = " ".join(words[1].split())
        share = cls(vault, recipient, belongs, number, of, needed, plain)
        if share.check != values["check"]:
            raise KeyUnusable(
                f"{name} is mistyped: its check does not match",
                detail=f"it says {values['check']}, the rest makes {share.check}",
                hint=_COMPARE,
            )
        return share


_COMPARE = "compare it with the paper, word by word"


def split(identity: Identity, vault: str, shares: int, threshold: int) -> list[Share]:
    """The identity in so many shares. Raises `UsageError` where that cannot be."""
    if not 2 <= threshold <= shares <= LARGEST:
        raise UsageError(
            f"{threshold} of {shares} shares cannot be made",
            hint=f"at least 2 are needed to combine, and there are {LARGEST} shares at most",
        )
    if len(identity.secrets) != 1 or not identity.secrets[0].text.startswith(X25519):
        raise UsageError(
            "only one X25519 identity can be split",
            hint="make one with `age-keygen`, `cellarer keys add-recipient` it, and split that",
        )
    secret = identity.secrets[0]
    _, raw = bech32.decode(secret.text)
    (group,) = generate_mnemonics(1, [(threshold, shares)], raw)
    name = secrets.token_hex(4)
    return [
        Share(vault, secret.recipient, name, number, shares, threshold, words)
        for number, words in enumerate(group, 1)
    ]


def combine(shares: Sequence[Share]) -> Identity:
    """The identity out of enough shares of one set. Raises `KeyUnusable`."""
    sets = {(share.vault, share.recipient, share.set, share.needed) for share in shares}
    if len(sets) != 1:
        told = ", ".join(sorted({f"set {share.set} of vault {share.vault}" for share in shares}))
        raise KeyUnusable(
            "the shares do not belong together", detail=told, hint="take those of one set"
        )
    ((_, recipient, name, needed),) = sets
    different = {share.share: share.words for share in shares}
    if len(different) < needed:
        numbers = ", ".join(str(number) for number in sorted(different))
        raise KeyUnusable(
            f"{len(different)} of {needed} needed shares are here",
            detail=f"set {name}, shares {numbers}",
            hint="ask more of those who keep one",
        )
    try:
        raw = combine_mnemonics(sorted(different.values())[:needed])
        identity = Identity.from_text(bech32.encode(_PREFIX, raw).upper())
    except MnemonicError as error:
        raise KeyUnusable(
            "the shares do not make an identity", detail=str(error), hint=_COMPARE
        ) from None
    if identity.recipients != (recipient,):
        raise KeyUnusable(
            "the shares make another identity than they say", detail=recipient, hint=_COMPARE
        )
    return identity

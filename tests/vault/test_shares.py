"""Shares of an identity: enough bring it back, whichever; fewer, mixed and mistyped ones do not."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shamir_mnemonic import MnemonicError, combine_mnemonics

from cellarer.errors import KeyUnusable, UsageError
from cellarer.vault.keys import Identity
from cellarer.vault.shares import LARGEST, Share, combine, split

VAULT = "3f2a" * 8
IDENTITY = Identity.generate()
SHARES = split(IDENTITY, VAULT, 5, 3)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_that_are_enough_bring_it_back_and_fewer_do_not(data: st.DataObject) -> None:
    shares = data.draw(st.integers(2, LARGEST))
    threshold = data.draw(st.integers(2, shares))
    identity = Identity.generate()
    made = split(identity, VAULT, shares, threshold)
    chosen = data.draw(st.permutations(made))
    texts = [share.to_text() for share in chosen]
    again = [Share.from_text(text, "a file") for text in texts]
    assert again == list(chosen)
    assert combine(again[:threshold]) == identity
    assert combine(again) == identity
    with pytest.raises(KeyUnusable, match=f"{threshold - 1} of {threshold} needed"):
        combine(again[: threshold - 1])
    # Nor does the mathematics beneath, whoever leaves that check out.
    with pytest.raises(MnemonicError):
        combine_mnemonics([share.words for share in again[: threshold - 1]])


def test_the_same_share_twice_is_one() -> None:
    with pytest.raises(KeyUnusable, match="2 of 3 needed"):
        combine([SHARES[0], SHARES[0], SHARES[1]])


def test_shares_of_two_sets_do_not_mix() -> None:
    other = split(IDENTITY, VAULT, 5, 3)
    with pytest.raises(KeyUnusable, match="do not belong together") as caught:
        combine([*SHARES[:2], other[2]])
    assert SHARES[0].set in caught.value.detail
    renamed = [replace(share, set=SHARES[0].set) for share in other[2:3]]
    with pytest.raises(KeyUnusable, match="do not make an identity"):
        combine([*SHARES[:2], *renamed])


def test_shares_that_say_another_recipient_are_refused() -> None:
    recipient = Identity.generate().recipients[0]
    with pytest.raises(KeyUnusable, match="another identity"):
        combine([replace(share, recipient=recipient) for share in SHARES])


def test_what_is_mistyped_is_found() -> None:
    text = SHARES[0].to_text()
    words = SHARES[0].words.split()
    for at in random.Random(1).sample(range(len(words)), 8):
        other = "academic" if words[at] != "academic" else "zero"
        typed = replace(SHARES[0], words=" ".join([*words[:at], other, *words[at + 1 :]]))
        mistyped = typed.to_text().replace(typed.check, SHARES[0].check)
        with pytest.raises(KeyUnusable, match="check does not match"):
            Share.from_text(mistyped, "share-1.txt")
    for field in ("vault", "words", "needed", "check"):
        with pytest.raises(KeyUnusable, match=r"share-1\.txt is no recovery share"):
            Share.from_text(text.replace(f"{field}:", "x:"), "share-1.txt")
    with pytest.raises(KeyUnusable, match="a number is none"):
        Share.from_text(text.replace("needed:    3", "needed:    three"), "share-1.txt")


def test_typed_in_capitals_and_other_lines_it_is_the_same() -> None:
    text = SHARES[0].to_text().upper()
    head, _, tail = text.partition("WORDS:\n")
    typed = f"{head}\nWORDS:\n" + "".join(f"    {word}\n" for word in SHARES[0].words.split())
    assert Share.from_text(typed, "x") == SHARES[0]
    assert tail


@pytest.mark.parametrize(
    ("shares", "threshold"), [(1, 1), (5, 1), (2, 3), (17, 3), (0, 0), (3, -1)]
)
def test_numbers_that_cannot_be(shares: int, threshold: int) -> None:
    with pytest.raises(UsageError, match="cannot be made"):
        split(IDENTITY, VAULT, shares, threshold)


def test_only_one_x25519_identity_is_split() -> None:
    with pytest.raises(UsageError, match="only one X25519"):
        split(IDENTITY | Identity.generate(), VAULT, 3, 2)


def test_a_share_does_not_show_itself() -> None:
    assert SHARES[0].words.split()[5] not in repr(SHARES[0])

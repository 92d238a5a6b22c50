"""Which packs are written anew: laws of the plan, and its reasons."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cellarer.domain.repacking import SMALL_PACKS, PackUse, plan_repack

FULL = 1000

uses = st.lists(
    st.builds(
        PackUse,
        st.integers(0, 99).map(lambda n: f"{'meta' if n % 3 else 'packs'}/{n:02}"),
        st.integers(1, FULL),
        st.integers(0, FULL),
    ),
    unique_by=lambda use: use.pack,
)


def chosen(*given_uses: PackUse, budget_bytes: int = 10 * FULL) -> dict[str, str]:
    plan = plan_repack(given_uses, FULL, budget_bytes)
    return {each.pack: each.reason for each in plan.packs}


def test_a_pack_is_chosen_from_thirty_percent_on() -> None:
    assert chosen(PackUse("packs/a", 701, 299)) == {}
    assert chosen(PackUse("packs/a", 700, 300)) == {"packs/a": "30% of it is dead"}


def test_small_packs_are_chosen_where_there_are_many_of_their_class() -> None:
    few = [PackUse(f"packs/{n:02}", 10, 0) for n in range(SMALL_PACKS - 1)]
    other = PackUse("meta/a", 10, 0)
    assert chosen(*few, other) == {}
    many = [*few, PackUse("packs/z", 10, 0)]
    assert set(chosen(*many, other)) == {use.pack for use in many}
    assert "one of 16 small packs" in chosen(*many)["packs/00"]
    assert chosen(*[PackUse(f"packs/{n:02}", FULL // 4, 0) for n in range(99)]) == {}


def test_what_a_replica_lacks_comes_first() -> None:
    lacking = PackUse("packs/b", 900, 0, ("far",))
    plan = plan_repack([PackUse("packs/a", 10, 990), lacking], FULL, 1)
    assert [each.pack for each in plan.packs] == ["packs/b"]
    assert "deleted on far" in plan.packs[0].reason
    assert plan.left_dead_bytes == 990


@given(uses, st.integers(0, 5 * FULL))
def test_a_budget_bounds_what_is_copied_and_takes_the_most_wasteful(
    given_uses: list[PackUse], budget_bytes: int
) -> None:
    everything = plan_repack(given_uses, FULL, 10**9)
    plan = plan_repack(reversed(given_uses), FULL, budget_bytes)
    assert plan.packs == everything.packs[: len(plan.packs)]
    assert plan.live_bytes < budget_bytes + FULL
    if len(plan.packs) < len(everything.packs):
        assert plan.live_bytes >= budget_bytes
    dead = sum(each.dead_bytes for each in everything.packs)
    assert plan.left_dead_bytes == dead - sum(each.dead_bytes for each in plan.packs)


@given(uses)
def test_what_was_repacked_is_not_repacked_again(given_uses: list[PackUse]) -> None:
    """New packs are full, but for the last of each class, and nothing in them is dead."""
    plan = plan_repack(given_uses, FULL, 10**9)
    taken = {each.pack for each in plan.packs}
    after = [use for use in given_uses if use.pack not in taken]
    for prefix in ("packs", "meta"):
        living = sum(e.live_bytes for e in plan.packs if e.pack.startswith(prefix))
        full, rest = divmod(living, FULL)
        sizes = [FULL] * full + ([rest] if rest else [])
        after += [PackUse(f"{prefix}/new{n}", size, 0) for n, size in enumerate(sizes)]
    again = plan_repack(after, FULL, 10**9).packs
    # At most once more, where the last pack is one small pack too many.
    assert all("small" in each.reason for each in again)

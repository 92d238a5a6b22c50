"""3-2-1-1-0: what counts, what does not, and what is said of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellarer.domain.copies import Copy, Facts, Place, count_copies, standing_errors

NOW = datetime(2026, 11, 25, tzinfo=UTC)
GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "copies"
DISK = Place("the disk sda", False, "a directory of this host")
AMAZON = Place("Amazon S3", True, "Amazon S3")
MINIO = Place("s3:// at 127.0.0.1:9000", False, "127.0.0.1:9000 is this host")
GOOGLE = Place("Google Cloud Storage", True, "Google Cloud Storage")
LACKS = "lacks the newest point of db"
LATER = NOW + timedelta(days=20)

SCENES = {
    "nothing": Facts([Copy("disk", DISK)]),
    "one-disk": Facts([Copy("disk", DISK), Copy("other", DISK)], (), ["db"]),
    "same-provider": Facts(
        [Copy("east", AMAZON, immutable_until=NOW), Copy("west", AMAZON, LACKS)],
        ["no point of db is proven, the newest is stored"],
        ["db"],
    ),
    "all-met": Facts(
        [Copy("disk", DISK), Copy("amazon", AMAZON, immutable_until=LATER)], (), ["db"]
    ),
    "by-refusal": Facts(
        [Copy("near", MINIO), Copy("google", GOOGLE, refused_delete=True)],
        ["3 objects are damaged on near"],
        ["db"],
    ),
}  # fmt: skip


def text(facts: Facts) -> str:
    lines = []
    for finding in count_copies(facts, NOW):
        lines.append(f"{finding.level:7}  {finding.id}: {finding.message}")
        lines += [f"         {finding.hint}"] if finding.hint else []
    return "\n".join([*lines, ""])


@pytest.mark.parametrize("name", SCENES)
def test_what_is_said(name: str) -> None:
    assert text(SCENES[name]) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


places = st.sampled_from([DISK, AMAZON, MINIO])
copies = st.builds(
    Copy,
    st.sampled_from("abcdef"),
    places,
    st.sampled_from(["", "lacks the newest point of db"]),
    st.none() | st.just(NOW - timedelta(days=1)) | st.just(LATER),
    st.booleans(),
)


@given(st.lists(copies, max_size=5), st.lists(st.just("an error"), max_size=2))
def test_only_whole_copies_count(found: list[Copy], errors: list[str]) -> None:
    findings = count_copies(Facts(found, errors, ["db"]), NOW)
    met = [finding.level == "info" for finding in findings]
    whole = [copy for copy in found if not copy.lacking]
    assert met == [
        len(whole) >= 2,
        len({copy.place.medium for copy in whole}) >= 2,
        any(copy.place.off_site for copy in whole),
        any(copy.refused_delete or copy.immutable_until == LATER for copy in whole),
        not errors,
    ]
    assert all(bool(f.hint) is (f.level == "warning") for f in findings)


def test_errors_that_stand() -> None:
    old, new = NOW - timedelta(days=3), NOW - timedelta(hours=1)
    proofs = {"a": ("proven", new), "b": ("stored", old), "c": ("restored", None)}
    told = standing_errors(
        proofs, {"disk": 2, "other": 0}, {"a": "", "b": "orphans"}, NOW - timedelta(days=1)
    )
    assert told == [
        "the verification of b failed: orphans",
        "the newest proof of b is of 2026-11-22 00:00 UTC",
        "no point of c is proven, the newest is restored",
        "2 objects are damaged on disk",
    ]  # fmt: skip

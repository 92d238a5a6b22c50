"""How a replica's store is to be used, beyond how it is reached."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from cellarer.errors import UsageError

TIMEOUT = timedelta(minutes=10)
"""64 MiB over a line of 1 Mbit/s take nine minutes."""

OPTIONS = {
    "file": (),
    "s3": (
        "region", "endpoint", "access_key_id", "secret_access_key", "session_token", "profile",
    ),
    "gs": ("endpoint", "service_account_key"),
    "az": ("endpoint", "access_key_id", "secret_access_key"),
}  # fmt: skip
"""By scheme, the options that say how a store is reached."""

# From these nothing is read without a restore request first, which takes hours.
_OFFLINE_CLASSES = {"glacier", "deep_archive", "archive"}
_OFFLINE_SCHEMES = ("s3", "az")  # Google's ARCHIVE answers at once

ENCRYPTIONS = ("AES256", "aws:kms", "aws:kms:dsse")


@dataclass(frozen=True)
class StoreSettings:
    """The settings of one replica; those that its cloud cannot take are refused by `check`.

    `timeout` is the longest that one call may take. `bandwidth` is in bytes a second, each way;
    None is no limit. `storage_class` is the cloud's own word, for objects that are large enough.
    `encryption` is the server's own, `kms_key` the key for it. `immutable_for` is how long the
    store refuses to delete an object after it was written. `grow_only` says that the store does
    not honour create-if-absent, and that the replica is used all the same.
    """

    timeout: timedelta = TIMEOUT
    bandwidth: int | None = None
    storage_class: str = ""
    encryption: str = ""
    kms_key: str = ""
    immutable_for: timedelta | None = None
    grow_only: bool = False

    def check(self, scheme: str) -> None:
        """Raise `UsageError` for what a store of this kind cannot do."""
        if scheme == "file" and self.storage_class:
            raise _cannot("a directory has no storage class", "leave storage_class out")
        if self.storage_class.lower() in _OFFLINE_CLASSES and scheme in _OFFLINE_SCHEMES:
            raise _cannot(
                f"nothing in the storage class {self.storage_class} can be read at once",
                "choose one that answers at once: on S3 STANDARD_IA or GLACIER_IR, on Azure Cool "
                "or Cold",
            )
        if scheme != "s3" and (self.encryption or self.kms_key):
            hints = {
                "file": "encrypt the disk; the vault's own encryption is always on",
                "gs": "set the bucket's default encryption key instead: "
                "gcloud storage buckets update gs://BUCKET --default-encryption-key=KEY",
                "az": "set an encryption scope as the container's default instead",
            }
            raise _cannot(f"no encryption can be asked of {scheme}://", hints[scheme])
        if self.encryption and self.encryption not in ENCRYPTIONS:
            raise _cannot(
                f"{self.encryption} is no encryption of S3", f"known: {', '.join(ENCRYPTIONS)}"
            )
        if self.kms_key and not self.encryption.startswith("aws:kms"):
            raise _cannot("kms_key needs a kind of encryption", 'set encryption = "aws:kms"')
        if scheme != "s3" and self.immutable_for:
            hints = {
                "file": "a directory cannot refuse to delete; lock objects on a replica at s3://",
                "gs": "set the bucket's retention policy instead: "
                "gcloud storage buckets update gs://BUCKET --retention-period=30d",
                "az": "set a time-based retention policy on the container instead",
            }
            raise _cannot(f"no lock can be asked of {scheme}://", hints[scheme])


def _cannot(message: str, hint: str) -> UsageError:
    return UsageError(message, hint=hint)

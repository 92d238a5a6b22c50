"""Where a replica's objects lie: the kinds of stores, by the scheme of their URL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from cellarer.errors import UsageError
from cellarer.ports import Store
from cellarer.stores.settings import OPTIONS, StoreSettings

DEFAULTS = StoreSettings()


def open_layered(url: str, options: Mapping[str, str], settings: StoreSettings) -> Store:
    """The store at `url` with the layers that its settings ask for; else as `open_store`.

    From the outside in: patience with outages, the limit of bandwidth, so that what is sent again
    counts again, and time limits, where the store's own calls have none.
    """
    from cellarer.stores.grow_only import GrowOnly
    from cellarer.stores.retrying import Retrying
    from cellarer.stores.throttled import Throttled
    from cellarer.stores.time_limited import TimeLimited

    store = open_store(url, options, settings)
    if urlsplit(url).scheme == "file":
        # A bucket's client keeps to the time by itself.
        store = TimeLimited(store, settings.timeout.total_seconds())
    if settings.bandwidth is not None:
        store = Throttled(store, settings.bandwidth)
    store = Retrying(store)
    return GrowOnly(store) if settings.grow_only else store


def open_store(url: str, options: Mapping[str, str], settings: StoreSettings = DEFAULTS) -> Store:
    """The store at `url` alone; nothing is asked of it yet.

    `url` is `file:///directory`, `s3://bucket/prefix`, `gs://bucket/prefix` or
    `az://container/prefix`. `options` has the secrets resolved. For `s3`: `region`, `endpoint`,
    `access_key_id`, `secret_access_key`, `session_token`, or `profile`. For `gs`: `endpoint`,
    `service_account_key`. For `az`: `endpoint`, `access_key_id` (the account), `secret_access_key`.
    Without credentials the cloud's usual places are asked. Raises `UsageError`, and `ToolMissing`
    where the options or settings need Amazon's library and it is not installed.
    """
    parts = urlsplit(url)
    opener = _OPENERS.get(parts.scheme)
    if opener is None:
        known = ", ".join(f"{scheme}://" for scheme in _OPENERS)
        hint = f"a directory is written {Path(url).as_uri()}" if url.startswith("/") else ""
        raise UsageError(
            "this is not the address of a store",
            detail=f"it does not begin with any of {known}",
            hint=hint or "see the config reference for the forms of addresses",
        )
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            "the address of a store must not hold credentials",
            hint="name them in the replica's `options`, as { env = … } or { file = … }",
        )
    if parts.query or parts.fragment:
        raise UsageError(
            "the address of a store ends with its path",
            detail=f"{parts.scheme}://{parts.netloc}{parts.path} is followed by ? or #",
            hint="settings go into the replica's `options`; in a path write %3F or %23",
        )
    settings.check(parts.scheme)
    return opener(parts, options, settings)


def _open_directory(
    parts: SplitResult, options: Mapping[str, str], settings: StoreSettings
) -> Store:
    from cellarer.stores.local import LocalStore

    _check_options(parts.scheme, options)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise UsageError(
            "the address of a directory holds its whole path",
            detail=parts.geturl(),
            hint="write it with three slashes, as file:///srv/backups",
        )
    return LocalStore(Path(unquote(parts.path)))


def _open_bucket(parts: SplitResult, options: Mapping[str, str], settings: StoreSettings) -> Store:
    from cellarer.stores import clients
    from cellarer.stores.object_keys import is_key
    from cellarer.stores.objectstore import Clients, ObjectStore

    scheme, bucket, prefix = parts.scheme, parts.netloc, parts.path.strip("/")
    _check_options(scheme, options)
    if not is_key(bucket) or (prefix and not is_key(prefix)):
        raise UsageError(
            "this is not the address of a bucket",
            detail=parts.geturl(),
            hint=f"write it as {scheme}://bucket/prefix, of letters, digits, `.`, `_` and `-`",
        )
    prompt, patient = (
        clients.connect(scheme, bucket, prefix, options, settings, patient=patient)
        for patient in (False, True)
    )
    url = "/".join(filter(None, (f"{scheme}://{bucket}", prefix)))
    if settings.immutable_for is None:
        return ObjectStore(url, Clients(prompt, patient), settings)
    from cellarer.stores.aws import s3_client

    client = s3_client(options, settings.timeout.total_seconds())
    from cellarer.stores.object_lock import LockingStore

    return LockingStore(url, Clients(prompt, patient), settings, client, (bucket, prefix))


_OPENERS: dict[str, Callable[[SplitResult, Mapping[str, str], StoreSettings], Store]] = {
    "file": _open_directory,
    "s3": _open_bucket,
    "gs": _open_bucket,
    "az": _open_bucket,
}


def _check_options(scheme: str, options: Mapping[str, str]) -> None:
    known = OPTIONS[scheme]
    for name in options:
        if name in known:
            continue
        nearest = get_close_matches(name, known, n=1)
        hint = f"do you mean {nearest[0]}?" if nearest else f"known: {', '.join(known) or 'none'}"
        raise UsageError(f"a store at {scheme}:// has no option {name}", hint=hint)

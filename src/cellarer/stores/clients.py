"""The ways to a bucket: credentials, addresses and how long to wait, for each cloud.

Without credentials in the options, the usual places of the cloud are asked: environment variables,
workload identity, the machine's role; for Google also the application default credentials. A
profile of `~/.aws` is taken where one is named, through Amazon's own library.

obstore retries single requests for some seconds, as it knows which of them are safe to send again,
and goes on with a reply that broke off. Waiting for a store that is away is not its matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from cellarer import __version__
from cellarer.errors import UsageError
from cellarer.stores.aws import profile_credentials, profile_named
from cellarer.stores.loopback import is_loopback
from cellarer.stores.settings import StoreSettings

Client: TypeAlias = S3Store | GCSStore | AzureStore

# A host that does not answer costs two attempts to connect: about 10 seconds. One that accepts and
# stays silent costs one wait for a reply: 15 seconds.
_CONNECT = timedelta(seconds=5)
_SILENCE = timedelta(seconds=15)
_WHOLE_REQUEST = timedelta(minutes=5)
_RETRY = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=2),
        "base": 2,
    },
}


def connect(
    scheme: str,
    bucket: str,
    prefix: str,
    options: Mapping[str, str],
    settings: StoreSettings,
    *,
    patient: bool,
) -> Client:
    """A client for the bucket. `patient` is for large uploads over slow lines.

    `scheme` is `s3`, `gs` or `az`. Asks nothing of the network. Raises `UsageError` for options
    that cannot be meant; their values are in no message.
    """
    make = _MAKERS[scheme]
    endpoint = options.get("endpoint", "")
    if endpoint:
        _check_endpoint(endpoint)
    transport: dict[str, Any] = {
        "client_options": _client_options(endpoint, settings.timeout, patient=patient),
        "retry_config": _RETRY,
        "prefix": prefix or None,
    }
    try:
        return make(bucket, options, settings, transport)
    except (BaseError, ValueError):
        # Not with the cause, whose text may quote a key.
        raise UsageError(
            f"the options for {scheme}://{bucket} do not make a usable client",
            hint=_CREDENTIAL_HINTS[scheme],
        ) from None


def _s3(
    bucket: str, options: Mapping[str, str], settings: StoreSettings, transport: dict[str, Any]
) -> Client:
    given: dict[str, Any] = {
        name: options[name] for name in ("region", "endpoint") if options.get(name)
    }
    key_id, secret = _pair(options, "s3")
    if key_id:
        credential = {
            "access_key_id": key_id,
            "secret_access_key": secret,
            "token": options.get("session_token") or None,
            "expires_at": None,
        }
        # By a provider and not as settings: those would be mixed with what the environment has,
        # such as the session token of somebody else.
        transport["credential_provider"] = lambda: credential
    elif profile := profile_named(options):
        transport["credential_provider"], region = profile_credentials(profile)
        if region:
            given.setdefault("region", region)
    if settings.encryption:
        given["server_side_encryption"] = settings.encryption
    if settings.kms_key:
        given["sse_kms_key_id"] = settings.kms_key
    return S3Store(
        bucket,
        # `etag` means If-None-Match, on which "create if absent" stands. Single deletes, as not
        # every store of this kind knows the bulk request.
        conditional_put="etag",
        disable_bulk_delete=True,
        **given,
        **transport,
    )


def _gcs(
    bucket: str, options: Mapping[str, str], settings: StoreSettings, transport: dict[str, Any]
) -> Client:
    names = {"endpoint": "base_url", "service_account_key": "service_account_key"}
    given: dict[str, Any] = {new: options[old] for old, new in names.items() if options.get(old)}
    return GCSStore(bucket, **given, **transport)


def _azure(
    bucket: str, options: Mapping[str, str], settings: StoreSettings, transport: dict[str, Any]
) -> Client:
    account, key = _pair(options, "az")
    given: dict[str, Any] = {"account_name": account, "account_key": key} if account else {}
    if options.get("endpoint"):
        given["endpoint"] = options["endpoint"]
    return AzureStore(bucket, **given, **transport)


_Maker = Callable[[str, Mapping[str, str], StoreSettings, dict[str, Any]], Client]
_MAKERS: dict[str, _Maker] = {
    "s3": _s3,
    "gs": _gcs,
    "az": _azure,
}
_CREDENTIAL_HINTS = {
    "s3": "check `region`, `endpoint`, `access_key_id` and `secret_access_key`",
    "gs": "`service_account_key` is the JSON text of a service account's key file",
    "az": "`access_key_id` is the name of the storage account, `secret_access_key` its key; "
    "without them, AZURE_STORAGE_ACCOUNT_NAME names the account",
}


def _pair(options: Mapping[str, str], scheme: str) -> tuple[str, str]:
    """The credentials, both or none."""
    key_id, secret = options.get("access_key_id", ""), options.get("secret_access_key", "")
    if bool(key_id) != bool(secret):
        lacking = "secret_access_key" if key_id else "access_key_id"
        raise UsageError(f"the option {lacking} is missing", hint=_CREDENTIAL_HINTS[scheme])
    return key_id, secret


def _client_options(endpoint: str, timeout: timedelta, *, patient: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "allow_http": endpoint.startswith("http://"),
        "connect_timeout": _CONNECT,
        # The wait for a reply counts from the upload's first byte, so there is no shorter bound
        # for large uploads.
        "timeout": timeout if patient else min(timeout, _WHOLE_REQUEST),
        "user_agent": f"cellarer/{__version__}",
    }
    if not patient:
        options["read_timeout"] = min(timeout, _SILENCE)
    host = urlsplit(endpoint).hostname or ""
    if is_loopback(host):
        # No proxy can reach this machine's own loopback. Naming one, and excluding the host from
        # it, is how obstore is told to leave out the proxies of the environment.
        options["proxy_url"], options["proxy_excludes"] = endpoint, host
    return options


def _check_endpoint(endpoint: str) -> None:
    parts = urlsplit(endpoint)
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            "the option endpoint must not hold credentials",
            hint="give them as the options access_key_id and secret_access_key",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise UsageError(
            "the option endpoint is not an address",
            hint="write it as https://host or https://host:port",
        )

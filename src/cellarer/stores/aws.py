"""What obstore leaves to Amazon's own library: profiles, single sign-on, and object lock.

boto3 is an extra. It is asked for only where a profile is named or objects are to be locked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from cellarer.errors import ToolMissing, UsageError
from cellarer.stores.loopback import is_loopback

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 60.0
"""How long nothing at all may move on a connection; sending counts as moving."""
ATTEMPTS = 3


def profile_named(options: Mapping[str, str]) -> str:
    """The profile of `~/.aws` to take credentials from; empty where none is named.

    As in Amazon's own tools, keys in the environment come before `AWS_PROFILE`.
    """
    if options.get("access_key_id"):
        return ""
    if options.get("profile"):
        return options["profile"]
    return "" if os.environ.get("AWS_ACCESS_KEY_ID") else os.environ.get("AWS_PROFILE", "")


def profile_credentials(profile: str) -> tuple[Callable[[], Any], str]:
    """What gives obstore the credentials of a profile, and the profile's region, if any.

    Raises `ToolMissing` without boto3, `UsageError` for a profile that is not there.
    """
    session = _session(profile)
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        provider = Boto3CredentialProvider(session)
    except (ValueError, BotoCoreError) as error:
        # Only the kind: a program that was asked for the credentials may have said anything.
        kind = type(error).__name__
        raise UsageError(
            f"the profile {profile} gives no credentials",
            detail="" if isinstance(error, ValueError) else kind,
            hint=f"see `aws configure list --profile {profile}`",
        ) from None
    return provider, session.region_name or ""


def s3_client(options: Mapping[str, str], timeout_seconds: float) -> Any:
    """A client of Amazon's library, for what obstore cannot send.

    Raises `ToolMissing` without boto3, `UsageError` for a profile that is not there.
    """
    session = _session(profile_named(options))
    from botocore.config import Config

    endpoint = options.get("endpoint") or None
    loopback = is_loopback(urlsplit(endpoint or "").hostname or "")
    return session.client(
        "s3",
        endpoint_url=endpoint,
        region_name=options.get("region") or session.region_name or "us-east-1",
        aws_access_key_id=options.get("access_key_id") or None,
        aws_secret_access_key=options.get("secret_access_key") or None,
        aws_session_token=options.get("session_token") or None,
        config=Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=min(timeout_seconds, SILENCE_SECONDS),
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            s3={"addressing_style": "path"} if endpoint else None,
            # None is what the environment says; an empty table is no proxy.
            proxies={} if loopback else None,
        ),
    )


def _session(profile: str) -> Any:
    if find_spec("boto3") is None:
        raise ToolMissing(
            "Amazon's library is not installed",
            detail="profiles and immutable_for need it",
            hint="pip install 'cellarer[aws]'",
        )
    import boto3
    from botocore.exceptions import ProfileNotFound

    try:
        return boto3.Session(profile_name=profile or None)
    except ProfileNotFound:
        raise UsageError(
            f"there is no profile {profile}",
            detail="neither in ~/.aws/config nor in ~/.aws/credentials",
            hint=f"see `aws configure list-profiles`, or run `aws configure --profile {profile}`",
        ) from None

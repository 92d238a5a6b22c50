"""What the refusals of object stores mean, in words that say what to look at.

obstore hands on the text of the HTTP reply and, for a failed connection, a trace. Only the parts
that are known to be harmless are taken out of it: a reply may quote the signed request.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cellarer.errors import ObjectLocked, StoreError

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9._-]{1,80})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,300})")
_CAUSE = re.compile(r'(?:message|error): "([^"]{1,200})"|(invalid peer certificate: \w+)')
# Amazon's library, asked for the credentials of a profile; only the kind of its error is told.
_PROVIDER = re.compile(r"External \w+ credential provider: (?:\w+\.)*(\w+)")
# Where clouds hand out the credentials of the machine; see object_store's AWS, GCP, Azure modules.
_CREDENTIAL_HOSTS = ("169.254.169.254", "169.254.170.2", "metadata.google", "/metadata/identity")

_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted", "InvalidBucketName"}
_WRONG_KEY = {
    "AuthFailure", "AuthenticationFailed", "ExpiredToken", "InvalidAccessKeyId",
    "InvalidAuthenticationInfo", "InvalidToken", "SignatureDoesNotMatch", "TokenRefreshRequired",
    "UnrecognizedClientException",
}  # fmt: skip
_WRONG_REGION = {
    "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "IncorrectEndpoint",
    "PermanentRedirect",
}  # fmt: skip
_LOCKED = {"BlobImmutableDueToPolicy", "ObjectLocked", "RetentionPolicyNotMet"}

_ELSEWHERE = ("the bucket lies elsewhere", "set the `region` of the bucket in `options`")
_NOT_ACCEPTED = (
    "the store does not accept the credentials",
    "check the keys in the replica's `options`, that they have not expired, and that this "
    "machine's clock is right",
)
# What a code of the store means, and what to do; trying again does not help with any of these.
_BY_CODE = (
    (_NO_BUCKET, ("there is no such bucket", "create it, or correct the replica's `url`")),
    (
        {"RequestTimeTooSkewed", "RequestExpired"},
        (
            "this machine's clock is not the store's",
            "set the clock, and keep it set by NTP (see `timedatectl`)",
        ),
    ),
    (_WRONG_REGION, _ELSEWHERE),
    (_LOCKED, ("the object is locked", "it can be removed once its retention has passed")),
    (_WRONG_KEY, _NOT_ACCEPTED),
    (
        {"InvalidStorageClass"},
        ("the store has no such storage class", "correct the replica's `storage_class`"),
    ),
)
_BY_STATUS = {
    301: _ELSEWHERE,
    307: _ELSEWHERE,
    401: _NOT_ACCEPTED,
    403: (
        "the credentials lack the right to do this",
        "allow reading, writing and listing of this bucket and prefix",
    ),
}
_PASSING = {408, 409, 425, 429}


@dataclass(frozen=True)
class Refusal:
    """One failed request, as far as its text tells.

    `status` is the HTTP status, 0 where no reply came; `code` and `text` are the store's own words.
    """

    status: int
    code: str
    text: str
    connects: bool = True
    credentials: bool = False
    region: bool = False

    @classmethod
    def parse(cls, error: Exception) -> Refusal:
        """Take out of an exception of obstore what is known to hold no secret."""
        said = str(error)
        head, _, trace = said.partition("Debug source:")
        status, code, message = (pattern.search(head) for pattern in (_STATUS, _CODE, _MESSAGE))
        cause = _CAUSE.search(trace) if "HTTP error" in head else None
        text = message[1] if message else next(filter(None, cause.groups())) if cause else ""
        if not text and "kind: Timeout" in trace:
            text = "no answer in time"
        provider = _PROVIDER.search(head)
        return cls(
            status=int(status[1]) if status else 0,
            code=code[1] if code else provider[1] if provider else "",
            text=" ".join(text.split()),
            connects="HTTP error" not in head,
            credentials=any(host in head for host in _CREDENTIAL_HOSTS)
            or "credential error" in head
            or provider is not None,
            region="redirect without LOCATION" in head,
        )

    @property
    def bucket_missing(self) -> bool:
        """Whether it is not the object that is missing, but all that it would lie in."""
        return self.code in _NO_BUCKET

    @property
    def detail(self) -> str:
        """The store's own words."""
        status = f"HTTP {self.status}" if self.status else ""
        return ": ".join(filter(None, (" ".join(filter(None, (status, self.code))), self.text)))

    def as_error(self, message: str, url: str) -> StoreError:
        """The error to raise when `message` could not be done at `url`."""
        reason, hint, retryable = self._meaning()
        detail = "; ".join(filter(None, (reason, self.detail, url)))
        if self.code in _LOCKED:
            return ObjectLocked(message, detail=detail, hint=hint)
        return StoreError(message, detail=detail, hint=hint, retryable=retryable)

    def _meaning(self) -> tuple[str, str, bool]:
        """What it is, what to do, and whether trying again may help."""
        if self.credentials:
            return (
                "no credentials for the store were found",
                "name them in the replica's `options`, or give them as the cloud's own tools take "
                "them: environment variables, a workload identity or the machine's role; for a "
                "profile with single sign-on run `aws sso login --profile NAME`",
                False,
            )
        if not self.connects:
            return (
                "the store does not answer",
                "check the `endpoint` or region, the name service, the firewall, and the proxy in "
                "HTTPS_PROXY; then whether the service itself is up",
                True,
            )
        if self.region:
            return *_ELSEWHERE, False
        for codes, meaning in _BY_CODE:
            if self.code in codes:
                return *meaning, False
        if self.code.startswith("KMS."):
            return (
                "the key of the store's own encryption cannot be used",
                "check the replica's `kms_key`, and the right to use it",
                False,
            )
        if self.code == "InvalidRequest" and "lock" in self.text.lower():
            return (
                "the bucket has no object lock",
                "make a bucket with object lock on, or leave immutable_for out; see "
                "docs/guides/stores.md",
                False,
            )
        if self.status in _BY_STATUS:
            return *_BY_STATUS[self.status], False
        if self.status in _PASSING or (self.status >= 500 and self.status != 501):
            return (
                "the store asks to try later",
                "try again; if it lasts, look at the service's status page",
                True,
            )
        return (
            "the store refused",
            "check that `endpoint` is an object store of this kind, and the replica's `url`",
            False,
        )

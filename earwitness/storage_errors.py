"""What the errors of storage libraries mean: it passes, the credentials are refused, or neither."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

from earwitness.errors import (
    CredentialsError,
    EarwitnessError,
    StorageUnavailableError,
    disk_error,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

CREDENTIAL_CODES = frozenset(
    {
        "AuthorizationHeaderMalformed",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "InvalidToken",
        "NotSignedUp",
        # this machine's clock is wrong: every request is refused, not one object
        "RequestExpired",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
        "UnrecognizedClientException",
    }
)
"""S3 error codes that refuse whoever asks, not one object."""

_PASSING_CODES = frozenset(
    {
        "BadDigest",
        "IncompleteBody",
        "InternalError",
        # an upload in parts whose end was heard of, and whose answer was lost, is begun anew
        "InvalidPart",
        "NoSuchUpload",
        "OperationAborted",
        # a file that is read in parts is another one by now: it is read anew
        "InvalidRange",
        "PreconditionFailed",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "XAmzContentSHA256Mismatch",
    }
)
_PASSING_STATUS = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
_PASSING_ERRNOS = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.EIO,
        errno.ENETUNREACH,
        errno.EPIPE,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
_PASSING_MODULES = (
    "aiohttp.",
    "botocore.",
    "aiobotocore.",
    "urllib3.",
    "requests.",
    "httpx.",
    "httpx2.",
    "httpcore.",
)
_NOT_PASSING = frozenset(
    {
        "InvalidURL",
        "NoRegionError",
        "ParamValidationError",
        "ProfileNotFound",
        "TooManyRedirects",
        "UnsupportedProtocol",
    }
)
_NO_CREDENTIALS = frozenset(
    {"CredentialRetrievalError", "NoCredentialsError", "PartialCredentialsError"}
)


# errors of huggingface_hub, by name: importing it to compare them takes seconds
_DENIED = frozenset({"DisabledRepoError", "GatedRepoError"})
_MISSING = frozenset(
    {
        "BucketNotFoundError",
        "EntryNotFoundError",
        "RepositoryNotFoundError",
        "RevisionNotFoundError",
    }
)
_MISSING_STATUS = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
_DENIED_STATUS = frozenset(
    {
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.UNAVAILABLE_FOR_LEGAL_REASONS,
    }
)
_REFUSED_LOGIN = "Invalid credentials in Authorization header"
"""How a hub refuses a token that it does not know, whatever is asked for."""
_NO_SUCH = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO, errno.ENODEV})
"""Names that no file can have, links in a circle, devices without a driver."""


def error_code(error: BaseException) -> str:
    """The S3 error code a translated error came from, or an empty string."""
    return _answer(error)[0]


def _answer(error: BaseException) -> tuple[str, int]:
    """S3's error code and the HTTP status behind an error; empty and 0 where there was none."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            code = str(response.get("Error", {}).get("Code", ""))
            return code, int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        status = getattr(response, "status_code", None)
        if isinstance(status, int):
            return "", status
    return "", 0


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def says_denied(error: BaseException) -> bool:
    """Whether an error says that an object may not be read."""
    names = {kind.__name__ for cause in _causes(error) for kind in type(cause).__mro__}
    if isinstance(error, PermissionError) or names & _DENIED:
        return True
    # a hub answers 401 for what is not there, too, and says so by the error's kind
    code, status = _answer(error)
    return not names & _MISSING and not code and status in _DENIED_STATUS


def says_missing(error: BaseException) -> bool:
    """Whether an error says that there is no such object."""
    kinds = FileNotFoundError | NotADirectoryError | IsADirectoryError
    if isinstance(error, kinds) or (isinstance(error, OSError) and error.errno in _NO_SUCH):
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    code, status = _answer(error)
    return bool(names & _MISSING) or (not code and status in _MISSING_STATUS)


def translate_error(error: BaseException, uri: str) -> EarwitnessError | None:
    """What a storage library's error means for us.

    Args:
        error: What the library raised.
        uri: The object it was about.

    Returns:
        `StorageUnavailableError` when it may pass, `CredentialsError` when the credentials
        themselves were refused, `DiskError` for a full one; None when it says something about
        the object alone (missing, access denied) or nothing known.
    """
    name = type(error).__name__
    code, status = _answer(error)
    bad_token = status == HTTPStatus.UNAUTHORIZED and _REFUSED_LOGIN in str(error)
    if code in CREDENTIAL_CODES or name in _NO_CREDENTIALS or bad_token:
        return CredentialsError(
            f"the storage of {uri} refused the credentials ({code or name}); "
            "set valid ones in the environment (for S3 AWS_ACCESS_KEY_ID, AWS_PROFILE, …; "
            "for hf:// HF_TOKEN)"
        )
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, OSError) and (full := disk_error(error, uri)):
        return full
    if (
        code in _PASSING_CODES
        or status >= HTTPStatus.INTERNAL_SERVER_ERROR
        or status in _PASSING_STATUS
    ):
        return _unavailable(error, uri)
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return None
    if status:
        return None
    module = f"{type(error).__module__}."
    passing = (
        isinstance(error, TimeoutError | ConnectionError)
        or number in _PASSING_ERRNOS
        or (module.startswith(_PASSING_MODULES) and not code and name not in _NOT_PASSING)
    )
    return _unavailable(error, uri) if passing else None


def _unavailable(error: BaseException, uri: str) -> StorageUnavailableError:
    told = " ".join(str(error).split())
    return StorageUnavailableError(
        f"the storage of {uri} does not answer: {type(error).__name__}: {told}"
    )


@contextmanager
def translated(uri: str) -> Iterator[None]:
    """Raise our own errors for what storage libraries raise inside the block."""
    try:
        yield
    except EarwitnessError:
        raise
    except Exception as error:
        ours = translate_error(error, uri)
        if ours is None:
            raise
        raise ours from error

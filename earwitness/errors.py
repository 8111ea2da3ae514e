"""Every error earwitness raises on purpose.

    EarwitnessError
    ├── TransientError              worth another try, here or on the next run
    │   ├── StorageUnavailableError     time-outs, 5xx, resets from object storage or a web server
    │   └── EngineUnavailableError      the engine is down, restarting or overloaded
    ├── BadRecordError              one record's own fault: becomes a rejection, the rest goes on
    └── FatalError                  a person has to change something first
        ├── SettingsError               a setting is wrong or contradicts another
        ├── ManifestError               the manifest as a whole cannot be read
        ├── DiskError                   a disk is full, or may only be read
        ├── CredentialsError            object storage refused the credentials themselves
        ├── EngineStartError            the engine did not come up; carries vLLM's own reason
        ├── ModelIdentityError          the model cannot be named or is not the one declared
        ├── BuildNotFoundError          no such build, or nothing published yet
        ├── BuildVersionError           another version of earwitness planned the build
        ├── BuildBusyError              another process is working on this build
        ├── BuildDamagedError           stored files do not match their plan or receipts
        ├── ShardFailedError            too much of a shard failed for reasons that will pass
        ├── LedgerError                 rows do not add up; nothing was published
        └── TooManyRejectionsError      more rejections than the build allows; not published

Constructors take positional arguments only, so that every error survives pickling between
processes (an exception with keyword-only arguments does not).
"""

from __future__ import annotations

import errno
import os
from difflib import get_close_matches
from typing import TYPE_CHECKING

from earwitness.addresses import without_secrets
from earwitness.escaping import printable

if TYPE_CHECKING:
    from pathlib import Path

    from earwitness.records import Rejection


class EarwitnessError(Exception):
    """Base of all of earwitness's own errors; its text is meant for a person.

    It ends up on terminals, in logs and in rejections, and quotes strangers: passwords and
    signatures of addresses are blotted out, control characters made visible.
    """

    def __str__(self) -> str:
        return printable(without_secrets(super().__str__()), lines=True)


class TransientError(EarwitnessError):
    """Something that may well work when tried again."""


class StorageUnavailableError(TransientError):
    """Object storage or a web server timed out, broke off or answered 5xx."""


class EngineUnavailableError(TransientError):
    """The engine does not answer now; it may be restarting or overloaded."""


class BadRecordError(EarwitnessError):
    """One record cannot be answered; raised at the place that knows, kept as its rejection.

    Args:
        rejection: The rejection the record ends with.
    """

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection)
        self.rejection = rejection

    def __str__(self) -> str:
        return f"{self.rejection.reason}: {self.rejection.detail}"


class FatalError(EarwitnessError):
    """Trying again without a change would end the same way."""


class SettingsError(FatalError):
    """A setting is wrong, missing, or contradicts another one."""


class ManifestError(FatalError):
    """The manifest as a whole cannot be read (not one bad line of it)."""


class DiskError(FatalError):
    """A disk is full, or may only be read."""


_DISK_TROUBLE = {
    errno.ENOSPC: "there is no space left in",
    errno.EDQUOT: "the disk quota is exceeded in",
    errno.EROFS: "the file system is read-only at",
}


def disk_error(error: OSError, where: str) -> DiskError | None:
    """What to tell of an error that is the disk's.

    Args:
        error: As the system raised it.
        where: Folder, file or address that was written to.

    Returns:
        The error to raise; None: it is another trouble.
    """
    trouble = _DISK_TROUBLE.get(error.errno or 0)
    if trouble is None:
        return None
    return DiskError(f"{trouble} {where}: fix this, then run again; finished work is kept")


def told_os_error(error: OSError, path: object = "") -> str:
    """What an error of the file system means, as the rest of a sentence.

    Args:
        error: As the system raised it.
        path: The file or folder it is about. Default: the one that the error names.
    """
    known = _OS_TROUBLE.get(error.errno or 0)
    where = str(path or error.filename or "the file")
    if known is not None:
        return f"{known} {where}" if known.endswith(("at", "for")) else f"{where} {known}"
    return f"{where}: {error.strerror or ' '.join(str(error).split()) or type(error).__name__}"


def close_name(path: Path) -> str:
    """`(did you mean …?)` with the file beside a missing one that is named nearly like it."""
    try:
        names = [] if path.exists() else sorted(os.listdir(path.parent))  # noqa: PTH208 - names alone
    except OSError:
        return ""
    close = get_close_matches(path.name, names, n=1, cutoff=0.75)
    return f" (did you mean {path.with_name(close[0])}?)" if close else ""


_OS_TROUBLE = {
    errno.ENOENT: "there is no file at",
    errno.ENOTDIR: "cannot exist: a part of its path is a file, not a folder",
    errno.EISDIR: "is a folder, not a file",
    errno.EEXIST: "exists already",
    errno.EACCES: "there is no permission for",
    errno.EPERM: "there is no permission for",
    errno.ENAMETOOLONG: "has a name that is too long for the file system",
    errno.ELOOP: "is a symbolic link to itself",
}


class CredentialsError(FatalError):
    """Object storage refused the credentials themselves, not one object."""


class EngineStartError(FatalError):
    """The engine did not come up.

    Args:
        reason: vLLM's own reason, in a line or two.
        log: Where the engine's whole output is.
    """

    def __init__(self, reason: str, log: str = "") -> None:
        super().__init__(reason, log)
        self.reason = reason
        self.log = log

    def __str__(self) -> str:
        where = f"\nThe engine's whole output: {self.log}" if self.log else ""
        return f"the engine did not start: {printable(without_secrets(self.reason))}{where}"


class ModelIdentityError(FatalError):
    """The model cannot be resolved to an identity, or an engine serves another one."""


class BuildNotFoundError(FatalError):
    """There is no such build at this output."""


class BuildVersionError(FatalError):
    """Another version of earwitness planned a build; its files mean something else."""


class BuildBusyError(FatalError):
    """Another process is working on this build right now."""


class BuildDamagedError(FatalError):
    """Files in storage do not match what the plan or a receipt says of them."""


class ShardFailedError(FatalError):
    """More of a shard's clips failed for passing reasons than may be written off as rejections."""


class LedgerError(FatalError):
    """Rows do not equal answered + rejected; nothing was published."""


class TooManyRejectionsError(FatalError):
    """The share of rejections is over `max_rejected`; nothing was published."""

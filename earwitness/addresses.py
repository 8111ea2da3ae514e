"""Addresses of files and objects, as manifests and people write them."""

from __future__ import annotations

import os
import posixpath
import re
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

_SIGNATURES = (
    "X-Amz-Signature|X-Amz-Credential|X-Amz-Security-Token|AWSAccessKeyId|Signature|"
    "X-Goog-Signature|X-Goog-Credential|sig|access_token|api_key|apikey|password"
)
_SIGNED = re.compile(rf"(?i)([?&](?:{_SIGNATURES})=)[^&\s'\"#]+")
# a key may hold slashes; what follows a host and a colon is a port, not a password
_LOGIN = re.compile(r"(://)([^/?#@\s:]*:(?!\d+[/?#])[^?#@\s]+)(?=@)")
_HTTP_LOGIN = re.compile(r"(?i)(https?://)([^/?#@\s]+)(?=@)")

KNOWN_SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "http", "https", "file")
"""Schemes that people write. Which of them can be opened depends on the packages installed."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_SLIP = re.compile(rf"(?i)({'|'.join(KNOWN_SCHEMES)})(?::/?(?!/)(?!\d+(?:/|$))|/{{2}})")
"""A scheme without its colon, or with fewer than two slashes."""
_HOME = re.compile(r"~[A-Za-z0-9_.-]*(/|$)")
_WINDOWS = re.compile(r"[A-Za-z]:[\\/](?!/)")


def has_login(uri: str) -> bool:
    """True when an address carries `user:password@`, or over http any `user@`."""
    return bool(_LOGIN.search(uri) or _HTTP_LOGIN.search(uri))


def is_signed(uri: str) -> bool:
    """True when an address carries a signature, as presigned URLs do, or a key."""
    return "://" in uri and bool(_SIGNED.search(uri))


def without_secrets(text: str) -> str:
    """A text with passwords and signatures of the addresses in it blotted out."""
    if "://" not in text:
        return text
    text = _LOGIN.sub(r"\1***", text)
    return _SIGNED.sub(r"\1***", _HTTP_LOGIN.sub(r"\1***", text))


def split_protocol(uri: str) -> str:
    """The URI's protocol in lower case; `file` for plain paths."""
    head, separator, _ = uri.partition("://")
    return head.lower() if separator and head.isidentifier() else "file"


def local_path(uri: str) -> Path:
    """The path a local URI (`file://…` or a plain path) names."""
    if split_protocol(uri) == "file" and uri[:7].lower() == "file://":
        return Path(unquote(urlsplit(uri).path))
    return Path(uri)


def absolute_uri(uri: str) -> str:
    """The URI with a plain relative path made absolute, and its scheme in lower case."""
    protocol = split_protocol(uri)
    if protocol == "file":
        return str(local_path(uri).absolute())
    return f"{protocol}://{uri.partition('://')[2]}"


def address_fault(uri: str) -> str | None:
    """What is wrong with an address that a person typed, judged by its text alone.

    Each fault here would otherwise be read as the name of a local file or folder.

    Args:
        uri: A path or URL, as given.

    Returns:
        A sentence that begins with the address and says what to write; None: nothing is wrong.
    """
    if not uri.strip():
        return "an empty text is no path and no URL"
    if uri != uri.strip() and "://" in uri:
        return f"{uri!r} has a space before or after it: remove the space"
    if _HOME.match(uri):
        whole = str(Path.home()) + uri[1:] if uri[1:2] in {"", "/"} else "the whole path"
        return f"{uri!r}: ~ is only understood by a shell, and not in quotes: write {whole}"
    if _WINDOWS.match(uri):
        return f"{uri!r} is a path of Windows: write a path of this machine"
    slip = _SLIP.match(uri)
    if slip is not None:
        scheme = slip.group(1).lower()
        rest = uri[slip.end() :].lstrip("/")
        meant = f"{scheme}:///{rest}" if scheme == "file" else f"{scheme}://{rest}"
        return f"{uri!r} is not written like a URL: did you mean {meant}?"
    return _url_fault(uri)


def _has_file_system(scheme: str) -> bool:
    from fsspec.registry import known_implementations

    return scheme in known_implementations


def _url_fault(uri: str) -> str | None:
    scheme, mark, rest = uri.partition("://")
    if not mark or not _SCHEME.fullmatch(scheme):
        return None
    scheme = scheme.lower()
    fault = None
    if scheme == "file":
        if not rest.startswith(("/", "localhost/")):
            fault = f"{uri!r}: a file:// URL has three slashes before the path: file:///{rest}"
    elif scheme not in KNOWN_SCHEMES:
        close = get_close_matches(scheme, KNOWN_SCHEMES, n=1, cutoff=0.5)
        if close and not _has_file_system(scheme):
            fault = f"{uri!r}: {scheme}:// cannot be opened, did you mean {close[0]}://{rest}?"
        elif not scheme.isidentifier():
            fault = f"{uri!r}: {scheme}:// cannot be opened"
    elif not rest or rest.startswith("/"):
        place = "HOST" if scheme in {"http", "https"} else "BUCKET"
        fault = f"{uri!r} names no {place.lower()}: write {scheme}://{place}/FOLDER"
    return fault


def join_uri(base: str, relative: str) -> str:
    """Resolve a path against a folder, as a manifest means it.

    Args:
        base: Folder or URL that relative paths start from.
        relative: Path (`a.wav`, `../a.wav`), absolute path or full URL.

    Returns:
        An absolute URI; `..` is folded away without touching the file system.
    """
    if split_protocol(relative) != "file" or relative[:7].lower() == "file://":
        return relative
    protocol = split_protocol(base)
    if protocol == "file":
        return os.path.normpath(local_path(base).absolute() / relative)
    if protocol in {"http", "https"}:
        folder = base.rstrip("/") + "/"
        joined = urljoin(folder, relative)
        # "file:/x" and " file:///x" are odd names of files in the folder, no way out of the web
        web = split_protocol(joined) in {"http", "https"}
        return joined if web else urljoin(folder, f"./{relative}")
    if relative.startswith("/"):
        return relative
    root, _, path = base.partition("://")
    return f"{root}://{posixpath.normpath(posixpath.join(path, relative))}"


def parent_uri(uri: str) -> str:
    """The folder an object is in."""
    if split_protocol(uri) == "file":
        return str(local_path(uri).absolute().parent)
    if split_protocol(uri) in {"http", "https"}:
        uri = uri.partition("?")[0]  # a signature may hold slashes
    return uri.rpartition("/")[0]

"""Addresses of files and objects, as manifests and people write them."""

from __future__ import annotations

import os
import posixpath
import re
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
    """The URI with a plain relative path made absolute; everything else as it is."""
    return str(local_path(uri).absolute()) if split_protocol(uri) == "file" else uri


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

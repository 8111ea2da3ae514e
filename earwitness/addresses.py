"""Addresses of files and objects, as manifests and people write them."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit


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
        return urljoin(base.rstrip("/") + "/", relative)
    if relative.startswith("/"):
        return relative
    root, _, path = base.partition("://")
    return f"{root}://{posixpath.normpath(posixpath.join(path, relative))}"


def parent_uri(uri: str) -> str:
    """The folder an object is in."""
    if split_protocol(uri) == "file":
        return str(local_path(uri).absolute().parent)
    return uri.rpartition("/")[0]

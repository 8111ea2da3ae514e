"""Addresses of files and objects, as manifests and people write them."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from yarl import URL

_SIGNATURES = (
    "X-Amz-Signature|X-Amz-Credential|X-Amz-Security-Token|AWSAccessKeyId|Signature|"
    "X-Goog-Signature|X-Goog-Credential|sig|access_token|api_key|apikey|password"
)
_SIGNED = re.compile(rf"(?i)([?&](?:{_SIGNATURES})=)[^&\s'\"#]+")
# a key may hold slashes; what follows a host and a colon is a port, not a password
_LOGIN = re.compile(r"(://)([^/?#@\s:]*:(?!\d+[/?#])[^?#@\s]+)(?=@)")
_HTTP_LOGIN = re.compile(r"(?i)(https?://)([^/?#@\s]+)(?=@)")
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_TARGET = re.compile(r"[/?#]")
_TAIL = re.compile(r"[?#]")
# what RFC 3986 lets no address hold, and a percent sign that encodes nothing
_NEVER_SENT = re.compile(r"[^!#-;=?-\[\]_a-z~]|%(?![0-9A-Fa-f]{2})")

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
        return f"{uri!r} is empty: give a path or a URL"
    if uri != uri.strip() and "://" in uri:
        return f"{uri!r} has a space before or after it: remove the space"
    if _HOME.match(uri):
        whole = str(Path.home()) + uri[1:] if uri[1:2] in {"", "/"} else "the whole path"
        return f"{uri!r}: ~ is expanded only by a shell, and not inside quotes: write {whole}"
    if _WINDOWS.match(uri):
        return f"{uri!r} is a Windows path: write a path of this machine"
    slip = _SLIP.match(uri)
    if slip is not None:
        scheme = slip.group(1).lower()
        rest = uri[slip.end() :].lstrip("/")
        meant = f"{scheme}:///{rest}" if scheme == "file" else f"{scheme}://{rest}"
        return f"{uri!r} is not a valid URL: did you mean {meant}?"
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
            fault = (
                f"{uri!r}: a file:// URL needs three slashes before the path: write file:///{rest}"
            )
    elif scheme not in KNOWN_SCHEMES:
        close = get_close_matches(scheme, KNOWN_SCHEMES, n=1, cutoff=0.5)
        if close and not _has_file_system(scheme):
            fault = f"{uri!r}: {scheme}:// cannot be opened: did you mean {close[0]}://{rest}?"
        elif not scheme.isidentifier():
            fault = f"{uri!r}: {scheme}:// cannot be opened"
    elif not rest or rest.startswith("/"):
        place = "HOST" if scheme in {"http", "https"} else "BUCKET"
        fault = f"{uri!r} has no {place.lower()}: write {scheme}://{place}/FOLDER"
    return fault


def exact_url(text: str) -> URL:
    """A web address as it is sent: the text of its path and query stays as it is.

    A signature is made over that very text. Only characters that no request can hold (spaces,
    control characters, letters outside ASCII) are percent-encoded, once.

    Args:
        text: An address with its scheme.

    Raises:
        ValueError: It is no address.
    """
    from yarl import URL

    scheme, mark, rest = text.partition("://")
    if not mark:
        return URL(text)
    authority, target = _split_authority(rest)
    origin = URL(f"{scheme}://{authority}")
    target = target.partition("#")[0]
    if not target.startswith("/"):
        target = f"/{target}"
    # the query stays in the path: taken apart, an empty one would lose its question mark
    return URL.build(
        scheme=origin.scheme,
        authority=origin.raw_authority,
        path=_NEVER_SENT.sub(_encoded, target),
        encoded=True,
    )


def _encoded(found: re.Match[str]) -> str:
    # bytes of a header that are no UTF-8 come as surrogates
    return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogateescape"))


def join_web(base: str, reference: str) -> str:
    """Resolve a reference against a web address; neither text is normalised.

    Args:
        base: Absolute address, of a page or of a folder with its slash.
        reference: As a redirect or a manifest names it. Only the dots of its relative path are
            resolved.
    """
    if _ABSOLUTE.match(reference):
        return reference
    scheme, _, rest = base.partition("://")
    authority, target = _split_authority(rest)
    target = target.partition("#")[0]
    path, mark, query = target.partition("?")
    origin = f"{scheme}://{authority}"
    if reference.startswith("//"):
        return f"{scheme}:{reference}"
    if reference.startswith("/"):
        return origin + reference
    if reference.startswith("?"):
        return origin + path + reference
    if reference.startswith("#") or not reference:
        return origin + path + mark + query + reference
    relative = _TAIL.split(reference, maxsplit=1)[0]
    folders = path.split("/")[:-1] or [""]
    return origin + _walk(folders, relative, lowest=1) + reference[len(relative) :]


def _split_authority(rest: str) -> tuple[str, str]:
    authority = _TARGET.split(rest, maxsplit=1)[0]
    return authority, rest[len(authority) :]


def _walk(folders: list[str], path: str, *, lowest: int = 0) -> str:
    """A path that starts from folders, its dots resolved and its empty names kept."""
    names = list(folders)
    steps = path.split("/")
    for step in steps:
        if step == "..":
            del names[max(lowest, len(names) - 1) :]
        elif step != ".":
            names.append(step)
    if steps[-1] in {".", ".."}:
        names.append("")
    return "/".join(names)


def join_uri(base: str, relative: str) -> str:
    """Resolve a path against a folder, as a manifest means it.

    Args:
        base: Folder or URL that relative paths start from.
        relative: Path (`a.wav`, `../a.wav`), absolute path or full URL.

    Returns:
        An absolute URI; `..` is folded away without touching the file system. Keys of object
        storage and web addresses keep every other character, double slashes too.

    Raises:
        ValueError: It is no address.
    """
    if split_protocol(relative) != "file" or relative[:7].lower() == "file://":
        return relative
    protocol = split_protocol(base)
    if protocol == "file":
        return os.path.normpath(local_path(base).absolute() / relative)
    if protocol in {"http", "https"}:
        folder = base if base.endswith("/") else f"{base}/"
        joined = join_web(folder, relative)
        urlsplit(joined)  # half of an IPv6 address is refused here
        # "file:/x" and " file:///x" are odd names of files in the folder, no way out of the web
        web = split_protocol(joined) in {"http", "https"}
        return joined if web else join_web(folder, f"./{relative}")
    if relative.startswith("/"):
        return relative
    root, _, path = base.partition("://")
    return f"{root}://{_walk(path.removesuffix('/').split('/'), relative)}"


def parent_uri(uri: str) -> str:
    """The folder an object is in."""
    if split_protocol(uri) == "file":
        return str(local_path(uri).absolute().parent)
    if split_protocol(uri) in {"http", "https"}:
        uri = uri.partition("?")[0]  # a signature may hold slashes
    folder = uri.rpartition("/")[0]
    # a folder whose name is empty is named by its slash
    return f"{folder}/" if folder.endswith("/") else folder

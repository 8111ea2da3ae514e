"""From a record's audio field to the absolute URIs of its clips."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from earwitness.access import SCHEMES, WEB, AccessPolicy
from earwitness.addresses import join_uri, split_protocol, without_secrets
from earwitness.errors import BadRecordError
from earwitness.manifest.parse import json_kind, missing_audio
from earwitness.records import Reason, Rejection, Stage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from earwitness.records import Json

T = TypeVar("T")

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::.*)?", re.DOTALL)
_PLAIN_NAME = re.compile(r"[\w-][\w .-]*")
_BUILT_IN = WEB | {"file", "s3", "s3a"}
_MAX_KNOWN = 4096
_TRUSTING = AccessPolicy(trusted=True)


class ClipResolver:
    """Reads the audio field of records and makes its URIs absolute.

    Args:
        root: Folder or URL that relative paths start from.
        column: Name of the audio field.
        max_clips: A record with more clips is rejected.
        access: Where clips may come from, as far as their addresses' text tells.
    """

    def __init__(
        self, root: str, column: str, max_clips: int, access: AccessPolicy = _TRUSTING
    ) -> None:
        self._root = root
        self._column = column
        self._max_clips = max_clips
        self._access = access
        self._local = split_protocol(root) == "file"
        self._web = split_protocol(root) in WEB
        # clips lie many to a folder and to a host: joining and judging is paid once for each
        self._folders: dict[str, str] = {}
        self._starts: dict[str, str | None] = {}
        # schemes of which nothing but the name is judged, as they were written
        self._plain: set[str] = set()

    def resolve(self, record: Json) -> tuple[str, ...]:
        """The record's clips.

        Args:
            record: The manifest's fields.

        Returns:
            Absolute URIs, in order, at least one.

        Raises:
            BadRecordError: The record has no audio, or something else in its place.
        """
        value = record.get(self._column)
        if type(value) is list and len(value) == 1:
            return (self._absolute(value[0]),)
        if self._column not in record:
            _reject(Reason.NO_AUDIO, missing_audio(record, self._column))
        if value is None or value == []:
            state = "empty" if value == [] else "null"
            _reject(Reason.NO_AUDIO, f"field {self._column!r} is {state}")
        uris = [value] if isinstance(value, str) else value
        if not isinstance(uris, list):
            _reject(
                Reason.BAD_AUDIO,
                f"field {self._column!r} is {json_kind(value)}, not a list of paths or URLs",
            )
        if len(uris) > self._max_clips:
            _reject(
                Reason.TOO_MANY_CLIPS,
                f"field {self._column!r} names {len(uris)} clips, and --max-clips allows "
                f"{self._max_clips}",
            )
        return tuple([self._absolute(uri) for uri in uris])

    def named(self, value: Any) -> Any:
        """An audio field in the shape it came in, with every clip's address absolute.

        Args:
            value: The field. What is no address in it, or refused as one, stays as it is.
        """
        if isinstance(value, str):
            try:
                return self._absolute(value)
            except BadRecordError:
                return value
        if isinstance(value, list):
            return [self.named(item) for item in value]
        if isinstance(value, dict) and isinstance(value.get("path"), str):
            # beside the clip's own bytes a path is only its name
            return value if value.get("bytes") else {**value, "path": self.named(value["path"])}
        return value

    def _absolute(self, uri: Any) -> str:
        if not isinstance(uri, str) or not uri or uri.isspace():
            what = "an empty text" if isinstance(uri, str) else json_kind(uri)
            _reject(Reason.BAD_AUDIO, f"field {self._column!r} holds {what}, not a path or URL")
        if "\0" in uri:
            _reject(
                Reason.BAD_URI, f"field {self._column!r}: the path or URL has a NUL character in it"
            )
        protocol, mark, _ = uri.partition("://")
        if mark:
            if protocol in self._plain:
                return uri
            if _SCHEME.fullmatch(protocol):
                return self._judged(protocol, uri)
        elif uri.startswith("data:"):
            _reject(
                Reason.BAD_URI,
                f"field {self._column!r}: it holds the audio itself ({uri[:40]}), "
                "and only paths and URLs are read",
            )
        return self._join(uri)

    def _join(self, path: str) -> str:
        folder, slash, name = path.rpartition("/")
        if name in {"", ".", ".."} or (self._web and ("?" in path or "#" in path)):
            return self._joined(path, path)
        folder += slash
        base = self._folders.get(folder)
        if base is None:
            base = self._joined(folder, path)
            base = base if base.endswith("/") else f"{base}/"
            _remember(self._folders, folder, base)
        return base + name

    def _judged(self, scheme: str, uri: str) -> str:
        """A full address, unless it is known already that it will not be opened."""
        protocol = scheme.lower()
        if not _is_read(protocol):
            _reject(
                Reason.BAD_URI,
                f"field {self._column!r}: {protocol[:40]}:// cannot be opened ({uri[:120]})",
            )
        if protocol in WEB:
            # as far as the host goes; whatever shares this text shares the host
            end = uri.find("/", len(protocol) + 3)
            self._check(self._known(uri if end < 0 else uri[:end]), uri)
        elif protocol == "file":
            folder, _, name = uri.rpartition("/")
            plain = _PLAIN_NAME.fullmatch(name) and len(folder) > len("file:///")
            self._check(self._known(folder) if plain else self._access.refusal(uri), uri)
        elif len(self._plain) < _MAX_KNOWN:
            self._plain.add(scheme)
        return uri

    def _known(self, start: str) -> str | None:
        """The policy's word on every address that begins like this."""
        if start not in self._starts:
            _remember(self._starts, start, self._access.refusal(start))
        return self._starts[start]

    def _check(self, refusal: str | None, uri: str) -> None:
        if refusal is not None:
            detail = f"field {self._column!r}: {without_secrets(uri[:120])}: {refusal}"
            _reject(Reason.ADDRESS_REFUSED, detail)

    def _joined(self, relative: str, path: str) -> str:
        try:
            joined = join_uri(self._root, relative)
        except ValueError:  # "//[": half of an IPv6 address
            _reject(Reason.BAD_URI, f"field {self._column!r}: {path[:120]!r} is no valid URL")
        self._check(self._access.refusal(joined), path)
        if not self._local and not self._web and not relative.startswith("/"):
            # `..` past the bucket's root would name another bucket
            bucket = self._root.partition("://")[2].partition("/")[0]
            if joined.partition("://")[2].partition("/")[0] != bucket:
                _reject(
                    Reason.BAD_URI, f"field {self._column!r}: {path[:120]} leads out of the bucket"
                )
        return joined


def audio_root_hint(paths: Iterable[str], audio_root: str) -> str | None:
    """What to say when relative clips are found only from the working directory.

    Args:
        paths: Clips as the manifest names them; a few of its first records' do.
        audio_root: Where relative paths start from now.

    Returns:
        A sentence with the option that helps, None when there is nothing to say.
    """
    if split_protocol(audio_root) != "file":
        return None
    relative = [path for path in paths if "://" not in path and not path.startswith("/")]
    # texts of any length and kind: a path that no file can have is no file
    lost = [path for path in relative if not os.path.exists(join_uri(audio_root, path))]  # noqa: PTH110
    here = next((path for path in lost if os.path.exists(path)), None)  # noqa: PTH110
    if here is None or len(lost) < len(relative):
        return None
    return (
        f"the manifest's clips are relative to the working directory, not to {audio_root} "
        f"({here[:120]} exists only in the working directory): add --audio-root ."
    )


def _remember(known: dict[str, T], name: str, value: T) -> None:
    if len(known) >= _MAX_KNOWN:
        known.clear()
    known[name] = value


@lru_cache(maxsize=256)
def _is_read(protocol: str) -> bool:
    """Whether clips of this scheme can be opened here."""
    if protocol in _BUILT_IN:
        return True
    if protocol not in SCHEMES:
        return False
    from fsspec import get_filesystem_class

    try:
        get_filesystem_class(protocol)
    except (ImportError, ValueError):  # a package for it is not installed
        return False
    return True


def _reject(reason: Reason, detail: str) -> NoReturn:
    raise BadRecordError(Rejection(Stage.PLAN, reason, detail))

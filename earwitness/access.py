"""Where clips may come from: which folders, which addresses on the network, which schemes.

The manifest of a stranger names what the machine that builds can reach: its files, the services of
its network, the credentials its cloud hands out at a fixed address. Everything here is judged
without I/O; who opens files and connections asks with what was really opened.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from earwitness.addresses import local_path, split_protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

WEB = frozenset({"http", "https"})
SCHEMES = WEB | {"file", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf"}
"""Every scheme a clip's address may have; none of them reads through another one."""

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_LOOKS_NUMERIC = re.compile(r"[0-9a-fA-F.:]+/\d+")
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_OLD_V4 = ipaddress.IPv6Network("::/96")

_NEVER: tuple[Network, ...] = tuple(
    map(
        ipaddress.ip_network,
        (
            "169.254.0.0/16",  # link-local, and in it the metadata of most clouds
            "fe80::/10",
            "fd00:ec2::254",  # Amazon's and Google's metadata by IPv6
            "fd20:ce::254",
            "100.100.100.200",  # Alibaba's metadata
            "168.63.129.16",  # Azure's host agent, at an address that looks public
            "0.0.0.0/8",  # connects to this machine
            "::/128",
            "224.0.0.0/4",  # multicast and broadcast
            "ff00::/8",
            "255.255.255.255",
        ),
    )
)
"""Where no clip lies, whoever wrote the manifest."""

_KNOWN_NAMES = {"localhost": "127.0.0.1", "metadata.google.internal": "169.254.169.254"}


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """Where clips may come from. Without arguments: from public addresses and object storage.

    Attributes:
        trusted: Any local file and any ordinary address may be named.
        folders: Otherwise local clips must lie below one of these; absolute.
        real_folders: The same folders with symbolic links resolved.
        hosts: Names, or `name:port`, that need no public address.
        networks: Addresses that need not be public.
        schemes: Schemes that are read at all.
    """

    trusted: bool = False
    folders: tuple[str, ...] = ()
    real_folders: tuple[str, ...] = ()
    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()
    schemes: frozenset[str] = SCHEMES

    def refusal(self, uri: str) -> str | None:
        """Why a clip's address is refused, judged by its text alone.

        Args:
            uri: Absolute address of a clip.

        Returns:
            The reason with the option that helps; None: nothing speaks against it so far.
        """
        protocol = split_protocol(uri)
        if protocol == "file":
            return None if self.trusted or self._names_inside(uri) else outside()
        if protocol not in WEB:
            return None
        try:
            parts = urlsplit(uri)
            host, port = parts.hostname or "", parts.port or _PORTS[protocol]
        except ValueError:
            return None  # no address at all, which opening it tells
        return self.host_refusal(host, port, strict=not self.trusted)

    def holds(self, path: str) -> bool:
        """Whether a local file may be read.

        Args:
            path: Where the opened file really lies, without any symbolic link.
        """
        return self.trusted or _below(path, self.real_folders)

    def host_refusal(self, host: str, port: int, *, strict: bool) -> str | None:
        """Why a host is refused by its text: an address in any spelling, or a well-known name.

        Args:
            host: From the address about to be opened.
            port: Likewise.
            strict: Only public addresses and what is allowed expressly.

        Returns:
            The reason with the option that helps; None: its addresses have to be judged.
        """
        address = literal_address(host)
        if address is None:
            return None
        return self.address_refusal(host, port, address, strict=strict)

    def address_refusal(
        self, host: str, port: int, address: str | Address, *, strict: bool
    ) -> str | None:
        """Why one of a host's addresses is refused; None: it may be connected to.

        Args:
            host: From the address about to be opened.
            port: Likewise.
            address: What would be connected to.
            strict: Only public addresses and what is allowed expressly.
        """
        found = ipaddress.ip_address(address) if isinstance(address, str) else address
        faces = _faces(found)
        if not all(map(self._may_ever, faces)):
            return (
                f"{host} is a link-local, metadata or unspecified address "
                "(to allow it, add --allow with exactly this address)"
            )
        if not strict or self._is_allowed_host(host, port):
            return None
        if all(self._is_allowed(face) or _is_public(face) for face in faces):
            return None
        return f"{host} does not have a public address (to allow it, add --allow {host})"

    def _names_inside(self, uri: str) -> bool:
        try:
            path = os.path.normpath(local_path(uri).absolute())
        except ValueError:
            return False
        return _below(path, self.folders) or _below(path, self.real_folders)

    def _may_ever(self, address: Address) -> bool:
        never = next((network for network in _NEVER if address in network), None)
        if never is None:
            return True
        # a network that happens to hold it, 0.0.0.0/0 say, does not mean it
        return any(
            address in network and (network.prefixlen >= never.prefixlen)
            for network in self.networks
        )

    def _is_allowed(self, address: Address) -> bool:
        return any(address in network for network in self.networks)

    def _is_allowed_host(self, host: str, port: int) -> bool:
        name = host.lower().rstrip(".")
        return name in self.hosts or f"{name}:{port}" in self.hosts


def make_policy(
    manifest: str, audio_root: str | None, *, trusted: bool | None, allow: Iterable[str]
) -> AccessPolicy:
    """The policy that a build's settings mean.

    Args:
        manifest: Its address; a local one is trusted unless said otherwise.
        audio_root: Where relative clips start from; a local one may be read.
        trusted: As set.
        allow: As set; see `check_allowed`.
    """
    folders, hosts, networks = [], [], []
    if audio_root is not None and split_protocol(audio_root) == "file":
        folders.append(str(local_path(audio_root)))
    for entry in allow:
        found = check_allowed(entry)
        if isinstance(found, Network):
            networks.append(found)
        elif is_folder(found):
            folders.append(found)
        else:
            hosts.append(found)
    absolute = tuple(dict.fromkeys(os.path.abspath(folder) for folder in folders))  # noqa: PTH100 - folds `..` away as well
    return AccessPolicy(
        trusted=is_trusted(manifest, trusted=trusted),
        folders=absolute,
        real_folders=tuple(map(os.path.realpath, absolute)),
        hosts=frozenset(hosts),
        networks=tuple(networks),
    )


def is_trusted(manifest: str, *, trusted: bool | None) -> bool:
    """Whether a manifest may name what it likes: as set, else when it is local."""
    return split_protocol(manifest) == "file" if trusted is None else trusted


def check_allowed(entry: str) -> str | Network:
    """What an entry of `input.allow` stands for.

    Args:
        entry: A folder (with a slash in it), an address or network, a host name, `host:port`.

    Returns:
        The folder's path, the network, or the host's name in lower case.

    Raises:
        ValueError: It is none of these.
    """
    if entry[:7].lower() == "file://":
        return str(local_path(entry))
    try:
        return ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        pass
    if "://" not in entry and is_folder(entry) and not _LOOKS_NUMERIC.fullmatch(entry):
        return entry
    host, _, port = entry.rpartition(":") if ":" in entry else (entry, "", "")
    name = host.strip("[]")
    named = _HOST.fullmatch(name) or literal_address(name) is not None
    if named and (host == entry or port.isdecimal()):
        name = name.lower().rstrip(".")
        return f"{name}:{port}" if port else name
    raise ValueError("it has to be a folder (with a slash), a host, an IP address or a network")


def absolute_allowed(entry: str) -> str:
    """An entry of `input.allow` with a folder made absolute."""
    found = check_allowed(entry)
    return os.path.abspath(found) if isinstance(found, str) and is_folder(found) else entry  # noqa: PTH100 - folds `..` away as well


def is_folder(entry: str) -> bool:
    """Whether an entry of `input.allow` that is no network names a folder."""
    return "/" in entry or entry in {".", ".."}


def outside() -> str:
    """Why a local path is refused."""
    return "it is outside the folders of the clips (to allow it, add --allow FOLDER or --trusted)"


def literal_address(host: str) -> Address | None:
    """The address a host's text spells, also the ways C libraries read it (`127.1`, `0x7f000001`).

    Returns:
        None: a name, which only DNS can tell the addresses of.
    """
    text = host.strip("[]").rstrip(".").lower()
    text = _KNOWN_NAMES.get("localhost" if text.endswith(".localhost") else text, text)
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(text))
    except (OSError, UnicodeError):
        return None


def _faces(address: Address) -> tuple[Address, ...]:
    """An address and the IPv4 address inside it; only the latter where that is what is reached."""
    if isinstance(address, ipaddress.IPv4Address):
        return (address,)
    inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.ipv4_mapped is not None or address in _NAT64:
        return (inner,)
    if address.sixtofour is not None:
        return (address, address.sixtofour)
    if address in _OLD_V4 and int(address) > 1:
        return (address, inner)
    return (address,)


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address not in _PUBLIC_V6:
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _below(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)

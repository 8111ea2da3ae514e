"""What is wrong with an engine's address, where no waiting makes it right."""

from __future__ import annotations

import asyncio
import socket
import ssl
from urllib.parse import urlsplit

import aiohttp

from earwitness.errors import SettingsError

_BAD_REQUEST = 400
_HANDSHAKE_S = 10
_PLAIN_HTTP = frozenset(
    {"HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "WRONG_VERSION_NUMBER"}
)
"""What OpenSSL says of a server that answers a TLS handshake with plain http."""


def why_silent(error: Exception) -> str:
    """Why nothing came from a server, in plain words.

    Args:
        error: As the http client raised it.
    """
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its host name is not known"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "nothing listens there"
    if isinstance(error, TimeoutError):
        return "it does not reply"
    return f"it closed the connection ({type(error).__name__})"


def tls_fault(url: str, error: aiohttp.ClientError) -> SettingsError | None:
    """The fault of an https address whose server cannot be spoken to; None: it may pass.

    Args:
        url: The server's root.
        error: As the http client raised it.
    """
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
        why = getattr(cause, "verify_message", "") or cause
        return SettingsError(
            f"the certificate of {url} is not trusted on this machine ({why}): set SSL_CERT_FILE "
            "to a file with the certificate of its authority"
        )
    reason = getattr(getattr(error, "os_error", None), "reason", "")
    if isinstance(error, aiohttp.ClientConnectorSSLError) and reason in _PLAIN_HTTP:
        return SettingsError(
            f"the server at {url} does not use https: "
            f"did you mean http{url.removeprefix('https')}/v1?"
        )
    return None


def other_server(url: str, path: str, status: int, elsewhere: str, body: bytes) -> SettingsError:
    """The fault of an address where something else than an engine answers.

    Args:
        url: The server's root.
        path: What was asked for.
        status: The HTTP status.
        elsewhere: Where the reply leads on to; empty: nowhere.
        body: The reply.
    """
    if status == _BAD_REQUEST and b"https" in body.lower():
        return _wants_https(url)
    if elsewhere:
        return SettingsError(
            f"the server at {url} redirects to {elsewhere}: give the address of the engine itself"
        )
    parts = urlsplit(url)
    hint = f": did you mean {parts.scheme}://{parts.netloc}/v1?" if parts.path else ""
    return SettingsError(
        f"there is no OpenAI-compatible API at {url} ({url}{path} answers HTTP {status}){hint}"
    )


async def unreachable_for_good(url: str, error: BaseException | None) -> SettingsError | None:
    """The fault of an address that cannot be reached; None: an engine may come up there.

    Args:
        url: The server's root.
        error: As the http client raised it.
    """
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        host = urlsplit(url).hostname
        if error.os_error.errno != socket.EAI_NONAME:
            return None
        return SettingsError(f"the engine's address {url} names a host that does not exist: {host}")
    broken = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
    refused = isinstance(error, aiohttp.ClientConnectorError)
    plain = url.startswith("http://")
    return (
        _wants_https(url) if plain and broken and not refused and await _speaks_tls(url) else None
    )


def _wants_https(url: str) -> SettingsError:
    meant = f"https{url.removeprefix('http')}/v1"
    return SettingsError(f"the server at {url} answers only with https: write {meant}")


async def _speaks_tls(url: str) -> bool:
    """Whether a server that breaks off a plain request answers a TLS handshake."""
    context = ssl.create_default_context()
    # only the protocol is asked about: nothing is sent, and nothing is believed
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    parts = urlsplit(url)
    try:
        opened = asyncio.open_connection(parts.hostname, parts.port or 80, ssl=context)
        _, writer = await asyncio.wait_for(opened, _HANDSHAKE_S)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True

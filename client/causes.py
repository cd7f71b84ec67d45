"""What it means, and what to do, where a connection cannot be opened or has ended."""

from __future__ import annotations

import os
import ssl
from urllib.parse import urlsplit

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Response

from client.errors import (
    CannotConnect,
    ConnectionLost,
    Overloaded,
    RateLimited,
    ShuttingDown,
    Unauthorized,
    VisionAIError,
)


def proxy_hint(proxy: str | None, url: str) -> str:
    """What to say where a proxy may be at fault; its address may hold a password."""
    if proxy is None:
        return ""
    return f". The way led through the proxy that is set here; NO_PROXY={urlsplit(url).hostname} goes past it"


def unreachable(url: str, error: OSError) -> str:
    """What keeps a connection from being opened, and what to do about it."""
    address = where(url)
    match error:
        case ssl.SSLCertVerificationError():
            return (
                f"{address}: its certificate is not trusted (certificate verify failed: {error.verify_message}); "
                "set SSL_CERT_FILE to the file of its authority, where that is one of your own"
            )
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER"):
            return f"{address} does not speak TLS: try ws://"
        case ssl.SSLError():
            return f"{address}: TLS failed ({error.reason or error})"
        case ConnectionResetError() if url.startswith("wss:"):
            # How a server ends that cannot make sense of a TLS handshake; after it, the library has errors of its own.
            return f"{address} does not speak TLS: try ws:// (it closed the connection in the handshake)"
    return (
        f"nothing answers at {address} ({_reason(error)}): check that the service runs "
        "(`visionai serve` starts one) and that host and port are right"
    )


def _reason(error: OSError) -> str:
    """Why connecting failed: the system's own words, where asyncio replaced them by the call and its arguments."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error) or type(error).__name__


def where(url: str) -> str:
    """The address in words: scheme, host, port and path, without what may be a secret."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "wss" else 80)
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}{parts.path}"


def close_code(error: ConnectionClosed) -> int:
    """The code that the server closed with; 1006 without a closing frame."""
    return error.rcvd.code if error.rcvd is not None else 1006


def _close_reason(error: ConnectionClosed) -> str:
    return (error.rcvd.reason if error.rcvd is not None else "") or f"close code {close_code(error)}"


def closed(error: ConnectionClosed) -> VisionAIError:
    """What a closed connection means, by its close code.

    1008 says little: it is also that of a message which came in too slowly. Where it is about the token, the next
    connection is told so.
    """
    code, reason = close_code(error), _close_reason(error)
    if error.sent is not None and not error.rcvd_then_sent:
        # It was this side: whoever uses the client, or the library, as where no ping is answered.
        why = (
            f"the connection was given up ({error.sent.reason})"
            if error.sent.reason
            else "the client is closed"
        )
        return ConnectionLost(why, close_code=code)
    if code == 1013:
        return Overloaded(f"the server takes no more connections: {reason}")
    return ConnectionLost(f"the server closed the connection before it answered ({reason})", close_code=code)


def turned_away(error: ConnectionClosed) -> VisionAIError:
    """What it means to be closed in place of a welcome."""
    if close_code(error) == 1008:
        return Unauthorized(f"the server closed the connection: {_close_reason(error)}")
    return closed(error)


def refusal(url: str, error: InvalidStatus) -> VisionAIError:
    """What an HTTP status in place of the upgrade means."""
    status = error.response.status_code
    header = error.response.headers.get("Retry-After", "")
    retry_after = float(header) if header.isdigit() else None
    match status:
        case 401 | 403:
            said = _said(error.response)
            return Unauthorized(f"{where(url)} refuses the connection (HTTP {status}{said}): check the token")
        case 429:
            return RateLimited(
                f"{where(url)} refuses the connection: too many from here", retry_after=retry_after
            )
        case 503:
            return ShuttingDown(f"{where(url)} takes no connections now (HTTP 503)", retry_after=retry_after)
        case 502 | 504:
            return CannotConnect(
                f"{where(url)} is a proxy's, which does not reach the service (HTTP {status}): check that the service "
                "runs, and where the proxy looks for it"
            )
        case _:
            return CannotConnect(
                f"{where(url)} answers HTTP {status} and no WebSocket: check the path, which is /ws or /, and that "
                "a proxy in front passes WebSocket upgrades on"
            )


def _said(response: Response) -> str:
    """The reason in a refusal, such as that the token has expired; empty where it is none: a proxy's page, say."""
    reason = (response.body or b"").decode(errors="replace").strip()
    is_line = response.headers.get("Content-Type", "").startswith("text/plain") and reason.isprintable()
    return f": {reason}" if reason and is_line and len(reason) <= 200 else ""

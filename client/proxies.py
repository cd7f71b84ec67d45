"""The proxy that the environment sets for a server."""

from __future__ import annotations

from urllib.parse import urlsplit

from websockets.proxy import get_proxy
from websockets.uri import parse_uri

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def proxy_for(url: str) -> str | None:
    """The address of the proxy for a WebSocket's `url`; None where there is none, or where it is this machine's own.

    A proxy set for the web would not find that.

    Raises:
        WebSocketException, ValueError: one of the addresses is none.
    """
    return None if urlsplit(url).hostname in _LOOPBACK else get_proxy(parse_uri(url))

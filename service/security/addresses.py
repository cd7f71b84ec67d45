"""Who is at the other end: the peer's address, or what a trusted proxy says of it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from websockets.datastructures import Headers

from service.settings import Network

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# What one subscriber is given of IPv6 at least: whoever has it can change the rest at will.
_IPV6_PREFIX = 64

# Some proxies tell the client's port, too; the colons of IPv6 are then in brackets.
_HOP = re.compile(r"([\d.]+):\d+|\[([^]]+)\](?::\d+)?")


def client_address(peer: str | None, headers: Headers, trusted: Sequence[Network]) -> str | None:
    """The client's address: `peer`, but behind trusted proxies the last address that is not one of theirs.

    `X-Forwarded-For` is read from its end, since its beginning is whatever the client wrote; and only if the peer is
    a trusted proxy, since otherwise all of it is.
    """
    if not trusted or peer is None or not _within(_parse(peer), trusted):
        return peer
    hops = [hop.strip() for value in headers.get_all("X-Forwarded-For") for hop in value.split(",")]
    client = peer
    for hop in reversed(hops):
        with_port = _HOP.fullmatch(hop)
        address = _parse(hop if with_port is None else with_port[1] or with_port[2])
        if address is None:
            break
        client = str(address)
        if not _within(address, trusted):
            break
    return client


def group(address: str) -> str:
    """What limits per address count together: one IPv4 address, or the IPv6 network that one subscriber has."""
    parsed = _parse(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(parsed) >> _IPV6_PREFIX << _IPV6_PREFIX, _IPV6_PREFIX)))
    return address if parsed is None else str(parsed)


def _parse(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _within(address: Address | None, networks: Sequence[Network]) -> bool:
    return address is not None and any(address in network for network in networks)

"""Who is at the other end, as trusted proxies say it."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from websockets.datastructures import Headers

from service.security.addresses import client_address

PROXIES = (ip_network("10.0.0.0/8"), ip_network("2001:db8:aaaa::/48"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", ["192.0.2.1"], "203.0.113.9"),
        (None, ["192.0.2.1"], None),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["6.6.6.6, 192.0.2.1 , 2001:db8:aaaa::9"], "192.0.2.1"),
        ("2001:db8:aaaa::1", ["6.6.6.6", "192.0.2.1,10.0.0.9"], "192.0.2.1"),
        ("10.0.0.1", ["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
        ("10.0.0.1", ["192.0.2.1, unknown, 10.0.0.9"], "10.0.0.9"),
        ("::ffff:10.0.0.1", ["::ffff:192.0.2.1"], "192.0.2.1"),
    ],
)
def test_the_client_is_the_last_that_is_no_proxy(
    peer: str | None, forwarded: list[str], client: str | None
) -> None:
    """Over all headers; what is before it, or before what is no address, anybody may have written."""
    headers = Headers([("X-Forwarded-For", value) for value in forwarded])
    assert client_address(peer, headers, PROXIES) == client
    assert client_address(peer, headers, ()) == peer


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("192.0.2.1:50123", "192.0.2.1"),
        ("192.0.2.1:50123, 10.0.0.2:443", "192.0.2.1"),
        ("[2001:db8::1]:50123", "2001:db8::1"),
        ("[2001:db8::1], [2001:db8:aaaa::2]:443", "2001:db8::1"),
        ("192.0.2.1:", "10.0.0.1"),
    ],
)
def test_a_port_behind_an_address_is_left_out(forwarded: str, client: str) -> None:
    """Some proxies, Azure's gateway for one, tell it, too. What is no address is nobody's: the proxy itself counts."""
    assert client_address("10.0.0.1", Headers([("X-Forwarded-For", forwarded)]), PROXIES) == client

"""What a connection keeps while nothing is asked: thousands of them wait most of the time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from websockets.asyncio.server import Server, ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request
from websockets.server import ServerProtocol

from service.network.connection import Connection


def made(kind: type[ServerConnection]) -> Any:
    """A connection of a server that is never asked anything."""
    return kind(ServerProtocol(), cast("Server", SimpleNamespace()))


async def test_our_attributes_are_in_slots_not_in_the_librarys_dictionary() -> None:
    """One that was forgotten in `__slots__` would still work, at the price of a larger dictionary for everybody."""
    assert vars(made(Connection)).keys() == vars(made(ServerConnection)).keys()


async def test_the_handshake_is_forgotten_once_messages_are_taken() -> None:
    """Its headers are 2 KB; the request itself stays, for the library may look at it."""
    connection = made(Connection)
    connection.request = Request("/ws", Headers({"User-Agent": "a browser", "Cookie": "x" * 1000}))
    connection.take_messages(10.0)
    assert connection.request.path == "/ws"
    assert not list(connection.request.headers.raw_items())

"""The addresses that are listened on."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Any

import pytest

from service.errors import StartupError
from service.network.listening import bind
from service.settings import Settings

# For documentation: no machine has it.
NOT_HERE = "192.0.2.1"


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[int, str]) -> None:
    """Any name stands for these."""

    def resolved(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        return [(family, socket.SOCK_STREAM, 0, "", (address, port)) for family, address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)


def test_addresses_that_the_machine_lacks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ::1 is where localhost has it in /etc/hosts alone. The others are listened on, all at one port."""
    unknown = 255  # a kind that no system knows, as some do not know IPv6
    resolve_to(
        monkeypatch,
        (unknown, "::1"),
        (socket.AF_INET, NOT_HERE),
        (socket.AF_INET, "127.0.0.1"),
        (socket.AF_INET, "127.0.0.2"),
    )
    with ExitStack() as stack:
        sockets = [stack.enter_context(each) for each in bind(Settings(host="localhost", port=0))]
        (first, port), second = (each.getsockname() for each in sockets)
    assert first == "127.0.0.1"
    assert port
    assert second == ("127.0.0.2", port)


def test_an_address_that_a_name_has_twice_is_listened_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where two lines of /etc/hosts name it: else the service would take itself for another one at its port."""
    resolve_to(monkeypatch, (socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.0.0.1"))
    with ExitStack() as stack:
        (sock,) = [stack.enter_context(each) for each in bind(Settings(host="localhost", port=0))]
        assert sock.getsockname()[0] == "127.0.0.1"


def test_an_address_that_is_in_use_is_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else clients would meet another service there. What was bound by then is closed."""
    resolve_to(monkeypatch, (socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.0.0.2"))
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=rf"localhost:{port}: Address already in use"):
            bind(Settings(host="localhost", port=port))


def test_a_name_without_any_address_of_the_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a wrong address is."""
    resolve_to(monkeypatch, (socket.AF_INET, NOT_HERE))
    with pytest.raises(StartupError, match=r"cannot listen on x:0: .*; set HOST or PORT"):
        bind(Settings(host="x", port=0))


@pytest.mark.parametrize("host", ["127..0.1", "x" * 64, "\udcff"])
def test_a_host_that_can_be_no_name_is_told(host: str) -> None:
    """As one that is not known."""
    with pytest.raises(StartupError, match="is not an address of this machine: "):
        bind(Settings(host=host, port=0))

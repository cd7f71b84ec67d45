"""The sockets that the service listens on."""

from __future__ import annotations

import os
import socket
import sys

from service.errors import StartupError
from service.server import BACKLOG
from service.settings import Settings


def bind(settings: Settings) -> list[socket.socket]:
    """The listening sockets, one for each address that HOST stands for. Port 0 is one free port for all.

    Raises:
        StartupError: the address does not exist, is in use, or may not be used.
    """
    try:
        addresses = socket.getaddrinfo(
            settings.host or None, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as exc:
        raise StartupError(
            f"HOST={settings.host} is not an address of this machine: {exc.strerror}"
        ) from None
    sockets: list[socket.socket] = []
    port = settings.port
    try:
        for family, kind, protocol, _, address in addresses:
            sockets.append(_listening(family, kind, protocol, (address[0], port, *address[2:])))
            port = sockets[0].getsockname()[1]
    except OSError as exc:
        for sock in sockets:
            sock.close()
        raise StartupError(
            f"cannot listen on {settings.host}:{port}: {os.strerror(exc.errno or 0)}; set HOST or PORT"
        ) from None
    return sockets


def _listening(family: int, kind: int, protocol: int, address: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # there it would let two services share a port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG)  # an address that is in use shows here, where SO_REUSEADDR hid it from bind
    except BaseException:
        sock.close()
        raise
    return sock

"""The sockets that the service listens on, and room for the connections that come from them."""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
import sys

from service.errors import StartupError
from service.server import BACKLOG
from service.settings import Settings

log = logging.getLogger(__name__)

# What an address is told that this machine does not have, or whose kind it does not know.
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

# Files that a worker has open besides its connections: its store's, its pipes, its event loop's, and some to spare.
_OWN_FILES = 64


def bind(settings: Settings) -> list[socket.socket]:
    """The listening sockets, one for each address that HOST stands for. Port 0 is one free port for all.

    Addresses that this machine does not have are left out, as long as it has one: many list ::1 for localhost in
    /etc/hosts, and do no IPv6.

    Raises:
        StartupError: the address does not exist, is in use, or may not be used.
    """
    try:
        addresses = socket.getaddrinfo(
            settings.host or None, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError) as exc:  # the latter where it cannot be a name, as 127..0.1
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise StartupError(f"HOST={settings.host} is not an address of this machine: {reason}") from None
    sockets: list[socket.socket] = []
    port = settings.port
    missing: OSError | None = None
    try:
        # Each once: two lines of /etc/hosts may say the same, and the second would find the first's port taken.
        for family, kind, protocol, _, address in dict.fromkeys(addresses):
            try:
                sockets.append(_listening(family, kind, protocol, (address[0], port, *address[2:])))
            except OSError as exc:
                if exc.errno not in _NOT_HERE:
                    raise
                missing = exc
                log.info(
                    "HOST=%s: this machine does not have %s, which is left out", settings.host, address[0]
                )
                continue
            port = sockets[0].getsockname()[1]
        if missing is not None and not sockets:
            raise missing
    except OSError as exc:
        for sock in sockets:
            sock.close()
        raise StartupError(
            f"cannot listen on {settings.host}:{port}: {os.strerror(exc.errno or 0)}; set HOST or PORT"
        ) from None
    return sockets


def make_room(settings: Settings) -> None:
    """Let this process, and those that it forks, have as many files open as it may. Warn where that is too few.

    Each connection is one, and what most systems set, 1024, is for programs that cannot do with more. A worker keeps
    `_OWN_FILES` for its store and itself, see `most_connections`: clients beyond the others wait until one leaves.

    Raises:
        StartupError: there are too few for a worker alone.
    """
    if sys.platform == "win32":  # it has no such limit
        return
    import resource

    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most
    if most == resource.RLIM_INFINITY:  # so says macOS, and takes no more than some thousands
        wanted = max(files, settings.max_connections + _OWN_FILES)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
        files = wanted
    except (OSError, ValueError):
        pass  # it is too much after all: what is not enough is told
    if files <= _OWN_FILES:
        raise StartupError(
            f"a worker needs more than {_OWN_FILES} open files, and may have {files}; raise the limit (`ulimit -n`, "
            "LimitNOFILE of systemd)"
        )
    room = (files - _OWN_FILES) * settings.workers
    if room < settings.max_connections:
        log.warning(
            "MAX_CONNECTIONS=%d cannot be reached: each worker may have %d files open, which is enough for %d "
            "connections; raise the limit (`ulimit -n`, LimitNOFILE of systemd), or set less",
            settings.max_connections,
            files,
            room,
        )


def most_connections() -> float:
    """How many connections this process may have open, so that there are files for everything else that it does."""
    if sys.platform == "win32":
        return math.inf
    import resource

    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if files == resource.RLIM_INFINITY else files - _OWN_FILES


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

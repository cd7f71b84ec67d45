"""The client's side of the wire protocol, without sockets: requests to frames, frames to replies.

Two versions are spoken. A server says in its welcome which one it has: ``"protocol": 2`` takes images as binary
frames and echoes ``id``; an older one takes base64 in JSON and answers in the order of the requests.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import orjson

from client.errors import InvalidRequest, ProtocolViolation, UnknownCommand

Waiter = TypeVar("Waiter")

# Whose answer depends on the user; other commands would take the token for an unknown field.
USERS_OWN = frozenset({"predict", "history", "stats"})


@dataclass(frozen=True, slots=True)
class Welcome:
    """What a server says of itself before it is asked. `commands` is empty where it does not list them.

    `authentication` is ``off``, ``optional`` or ``required``.
    """

    message: str
    version: str
    protocol: int
    commands: frozenset[str]
    authentication: str = "off"


@dataclass(frozen=True, slots=True)
class Request:
    """A command with its fields; `image` is the bytes of an image file, for ``predict`` only."""

    command: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    image: bytes | None = None

    def of(self, token: str | None) -> Request:
        """This request with the user's token, where its answer depends on the user and it has none of its own."""
        if token is None or self.command not in USERS_OWN:
            return self
        return replace(self, fields={"token": token, **self.fields})


def parse_welcome(frame: str | bytes) -> Welcome:
    """Read the first message of a server.

    Raises:
        ProtocolViolation: it is not a welcome.
    """
    message = parse_reply(frame)
    if message.get("type") != "welcome":
        raise ProtocolViolation(f"its first message is {message.get('type')!r}, not a welcome")
    protocol = message.get("protocol", 1)
    commands = message.get("commands")
    return Welcome(
        message=str(message.get("message", "")),
        version=str(message.get("version", "")),
        protocol=protocol if isinstance(protocol, int) else 1,
        commands=frozenset(map(str, commands)) if isinstance(commands, Mapping | list) else frozenset(),
        authentication=str(message.get("authentication", "off")),
    )


def parse_reply(frame: str | bytes) -> dict[str, Any]:
    """Read one JSON object. Raises `ProtocolViolation` where the frame is anything else."""
    try:
        reply = orjson.loads(frame)
    except orjson.JSONDecodeError as error:
        raise ProtocolViolation(f"the server sent something that is not JSON: {error}") from None
    if not isinstance(reply, dict):
        raise ProtocolViolation("the server sent JSON that is not an object")
    return reply


def encode(
    request: Request, request_id: int, welcome: Welcome, deadline_ms: float | None = None
) -> tuple[bytes, bool]:
    """The frame for `request`, and whether it is a text frame.

    `deadline_ms` is what is left of the request's time. Only servers of protocol 2 are told: they then drop a
    request that nobody waits for any more. Where the request has a field of that name, the shorter of the two is sent.

    Raises:
        UnknownCommand: the server lists its commands, and this is not one of them.
        InvalidRequest: a field is an infinite number, or none; or it is the ``id``.
    """
    if welcome.commands and request.command not in welcome.commands:
        raise UnknownCommand(
            f"this server (version {welcome.version or 'unknown'}) has no command {request.command!r}; "
            f"it has {', '.join(sorted(welcome.commands))}"
        )
    if "id" in request.fields:
        raise InvalidRequest("'id' is the client's own: by it each reply finds its request")
    for name, value in request.fields.items():
        # JSON has no word for it: the server would be sent null, which is as if the field was not there.
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidRequest(f"{name!r} is {value}: the protocol has finite numbers only")
    header: dict[str, Any] = {"command": request.command, "id": request_id, **request.fields}
    if request.image is None:
        return orjson.dumps(header), True
    if welcome.protocol < 2:
        header["image"] = base64.b64encode(request.image).decode("ascii")
        return orjson.dumps(header), True
    if deadline_ms is not None:
        header["deadline_ms"] = min(round(deadline_ms, 3), header.get("deadline_ms", math.inf))
    return orjson.dumps(header) + b"\n" + request.image, False


@dataclass(slots=True)
class _Entry(Generic[Waiter]):
    waiter: Waiter | None
    size: int


class Unanswered(Generic[Waiter]):
    """The requests of one connection that have no reply yet, oldest first, each with whoever waits for it.

    Guarantees that each reply is given to the request it answers, and to no other: a request that was given up
    keeps its place until its reply has come, so that a late reply cannot be taken for the next one's.
    """

    def __init__(self, protocol: int) -> None:
        self._echoes_ids = protocol >= 2
        self._entries: dict[int, _Entry[Waiter]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes of all of them: as much may still be on its way."""
        return sum(entry.size for entry in self._entries.values())

    def add(self, request_id: int, waiter: Waiter, size: int) -> None:
        """Register a request. It must be registered before it is sent, in the order of sending."""
        self._entries[request_id] = _Entry(waiter, size)

    def give_up(self, request_id: int) -> None:
        """Nobody waits for this request any more; its reply is still expected."""
        if request_id in self._entries:
            self._entries[request_id].waiter = None

    def answer(self, reply: Mapping[str, Any]) -> Waiter | None:
        """Whoever waits for `reply`; None where nobody does any more.

        Raises:
            ProtocolViolation: the reply belongs to no request.
        """
        request_id = reply.get("id")
        if request_id is None:
            if self._echoes_ids:
                raise ProtocolViolation(f"a reply without the request's id: {reply.get('message', reply)}")
            request_id = next(iter(self._entries), None)
        if not isinstance(request_id, int) or request_id not in self._entries:
            raise ProtocolViolation(f"a reply to a request that was not sent (id {request_id!r})")
        return self._entries.pop(request_id).waiter

    def take_largest(self) -> Waiter | None:
        """Remove the largest request; None where there is none, or nobody waits for it.

        When a server closes because a message is too big, one of the unanswered ones is, so the largest is.
        """
        if not self._entries:
            return None
        largest = max(self._entries, key=lambda request_id: self._entries[request_id].size)
        return self._entries.pop(largest).waiter

    def take_all(self) -> Iterable[Waiter]:
        """Remove every request; whoever still waits, oldest first."""
        entries, self._entries = self._entries, {}
        return [entry.waiter for entry in entries.values() if entry.waiter is not None]

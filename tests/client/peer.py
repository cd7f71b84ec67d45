"""A small honest server of the wire protocol that commits faults on request: the unit tests' peer.

An "image" is a JSON script that says what to answer, so that any client, in any language, can drive it::

    {"emotion": "happy"}                      a prediction of that emotion
    {"emotion": "sad", "after": 2}            the same, once this peer has sent 2 other predictions
    {"emotion": "sad", "gated": true}         the same, once `Peer.gate` is set
    {"first": [{"drop": true}, {"error": "overloaded", "retry_after_ms": 5}], "emotion": "fear"}
                                              first time: cut the connection; second: refuse; then answer

Faults: ``drop`` (cut without a closing frame), ``close`` (a close code), ``error`` (a code, with ``message`` and
``retry_after_ms``), ``silent`` (never answer), ``garbage`` (send this text instead of a reply); with any of them
``expire`` (a token that is refused from then on). ``emotions`` and
``health`` are honest, ``model_info`` too; further commands are those of protocol 2.

As a program (``python -m tests.client.peer``) it prints its address and serves until its input ends.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HTTPRequest
from websockets.http11 import Response

from tests.client.measured import METRICS

EMOTIONS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
# What `configure` knows, and what holds without it; null means something for the last two.
DEFAULTS = {
    "detect": "auto",
    "max_faces": 16,
    "ordered": True,
    "stream": False,
    "smoothing_ms": None,
    "deadline_ms": None,
}
V1_COMMANDS = ("predict", "emotions", "model_info", "health")
V2_COMMANDS = (*V1_COMMANDS, "configure", "history", "stats", "models", "ping")


def image(emotion: str = "happy", **script: Any) -> bytes:
    """An image that the peer answers with `emotion`, after what else the script says."""
    return json.dumps({"emotion": emotion, **script}).encode()


@dataclass(frozen=True)
class Received:
    """A request as it came."""

    connection: int
    message: dict[str, Any]
    image: bytes | None
    binary: bool


@dataclass
class Peer:
    """What the peer has seen, and how it presents itself.

    `protocol` 1 answers in the order of the requests, takes JSON only and echoes no id. `refuse` is an HTTP
    status that connections are refused with; `bad_welcome` is sent in place of the welcome, `turns_away` is a close
    code in its place; the first `leaving` connections are closed right after it. With `fixed_faces` images need not
    be scripts: every one has faces in these boxes. With `authentication` (``optional`` or ``required``) tokens count,
    and all are accepted that are not among the `expired`.
    """

    protocol: int = 2
    commands: tuple[str, ...] = V2_COMMANDS
    refuse: int | None = None
    bad_welcome: str | None = None
    turns_away: int | None = None
    leaving: int = 0
    status: str = "healthy"
    version_tag: str = "peer-1"
    metrics: str | None = METRICS
    fixed_faces: list[tuple[int, int, int, int]] | None = None
    max_size: int = 2**20
    authentication: str | None = None
    expired: set[str] = field(default_factory=lambda: {"wrong"})
    received: list[Received] = field(default_factory=list)
    handshakes: list[HTTPRequest] = field(default_factory=list)
    connections: int = 0
    open: set[int] = field(default_factory=set)  # connections
    url: str = ""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    tokens: dict[int, str | None] = field(default_factory=dict)  # of each connection
    _options: dict[int, dict[str, Any]] = field(default_factory=dict)  # of each connection
    _seen: Counter[bytes] = field(default_factory=Counter)
    _answered: int = 0
    _one_more: asyncio.Condition = field(default_factory=asyncio.Condition)

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator[Peer]:
        """Serve on a free port."""
        async with serve(
            self._handle,
            "127.0.0.1",
            port,
            process_request=self._process,
            subprotocols=None,
            max_size=self.max_size,
            compression=None,
        ) as server:
            self.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"
            try:
                yield self
            finally:
                self.gate.set()  # a v1 connection would wait for it, and closing waits for the connection

    @property
    def predictions_received(self) -> list[Received]:
        """The `predict` requests."""
        return [request for request in self.received if request.message.get("command") == "predict"]

    def _process(self, connection: ServerConnection, request: HTTPRequest) -> Response | None:
        self.handshakes.append(request)
        if request.path == "/metrics":
            status = HTTPStatus.NOT_FOUND if self.metrics is None else HTTPStatus.OK
            return connection.respond(status, self.metrics or "")
        if self.refuse is not None:
            return connection.respond(HTTPStatus(self.refuse), "refused\n")
        if self.authentication and _bearer(request) in self.expired:
            return connection.respond(HTTPStatus.UNAUTHORIZED, "the token has expired\n")
        return None

    async def _handle(self, websocket: ServerConnection) -> None:
        self.connections += 1
        number = self.connections
        if self.bad_welcome is not None:
            await websocket.send(self.bad_welcome)
            await websocket.wait_closed()
            return
        if self.turns_away is not None:
            await websocket.close(self.turns_away, "not you")
            return
        welcome: dict[str, Any] = {"type": "welcome", "message": "hello", "version": "peer"}
        if self.protocol >= 2:
            welcome["protocol"] = self.protocol
        if self.authentication:
            welcome["authentication"] = self.authentication
            self.tokens[number] = _bearer(websocket.request)
        welcome["commands"] = dict.fromkeys(self.commands, "")
        await websocket.send(json.dumps(welcome))
        if number <= self.leaving:
            await websocket.close(1001)
            return
        answers: list[asyncio.Task[None]] = []
        self.open.add(number)
        try:
            async for frame in websocket:
                request = self._read(number, frame)
                self.received.append(request)
                answer = asyncio.create_task(self._answer(websocket, request))
                answers.append(answer)
                if self.protocol < 2:
                    await answer
        except ConnectionClosed:
            pass
        finally:
            self.open.remove(number)
            for answer in answers:
                answer.cancel()
            await asyncio.gather(*answers, return_exceptions=True)

    def _read(self, number: int, frame: str | bytes) -> Received:
        if isinstance(frame, bytes):
            header, _, data = frame.partition(b"\n")
            return Received(number, json.loads(header), data, True)
        message = json.loads(frame)
        decoded = base64.b64decode(message["image"]) if "image" in message else None
        return Received(number, message, decoded, False)

    async def _answer(self, websocket: ServerConnection, request: Received) -> None:
        with contextlib.suppress(ConnectionClosed):
            command = request.message.get("command", "predict")
            if command not in self.commands:
                reply = _error("unknown_command", f"unknown command {command!r}")
            elif self.authentication and not self._lets(request):
                reply = _error("unauthorized", "no token, or one that has expired")
            elif command == "predict":
                await self._predict(websocket, request)
                return
            else:
                reply = self._query(command, request)
            await self._send(websocket, request, reply)

    def _lets(self, request: Received) -> bool:
        token = request.message.get("token") or self.tokens[request.connection]
        if token is None:
            return self.authentication == "optional" or request.message["command"] == "health"
        if token in self.expired:
            return False
        if request.message.get("command") == "configure":
            self.tokens[request.connection] = token
        return True

    async def _send(self, websocket: ServerConnection, request: Received, reply: dict[str, Any]) -> None:
        if self.protocol >= 2:
            reply["id"] = request.message["id"]
        elif reply["type"] == "error":
            reply = {"type": "error", "message": reply["message"]}
        await websocket.send(json.dumps(reply))

    async def _predict(self, websocket: ServerConnection, request: Received) -> None:
        assert request.image is not None
        script: dict[str, Any] = (
            json.loads(request.image) if self.fixed_faces is None else {"emotion": "happy"}
        )
        turn = self._seen[request.image]
        self._seen[request.image] += 1
        faults = script.get("first", [])
        if turn < len(faults):
            await self._fault(websocket, request, faults[turn])
            return
        if script.get("gated"):
            await self.gate.wait()
        async with self._one_more:
            await self._one_more.wait_for(lambda: self._answered >= script.get("after", 0))
            # Sent before others are told of it, or they could overtake it.
            await self._send(websocket, request, self._prediction(script))
            self._answered += 1
            self._one_more.notify_all()

    async def _fault(self, websocket: ServerConnection, request: Received, fault: dict[str, Any]) -> None:
        if "expire" in fault:
            self.expired.add(fault["expire"])
        match fault:
            case {"drop": True}:
                websocket.transport.abort()
            case {"close": int(code)}:
                await websocket.close(code, "as asked")
            case {"error": str(code)}:
                message = fault.get("message", f"as asked: {code}")
                await self._send(websocket, request, _error(code, message, fault.get("retry_after_ms")))
            case {"garbage": str(text)}:
                await websocket.send(text)
            case {"silent": True}:
                pass
            case _:
                raise ValueError(f"no such fault: {fault}")

    def _prediction(self, script: dict[str, Any]) -> dict[str, Any]:
        emotion = script["emotion"]
        reply: dict[str, Any] = {
            "type": "prediction",
            "status": "success",
            "emotion_name": emotion,
            "confidence": 0.94,
            "model_version_tag": self.version_tag,
            "processing_time_ms": 3,
            "timestamp": "2026-11-22T10:30:45.123456",
        }
        if self.protocol >= 2:
            probabilities = {name: 0.94 if name == emotion else 0.01 for name in EMOTIONS}
            face: dict[str, Any] = {
                "box": [10, 20, 30, 40],
                "detection_score": 0.9,
                "emotion_name": emotion,
                "confidence": 0.94,
                "probabilities": probabilities,
            }
            faces = [face | {"box": list(box)} for box in self.fixed_faces or [tuple(face["box"])]]
            reply |= {
                "prediction_id": "0191d2a0-0000-7000-8000-000000000001",
                "probabilities": probabilities,
                "faces": script.get("faces", faces),
                "face_detected": True,
                "timing": {"decode": 0.1, "queue": 0.2, "inference": 0.3, "total": 0.7, "batch_size": 2},
            }
        return reply

    def _configure(self, request: Received) -> dict[str, Any]:
        ignored = {"command", "id", *(["token"] if self.authentication else [])}
        changes = {name: value for name, value in request.message.items() if name not in ignored}
        for name in changes:
            if name not in DEFAULTS:
                return _error("invalid_request", f"no such option: {name}")
        options = self._options.setdefault(request.connection, dict(DEFAULTS))
        options |= {
            name: value for name, value in changes.items() if value is not None or name.endswith("_ms")
        }
        return _success("configuration", configuration=options)

    def _query(self, command: str, request: Received) -> dict[str, Any]:
        match command:
            case "emotions":
                entries = [{"id": i, "name": name, "description": name} for i, name in enumerate(EMOTIONS, 1)]
                return _success(command, emotions=entries)
            case "model_info":
                info = {
                    "status": "loaded",
                    "model_path": "peer.onnx",
                    "input_shape": [None, 64, 64, 1],
                    "output_shape": [None, 7],
                    "num_classes": 7,
                    "total_params": 58423,
                    "emotion_classes": list(EMOTIONS),
                }
                return _success(command, info=info)
            case "health":
                return {
                    "type": "health",
                    "status": self.status,
                    "service": "peer",
                    "timestamp": "2026-11-22T10:30:45.123456",
                    "clients_connected": self.connections,
                }
            case "configure":
                return self._configure(request)
            case "models":
                version = {
                    "version_tag": self.version_tag,
                    "active": True,
                    "precision": "fp32",
                    "labels": list(EMOTIONS),
                }
                return _success(command, models=[version])
            case "history":
                return self._history(request.message)
            case "stats":
                return _success(
                    command,
                    window_s=request.message["window_s"],
                    count=4,
                    mean_confidence=0.8,
                    emotions={
                        "sad": {"count": 1, "mean_confidence": 0.5},
                        "happy": {"count": 3, "mean_confidence": 0.9},
                    },
                    latency_ms={"p50": 1.2, "p99": 3.4},
                    buckets=[{}] * request.message.get("buckets", 0),
                )
            case _:
                return _success("pong")

    def _history(self, message: dict[str, Any]) -> dict[str, Any]:
        """Five rows, happy and sad by turns, paged by their number."""
        start = int(message.get("cursor", 0))
        stop = min(start + message["limit"], 5)
        rows = [
            {
                "prediction_id": f"0191d2a0-0000-7000-8000-00000000000{number}",
                "timestamp": f"2026-11-22T10:30:4{number}",
                "emotion_name": "happy" if number % 2 == 0 else "sad",
                "confidence": 0.9,
                "model_version_tag": self.version_tag,
                "processing_time_ms": 2,
            }
            for number in range(start, stop)
        ]
        return _success("history", predictions=rows, next=str(stop) if stop < 5 else None)


def _bearer(request: HTTPRequest | None) -> str | None:
    assert request is not None
    header: str | None = request.headers.get("Authorization")
    return header and header.removeprefix("Bearer ")


def _success(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "status": "success", **fields}


def _error(code: str, message: str, retry_after_ms: float | None = None) -> dict[str, Any]:
    reply: dict[str, Any] = {"type": "error", "status": "error", "code": code, "message": message}
    if retry_after_ms is not None:
        reply["retry_after_ms"] = retry_after_ms
    return reply


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--protocol", type=int, default=2)
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    commands = V2_COMMANDS if arguments.protocol >= 2 else V1_COMMANDS
    async with Peer(arguments.protocol, commands).running(arguments.port) as peer:
        print(peer.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main())

"""What the service's tests share: paths, a running service, and how to talk to it."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from service.server import Service
from service.settings import Settings

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models/build/modelo_emociones.onnx"
PHOTO = (ROOT / "tests/data/astronaut.jpg").read_bytes()
FACE = (ROOT / "tests/data/astronaut_face.jpg").read_bytes()

# Nothing is given of what calibration chooses.
OPEN = Settings(model_path=MODEL, workers=0, executors=-1, threads=0, max_batch=0)

# A reply takes milliseconds. This is what separates slow from stuck, on the slowest machine.
TIMEOUT = 30 * float(os.environ.get("TEST_TIME_UNIT", "1"))

# What is to be predicted waits, as long as a file is there.
HELD = """
import time
from pathlib import Path
from service.batching.predictor import Predictor
serve = Predictor.serve
def serve_when_let(self, requests, buffer):
    Path("entered").touch()
    while Path("hold").exists():
        time.sleep(0.01)
    serve(self, requests, buffer)
Predictor.serve = serve_when_let
"""


def predict_message(image: bytes = FACE, **fields: Any) -> str:
    """A v1 predict request."""
    return orjson.dumps({"command": "predict", "image": base64.b64encode(image).decode(), **fields}).decode()


async def ask(websocket: ClientConnection, message: str | bytes) -> dict[str, Any]:
    """Send one message, and read one."""
    await websocket.send(message)
    return await read(websocket)


async def read(websocket: ClientConnection) -> dict[str, Any]:
    """Read one message."""
    async with asyncio.timeout(TIMEOUT):
        reply: dict[str, Any] = orjson.loads(await websocket.recv())
        return reply


async def closed_with(websocket: ClientConnection) -> int:
    """The code of the close frame that comes next."""
    with pytest.raises(ConnectionClosed) as caught:
        await read(websocket)
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code


@dataclass(frozen=True)
class Running:
    """A service that runs in this event loop."""

    service: Service
    port: int

    @property
    def url(self) -> str:
        """Its WebSocket address."""
        return f"ws://127.0.0.1:{self.port}/"

    @asynccontextmanager
    async def client(self) -> AsyncIterator[ClientConnection]:
        """A client that has read its welcome."""
        async with connect(self.url, max_size=None) as websocket:
            assert (await read(websocket))["type"] == "welcome"
            yield websocket


@dataclass(frozen=True)
class ServiceProcess:
    """`python -m service`, started by a test."""

    process: subprocess.Popen[str]
    url: str

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.url.rsplit(":", 1)[1])

    @property
    def workers(self) -> list[psutil.Process]:
        """Its worker processes, as far as there are any at the moment."""
        found: list[psutil.Process] = psutil.Process(self.process.pid).children()
        return found


def run_service(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m service` in a folder, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=cwd,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "MODEL_PATH": str(MODEL), "LOG_LEVEL": "WARNING"}
        | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT * 2,
        check=False,
    )


Serve = Callable[..., AbstractAsyncContextManager[Running]]
StartProcess = Callable[..., ServiceProcess]


def _get(url: str, headers: Mapping[str, str]) -> tuple[int, Message, bytes]:
    request = urllib.request.Request(url, headers=dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.headers, exc.read()


async def get(running: Running, path: str, **headers: str) -> tuple[int, Message, bytes]:
    """Status, headers and body of a GET."""
    return await asyncio.to_thread(_get, f"http://127.0.0.1:{running.port}{path}", headers)


def fetch(service: ServiceProcess, path: str) -> str:
    """The body of a GET, whatever its status."""
    return str(_get(service.url.replace("ws:", "http:") + path, {})[2], "utf-8")


def refused(running: Running, reason: str) -> float:
    """How many connections were refused for a reason."""
    for line in running.service._exposition().decode().splitlines():
        if line.startswith(f'visionai_connections_refused_total{{reason="{reason}"}}'):
            return float(line.split()[-1])
    raise AssertionError(reason)


def metric(service: ServiceProcess, name: str) -> float:
    """A value of /metrics, by its name with its labels."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", fetch(service, "/metrics"), re.MULTILINE)
    assert found is not None, name
    return float(found.group(1))

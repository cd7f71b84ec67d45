"""What the client's tests share: paths, the command line as a process, and the real service as one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client import AsyncClient, Retry
from tests.client.peer import Peer

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models/build/modelo_emociones.onnx"
FACE = ROOT / "tests/data/astronaut_face.jpg"

# A command takes a fraction of a second. This is what separates slow from stuck, on the slowest machine.
TIMEOUT = 60 * float(os.environ.get("TEST_TIME_UNIT", "1"))

# A policy that does not wait long before it tries again.
QUICK = Retry(attempts=5, first_delay=0.01, max_delay=0.05)


@dataclass(frozen=True)
class Completed:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


@asynccontextmanager
async def on_a_terminal(*command: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A command whose standard error is a terminal, which is read from the descriptor."""
    controller, terminal = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=ROOT,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
            stdout=asyncio.subprocess.PIPE,
            stderr=terminal,
        )
        os.close(terminal)
        try:
            yield process, controller
        finally:
            if process.returncode is None:
                process.kill()  # or a thread that reads from it would be waited for
                await process.wait()
    finally:
        os.close(controller)


@asynccontextmanager
async def proxy_to(port: int) -> AsyncIterator[tuple[str, list[bytes]]]:
    """An HTTP proxy that leads to a port of this machine, whatever is asked for: its address, and what was asked."""
    asked: list[bytes] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(2**16):
                writer.write(data)
        writer.close()

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        there = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))

    async with await asyncio.start_server(tunnel, "127.0.0.1", 0) as server:
        yield f"http://user:secret@127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


def connect(peer: Peer, **arguments: Any) -> AsyncClient:
    """A client that does not wait long before it tries again."""
    return AsyncClient(peer.url, **{"retry": QUICK, **arguments})


VisionAI = Callable[..., Awaitable[Completed]]


async def run_command(
    arguments: Sequence[str | Path],
    *,
    folder: Path,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
) -> Completed:
    """Run a command to its end, within `TIMEOUT`, with Python's warnings as errors."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VISIONAI_")}
    fixed = {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "PYTHONWARNINGS": "error"}
    process = await asyncio.create_subprocess_exec(
        *map(str, arguments),
        cwd=folder,
        env=inherited | fixed | dict(environment or {}),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(TIMEOUT):
            out, err = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Completed(process.returncode, out.decode(), err.decode())


class ServiceProcess:
    """The service as a process, on a port that it keeps when it is started again.

    `command` are Python's arguments to start it; its settings are in the environment.
    """

    def __init__(self, folder: Path, command: Sequence[str] = ("-m", "service")) -> None:
        self.database = folder / "visionai.db"
        self.url = ""
        self._command = command
        self._folder = folder
        self._port = "0"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        assert MODEL.is_file(), f"{MODEL} is missing: `make convert` builds it"
        settings = {
            "HOST": "127.0.0.1",
            "PORT": self._port,
            "DATABASE_URL": f"sqlite:///{self.database}",
            "MODEL_PATH": str(MODEL),
            "PYTHONPATH": str(ROOT),
        }
        with (self._folder / "service.log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self._command],
                cwd=self._folder,
                env=os.environ | settings,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = re.search(r"ready on (ws://\S+:(\d+))", line)
        assert found, f"the service did not start: {line}{(self._folder / 'service.log').read_text()}"
        self.url = f"{found[1]}/ws"
        self._port = found[2]

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """Stop it, and wait for its end. Does nothing where it does not run."""
        if self._process is not None:
            self._process.send_signal(signum)
            self._process.communicate(timeout=TIMEOUT)
            self._process = None

"""Peers, an address without a server, the command line, and the real service."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest

from tests.client.harness import Completed, ServiceProcess, VisionAI, run_command
from tests.client.peer import V1_COMMANDS, Peer


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    """A peer of protocol 2."""
    async with Peer().running() as running:
        yield running


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
async def any_peer(request: pytest.FixtureRequest) -> AsyncIterator[Peer]:
    """A peer of each protocol version."""
    commands = V1_COMMANDS if request.param == 1 else Peer().commands
    async with Peer(request.param, commands).running() as running:
        yield running


@pytest.fixture
def unused_url() -> Iterator[str]:
    """An address where nobody listens, which is given to nobody else meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"ws://127.0.0.1:{bound.getsockname()[1]}/ws"


@pytest.fixture
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """The real service, ready."""
    process = ServiceProcess(tmp_path_factory.mktemp("service"))
    try:
        process.start()
        yield process
    finally:
        process.stop()


@pytest.fixture
def visionai(tmp_path: Path) -> VisionAI:
    """Run the command line as a process, in an empty folder, and wait for its end."""

    async def run(
        *arguments: str | Path, stdin: bytes = b"", environment: Mapping[str, str] | None = None
    ) -> Completed:
        return await run_command(
            [sys.executable, "-m", "client", *arguments],
            folder=tmp_path,
            stdin=stdin,
            environment=environment,
        )

    return run

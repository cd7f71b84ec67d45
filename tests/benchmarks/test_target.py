"""The server that is measured: how it is reached, what it uses, and what it leaves behind."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from benchmarks.http_wire import HTTPClient, build_post, take_reply
from benchmarks.load import run_load
from benchmarks.target import Target, started_service, stop
from benchmarks.wire import ConnectionLost
from benchmarks.workload import make_workload
from tests.benchmarks.harness import SHORT, TIMEOUT


async def test_http_replies_are_read_whole_and_in_pieces() -> None:
    """A length or chunks, several at once or byte by byte; another status than 200 is an error."""
    plain = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n1\r\n \r\n0\r\n\r\n"
    refused = b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy"
    buffer = bytearray()
    bodies = []
    for byte in plain + chunked + refused:
        buffer.append(byte)
        if (body := take_reply(buffer)) is not None:
            bodies.append(body)
    assert bodies == [b"{}", b"{} ", b'{"status": "error", "code": "http_503"}']
    assert not buffer


async def test_http_requests_are_answered_over_one_connection() -> None:
    """What `build_post` makes arrives as a request with its body."""
    seen = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            seen.append((head.split(b"\r\n")[0], await reader.readexactly(7)))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    replies: asyncio.Queue[bytes] = asyncio.Queue()
    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = await HTTPClient.connect(f"http://127.0.0.1:{port}", replies.put_nowait)
        for _ in range(2):
            client.send(build_post(b'{"a":1}'))
            assert await replies.get() == b"ok"
        client.close()
    assert seen == [(b"POST /predict HTTP/1.1", b'{"a":1}')] * 2


async def test_a_server_that_refuses_is_asked_once() -> None:
    """One client that cannot connect is the end, before others have begun that nobody would wait for."""
    asked = 0

    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        writer.write(b"HTTP/1.1 503 Busy\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectionLost, match="503"):
            await run_load(Target(f"ws://127.0.0.1:{port}"), make_workload("64x64"), SHORT)
    assert asked == 1


async def test_a_server_that_does_not_greet_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What listens at the address may speak another protocol, or hang."""
    monkeypatch.setattr("benchmarks.wire._GREETING_SECONDS", 0.1)

    gone = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.read()  # until the client has gone
        writer.close()
        gone.set()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectionLost, match=r"no welcome within 0\.1 s"):
            await run_load(Target(f"ws://127.0.0.1:{port}"), make_workload("64x64"), SHORT)
        await gone.wait()


async def test_no_server_is_an_error_that_names_the_address() -> None:
    """For HTTP as for WebSocket."""
    with pytest.raises(ConnectionLost, match=r"127\.0\.0\.1:1"):
        await HTTPClient.connect("http://127.0.0.1:1", lambda _: None)


@pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets")
def test_the_service_that_runs_here_stays_the_one_that_reloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that is measured does not take the control socket of another, though their settings are the same."""
    path = tmp_path / "visionai.sock"
    monkeypatch.setenv("CONTROL_SOCKET", str(path))
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        before = path.stat().st_ino
        with started_service():
            assert path.stat().st_ino == before
    assert path.stat().st_ino == before


async def test_settings_for_tls_do_not_keep_a_service_from_being_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is measured without: the load generator does not speak it."""
    monkeypatch.setenv("TLS_CERTIFICATE", "certificate.pem")
    monkeypatch.setenv("TLS_KEY", "key.pem")
    with started_service() as target:
        result = await run_load(target, make_workload("64x64"), SHORT)
    assert result.succeeded > 0


def test_what_a_server_leaves_behind_is_ended() -> None:
    """A child that outlives its parent does not outlive the benchmark."""
    script = "import subprocess, sys; print(subprocess.Popen(['sleep', '600']).pid, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        stop(process)
    child.wait(TIMEOUT)
    assert not child.is_running()


def test_what_a_replaced_worker_used_is_not_forgotten() -> None:
    """The CPU time of children that have ended stays the server's; one that has ended itself has none to tell."""
    child = "import time\nwhile time.process_time() < 0.3: pass"
    run = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    script = f"{run}; print('done', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        target = Target("ws://127.0.0.1:1", process.pid)
        assert process.stdout is not None
        process.stdout.readline()
        assert (target.cpu_seconds() or 0) >= 0.29
        usage = target.usage()
        assert usage is not None
        assert usage.cpu_seconds >= 0.29
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # until it has ended; it is left as it is
        assert target.cpu_seconds() is None
        assert target.usage() is None

"""How commands end: what is left behind, and the exit code, where something ends them early or cannot be told."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import re
import shlex
import signal
import sys
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path

import cv2
import numpy as np
import orjson
import pytest
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from client import InvalidImage, Outcome
from client.cli.exit_codes import ExitCode
from client.cli.output import Format, pretty, writer_for
from tests.client.harness import ROOT, TIMEOUT, Completed, VisionAI, on_a_terminal, run_command
from tests.client.peer import Peer, Received, image

HIDE_CURSOR, SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"


@pytest.mark.parametrize("format_", ["table", "json", "ndjson", "csv"])
async def test_what_was_answered_is_written_also_where_the_rest_is_refused(
    peer: Peer, visionai: VisionAI, tmp_path: Path, format_: str
) -> None:
    """A token that ends among ten thousand images does not take the answers of before with it, in any format."""
    (tmp_path / "a.jpg").write_bytes(image("fear"))
    (tmp_path / "b.jpg").write_bytes(image("sad", first=[{"error": "unauthorized"}]))
    done = await visionai("predict", "a.jpg", "b.jpg", "--format", format_, "--url", peer.url)
    assert done.code == ExitCode.UNAUTHORIZED
    assert "a.jpg" in done.out
    assert "b.jpg" not in done.out
    assert "as asked: unauthorized" in done.err
    if format_ == "json":
        assert [found["emotion_name"] for found in orjson.loads(done.out)] == ["fear"]


def test_json_is_written_as_images_are_answered() -> None:
    """The answers to a hundred thousand images would not fit in memory together."""
    out = io.StringIO()
    writer = writer_for(Format.JSON, out, ())
    for index, name in enumerate(("a.jpg", "b.jpg")):
        writer.write(name, Outcome(index, name, None, InvalidImage("no image")))
        assert name in out.getvalue()
    writer.close()
    written = orjson.loads(out.getvalue())
    assert [found["file"] for found in written] == ["a.jpg", "b.jpg"]
    assert out.getvalue() == pretty(written) + "\n"


async def test_where_nothing_was_answered_nothing_is_written(
    peer: Peer, visionai: VisionAI, tmp_path: Path
) -> None:
    """No table without a line, and no empty array."""
    (tmp_path / "a.jpg").write_bytes(image("sad", first=[{"error": "unauthorized"}]))
    done = await visionai("predict", "a.jpg", "--json", "--url", peer.url)
    assert (done.code, done.out) == (ExitCode.UNAUTHORIZED, "")


async def test_ctrl_c_is_code_130(peer: Peer, tmp_path: Path) -> None:
    """An interrupted command ends at once, without a traceback."""
    (tmp_path / "a.jpg").write_bytes(image("happy", gated=True))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "client", "predict", str(tmp_path / "a.jpg"), "--url", peer.url),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(TIMEOUT):
        while not peer.predictions_received:
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert (process.returncode, out, err) == (ExitCode.INTERRUPTED, b"", b"")


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes")
async def test_ctrl_c_ends_a_command_that_waits_for_a_named_pipe(peer: Peer, tmp_path: Path) -> None:
    """Also where nobody ever writes to it."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.jpg").write_bytes(image("happy"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "client", "predict", str(tmp_path / "pipe"), str(tmp_path / "a.jpg")),
        *("--url", peer.url),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(TIMEOUT):
            while not peer.predictions_received:
                await asyncio.sleep(0.01)
            process.send_signal(signal.SIGINT)
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, out, err) == (ExitCode.INTERRUPTED, b"", b"")


async def test_where_a_package_is_missing_it_is_said_which_python_has_it() -> None:
    """In the last line: by the system's Python, say, which has none of them."""
    done = await run_command([sys.executable, "-S", "-m", "client"], folder=ROOT)
    last = done.err.splitlines()[-1]
    assert f"websockets is not installed for {sys.executable}: use the Python of .venv" in last


async def test_ctrl_c_while_the_commands_are_imported_is_code_130(tmp_path: Path) -> None:
    """And no traceback."""
    code = """
import signal, sys
class Loading:
    def find_spec(self, name, *_):
        if name == "client.cli.predict":
            try:
                signal.raise_signal(signal.SIGINT)
            except BaseException:  # as C code does that is interrupted while it loads
                raise ImportError("initialization failed") from None
sys.meta_path.insert(0, Loading())
from client.cli import main
main()
"""
    done = await run_command([sys.executable, "-c", code], folder=tmp_path)
    assert done == Completed(ExitCode.INTERRUPTED, "", "")


async def test_ctrl_c_while_the_command_line_is_put_together_is_code_130(tmp_path: Path) -> None:
    """Which is before there is a command that could hear of it."""
    code = """
import signal, typer.main
typer.main.get_command = lambda _: signal.raise_signal(signal.SIGINT)
from client.cli import main
main()
"""
    done = await run_command([sys.executable, "-c", code], folder=tmp_path)
    assert done == Completed(ExitCode.INTERRUPTED, "", "")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("name", "shell"), [("SIGTERM", ""), ("SIGHUP", ""), ("SIGTERM", "trap '' INT;")])
async def test_what_ends_a_command_leaves_the_terminal_as_it_was(
    peer: Peer, tmp_path: Path, name: str, shell: str
) -> None:
    """Its cursor is shown again, the bar is gone, and the code is a shell's. In the background of a script, too, where
    Ctrl-C is ignored.
    """
    (tmp_path / "a.jpg").write_bytes(image("happy"))
    (tmp_path / "b.jpg").write_bytes(image("happy", gated=True))
    command = f"{shell} exec {shlex.quote(sys.executable)} -m client predict {shlex.quote(str(tmp_path))}"
    number, seen = getattr(signal, name), b""
    shelled = ("sh", "-c", f"{command} --url {peer.url}")
    async with on_a_terminal(*shelled) as (process, terminal), asyncio.timeout(TIMEOUT):
        while b"1/2" not in seen:
            seen += await asyncio.to_thread(os.read, terminal, 4096)
        process.send_signal(number)
        out, _ = await process.communicate()
        with suppress(OSError):  # nobody has the terminal open any more
            while True:
                seen += await asyncio.to_thread(os.read, terminal, 4096)
    assert process.returncode == 128 + number
    assert seen.rindex(SHOW_CURSOR) > seen.rindex(HIDE_CURSOR)
    assert b"Traceback" not in seen
    assert b"a.jpg" in out


@pytest.mark.parametrize("stream", ["full", "gone"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("predict", "a.jpg", "a.jpg"), ExitCode.OK),
        (("predict", ""), ExitCode.USAGE),
        (("emotions", "--url", "ws://127.0.0.1:9/ws"), ExitCode.CANNOT_CONNECT),
        (("emotions",), ExitCode.OUTPUT_FAILED),
    ],
)
async def test_the_exit_code_holds_where_nothing_can_be_said(
    peer: Peer, tmp_path: Path, stream: str, arguments: tuple[str, ...], code: ExitCode
) -> None:
    """Standard error on a full disk, or read by nobody any more, changes nothing of how a command ends."""
    (tmp_path / "a.jpg").write_bytes(image("happy"))
    reader, gone = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "client", *arguments),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "VISIONAI_URL": peer.url},
        stdout=full if code == ExitCode.OUTPUT_FAILED else asyncio.subprocess.PIPE,
        stderr=full if stream == "full" else gone,
    )
    os.close(gone)
    os.close(full)
    async with asyncio.timeout(TIMEOUT):
        await process.communicate()
    assert process.returncode == code


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
async def test_a_terminal_that_is_closed_ends_a_command_by_its_signal(peer: Peer) -> None:
    """The code is 129 also where the screen cannot be given back any more."""
    controller, terminal = pty.openpty()
    # Opened by the first process of a session, it is that one's: its end is SIGHUP.
    command = f"exec {shlex.quote(sys.executable)} -m client top --url {peer.url} <{os.ttyname(terminal)}"
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", command),
        cwd=ROOT,
        env=os.environ | {"TERM": "xterm"},
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    shown = b""
    try:
        async with asyncio.timeout(TIMEOUT):
            while b"predictions/s" not in shown:
                shown += await asyncio.to_thread(os.read, controller, 65536)
            os.close(controller)
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()  # or the thread that reads from it would be waited for
            await process.wait()
    assert process.returncode == 128 + signal.SIGHUP


class _Cutting(Peer):
    """Cuts its first connection once there is a frame."""

    async def _predict(self, websocket: ServerConnection, request: Received) -> None:
        if request.connection == 1:
            websocket.transport.abort()
        else:
            await super()._predict(websocket, request)


async def test_watch_goes_on_where_a_connection_is_lost(visionai: VisionAI, tmp_path: Path) -> None:
    """The frames on it have failed, and that is no end of the video."""
    video = cv2.VideoWriter(str(tmp_path / "video.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 20, (96, 96))
    for _ in range(10):
        video.write(np.zeros((96, 96, 3), np.uint8))
    video.release()
    async with _Cutting(fixed_faces=[(10, 10, 50, 50)]).running() as peer:
        done = await visionai("watch", "--camera", "video.avi", "--url", peer.url)
    assert done.code == 0, done.err
    assert re.search(r" [1-9]\d* failed", done.err)


class _Guarding(Peer):
    """Shows its metrics to who has a token."""

    def _process(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/metrics" and request.headers.get("Authorization") != "Bearer mine":
            return connection.respond(HTTPStatus.UNAUTHORIZED, "")
        return super()._process(connection, request)


async def test_top_brings_its_token_to_the_metrics(visionai: VisionAI) -> None:
    """As a proxy in front may ask for one, and without it the code is that of a server that does."""
    async with _Guarding().running() as peer:
        top = ("top", "--once", "--interval", "0.1", "--url", peer.url)
        assert (await visionai(*top)).code == ExitCode.UNAUTHORIZED
        done = await visionai(*top, "--token", "mine")
    assert done.code == 0, done.err

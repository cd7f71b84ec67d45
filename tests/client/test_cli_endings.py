"""What `visionai predict` leaves behind where something ends it before the last image."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import orjson
import pytest

from client.cli.exit_codes import ExitCode
from tests.client.harness import ROOT, TIMEOUT, VisionAI
from tests.client.peer import Peer, image


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

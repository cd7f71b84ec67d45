"""Running the documentation's examples as they stand."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

from tests.service.harness import FACE, TIMEOUT, Running

ADDRESS = "ws://127.0.0.1:8000"


def examples(page: str, language: str) -> list[str]:
    """The page's examples in a language."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert found
    return found


def node() -> str:
    """Node.js, as it is called here; `--experimental-websocket` is what has a WebSocket before Node 22."""
    found = shutil.which("node")
    assert found is not None, (
        "Node.js 20.10 or newer, as `node` on the PATH, is needed to test what runs in it"
    )
    return found


async def run_example(running: Running, folder: Path, name: str, code: str, *command: str) -> str:
    """What an example prints, with the documentation's address replaced by the test's, and a face.jpg beside it."""
    assert ADDRESS in code
    (folder / name).write_text(code.replace(ADDRESS, running.url.removesuffix("/")))
    (folder / "face.jpg").write_bytes(FACE)
    process = await asyncio.create_subprocess_exec(
        *command, name, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(TIMEOUT):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()

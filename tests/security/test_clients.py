"""The clients that come with VisionAI, against a service that asks for a token."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import jwt
import pytest

from client import AsyncClient, Unauthorized
from tests.security.conftest import SECRET, users
from tests.service.examples import node
from tests.service.harness import FACE, ROOT, TIMEOUT, Running, Serve

REQUIRED = {"auth": "required", "jwt_secret": SECRET}
TOKEN = jwt.encode({"sub": "anna", "exp": time.time() + 86_400}, SECRET, "HS256")

SCRIPT = f"""
import {{ VisionAI }} from "{(ROOT / "client/js/visionai.js").as_uri()}";
import {{ readFile }} from "node:fs/promises";
const client = new VisionAI(process.argv[2], {{ token: process.argv[3] || undefined }});
try {{
  const {{ emotion_name }} = await client.predict(await readFile("face.jpg"));
  const {{ emotions }} = await client.request("emotions");
  console.log(emotion_name, emotions.length);
}} catch (error) {{
  console.log(error.name, error.code);
}}
client.close();
"""


HEALTH_SCRIPT = f"""
import {{ VisionAI }} from "{(ROOT / "client/js/visionai.js").as_uri()}";
const client = new VisionAI(process.argv[2]);
console.log((await client.health()).status);
await client.emotions().catch((error) => console.log(error.name));
client.close();
"""


async def output(folder: Path, *command: str, **environment: str) -> tuple[int | None, str]:
    """The exit code and what a program prints."""
    (folder / "face.jpg").write_bytes(FACE)
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(TIMEOUT):
        out, err = await process.communicate()
    return process.returncode, (out + err).decode()


async def test_the_python_client_and_the_command_line_bring_a_token(
    serve: Serve, database: str, tmp_path: Path
) -> None:
    """From an argument or VISIONAI_TOKEN; without one the error and the exit code say so."""
    async with serve(**REQUIRED) as running:
        async with AsyncClient(running.url, token=TOKEN) as client:
            assert (await client.predict(FACE)).emotion_name == "happy"
        with pytest.raises(Unauthorized):
            async with AsyncClient(running.url) as client:
                await client.predict(FACE)
        command = (sys.executable, "-m", "client", "predict", "face.jpg", "--url", running.url)
        code, text = await output(tmp_path, *command, VISIONAI_TOKEN=TOKEN)
        assert code == 0, text
        assert "happy" in text
        code, text = await output(tmp_path, *command)
        assert (code, "(--token or VISIONAI_TOKEN)" in text) == (5, True), text
    assert set(users(database)) == {"anna"}


async def test_the_python_client_and_the_command_line_ask_for_health_without_a_token(
    serve: Serve, tmp_path: Path
) -> None:
    """Where a token is required, what may be asked without one is answered, and the rest says what it lacks."""
    async with serve(**REQUIRED) as running:
        async with AsyncClient(running.url) as client:
            assert (await client.health()).status == "healthy"
            with pytest.raises(Unauthorized):
                await client.emotions()
        command = (sys.executable, "-m", "client", "health", "--url", running.url)
        code, text = await output(tmp_path, *command)
        assert (code, "healthy" in text) == (0, True), text


async def test_the_javascript_client_asks_for_health_without_a_token(serve: Serve, tmp_path: Path) -> None:
    """As the Python client does."""
    (tmp_path / "script.mjs").write_text(HEALTH_SCRIPT)
    async with serve(**REQUIRED) as running:
        _, text = await output(tmp_path, node(), "--experimental-websocket", "script.mjs", running.url)
    assert text.splitlines()[:2] == ["healthy", "Unauthorized"], text


async def test_the_javascript_client_brings_a_token_in_its_first_message(
    serve: Serve, database: str, tmp_path: Path
) -> None:
    """Commands without a token of their own are answered too."""
    (tmp_path / "script.mjs").write_text(SCRIPT)
    flags = ("--experimental-websocket", "script.mjs")

    async def script(running: Running, token: str) -> str:
        return (await output(tmp_path, node(), *flags, running.url, token))[1]

    async with serve(**REQUIRED) as running:
        assert (await script(running, TOKEN)).startswith("happy 7")
        assert (await script(running, "")).startswith("Unauthorized unauthorized")
    assert set(users(database)) == {"anna"}

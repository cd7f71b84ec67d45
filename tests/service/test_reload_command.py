"""`python -m service --reload` and `visionai reload`: what they say, and how they end."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.service.harness import (
    ROOT,
    TIMEOUT,
    StartProcess,
)
from tests.service.reloading import (
    VERSION,
    reload,
    run_there,
)


async def test_a_reload_with_no_service_says_so(tmp_path: Path) -> None:
    """Exit code 2, and what to do."""
    code, said = await reload(tmp_path)
    assert code == 2
    assert "no service answers at visionai.sock" in said


async def test_a_path_that_is_too_long_for_a_socket_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system has no number for it, and the reason was None."""
    monkeypatch.setenv("CONTROL_SOCKET", f"{'d' * 120}/visionai.sock")
    code, said = await reload(tmp_path)
    assert code == 2
    assert "visionai.sock (AF_UNIX path too long)" in said


@pytest.mark.parametrize("named", [False, True])
async def test_the_clients_command_reloads(start_process: StartProcess, tmp_path: Path, named: bool) -> None:
    """`visionai reload`, where the service was started, or by its socket; exit code 4 if refused, 3 with no service."""

    async def visionai(*options: str, folder: Path) -> tuple[int, str]:
        return await run_there(folder, "client", "reload", *options)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    options = ["--control-socket", str(tmp_path / "visionai.sock")] if named else []
    folder = elsewhere if named else tmp_path
    assert (await visionai(*options, folder=folder))[0] == 3
    start_process(WORKERS="1")
    assert await visionai(*options, folder=folder) == (0, f"reloaded: model {VERSION}\n")
    for wrong in ("CANARY_MODEL_PATH=missing.onnx", "DETECT=perhaps", "EXECUTORS=1000"):
        (tmp_path / ".env").write_text(f"{wrong}\n")
        code, said = await visionai(*options, folder=folder)
        assert code == 4
        assert f"model {VERSION} is still served" in said


@pytest.mark.parametrize(("module", "code"), [(("service", "--reload"), 3), (("client", "reload"), 6)])
@pytest.mark.parametrize("output", ["full", "gone"])
async def test_a_reload_that_cannot_be_told_of_is_no_failed_reload(
    start_process: StartProcess, tmp_path: Path, module: tuple[str, ...], code: int, output: str
) -> None:
    """A code of its own: one line where the disk is full, none where the reader has gone, and no traceback."""
    start_process(WORKERS="1")
    if output == "full":
        writing = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, writing = os.pipe()
        os.close(reading)
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *module),
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=writing,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(TIMEOUT):
            _, said = await process.communicate()
    finally:
        os.close(writing)
    full = b"reloaded, but the output cannot be written: No space left on device\n"
    assert (process.returncode, said) == (code, full if output == "full" else b"")

"""Everything that docs/client.md and the help pages show is run."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import cv2
import pytest
from typer.core import TyperGroup
from typer.main import get_command

from client.async_client import DEFAULT_URL
from client.cli.commands import app
from client.cli.exit_codes import ExitCode
from tests.client.harness import FACE, ROOT, ServiceProcess, VisionAI, run_command
from tests.client.peer import Peer
from tests.service.examples import examples, node

PAGE = (ROOT / "docs/client.md").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that the examples name."""
    (tmp_path / "photos").mkdir()
    face = cv2.imread(str(FACE))
    assert face is not None
    (tmp_path / "face.jpg").write_bytes(FACE.read_bytes())
    (tmp_path / "photos" / "one.jpg").write_bytes(FACE.read_bytes())
    (tmp_path / "photos" / "two.png").write_bytes(cv2.imencode(".png", face)[1].tobytes())
    height, width = face.shape[:2]
    video = cv2.VideoWriter(str(tmp_path / "video.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 20, (width, height))
    for _ in range(5):
        video.write(face)
    video.release()
    return tmp_path


@pytest.fixture
async def full_peer() -> AsyncIterator[Peer]:
    """A server with every command of protocol 2, for those that the service does not have."""
    async with Peer(fixed_faces=[(1, 2, 30, 40)]).running() as running:
        yield running


@pytest.mark.parametrize("line", examples(PAGE, "sh")[0].splitlines())
async def test_a_command_of_the_page(
    line: str, folder: Path, service: ServiceProcess, full_peer: Peer, visionai: VisionAI
) -> None:
    """Each command line ends with exit code 0 and prints something."""
    command, _, redirected = line.partition(" < ")
    arguments = shlex.split(command)
    assert arguments[0] == "visionai"
    stdin = (folder / redirected).read_bytes() if redirected else b""
    url = full_peer.url if arguments[1] in ("stats", "history") else service.url
    done = await visionai(*arguments[1:], stdin=stdin, environment={"VISIONAI_URL": url})
    assert done.code == 0, done.err
    assert done.out


async def test_the_example_of_each_commands_help(folder: Path, visionai: VisionAI) -> None:
    """Every command has one, and it ends well, on the service that the example of `serve` starts."""
    root = cast("TyperGroup", get_command(app))
    examples = {
        name: re.findall(r"^Example: visionai (.+)$", command.help or "", re.MULTILINE)
        for name, command in root.commands.items()
    }
    assert [name for name, found in examples.items() if len(found) != 1] == []
    arguments = {name: shlex.split(found[0]) for name, found in examples.items()}
    assert [words[0] for words in arguments.values()] == list(arguments)
    # Port 9000 may be in use here.
    serve = [word.replace("9000", "0") for word in arguments.pop("serve")]
    service = ServiceProcess(folder, ("-m", "client", *serve))
    try:
        service.start()
        for words in arguments.values():
            here = [word.replace(DEFAULT_URL, service.url) for word in words]
            done = await visionai(*here, environment={"VISIONAI_URL": service.url})
            assert done.code == 0, (words, done)
    finally:
        service.stop()


@pytest.mark.parametrize("code", examples(PAGE, "python"))
async def test_a_python_example_of_the_page(code: str, folder: Path, service: ServiceProcess) -> None:
    """Each program prints the emotion of the face."""
    (folder / "example.py").write_text(code.replace("ws://127.0.0.1:8000/ws", service.url))
    done = await run_command([sys.executable, "example.py"], folder=folder)
    assert done.code == 0, done.err
    assert done.out.startswith("happy")


@pytest.mark.parametrize("code", examples(PAGE, "js"))
async def test_a_javascript_example_of_the_page(code: str, folder: Path, service: ServiceProcess) -> None:
    """The module prints the emotion of the face, and the code of the error."""
    code = code.replace("ws://127.0.0.1:8000/ws", service.url).replace(
        "./client/js", (ROOT / "client/js").as_uri()
    )
    (folder / "example.mjs").write_text(code)
    done = await run_command([node(), "--experimental-websocket", "example.mjs"], folder=folder)
    assert done.code == 0, done.err
    first, second = done.out.splitlines()
    assert re.match(r"happy (0\.9|1$)", first), first
    assert second.startswith("invalid_image ")


def test_the_exit_codes_of_the_page_are_true() -> None:
    """The page's table lists exactly the exit codes that there are."""
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert listed == set(map(int, ExitCode))


def test_the_help_breaks_no_paragraph() -> None:
    """Lines of a docstring are shown as lines: a paragraph that goes on in the next would be torn on the page."""
    group = cast("TyperGroup", get_command(app))
    texts = {name: command.help or "" for name, command in group.commands.items()}
    assert [name for name, text in texts.items() if re.search(r"\S\n\S", text)] == []

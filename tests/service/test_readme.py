"""The README's examples are run as they stand, against a real service."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from service.settings import Settings
from tests.service.examples import run_example
from tests.service.harness import ROOT, Running

README = (ROOT / "README.md").read_text()


def example(language: str) -> str:
    """The README's only code block in a language."""
    (block,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return str(block)


async def test_the_python_example_prints_an_emotion(running: Running, tmp_path: Path) -> None:
    """Copied from the README, it runs and recognises the face."""
    output = await run_example(running, tmp_path, "predict.py", example("python"), sys.executable)
    assert re.search(r"\nhappy (0\.9|1\.0 )", output), output


async def test_the_javascript_example_prints_an_emotion(running: Running, tmp_path: Path) -> None:
    """Copied from the README, it runs under Node and recognises the face."""
    node = shutil.which("node")
    assert node is not None, "these tests need Node.js (Debian: apt-get install nodejs)"
    # Before Node 22 the browser's WebSocket is behind this flag; later versions still accept it.
    output = await run_example(
        running, tmp_path, "predict.mjs", example("javascript"), node, "--experimental-websocket"
    )
    assert re.match(r"happy (0\.9|1$)", output), output


def test_every_setting_is_in_the_table() -> None:
    """No setting is undocumented in docs/operations.md, and defaults are as the table says."""
    page = (ROOT / "docs/operations.md").read_text()
    documented = dict(re.findall(r"^\| `([A-Z_]+)` +\| `([^`]*)` ", page, re.MULTILINE))
    names = {name.upper() for name in Settings.__dataclass_fields__}
    assert names <= set(re.findall(r"`([A-Z_]+)`", page))
    defaults = Settings()
    for name, default in documented.items():
        assert str(getattr(defaults, name.lower())) in (default, f"{default}.0")

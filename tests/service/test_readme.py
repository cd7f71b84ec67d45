"""The README's examples are run as they stand, against a real service."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from service.settings import Settings
from tests.service.examples import examples, node, run_example
from tests.service.harness import ROOT, Running

README = (ROOT / "README.md").read_text()


async def test_the_python_example_prints_an_emotion(running: Running, tmp_path: Path) -> None:
    """Copied from the README, it runs and recognises the face."""
    (code,) = examples(README, "python")
    output = await run_example(running, tmp_path, "predict.py", code, sys.executable)
    assert re.search(r"\nhappy (0\.9|1\.0 )", output), output


async def test_the_javascript_example_prints_an_emotion(running: Running, tmp_path: Path) -> None:
    """Copied from the README, it runs under Node and recognises the face."""
    (code,) = examples(README, "javascript")
    output = await run_example(running, tmp_path, "predict.mjs", code, node(), "--experimental-websocket")
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

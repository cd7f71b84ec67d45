"""What tests of reloads share: models that differ by their metadata alone, and asking for a reload."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

from service.engine import Engine
from service.modelfile import DETECTORS
from tests.service.harness import MODEL, ROOT, TIMEOUT

# Bytes in the model's metadata, each replaced by as many others.
VERSION = Engine(MODEL).card.version_tag
OTHER_VERSION = VERSION[:-1] + ("9" if VERSION[-1] != "9" else "8")
LABEL, OTHER_LABEL = "surprise", "surprize"


def copy_model(folder: Path) -> Path:
    """A copy of the served model, with the detectors beside it and without a manifest."""
    for name in (MODEL.name, *DETECTORS):
        shutil.copy(MODEL.with_name(name), folder)
    return folder / MODEL.name


def change(model: Path, old: str, new: str) -> None:
    """Put another model in its place, at once and whole, as the conversion does."""
    content = model.read_bytes()
    assert old.encode() in content
    other = model.with_name("other")
    other.write_bytes(content.replace(old.encode(), new.encode()))
    other.replace(model)


async def reload(folder: Path, **environment: str) -> tuple[int, str]:
    """`python -m service --reload`, started where the service was: its exit code, and what it says."""
    return await run_there(folder, "service", "--reload", **environment)


async def run_there(folder: Path, module: str, *arguments: str, **environment: str) -> tuple[int, str]:
    """A module's command, run in a folder: its exit code, and what it says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), TIMEOUT)
    assert process.returncode is not None
    return process.returncode, said.decode()

"""Starts with a Python that lacks a package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service.harness import MODEL, ROOT, TIMEOUT


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("dotenv", ()),
        ("dotenv", ("--migrate-only",)),
        ("dotenv", ("create-key", "anna")),
        ("alembic", ("--migrate-only",)),
        ("jwt", ()),
    ],
)
def test_a_python_without_the_packages_is_one_line(
    tmp_path: Path, package: str, arguments: tuple[str, ...]
) -> None:
    """As the system's own is, which people type by habit: it names that Python, and the one to use.

    Also where another process needs the package, to migrate the database or to know users by their tokens.
    """
    code = f"import sys; sys.modules['{package}'] = None; from service.__main__ import main; sys.exit(main())"
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "MODEL_PATH": str(MODEL), "PORT": "0", "LOG_LEVEL": "ERROR"}
        | {"AUTH": "required", "JWT_SECRET": "s" * 32},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        f"VisionAI cannot start: {package} is not installed for {sys.executable}: "
    )
    assert ended.stderr.count("\n") == 1

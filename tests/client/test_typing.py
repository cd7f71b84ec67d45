"""The client's types, as a program sees them that has it installed."""

from __future__ import annotations

import sys
import tomllib
import venv
from pathlib import Path

from tests.client.harness import ROOT, run_command

PROGRAM = """\
from contextlib import closing
from typing import assert_type

from client import Client, Outcome, Prediction

with Client() as client:
    assert_type(client.predict("face.jpg"), Prediction)
    for outcome in client.predict_many(["face.jpg"]):
        assert_type(outcome, Outcome)
    with closing(client.predict_many(["face.jpg"])) as outcomes:
        next(outcomes)
    client.predict("face.jpg", detect="sometimes")
"""


async def test_a_program_s_use_of_the_client_is_checked(tmp_path: Path) -> None:
    """Its results have their types under `mypy --strict`, `closing` takes many, and an option that is none is found."""
    environment = tmp_path / "venv"
    venv.create(environment)
    (site_packages,) = environment.glob("**/site-packages")
    (site_packages / "client").symlink_to(ROOT / "client")
    (tmp_path / "program.py").write_text(PROGRAM)
    # Not from here, where the client is no installed package.
    done = await run_command(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--python-executable",
            environment / "bin/python",
            "program.py",
        ],
        folder=tmp_path,
        environment={"PYTHONPATH": "", "PYTHONWARNINGS": ""},
    )
    assert done.out.count("error:") == 1, done
    assert 'program.py:12: error: Argument "detect"' in done.out


def test_the_types_are_part_of_the_package() -> None:
    """What is installed has the marker that type checkers look for."""
    package_data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "py.typed" in package_data["client"]
    assert (ROOT / "client/py.typed").is_file()

"""What make runs, with programs that only note it in the place of both environments' Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAMPS = (".venv/.serve", ".venv/.dev", ".venv-build/.build")
CONVERT = "-m models convert"
SERVE = "-m service"
# Long enough for another of its kind to begin beside it.
PYTHON = """#!/bin/sh
echo "$*" >> ran
if [ "$*" = "-m models convert" ]; then
  sleep 0.3
  mkdir -p models/build
  for name in modelo_emociones face_short face_back; do : >> models/build/$name.onnx; done
fi
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that make looks at, the environments already installed, and no model built."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "models/sources", "conversion"):
        source, target = ROOT / name, tmp_path / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    for name in ("modelo_emociones.keras", "detector.py", "blocks.py"):
        (tmp_path / "models" / name).touch()
    for stamp in STAMPS:
        python = (tmp_path / stamp).parent / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text(PYTHON)
        python.chmod(0o755)
        (tmp_path / stamp).touch()
    return tmp_path


def ran(checkout: Path, *arguments: str) -> list[str]:
    """What a make with these arguments gives to Python."""
    (checkout / "ran").write_text("")
    done = subprocess.run(["make", *arguments], cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (checkout / "ran").read_text().splitlines()


def test_the_models_are_converted_once_however_many_jobs_may_run(checkout: Path) -> None:
    """Not once for each file that the conversion leaves."""
    assert ran(checkout, "-j4", "run") == [CONVERT, SERVE]
    assert ran(checkout, "-j4", "run") == [SERVE]


@pytest.mark.parametrize(
    "changed",
    ["models/modelo_emociones.keras", "models/sources/face_short.toml", "conversion/folding.py", STAMPS[2]],
)
def test_make_run_looks_again_after_what_a_model_is_made_of_changed(changed: str, checkout: Path) -> None:
    """A network that was exported or pulled is the one that is served; the next start does not look again."""
    ran(checkout, "run")
    built = (checkout / "models/build/modelo_emociones.onnx").stat().st_mtime_ns
    os.utime(checkout / changed, ns=(built + 1, built + 1))
    assert ran(checkout, "run") == [CONVERT, SERVE]
    assert ran(checkout, "run") == [SERVE]


def test_an_environment_whose_making_was_cut_off_is_made_anew(checkout: Path) -> None:
    """One that has a Python and no pip, as Ctrl-C or a Debian without python3-venv leaves it."""
    shutil.rmtree(checkout / ".venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=checkout, check=True)
    # With --help, pip installs nothing.
    arguments = ["make", ".venv/.serve", f"PYTHON={sys.executable}", "PIP_FLAGS=--help"]
    done = subprocess.run(arguments, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (checkout / ".venv/.serve").exists()


@pytest.mark.parametrize(
    ("holds", "made"), [("pyvenv.cfg", "-m venv --clear mine"), ("data", "-m venv mine")]
)
def test_only_an_environment_is_emptied(holds: str, made: str, checkout: Path) -> None:
    """What VENV names may hold other things, such as all of a person's environments."""
    (checkout / "mine").mkdir()
    (checkout / "mine" / holds).touch()
    arguments = ["make", "mine/.serve", "VENV=mine", f"PYTHON={checkout / '.venv/bin/python'}"]
    assert subprocess.run(arguments, cwd=checkout, capture_output=True, check=False).returncode != 0
    assert (checkout / "ran").read_text().splitlines()[-1] == made

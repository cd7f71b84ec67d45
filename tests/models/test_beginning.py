"""`python -m models` where what it needs is not installed, or interrupted before a command runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.sources import ROOT
from tests.models.commands import write_faces


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [
        ("keras", ("train",)),
        ("tensorflow", ("label", "teacher.keras")),
        ("keras", ("export", "small.keras", "-o", "out.keras")),
        ("tensorflow", ("evaluate", "small.keras")),
        ("matplotlib", ("evaluate", "small.onnx", "--plot", "plot.png")),
    ],
)
def test_the_serving_environment_names_the_one_to_use(
    missing: str, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """Where what a command needs is not installed, one line says where it is."""
    write_faces(tmp_path / "faces.npz", 3)
    (tmp_path / "small.keras").touch()
    code = f"import sys; sys.modules['{missing}'] = None; from models.__main__ import main; main()"
    command = [sys.executable, "-c", code, *arguments, "--data", "faces.npz"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"error: this needs {missing}: run it in .venv-build")
    assert ran.stderr.count("\n") == 1


def test_a_python_without_the_packages_is_one_line() -> None:
    """As the system's own is, which people type by habit: it names that Python, and the one to use, even for --help."""
    code = "import sys; sys.modules['typer'] = None; from models.__main__ import main; main()"
    command = [sys.executable, "-c", code, "--help"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(
        f"error: typer is not installed for {sys.executable}: run this in .venv-build"
    )
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "moment", ["sys.meta_path.insert(0, Loading())", "import typer.main; typer.main.get_command = interrupt"]
)
def test_ctrl_c_before_a_command_runs_is_code_130(moment: str) -> None:
    """While typer is imported, or puts the commands together: no traceback."""
    code = f"""
import signal, sys
class Loading:
    def find_spec(self, name, *_):
        if name == "typer":
            interrupt()
def interrupt(*_):
    signal.raise_signal(signal.SIGINT)
{moment}
from models.__main__ import main
main()
"""
    command = [sys.executable, "-c", code, "--help"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "")

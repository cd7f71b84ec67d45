"""`python -m conversion` before there is a command line: its libraries are missing, or interrupted while they load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_python_without_the_packages_is_one_line() -> None:
    """As the system's own is, which people type by habit: it names that Python, and the one to use, even for --help."""
    code = "import sys; sys.modules['numpy'] = None; from conversion.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "--help"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(
        f"error: numpy is not installed for {sys.executable}: run this in .venv-build"
    )
    assert ran.stderr.count("\n") == 1


def test_ctrl_c_while_libraries_load_is_one_line() -> None:
    """Also where one in C, which is interrupted while it loads, would say that it cannot be imported."""
    code = """
import signal, sys
class Loading:
    def find_spec(self, name, *_):
        if name == "numpy":
            try:
                signal.raise_signal(signal.SIGINT)
            except BaseException:
                raise ImportError("initialization failed") from None
sys.meta_path.insert(0, Loading())
from conversion.__main__ import main
sys.exit(main())
"""
    command = [sys.executable, "-c", code, "--help"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "error: interrupted\n")

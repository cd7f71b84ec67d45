"""Folders of work that may be cut off and started again."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from models.__main__ import app
from models.architecture import VARIANTS, build
from tests.models.commands import RUNNER, said, write_faces

_WORK = """
import pathlib, sys
from models.resuming import alone
with alone(pathlib.Path(sys.argv[1])):
    print("begun", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process_works_in(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the folder to itself until it is killed."""
    command = [sys.executable, "-c", _WORK, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("command", ["train", "label"])
def test_what_another_process_works_on_is_left_to_it(command: str, tmp_path: Path) -> None:
    """The same command in a second terminal is refused and changes nothing; when the first was killed, it runs."""
    data, teacher = write_faces(tmp_path / "faces.npz", 130), tmp_path / "tiny.keras"
    if command == "train":
        folder = tmp_path / "run" / "checkpoints"
        arguments = ["train", "--networks", "tiny", "--epochs", "1", "--run", str(folder.parent)]
    else:
        build(VARIANTS["tiny"], "tiny").save(teacher)
        folder = tmp_path / "labels.npz.views"
        arguments = ["label", str(teacher), "--views", "1", "--light-views", "1"]
        arguments += ["-o", str(tmp_path / "labels.npz")]
    arguments += ["--data", str(data)]
    folder.mkdir(parents=True)
    with another_process_works_in(folder):
        refused = RUNNER.invoke(app, arguments)
        assert refused.exit_code == 2, refused.output
        assert "another process works there; wait until it has ended" in said(refused.output)
        assert [path.name for path in folder.iterdir()] == ["made-by.json"]
    done = RUNNER.invoke(app, arguments)
    assert done.exit_code == 0, done.output

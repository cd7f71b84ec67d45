"""What a command prints may find no reader and no room: what it did is done all the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conversion.keras_models import LABELS

ROOT = Path(__file__).parents[2]


def _run(arguments: list[str], output: int) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "conversion", *arguments]
    # Written at once in one run, and with what is left at the end in the other.
    environment = os.environ | {"PYTHONUNBUFFERED": "1" if "--json" in arguments else ""}
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize("command", ["convert", "verify"])
def test_a_report_that_nobody_reads_is_no_failure(
    command: str, options: list[str], rgb_model: Path, tmp_path: Path
) -> None:
    """With `| head` the status is 0, as the files are written; on a full disk it is 1, and one line says so."""
    model = tmp_path / "model.onnx"
    convert = [str(rgb_model), "-o", str(model), "--source-labels", ",".join(LABELS)]
    convert += ["--scale", "0.00392", "--offset", "0"]
    if command == "verify":
        assert _run(convert, subprocess.DEVNULL).returncode == 0
    arguments = convert if command == "convert" else ["verify", str(model)]
    reading, writing = os.pipe()
    os.close(reading)
    unread = _run([*arguments, *options], writing)
    os.close(writing)
    assert (unread.returncode, unread.stderr) == (0, "")
    assert model.is_file()
    full = os.open("/dev/full", os.O_WRONLY)
    lost = _run([*arguments, *options], full)
    os.close(full)
    assert lost.returncode == 1
    done = "the models are written" if command == "convert" else "the model is verified"
    assert lost.stderr == f"error: {done}, but the report cannot be printed: No space left on device\n"


def test_names_with_brackets_are_shown_whole(rgb_model: Path, tmp_path: Path) -> None:
    """Square brackets in a file's name are no markup of the table."""
    source = tmp_path / "m[red].keras"
    source.write_bytes(rgb_model.read_bytes())
    arguments = [str(source), "-o", str(tmp_path / "n[b].onnx"), "--source-labels", ",".join(LABELS)]
    shown = _run([*arguments, "--scale", "0.00392", "--offset", "0"], subprocess.PIPE)
    assert shown.returncode == 0, shown.stderr
    assert "m[red].keras" in shown.stdout
    assert "n[b].onnx" in shown.stdout

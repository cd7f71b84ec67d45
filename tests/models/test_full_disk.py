"""Commands that find no room for what they made: one line tells it, and nothing is left cut off."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from models.__main__ import app
from models.architecture import VARIANTS, build
from models.networks import load_network
from models.sources import ROOT
from tests.models.commands import RUNNER, files_of_at_most, said, write_faces

# Keras hands its variables to NumPy in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A batch of faces, and a network."""
    made: Path = tmp_path_factory.mktemp("made")
    write_faces(made / "faces.npz", 130)
    build(VARIANTS["tiny"], "tiny").save(made / "tiny.keras")
    return made


@pytest.mark.parametrize("room", [0, 1024])
def test_labels_that_find_no_room_are_made_when_there_is(room: int, folder: Path, tmp_path: Path) -> None:
    """Whether the first file does not fit or the first view: the same command makes all of them afterwards."""
    output = tmp_path / "labels.npz"
    command = ["label", str(folder / "tiny.keras"), "--data", str(folder / "faces.npz"), "-o", str(output)]
    command += ["--views", "1", "--light-views", "1"]
    with files_of_at_most(room):
        full = RUNNER.invoke(app, command)
    assert full.exit_code == (1 if room else 2), full.output
    assert "cannot write: File too large" in said(full.stderr)
    if room:
        assert full.stderr.startswith("error: ")
        assert full.stderr.endswith("start again in the same way: what is labelled is kept\n")
        assert full.stderr.count("\n") == 1
    assert not output.exists()
    labelled = RUNNER.invoke(app, command)
    assert labelled.exit_code == 0, labelled.output
    with np.load(output) as labels:
        assert labels["strong"].shape == labels["light"].shape == (1, 128, 7)


@pytest.mark.parametrize("room", [100, 20_000])
def test_networks_that_find_no_room_are_saved_when_there_is(room: int, folder: Path, tmp_path: Path) -> None:
    """All epochs are kept: nothing is trained again, and neither recipe nor network is left cut off."""
    command = ["train", "--data", str(folder / "faces.npz"), "--networks", "tiny", "--epochs", "1"]
    command += ["--run", str(tmp_path)]
    first = RUNNER.invoke(app, command)
    assert first.exit_code == 0, first.output
    for name in ("recipe.json", "tiny.keras", "curves.png"):
        (tmp_path / name).unlink()
    with files_of_at_most(room):
        full = RUNNER.invoke(app, command)
    if room == 100:
        assert full.exit_code == 2, full.output
        assert "cannot write: File too large" in said(full.stderr)
    else:
        assert full.exit_code == 1, full.output
        assert full.stderr.startswith("error: ")
        assert full.stderr.endswith("start again in the same way: no epoch is trained again\n")
        assert full.stderr.count("\n") == 1
    assert not (tmp_path / "tiny.keras").exists()
    resumed = RUNNER.invoke(app, command)
    assert resumed.exit_code == 0, resumed.output
    assert "Going on after epoch 1 of 1" in resumed.output
    assert (tmp_path / "curves.png").is_file()
    load_network(tmp_path / "tiny.keras")


@pytest.mark.parametrize("command", [["evaluate"], ["evaluate", "--json"], ["pareto"], ["pareto", "--json"]])
def test_figures_that_cannot_be_printed_are_one_line(
    command: list[str], folder: Path, tmp_path: Path
) -> None:
    """And the picture is drawn all the same."""
    plot = tmp_path / "plot.png"
    model = str(ROOT / "models/build/modelo_emociones.onnx")
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "models", *command, model),
                *("--data", str(folder / "faces.npz"), "--plot", str(plot)),
            ],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr.endswith("scored, but the report cannot be printed: No space left on device\n")
    assert ended.stderr.count("\n") == 1
    assert plot.is_file()

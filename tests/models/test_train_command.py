import json
from pathlib import Path

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

from models.__main__ import app
from models.architecture import VARIANTS, build
from models.quantization import LARGEST_WEIGHT, kernel_steps

RUNNER = CliRunner()


def write_faces(path: Path, count: int) -> Path:
    """Random faces for both splits, half voted happy, half sad."""
    rng = np.random.default_rng(0)
    votes = np.zeros((count, 10), np.uint8)
    votes[::2, 1] = votes[1::2, 3] = 10
    labels = np.where(np.arange(count) % 2, 5, 3).astype(np.uint8)
    arrays: dict[str, np.ndarray] = {}
    for split in ("train", "val"):
        arrays |= {f"{split}_x": rng.integers(0, 256, (count, 48, 48), dtype=np.uint8)}
        arrays |= {f"{split}_y": labels, f"{split}_votes": votes}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Forty faces a split."""
    return write_faces(tmp_path / "faces.npz", 40)


# Keras hands its variables to NumPy in a way that NumPy 2 deprecates.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_run_that_stopped_goes_on_and_leaves_networks_and_curves(data: Path, tmp_path: Path) -> None:
    """One epoch, then the same folder asked for two: the first is not trained again."""
    run = tmp_path / "run"
    command = ["train", "--data", str(data), "--run", str(run), "--networks", "tiny"]
    # A batch is 128 faces, so each face is drawn several times to fill one.
    command += ["--oversample", "1,1,1,4,1,4,1"]
    first = RUNNER.invoke(app, [*command, "--epochs", "1"])
    assert first.exit_code == 0, first.output
    second = RUNNER.invoke(app, [*command, "--epochs", "2"])
    assert second.exit_code == 0, second.output
    assert "Going on after epoch 1 of 2" in second.output
    assert len(json.loads((run / "history.json").read_text())) == 2
    assert (run / "tiny.keras").is_file()
    assert (run / "curves.png").is_file()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_int8_form_of_a_trained_network_is_trained_and_goes_on(data: Path, tmp_path: Path) -> None:
    """`--int8` starts from the run it continues, can be cut off, and saves a network of whole steps."""
    few = ["--data", str(data), "--networks", "tiny", "--oversample", "1,1,1,4,1,4,1"]
    first = RUNNER.invoke(app, ["train", *few, "--run", str(tmp_path / "float"), "--epochs", "1"])
    assert first.exit_code == 0, first.output
    command = ["train", *few, "--run", str(tmp_path / "int8"), "--continue-from", str(tmp_path / "float")]
    for epochs in ("1", "2"):
        trained = RUNNER.invoke(app, [*command, "--int8", "--epochs", epochs])
        assert trained.exit_code == 0, trained.output
    assert "Going on after epoch 1 of 2" in trained.output
    network = keras.saving.load_model(tmp_path / "int8" / "tiny.keras", compile=False)
    kernel = network.get_layer("stage1_block0_a_conv").get_weights()[0]
    whole = kernel / kernel_steps(kernel)
    assert np.abs(whole - np.round(whole)).max() < 1e-3
    assert np.abs(whole).max() == pytest.approx(LARGEST_WEIGHT)
    path = str(tmp_path / "int8" / "tiny.keras")
    mean = RUNNER.invoke(app, ["export", path, path, "--data", str(data), "-o", str(tmp_path / "mean.keras")])
    assert mean.exit_code == 2
    assert "none in INT8" in " ".join(mean.output.replace("│", " ").split())
    again = RUNNER.invoke(
        app, [*command[:-1], str(tmp_path / "int8"), "--run", str(tmp_path / "no"), "--int8"]
    )
    assert again.exit_code == 2
    assert "make INT8 of" in " ".join(again.output.replace("│", " ").split())


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_student_is_trained_on_the_labels_of_a_teacher(tmp_path: Path) -> None:
    """`label` asks any network that gives logits; `train --labels` learns from its file, and from no other recipe's."""
    data = write_faces(tmp_path / "faces.npz", 130)
    teacher, labels = tmp_path / "teacher.keras", tmp_path / "labels.npz"
    build(VARIANTS["tiny"], "teacher").save(teacher)
    command = ["label", str(teacher), "--data", str(data), "-o", str(labels), "--views", "1"]
    labelled = RUNNER.invoke(app, [*command, "--light-views", "1"])
    assert labelled.exit_code == 0, labelled.output
    with np.load(labels) as archive:
        assert archive["strong"].shape == archive["light"].shape == (1, 128, 7)
        assert archive["strong"].sum(axis=-1) == pytest.approx(1, abs=1e-2)
    command = ["train", "--data", str(data), "--labels", str(labels), "--networks", "tiny", "--epochs", "1"]
    trained = RUNNER.invoke(app, [*command, "--run", str(tmp_path / "run")])
    assert trained.exit_code == 0, trained.output
    refused = RUNNER.invoke(app, [*command, "--run", str(tmp_path / "other"), "--seed", "5"])
    assert refused.exit_code == 2
    assert "another recipe" in " ".join(refused.output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--networks", "huge"], "no such size: huge"),
        (["--networks", "teacher,small"], "a teacher is trained alone"),
        (["--augmentation", "wild"], "strong, medium, light"),
        (["--oversample", "1,2"], "7 whole numbers"),
        (["--continue-from", "nowhere"], "nowhere has none of large,small"),
        (["--int8"], "--int8 needs every network of --networks"),
        (["--labels", "nowhere.npz"], "no such file"),
    ],
)
def test_a_wrong_option_is_named(data: Path, tmp_path: Path, options: list[str], message: str) -> None:
    """A bad size, strength, repetition or folder ends with a usage error and no traceback."""
    result = RUNNER.invoke(app, ["train", "--data", str(data), "--run", str(tmp_path / "run"), *options])
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from models.__main__ import app
from models.architecture import VARIANTS, build, with_temperature
from models.quantization import LARGEST_WEIGHT, kernel_steps
from models.training import Trainer
from tests.models.commands import RUNNER, files_of_at_most, said, write_faces


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    """Run a command that trains an epoch, of one step, and dies in the next."""

    def run(command: list[str]) -> None:
        train_step, steps = Trainer.train_step, []

        def die(*arguments: Any, **keywords: Any) -> list[float]:
            steps.append(1)
            if len(steps) == 2:
                raise ConnectionAbortedError("power cut")
            return train_step(*arguments, **keywords)

        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "train_step", die)
            result = RUNNER.invoke(app, command)
        assert isinstance(result.exception, ConnectionAbortedError), result.output

    return run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Forty faces a split."""
    return write_faces(tmp_path / "faces.npz", 40)


# Keras hands its variables to NumPy in a way that NumPy 2 deprecates.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_run_that_stopped_goes_on_and_leaves_networks_and_curves(
    data: Path, tmp_path: Path, cut_off: Callable[[list[str]], None]
) -> None:
    """Cut off after one epoch of two: the first is not trained again."""
    run = tmp_path / "run"
    command = ["train", "--data", str(data), "--run", str(run), "--networks", "tiny"]
    # A batch is 128 faces, so each face is drawn several times to fill one.
    command += ["--oversample", "1,1,1,4,1,4,1", "--epochs", "2"]
    cut_off(command)
    second = RUNNER.invoke(app, command)
    assert second.exit_code == 0, second.output
    assert "Going on after epoch 1 of 2" in second.output
    assert len(json.loads((run / "history.json").read_text())) == 2
    assert (run / "tiny.keras").is_file()
    assert (run / "curves.png").is_file()
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    others = write_faces(tmp_path / "others.npz", 40, seed=1)
    for changes, message in (
        (["--epochs", "3"], "other recipe;"),
        (["--networks", "small"], "other networks;"),
        (["--no-bf16"], "other bf16;"),
        (["--data", str(others)], "other data;"),
        (["--continue-from", str(run)], "other starting networks;"),
        (["--continue-from", str(run), "--int8"], "other recipe, int8, starting networks;"),
    ):
        refused = RUNNER.invoke(app, [*command, *changes])
        assert refused.exit_code == 2, refused.output
        assert f"begun with {message} delete it to begin anew, or choose another --run" in said(
            refused.output
        )
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == kept


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("long", ["checkpoint", "history"])
def test_an_epoch_that_finds_no_room_is_trained_again_when_there_is(
    long: str, data: Path, tmp_path: Path, cut_off: Callable[[list[str]], None]
) -> None:
    """Whichever of its files does not fit: one line tells what to do, and what was kept before is whole."""
    run = tmp_path / "run"
    command = ["train", "--data", str(data), "--run", str(run), "--networks", "tiny"]
    command += ["--oversample", "1,1,1,4,1,4,1", "--epochs", "2"]
    cut_off(command)
    if long == "history":
        (first,) = json.loads((run / "history.json").read_text())
        (run / "history.json").write_text(json.dumps([first | {"more": "x" * 400_000}]))
    with files_of_at_most(300_000):
        full = RUNNER.invoke(app, command)
    assert full.exit_code == 1, full.output
    assert full.stderr.startswith("error: epoch 2 could not be kept (")
    assert full.stderr.endswith("the run goes on after epoch 1\n")
    assert full.stderr.count("\n") == 1
    resumed = RUNNER.invoke(app, command)
    assert resumed.exit_code == 0, resumed.output
    assert "Going on after epoch 1 of 2" in resumed.output


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("broken", ["weights", "averaged weights"])
def test_a_training_that_diverges_stops_and_keeps_no_such_epoch(
    broken: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the losses tell it or only the validation does: one line, and nothing to export or to go on from."""
    step = Trainer.train_step

    def diverge(trainer: Trainer, *arguments: Any, **keywords: Any) -> list[float]:
        losses = step(trainer, *arguments, **keywords)
        network = (trainer.networks if broken == "weights" else trainer.averaged)[0]
        network.set_weights([weight * np.float32("inf") for weight in network.get_weights()])
        return losses

    monkeypatch.setattr(Trainer, "train_step", diverge)
    run = tmp_path / "run"
    command = ["train", "--data", str(data), "--run", str(run), "--networks", "tiny", "--epochs", "2"]
    result = RUNNER.invoke(app, [*command, "--oversample", "1,1,1,4,1,4,1"])
    assert result.exit_code == 1, result.output
    epoch = 2 if broken == "weights" else 1
    assert result.stderr.startswith(f"error: epoch {epoch}: tiny answers NaN or infinity")
    assert result.stderr.count("\n") == 1
    kept = json.loads((run / "history.json").read_text()) if (run / "history.json").exists() else []
    assert len(kept) == epoch - 1
    assert not (run / "tiny.keras").exists()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_an_epoch_that_cannot_be_read_is_told(data: Path, tmp_path: Path) -> None:
    """Whichever of its files is damaged or gone: a usage error says so, and how to begin anew."""
    run, kept = tmp_path / "run", tmp_path / "kept"
    command = ["train", "--data", str(data), "--networks", "tiny", "--oversample", "1,1,1,4,1,4,1"]
    command += ["--epochs", "1", "--run", str(run)]
    trained = RUNNER.invoke(app, command)
    assert trained.exit_code == 0, trained.output
    run.rename(kept)
    for name, size in (
        ("checkpoints/checkpoint", 0),
        ("checkpoints/ckpt-1.index", 0),
        ("checkpoints/ckpt-1.data-00000-of-00001", 9000),
        ("history.json", 5),
        ("history.json", None),
    ):
        shutil.copytree(kept, run)
        if size is None:
            (run / name).unlink()
        else:
            (run / name).write_bytes((run / name).read_bytes()[:size])
        refused = RUNNER.invoke(app, command)
        assert refused.exit_code == 2, refused.output
        assert "its last epoch cannot be read (" in said(refused.output)
        assert "delete it to begin anew, or choose another --run" in said(refused.output)
        shutil.rmtree(run)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_int8_form_of_a_trained_network_is_trained_and_goes_on(
    data: Path, tmp_path: Path, cut_off: Callable[[list[str]], None]
) -> None:
    """`--int8` starts from the run it continues, can be cut off, and saves a network of whole steps."""
    few = ["--data", str(data), "--networks", "tiny", "--oversample", "1,1,1,4,1,4,1"]
    first = RUNNER.invoke(app, ["train", *few, "--run", str(tmp_path / "float"), "--epochs", "1"])
    assert first.exit_code == 0, first.output
    command = ["train", *few, "--run", str(tmp_path / "int8"), "--continue-from", str(tmp_path / "float")]
    cut_off([*command, "--int8", "--epochs", "2"])
    trained = RUNNER.invoke(app, [*command, "--int8", "--epochs", "2"])
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
    assert "none in INT8" in said(mean.output)
    again = RUNNER.invoke(
        app, [*command[:-1], str(tmp_path / "int8"), "--run", str(tmp_path / "no"), "--int8"]
    )
    assert again.exit_code == 2
    assert "make INT8 of" in said(again.output)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_student_is_trained_on_the_labels_of_a_teacher(tmp_path: Path) -> None:
    """`label` asks any network that gives logits; `train --labels` learns from its file, and from no other recipe's or
    faces'."""
    data = write_faces(tmp_path / "faces.npz", 130)
    teacher, labels = tmp_path / "teacher.keras", tmp_path / "labels.npz"
    build(VARIANTS["tiny"], "teacher").save(teacher)
    command = ["label", str(teacher), "--data", str(data), "-o", str(labels), "--views", "0"]
    nothing = RUNNER.invoke(app, [*command, "--light-views", "0"])
    assert nothing.exit_code == 2
    assert "one view or more" in said(nothing.output)
    labelled = RUNNER.invoke(app, [*command, "--light-views", "1"])
    assert labelled.exit_code == 0, labelled.output
    with np.load(labels) as archive:
        assert (archive["strong"].shape, archive["light"].shape) == ((0, 128, 7), (1, 128, 7))
        assert archive["light"].sum(axis=-1) == pytest.approx(1, abs=1e-2)
    command = ["train", "--data", str(data), "--labels", str(labels), "--networks", "tiny", "--epochs", "1"]
    refused = RUNNER.invoke(app, [*command, "--run", str(tmp_path / "strong"), "--light-share", "0"])
    assert refused.exit_code == 2
    assert "no strongly augmented views" in said(refused.output)
    with np.load(labels) as archive:
        fewer = dict(archive) | {"light": archive["light"][:, 1:]}
    np.savez(tmp_path / "fewer.npz", **fewer)
    refused = RUNNER.invoke(
        app,
        [
            *command,
            "--run",
            str(tmp_path / "no"),
            "--labels",
            str(tmp_path / "fewer.npz"),
            "--light-share",
            "1",
        ],
    )
    assert refused.exit_code == 2, refused.output
    assert "a view has 127 faces, expected 128" in said(refused.output)
    settling = ["--light-share", "1", "--weight-decay", "0.0005", "--mirrored"]
    trained = RUNNER.invoke(app, [*command, *settling, "--run", str(tmp_path / "run")])
    assert trained.exit_code == 0, trained.output
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert (recipe["light_share"], recipe["weight_decay"], recipe["mirrored"]) == (1, 0.0005, True)
    other_faces = write_faces(tmp_path / "others.npz", 130, seed=1)
    refused = RUNNER.invoke(app, [*command, "--run", str(tmp_path / "no"), "--data", str(other_faces)])
    assert refused.exit_code == 2
    assert "for other faces" in said(refused.output)
    refused = RUNNER.invoke(app, [*command, "--run", str(tmp_path / "other"), "--seed", "5"])
    assert refused.exit_code == 2
    assert "another recipe" in said(refused.output)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("looks", [[], ["--mirrored"], ["--mirrored", "--unsure-share", "0.3"]])
def test_training_goes_on_from_what_was_exported(data: Path, tmp_path: Path, looks: list[str]) -> None:
    """`export` makes the folder that it is told, and `--continue-from` takes the network in it."""
    build(VARIANTS["tiny"], "tiny").save(tmp_path / "tiny.keras")
    exported = str(tmp_path / "mean" / "tiny.keras")
    command = ["export", str(tmp_path / "tiny.keras"), "--data", str(data), "-o", exported]
    result = RUNNER.invoke(app, command + looks)
    assert result.exit_code == 0, result.output
    command = ["train", "--data", str(data), "--networks", "tiny", "--epochs", "1"]
    command += ["--oversample", "1,1,1,4,1,4,1"]
    command += ["--continue-from", str(tmp_path / "mean"), "--run", str(tmp_path / "run")]
    result = RUNNER.invoke(app, command)
    assert result.exit_code == 0, result.output


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_one_network_is_exported_without_the_training_faces(data: Path, tmp_path: Path) -> None:
    """It is calibrated on the validation part; only a mean asks for the other."""
    with np.load(data) as arrays:
        kept = {name: arrays[name] for name in arrays.files if name.startswith("val_")}
    np.savez(tmp_path / "val.npz", **kept)
    trained = str(tmp_path / "tiny.keras")
    build(VARIANTS["tiny"], "tiny").save(trained)
    options = ["--data", str(tmp_path / "val.npz"), "-o", str(tmp_path / "out.keras")]
    mean = RUNNER.invoke(app, ["export", trained, trained, *options])
    assert mean.exit_code == 2
    assert "no split 'train'" in said(mean.output)
    result = RUNNER.invoke(app, ["export", trained, *options])
    assert result.exit_code == 0, result.output


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_an_export_tells_which_emotions_are_still_missed(data: Path, tmp_path: Path) -> None:
    """A network that answers always the same, and too surely for any bias, finds no happy and no sad face."""
    network = build(VARIANTS["tiny"], "tiny")
    kernel, offsets = network.get_layer("logits").get_weights()
    network.get_layer("logits").set_weights([kernel * 0, offsets + np.array([90] + 6 * [0], np.float32)])
    network.save(tmp_path / "tiny.keras")
    command = ["export", str(tmp_path / "tiny.keras"), "--data", str(data), "-o", str(tmp_path / "out.keras")]
    result = RUNNER.invoke(app, command)
    assert result.exit_code == 0, result.output
    missed = [line for line in result.output.splitlines() if "still found" in line]
    assert missed == [f"{emotion} is still found in 0% of its faces only" for emotion in ("happy", "sad")]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_an_export_that_finds_no_room_leaves_the_network_that_was_there(data: Path, tmp_path: Path) -> None:
    """One line, and the old file with nothing beside it."""
    build(VARIANTS["tiny"], "tiny").save(tmp_path / "tiny.keras")
    output = tmp_path / "served" / "served.keras"
    output.parent.mkdir()
    output.write_bytes(b"the network that is served")
    with files_of_at_most(300_000):
        command = ["export", str(tmp_path / "tiny.keras"), "--data", str(data), "-o", str(output)]
        result = RUNNER.invoke(app, command)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert output.read_bytes() == b"the network that is served"
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--networks", "huge"], "no such size: huge"),
        (["--networks", "teacher,small"], "a teacher is trained alone"),
        (["--networks", "teacher,inception"], "a teacher is trained alone"),
        (["--augmentation", "wild"], "strong, medium, light"),
        (["--oversample", "1,2"], "7 whole numbers"),
        (["--oversample", "1,4,junk,2,1,1,1,1"], "7 whole numbers"),
        (["--networks", "tiny,tiny"], "name each once"),
        (["--networks", "tiny, tiny"], "name each once"),
        (["--seed", "-1"], "--seed': Input should be greater than or equal to 0"),
        (["--seed", str(2**32)], "--seed': Input should be less than or equal to 4294967295"),
        (["--networks", "tiny"], "an epoch of 40 faces is less than a batch of 128"),
        (
            ["--oversample", "0,0,0,0,0,0,0"],
            "--oversample: give 7 whole numbers, 0 to 999, not all of them 0",
        ),
        (
            ["--oversample", "99999999999999999999,1,1,1,1,1,1"],
            "--oversample: give 7 whole numbers, 0 to 999",
        ),
        (["--networks", "tiny", "--oversample", "1,1,1,0,1,0,1"], "an epoch of 0 faces"),
        (["--peak-rate", "inf"], "--peak-rate: give a finite number"),
        (["--weight-decay", "inf"], "--weight-decay: give a finite number"),
        (["--networks", "tiny", "--oversample", "9,9,9,9,9,9,9", "--run", __file__], "Not a directory"),
        (["--continue-from", "nowhere"], "nowhere has none of large,small"),
        (["--int8"], "--int8 needs every network of --networks"),
        (["--labels", "nowhere.npz"], "no such file"),
    ],
)
def test_a_wrong_option_is_named(data: Path, tmp_path: Path, options: list[str], message: str) -> None:
    """A bad size, strength, repetition or folder ends with a usage error and no traceback."""
    result = RUNNER.invoke(app, ["train", "--data", str(data), "--run", str(tmp_path / "run"), *options])
    assert result.exit_code == 2
    assert message in said(result.output)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of several sizes, and networks of which only `tiny.keras` is as training leaves it."""
    folder: Path = tmp_path_factory.mktemp("files")
    write_faces(folder / "130.npz", 130)
    write_faces(folder / "40.npz", 40)
    write_faces(folder / "96.npz", 130, side=96)
    for name in ("exported", "small"):
        (folder / name).mkdir()
    trained = build(VARIANTS["tiny"], "tiny")
    trained.save(folder / "tiny.keras")
    build(VARIANTS["small"], "tiny").save(folder / "small" / "tiny.keras")
    with_temperature(trained, 1.5).save(folder / "exported" / "tiny.keras")
    keras.Model(trained.input, trained.output * 2).save(folder / "headless.keras")
    mean = keras.layers.GlobalAveragePooling2D()(trained.input)
    keras.Model(trained.input, keras.layers.Dense(7, name="logits")(mean)).save(folder / "unscaled.keras")
    return folder


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--networks", "tiny", "--continue-from", "small"], "no networks of these sizes"),
        (["train", "--data", "96.npz"], "expected 48x48"),
        (["label", "none.keras", "-o", "labels.npz"], "none.keras: no such file"),
        (["label", "exported/tiny.keras", "-o", "labels.npz"], "has been exported already"),
        (["label", "tiny.keras", "-o", "labels.npz", "--data", "96.npz"], "expected 48x48"),
        (["label", "tiny.keras", "-o", "labels"], "name a .npz file"),
        (["label", "tiny.keras", "-o", "labels.npz", "--data", "40.npz"], "less than a batch of 128"),
        (["export", "none.keras"], "none.keras: no such file"),
        (["export", "exported/tiny.keras"], "has been exported already"),
        (["export", "headless.keras"], "does not end in a layer `logits`"),
        (["export", "unscaled.keras", "--mirrored"], "has no layer `scale` to mirror behind"),
        (["export", "tiny.keras", "--unsure-share", "0.3"], "give --mirrored, too"),
        (["export", "tiny.keras", "small/tiny.keras"], "have no mean"),
        (["export", "tiny.keras", "tiny.keras", "--data", "40.npz"], "less than a batch of 128"),
        (["export", "tiny.keras", "-o", "out.h5"], "name a .keras file"),
        (["export", "tiny.keras", "-o", "40.npz/out.keras"], "40.npz is not a folder"),
        (["label", "tiny.keras", "-o", "40.npz/labels.npz"], "40.npz is not a folder"),
        (["export", "tiny.keras", "-o", "tiny.keras"], "would overwrite the trained network"),
    ],
)
def test_a_wrong_network_or_place_is_named(
    arguments: list[str], message: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no trained network of 48x48 faces, or no place for the result, ends with a usage error and no file."""
    monkeypatch.chdir(files)
    before = sorted(files.rglob("*"))
    data = [] if "--data" in arguments else ["--data", "130.npz"]
    output = ["-o", "out.keras"] if arguments[0] == "export" and "-o" not in arguments else []
    run = ["--run", "run"] if arguments[0] == "train" else []
    result = RUNNER.invoke(app, [*arguments, *data, *output, *run])
    assert result.exit_code == 2, result.output
    assert message in said(result.output)
    assert sorted(files.rglob("*")) == before

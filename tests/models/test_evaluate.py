"""`evaluate` and `pareto` on model files and pictures that are no such, and on networks that give no probabilities."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import models.evaluate
import models.pareto
from models.__main__ import app
from models.architecture import VARIANTS, build
from models.dataset import EMOTIONS
from models.evaluate import Evaluation
from models.metrics import ClassFigures
from models.networks import ModelError
from models.pareto import Variant
from models.sources import ROOT
from tests.models.commands import RUNNER

# Keras hands its variables to NumPy in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three happy faces."""
    path: Path = tmp_path_factory.mktemp("faces") / "faces.npz"
    votes = np.zeros((3, 10), np.uint8)
    votes[:, 1] = 10
    faces = np.random.default_rng(0).integers(0, 256, (3, 48, 48), dtype=np.uint8)
    np.savez(path, val_x=faces, val_y=np.full(3, 3), val_votes=votes)
    return path


def labelled_onnx(path: Path, **metadata: str) -> Path:
    """An ONNX file with the ends of an emotion model, and this metadata."""
    tensor = onnx.helper.make_tensor_value_info
    images = tensor("images", onnx.TensorProto.UINT8, ["batch", 48, 48, 1])
    answers = tensor("probabilities", onnx.TensorProto.FLOAT, ["batch", 7])
    number = onnx.helper.make_tensor("number", onnx.TensorProto.FLOAT, [7], [0.0] * 6 + [1.0])
    nodes = [
        onnx.helper.make_node("Cast", ["images"], ["floats"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("GlobalAveragePool", ["floats"], ["mean"]),
        onnx.helper.make_node("Flatten", ["mean"], ["flat"]),
        onnx.helper.make_node("ReduceMax", ["flat"], ["most"], axes=[1], keepdims=1),
        onnx.helper.make_node("Mul", ["most", "number"], ["probabilities"]),
    ]
    graph = onnx.helper.make_graph(nodes, "g", [images], [answers], [number])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    for key, value in metadata.items():
        model.metadata_props.add(key=f"visionai.{key}", value=value)
    onnx.save(model, path)
    return path


LABELS = json.dumps(["angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"])
SIZE = json.dumps({"height": 48, "width": 48, "color": "gray"})


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "visionai.labels"),
        ({"labels": "no JSON", "input": SIZE}, "does not describe an emotion classifier"),
        ({"labels": "7", "input": SIZE}, "does not describe"),
        ({"labels": '["happy", "sad"]', "input": SIZE}, "its classes are happy, sad; only angry, "),
        ({"labels": LABELS.replace("happy", "alegría"), "input": SIZE}, "disgust, fear, alegría, neutral"),
        ({"labels": LABELS.replace("]", ', "contempt"]'), "input": SIZE}, "surprise, contempt; only angry, "),
        ({"labels": LABELS, "input": "[48, 48]"}, "does not describe"),
        ({"labels": LABELS, "input": SIZE.replace("48", "96")}, "takes and gives"),
        # Well described, but what it answers is the brightness.
        ({"labels": LABELS, "input": SIZE}, "gives logits, not probabilities: export it first"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "pareto"])
def test_a_wrong_onnx_file_ends_in_one_line(
    command: str, metadata: dict[str, str], message: str, tmp_path: Path, data: Path
) -> None:
    """What describes itself wrongly or gives no probabilities is named, by either command, and nothing is printed."""
    path = labelled_onnx(tmp_path / "model.onnx", **metadata)
    result = RUNNER.invoke(app, [command, str(path), "--data", str(data), "--json"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {path}: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


@pytest.mark.parametrize(
    ("bias", "message"), [(0.0, "gives logits"), (float("nan"), "answers NaN or infinity")]
)
def test_figures_are_of_probabilities_only(bias: float, message: str, tmp_path: Path, data: Path) -> None:
    """Logits are not scored as if they were probabilities, nor is a network that is broken."""
    trained = build(VARIANTS["tiny"], "tiny")
    kernel, _ = trained.get_layer("logits").get_weights()
    trained.get_layer("logits").set_weights([kernel, np.full(7, bias, np.float32)])
    trained.save(tmp_path / "tiny.keras")
    from models.dataset import load_split
    from models.predictor import load_predictor

    with pytest.raises(ModelError, match=message):
        load_predictor(tmp_path / "tiny.keras").probabilities(load_split(data, "val").images)


def test_the_table_fits_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In 80 columns, which is also what a file gets, each name and each figure is whole."""
    monkeypatch.setenv("COLUMNS", "80")
    figures = dict.fromkeys(EMOTIONS, ClassFigures(n=1234, precision=0.875, recall=0.75, f1=0.625))
    confusion = [[1000 + 10 * row + column for column in range(7)] for row in range(7)]
    models.evaluate._print(
        Evaluation(7 * 1234, 0.8, 0.6, 0.01, 0.7, figures, confusion, 0.2), Path("model[v2].onnx")
    )
    output = capsys.readouterr().out
    assert "…" not in output
    assert output.startswith("model[v2].onnx: ")  # and not taken for markup
    for name, row in zip(EMOTIONS, confusion, strict=True):
        assert f"{name} 1234 0.875 0.750 0.625 {' '.join(map(str, row))}" in " ".join(output.split())


def test_long_names_are_whole_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: Path
) -> None:
    """`pareto` writes on in the next line."""
    monkeypatch.setenv("COLUMNS", "80")
    name = "a_network_with_a_name_that_is_longer_than_its_column[v2]"
    monkeypatch.setattr("models.pareto.load_predictor", lambda *_, **__: None)
    monkeypatch.setattr("models.pareto.compare", lambda *_: [Variant(name, 0.8, 0.01, 0.5, 0.5, 0.2)])
    models.pareto.pareto_command([Path(f"{name}.onnx")], data)
    output = capsys.readouterr().out
    assert "…" not in output
    assert name in "".join(
        line[2:].split(" │")[0].strip() for line in output.splitlines() if line.startswith("│")
    )


@pytest.mark.parametrize("command", ["evaluate", "pareto"])
@pytest.mark.parametrize(
    ("plot", "message"),
    [
        ("none/plot.png", "no such folder"),
        ("plot.xyz", "kind of picture"),
        ("plot.pgf", "kind of picture"),
        (".", "kind of"),
    ],
)
def test_a_picture_is_refused_before_the_work(command: str, plot: str, message: str, tmp_path: Path) -> None:
    """A place or kind of picture that cannot be is said at once: not even the data is looked for."""
    options = ["model.onnx", "--data", "none.npz", "--plot", str(tmp_path / plot)]
    result = RUNNER.invoke(app, [command, *options])
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize("command", ["evaluate", "pareto"])
def test_a_folder_without_permission_is_named_before_the_work(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As no data is looked for, no minute is lost. Root may write everywhere, so the permission is what is asked."""
    monkeypatch.setattr("conversion.atomic.os.access", lambda *_: False)
    options = ["model.onnx", "--data", "none.npz", "--plot", str(tmp_path / "plot.png")]
    result = RUNNER.invoke(app, [command, *options])
    assert result.exit_code == 2
    assert "no permission to write" in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize("command", ["evaluate", "pareto"])
def test_a_picture_without_room_does_not_cost_the_figures(command: str, data: Path, tmp_path: Path) -> None:
    """They are printed before it is drawn; one line tells that it is missing."""
    plot = tmp_path / "plot.png"
    plot.symlink_to("/dev/full")
    model = str(ROOT / "models/build/modelo_emociones.onnx")
    result = RUNNER.invoke(app, [command, model, "--data", str(data), "--json", "--plot", str(plot)])
    assert result.exit_code == 1
    assert result.stderr == f"error: {plot}: cannot write: No space left on device\n"
    assert "ferplus_accuracy" in result.stdout
    json.loads(result.stdout)

"""fp16 and INT8 ship only through their gates; reports and the Triton repository say what was made."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from conversion.cli import main
from conversion.convert import Converted, Request, convert
from conversion.destinations import report_paths, repository_paths
from conversion.errors import OptionError
from conversion.evaluation import Evaluation, evaluate
from conversion.images import LabelledImages, load_labelled, random_images, spread
from conversion.latency import measure_latency
from conversion.manifest import manifest_path
from conversion.parity import DEFAULT_THRESHOLDS, Thresholds
from conversion.precisions import to_int8
from conversion.report import as_json, print_report, report_files
from conversion.sessions import open_session, run
from conversion.tensorflow_quietly import keras
from conversion.variants import gate, speed_ratio
from conversion.verify import verify
from tests.conversion.keras_models import LABELS, options, randomise

LOOSE = {**DEFAULT_THRESHOLDS, "int8": Thresholds(1.0, 1.0, 0.0)}


@pytest.fixture(scope="module")
def all_precisions(rgb_model: Path, face_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """The RGB model at every precision, with everything measured."""
    request = Request(
        rgb_model,
        tmp_path_factory.mktemp("precisions") / "rgb.onnx",
        options(),
        images=str(face_folder),
        evaluation=str(face_folder),
        precisions=("fp16", "int8"),
        thresholds=LOOSE,
        max_accuracy_drop=100,
    )
    return convert(request)


def variant_models(converted: Converted) -> dict[str, onnx.ModelProto]:
    return {variant.precision: onnx.load_from_string(variant.model) for variant in converted.variants}


def test_fp16_is_half_the_size_with_the_same_ends(all_precisions: Converted) -> None:
    """Weights are float16, images stay uint8 and probabilities float32, and the answers stay close."""
    shipped, half, _ = all_precisions.variants
    model = variant_models(all_precisions)["fp16"]
    weights = [item for item in model.graph.initializer if len(item.dims) == 4]
    assert {item.data_type for item in weights} == {onnx.TensorProto.FLOAT16}
    session = open_session(half.model)
    assert session.get_inputs()[0].type == "tensor(uint8)"
    assert session.get_outputs()[0].type == "tensor(float)"
    assert half.parity["faces"].max_difference < 1e-2
    assert half.metadata["precision"] == "fp16"
    assert half.refusals == ()
    assert verify(half.path).precision == "fp16"
    assert half.path.name == "rgb.fp16.onnx"
    assert shipped.path.name == "rgb.onnx"


def test_int8_weights_are_quantised_per_channel(all_precisions: Converted) -> None:
    """Every convolution reads INT8 weights with one scale per output channel, and QDQ activations."""
    model = variant_models(all_precisions)["int8"]
    constants = {item.name: item for item in model.graph.initializer}
    producers = {node.output[0]: node for node in model.graph.node}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert convolutions
    for node in convolutions:
        assert producers[node.input[0]].op_type == "DequantizeLinear"
        dequantised = producers[node.input[1]]
        weights, scales = constants[dequantised.input[0]], constants[dequantised.input[1]]
        assert weights.data_type == onnx.TensorProto.INT8
        assert list(scales.dims) == [weights.dims[0]]
    assert producers["probabilities"].op_type in {"Softmax", "Gather"}


def test_int8_is_calibrated_on_real_faces_only(rgb_model: Path, face_folder: Path, tmp_path: Path) -> None:
    """Without faces, or with too few, INT8 is refused: neither noise nor the one portrait will do."""
    request = Request(rgb_model, tmp_path / "out" / "rgb.onnx", options(), precisions=("int8",))
    with pytest.raises(OptionError, match="calibrated on real faces"):
        convert(request)
    with pytest.raises(OptionError, match="64 or more, and 14 were given"):
        convert(replace(request, images=str(face_folder / "happy")))
    assert not request.output.parent.exists()


def test_int8_answers_are_those_of_fp32_nearly(all_precisions: Converted) -> None:
    """On the faces it was calibrated on, INT8 moves probabilities by a few hundredths at most."""
    int8 = all_precisions.variants[2]
    assert int8.parity["faces"].mean_difference < 0.02
    assert "random" not in int8.parity


def test_a_precision_that_fails_its_gate_is_not_written(
    rgb_model: Path, face_folder: Path, tmp_path: Path
) -> None:
    """A refused precision leaves nothing, removes what was in its place, and fp32 ships all the same."""
    stale = tmp_path / "rgb.int8.onnx"
    stale.write_bytes(b"from an earlier conversion")
    manifest_path(stale).write_bytes(b"{}")
    thresholds = {**DEFAULT_THRESHOLDS, "int8": Thresholds(1e-9, 1e-9, 1.0)}
    converted = convert(
        Request(
            rgb_model,
            tmp_path / "rgb.onnx",
            options(),
            images=str(face_folder),
            precisions=("int8",),
            thresholds=thresholds,
        )
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rgb.onnx", "rgb.onnx.manifest.json"]
    refusals = as_json(converted)["refused"]["int8"]
    assert any("max difference" in reason for reason in refusals)
    assert any("give labelled faces with --evaluation" in reason for reason in refusals)


@pytest.mark.parametrize(("convolved", "reason"), [(False, "refuses"), (True, "cannot run")])
def test_a_precision_that_cannot_be_built_is_refused(
    convolved: bool, reason: str, face_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime lacks a kernel for a bicubic resizing in INT8: fp16 and fp32 ship all the same, the report says why
    INT8 does not, and what was in its place is removed."""
    layers = keras.layers
    resizing = layers.Resizing(16, 16, crop_to_aspect_ratio=True, interpolation="bicubic")
    entry = [layers.Conv2D(3, 1)] if convolved else []
    rest = [resizing, layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(7)]
    randomise(keras.Sequential([keras.Input((20, 24, 3)), *entry, *rest])).save(tmp_path / "model.keras")
    output = tmp_path / "out" / "model.onnx"
    stale = output.with_name("model.int8.onnx")
    output.parent.mkdir()
    stale.write_bytes(b"from an earlier conversion")
    arguments = [
        "--source-labels",
        ",".join(LABELS),
        "--scale",
        "0.00392",
        "--images",
        str(face_folder),
        "--json",
    ]
    arguments += ["--precision", "int8", "--precision", "fp16", "--report", str(tmp_path / "report")]
    arguments += ["--max-difference", "fp16=1", "--mean-difference", "fp16=1", "--agreement", "fp16=0"]
    assert main([str(tmp_path / "model.keras"), *arguments, "-o", str(output)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["written"] == [str(output), str(output.with_name("model.fp16.onnx"))]
    assert set(report["refused"]) == {"int8"}
    assert report["refused"]["int8"][0].startswith(f"there is no int8 of this network: ONNX Runtime {reason}")
    assert not stale.exists()
    assert "| refused: there is no int8 of" in (tmp_path / "report" / "report.md").read_text("utf-8")


def test_the_gate_weighs_accuracy_parity_and_speed(all_precisions: Converted) -> None:
    """Each of the three alone refuses INT8; fp16, which is for GPUs, need not be faster here."""
    shipped, half, int8 = all_precisions.variants
    faster = {"fp32": dict.fromkeys((1, 4, 8), 2.0), "int8": dict.fromkeys((1, 4, 8), 1.0)}
    slower = {"fp32": dict.fromkeys((1, 4, 8), 1.0), "int8": dict.fromkeys((1, 4, 8), 1.1)}
    slower["fp16"] = dict.fromkeys((1, 4, 8), 9.0)
    confusion = np.diag([1000] * 7)
    worse = confusion.copy()
    worse[0, 0], worse[0, 1] = 970, 30
    shipped = replace(shipped, evaluation=Evaluation(LABELS, confusion))
    good = replace(
        int8, evaluation=Evaluation(LABELS, confusion), thresholds=Thresholds(1, 1, 0), refusals=()
    )
    assert gate(good, shipped, faster, 0.3).refusals == ()
    assert gate(good, shipped, slower, 0.3).refusals == (
        "not faster here: 0.91 times the speed of fp32 (batches of 1, 4, 8)",
    )
    dropped = gate(replace(good, evaluation=Evaluation(LABELS, worse)), shipped, faster, 0.3)
    assert dropped.refusals == ("accuracy drops by 0.43 points, more than 0.3",)
    assert gate(replace(good, evaluation=Evaluation(LABELS, worse)), shipped, faster, 0.5).refusals == ()
    far = gate(replace(good, thresholds=Thresholds(1e-9, 1, 0)), shipped, faster, 0.3)
    assert len(far.refusals) == 1
    assert gate(half, shipped, slower, 100).refusals == ()
    assert speed_ratio(faster, "int8") == pytest.approx(2)


def test_evaluation_counts_by_class(converted_rgb: Converted, face_folder: Path) -> None:
    """The confusion matrix has true classes in rows, and its trace is the accuracy."""
    faces = load_labelled(str(face_folder), (96, 96, 3), LABELS)
    done: list[int] = []
    evaluation = evaluate(converted_rgb.shipped.model, faces, done.append)
    answers = run(open_session(converted_rgb.shipped.model), faces.images).argmax(axis=1)
    assert evaluation.confusion.sum(axis=1).tolist() == [14] * 7
    assert evaluation.confusion.sum(axis=0).tolist() == np.bincount(answers, minlength=7).tolist()
    assert evaluation.accuracy == pytest.approx(float((answers == faces.classes).mean()))
    assert sum(done) == evaluation.images == 98
    right = evaluate(converted_rgb.shipped.model, LabelledImages(faces.images, answers, LABELS), done.append)
    assert right.accuracy == 1


def test_latency_is_measured_for_each_batch(converted_rgb: Converted) -> None:
    """Every model has a positive median for every batch size, also beyond the number of images."""
    images = random_images(3, (96, 96, 3))
    model = converted_rgb.shipped.model
    latencies = measure_latency({"a": model, "b": model}, images, lambda _done: None, (1, 8), seconds=0.02)
    assert [list(latencies[name]) for name in "ab"] == [[1, 8], [1, 8]]
    assert all(value > 0 for medians in latencies.values() for value in medians.values())


def test_the_json_report_has_every_figure(all_precisions: Converted) -> None:
    """Machines find files, hashes, parity, accuracy and latency; the whole is JSON."""
    report = json.loads(json.dumps(as_json(all_precisions)))
    assert set(report["variants"]) == {"fp32", "fp16", "int8"}
    assert set(report["latency_ms"]) == {"fp32", "fp16", "int8"}
    assert set(report["latency_ms"]["fp32"]) == {"1", "2", "4", "8", "16", "32", "64"}
    for precision, entry in report["variants"].items():
        assert entry["accuracy"]["images"] == 98
        assert entry["thresholds"].keys() == {"max_difference", "mean_difference", "agreement"}
        assert (entry["path"] in report["written"]) != (precision in report["refused"])


def test_a_long_file_name_is_whole_in_a_narrow_terminal(
    converted_rgb: Converted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In 80 columns, which is also what a file gets, it goes on in the next line."""
    monkeypatch.setenv("COLUMNS", "80")
    name = "a_network_with_a_name_that_is_longer_than_its_column.onnx"
    print_report(replace(converted_rgb, variants=(replace(converted_rgb.shipped, path=Path(name)),)))
    output = capsys.readouterr().out
    assert "…" not in output
    cells = [line.split("│")[2].strip() for line in output.splitlines() if line.startswith("│")]
    assert name in "".join(cells)


def test_the_report_has_its_tables_and_plots(all_precisions: Converted, tmp_path: Path) -> None:
    """The Markdown report names each precision, and every plot that it shows is a PNG beside it."""
    files = report_files(all_precisions, tmp_path)
    text = files[tmp_path / "report.md"].decode()
    shown = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert shown == ["parity.png", "latency.png", *(f"confusion-{p}.png" for p in ("fp32", "fp16", "int8"))]
    for name in shown:
        assert files[tmp_path / name].startswith(b"\x89PNG")
    for heading in ("## Files", "## Parity with the source", "## Latency on one CPU thread"):
        assert heading in text
    assert {path.name for path in files} == {*shown, "report.md"}
    assert set(files) == set(report_paths(tmp_path))


def test_the_command_line_writes_everything(
    rgb_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One call with a sidecar converts, reports on the terminal, and writes report and Triton repository."""
    sidecar = tmp_path / "rgb.toml"
    sidecar.write_text(
        "[conversion]\nscale = 0.00392156862745098\noffset = 0\nversion_tag = 'v7'\nsource_labels ="
        ' ["angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"]\n',
        "utf-8",
    )
    output = tmp_path / "out" / "faces.onnx"
    arguments = [str(rgb_model), "-o", str(output), "--sidecar", str(sidecar), "--precision", "fp16"]
    arguments += ["--report", str(tmp_path / "report"), "--triton", str(tmp_path / "triton")]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "Parity with the source" in captured.out
    assert captured.err == ""
    assert (tmp_path / "report" / "report.md").read_text("utf-8").startswith("# v7: conversion report")
    assert {path.name for path in output.parent.iterdir()} == {
        name + suffix for name in ("faces.onnx", "faces.fp16.onnx") for suffix in ("", ".manifest.json")
    }
    written = {path for path in (tmp_path / "triton").rglob("*") if path.is_file()}
    assert written == set(repository_paths(tmp_path / "triton", "faces"))
    repository = tmp_path / "triton" / "faces"
    assert (repository / "1" / "model.onnx").read_bytes() == output.read_bytes()
    assert (repository / "labels.txt").read_text("utf-8").split() == list(LABELS)
    configuration = (repository / "config.pbtxt").read_text("utf-8")
    for line in (
        'name: "faces"',
        'backend: "onnxruntime"',
        "max_batch_size: 64",
        "data_type: TYPE_UINT8",
        "dims: [ 96, 96, 3 ]",
        "dims: [ 7 ]",
        'label_filename: "labels.txt"',
        "dynamic_batching { }",
    ):
        assert line in configuration


def test_quantising_leaves_its_input_alone(converted_rgb: Converted) -> None:
    """Quantising reports its progress in images, and leaves the model it was given as it was."""
    model = onnx.load_from_string(converted_rgb.shipped.model)
    before = model.SerializeToString(deterministic=True)
    done: list[int] = []
    to_int8(model, random_images(70, (96, 96, 3)), done.append)
    assert sum(done) == 70
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("count", "expected"), [(3, [0, 1, 2]), (5, [0, 1, 2, 4]), (600, [0, 199, 399, 599])]
)
def test_chosen_faces_are_of_all_folders(count: int, expected: list[int]) -> None:
    """Of more faces than are needed those chosen lie from the first to the last, not in the first labels' folders."""
    assert spread(count, 4).tolist() == expected

"""A wrong conversion is caught: by parity when it is made, by verify when it is used."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from conversion import convert as pipeline
from conversion.cli import main
from conversion.convert import Converted, Request, convert
from conversion.errors import ParityError, VerificationError
from conversion.graph import FrozenGraph, freeze
from conversion.manifest import manifest_path, read_manifest, serialise_manifest
from conversion.options import Specification
from conversion.parity import Parity, Thresholds, compare, failures
from conversion.sources import Source
from conversion.tensorflow_quietly import keras
from conversion.verify import verify
from tests.conversion.keras_models import LABELS, options, randomise

ROOT = Path(__file__).parents[2]

Break = Callable[[Specification], Specification]
# Each a mistake that a converter could make and whose model still looks well.
MISTAKES: dict[str, Break] = {
    "swapped channels": lambda right: replace(right, channel_order="bgr"),
    "wrong scale": lambda right: replace(right, scale=tuple(factor * 1.02 for factor in right.scale)),
    "wrong offset": lambda right: replace(right, offset=(0.01, 0.01, 0.01)),
    "wrong class order": lambda right: replace(right, labels=right.source_labels),
    "softmax forgotten": lambda right: replace(right, activation="softmax"),
}


@pytest.fixture(params=list(MISTAKES))
def mistake(request: pytest.FixtureRequest) -> Break:
    """One mistake after the other."""
    return MISTAKES[request.param]


@pytest.fixture
def shipped(converted_rgb: Converted, tmp_path: Path) -> Path:
    """A copy of the converted model with its manifest, to tamper with."""
    path = tmp_path / "model.onnx"
    shutil.copy(converted_rgb.shipped.path, path)
    shutil.copy(manifest_path(converted_rgb.shipped.path), manifest_path(path))
    return path


def rewrite_manifest(model: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest, and make it name the hash that the model has now."""
    import hashlib

    manifest = read_manifest(manifest_path(model))
    manifest["model_sha256"] = hashlib.sha256(model.read_bytes()).hexdigest()
    change(manifest)
    manifest_path(model).write_bytes(serialise_manifest(manifest))


def test_parity_catches_a_wrong_conversion(
    mistake: Break, rgb_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built with a mistake, the conversion fails, writes nothing, and says by how much it is off."""

    def freeze_wrongly(source: Source, specification: Specification) -> FrozenGraph:
        return freeze(source, mistake(specification))

    monkeypatch.setattr(pipeline, "freeze", freeze_wrongly)
    output = tmp_path / "out" / "model.onnx"
    with pytest.raises(ParityError, match=r"random images: max difference .* > 0.0001"):
        convert(Request(rgb_model, output, options()))
    assert not output.parent.exists()


def test_verify_catches_a_wrong_conversion_with_right_hashes(
    mistake: Break, rgb_model: Path, converted_rgb: Converted, shipped: Path
) -> None:
    """A wrong model whose manifest was made to fit its hash is still refused, by the source's own answers."""
    wrong = mistake(converted_rgb.specification)
    from conversion.sources import load

    model, _ = pipeline.build(freeze(load(rgb_model, options()), wrong), converted_rgb.specification)
    for key, value in converted_rgb.shipped.metadata.items():
        model.metadata_props.add(key=f"visionai.{key}", value=value)
    onnx.save(model, shipped)
    with pytest.raises(VerificationError, match="sha256"):
        verify(shipped)
    rewrite_manifest(shipped, lambda manifest: None)
    with pytest.raises(VerificationError, match="does not answer like its source"):
        verify(shipped)


def test_a_failed_parity_names_the_place(
    rgb_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a weight changes on the way to ONNX, the error names the first node that differs."""
    build = pipeline.build

    def build_wrongly(
        frozen: FrozenGraph, specification: Specification
    ) -> tuple[onnx.ModelProto, dict[str, str]]:
        model, names = build(frozen, specification)
        dense = next(node for node in model.graph.node if node.op_type == "MatMul")
        weights = next(item for item in model.graph.initializer if item.name == dense.input[1])
        doubled = np.asarray(onnx.numpy_helper.to_array(weights)) * np.float32(2)
        weights.CopyFrom(onnx.numpy_helper.from_array(doubled, weights.name))
        return model, names

    monkeypatch.setattr(pipeline, "build", build_wrongly)
    with pytest.raises(ParityError, match=r"first diverging node: MatMul_\d+ .*everything up to .* agrees"):
        convert(Request(rgb_model, tmp_path / "out" / "model.onnx", options()))


def test_parity_failure_in_the_network_function_is_told_from_its_surroundings(
    rgb_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When ONNX equals the graph it was made from, the error points at preprocessing, softmax or order."""
    monkeypatch.setattr(
        pipeline, "freeze", lambda source, right: freeze(source, MISTAKES["wrong scale"](right))
    )
    with pytest.raises(ParityError, match="preprocessing, softmax or class order differ"):
        convert(Request(rgb_model, tmp_path / "out" / "model.onnx", options()))


def test_a_network_that_looks_at_the_whole_batch_is_told(refused: Callable[..., str], tmp_path: Path) -> None:
    """Its answer to an image would depend on whose images are beside it: not a matter of optimisation."""
    images = keras.Input((16, 16, 3))
    centred = images - keras.ops.mean(images, axis=0, keepdims=True)
    scores = keras.layers.Dense(7, activation="softmax")(keras.layers.Flatten()(centred))
    randomise(keras.Model(images, scores)).save(tmp_path / "batch.keras")
    arguments = ("--source-labels", ",".join(LABELS), "--scale", "0.004", "--offset", "0")
    line = refused(tmp_path / "batch.keras", *arguments, status=3)
    assert "what else is in a batch changes probabilities" in line


def test_a_failed_conversion_leaves_the_old_files(rgb_model: Path, shipped: Path) -> None:
    """A model that is in service is not touched by a conversion that fails."""
    before = (shipped.read_bytes(), manifest_path(shipped).read_bytes())
    thresholds = {"fp32": Thresholds(0.0, 0.0, 1.0)}
    with pytest.raises(ParityError):
        convert(Request(rgb_model, shipped, options(), thresholds=thresholds))
    assert (shipped.read_bytes(), manifest_path(shipped).read_bytes()) == before
    assert sorted(path.name for path in shipped.parent.iterdir()) == [
        "model.onnx",
        "model.onnx.manifest.json",
    ]


def test_verify_accepts_what_was_converted(shipped: Path, rgb_model: Path) -> None:
    """A model, its manifest and its source that belong together pass."""
    verified = verify(shipped, source=rgb_model)
    assert verified.precision == "fp32"
    assert verified.parity.images == 16
    assert verified.parity.max_difference < 1e-5


def _flip_byte(model: Path) -> None:
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)


def _change_metadata(model: Path, key: str, value: str) -> None:
    loaded = onnx.load(model)
    for item in loaded.metadata_props:
        if item.key == key:
            item.value = value
    onnx.save(loaded, model)
    rewrite_manifest(model, lambda manifest: None)


def _scale_weights(model: Path) -> None:
    loaded = onnx.load(model)
    weights = next(item for item in loaded.graph.initializer if len(item.dims) == 4)
    value = np.asarray(onnx.numpy_helper.to_array(weights)) * np.float32(1.01)
    weights.CopyFrom(onnx.numpy_helper.from_array(value, weights.name))
    onnx.save(loaded, model)
    rewrite_manifest(model, lambda manifest: None)


def _replace_by_text(model: Path) -> None:
    model.write_bytes(b"not onnx")
    rewrite_manifest(model, lambda manifest: None)


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (_flip_byte, "sha256 is"),
        (lambda model: model.write_bytes(model.read_bytes()[:-100]), "sha256 is"),
        (lambda model: model.unlink(), "No such file"),
        (lambda model: manifest_path(model).unlink(), "convert the model again"),
        (lambda model: manifest_path(model).write_text("{", "utf-8"), "not JSON"),
        (lambda model: manifest_path(model).write_text("[]", "utf-8"), "not a manifest of schema 1"),
        (lambda model: rewrite_manifest(model, lambda m: m.pop("thresholds")), "lacks or garbles an entry"),
        (lambda model: rewrite_manifest(model, lambda m: m.update(metadata=[])), "lacks or garbles an entry"),
        (lambda model: rewrite_manifest(model, lambda m: m.update(schema=2)), "not a manifest of schema 1"),
        (lambda model: rewrite_manifest(model, lambda m: m.update(source_sha256="0" * 64)), "source_sha256"),
        (lambda model: _change_metadata(model, "visionai.labels", '["x"]'), "metadata visionai.labels"),
        (
            lambda model: rewrite_manifest(model, lambda m: m["reference"].update(images_sha256="0")),
            "reference images made here differ",
        ),
        (
            lambda model: rewrite_manifest(model, lambda m: m["parity"]["faces"].update(agreement=0.5)),
            "reports failed parity on faces",
        ),
        (_scale_weights, "does not answer like its source"),
        (_replace_by_text, "ONNX Runtime refuses the model"),
    ],
)
def test_verify_says_what_is_wrong(tamper: Callable[[Path], object], reason: str, shipped: Path) -> None:
    """Each way in which a model and its manifest can disagree has its reason."""
    tamper(shipped)
    with pytest.raises(VerificationError, match=reason):
        verify(shipped)


def test_a_detector_is_told_from_a_manifest_that_is_garbled() -> None:
    """It has no answers to check; the command that compares its hashes is named."""
    with pytest.raises(VerificationError, match="a face detector, whose manifest has no answers"):
        verify(Path(__file__).parents[2] / "models/build/face_short.onnx")


def test_verify_of_no_model_does_not_blame_the_manifest(tmp_path: Path) -> None:
    """The path that was given is the one that is wrong."""
    with pytest.raises(VerificationError, match=r"missing\.onnx: No such file"):
        verify(tmp_path / "missing.onnx")


def test_verify_checks_the_source_it_is_given(shipped: Path, gray_model: Path) -> None:
    """Another source than the manifest's is refused."""
    with pytest.raises(VerificationError, match="manifest's source"):
        verify(shipped, source=gray_model)


def test_verify_as_a_command_is_quick_and_needs_no_build_tools(shipped: Path) -> None:
    """`python -m conversion verify` answers in under 2 s, in a process without TensorFlow and ONNX."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['tensorflow', 'keras', 'tf2onnx', 'h5py', 'onnx']));"
        " from conversion.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-W", "error", "-c", code, "verify", str(shipped)]
    times = []
    for _ in range(3):
        start = time.perf_counter()
        ran = subprocess.run(
            [*command, "--json"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
        )
        times.append(time.perf_counter() - start)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert json.loads(ran.stdout)["precision"] == "fp32"
    assert min(times) < 2
    _flip_byte(shipped)
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 4
    assert ran.stdout == ""
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("\n") == 1


def test_verify_prints_one_line(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For people, the command says in one line what was verified."""
    assert main(["verify", str(shipped)]) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert "verified" in line


def test_comparison_counts_what_it_says() -> None:
    """Differences are absolute and over all probabilities; a tie counts as agreement, NaN as infinity."""
    reference = np.array([[0.7, 0.3], [0.5, 0.5], [0.1, 0.9]], np.float32)
    candidate = np.array([[0.6, 0.4], [0.4, 0.6], [0.8, 0.2]], np.float32)
    parity = compare(reference, candidate)
    assert parity.images == 3
    assert parity.max_difference == pytest.approx(0.7)
    assert parity.mean_difference == pytest.approx((0.1 * 2 + 0.1 * 2 + 0.7 * 2) / 6)
    assert parity.agreement == pytest.approx(2 / 3)
    assert len(failures(parity, Thresholds(0.1, 0.01, 1.0))) == 3
    assert failures(parity, Thresholds(0.71, 0.4, 0.6)) == []
    broken = compare(reference, np.full((3, 2), np.nan, np.float32))
    assert broken.max_difference == np.inf
    assert failures(Parity(1, float("nan"), 0, 1), Thresholds(1, 1, 0)) != []

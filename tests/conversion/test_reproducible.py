"""The same source and options give the same bytes: twice in a process, in two processes, for each precision."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from conversion.convert import Converted
from conversion.digests import sha256_of
from conversion.images import random_images
from conversion.manifest import manifest_path
from conversion.precisions import to_int8
from conversion.tensorflow_quietly import keras, tf
from tests.conversion.keras_models import gray_sequential, options

ROOT = Path(__file__).parents[2]


def test_two_processes_write_the_same_bytes(
    rgb_model: Path, converted_rgb: Converted, tmp_path: Path
) -> None:
    """Processes with other hash seeds write the file, and the manifest, that this process wrote."""
    import os

    for seed in ("1", "2"):
        output = tmp_path / seed / "rgb.onnx"
        command = [sys.executable, "-m", "conversion", str(rgb_model), "-o", str(output)]
        command += ["--source-labels", ",".join(converted_rgb.specification.source_labels)]
        command += ["--scale", repr(1 / 255), "--offset", "0"]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        ran = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        assert output.read_bytes() == converted_rgb.shipped.model
        assert manifest_path(output).read_bytes() == manifest_path(converted_rgb.shipped.path).read_bytes()


def test_what_was_converted_before_does_not_matter(
    gray_model: Path, convert_here: Callable[..., Converted]
) -> None:
    """A model converted after others, in the same process, has the same bytes."""
    first = convert_here(gray_model, options(), precisions=("fp16",))
    keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3), keras.layers.Flatten()])
    second = convert_here(gray_model, options(), precisions=("fp16",))
    assert [variant.model for variant in first.variants] == [variant.model for variant in second.variants]


def test_constants_do_not_come_from_the_cpus_approximations(
    gray_model: Path, convert_here: Callable[..., Converted]
) -> None:
    """A folded batch norm is what float64 arithmetic gives, rounded once: no CPU's reciprocal square root."""
    import onnx

    converted = convert_here(gray_model, options())
    model = keras.models.load_model(gray_model, compile=False)
    convolution, normalisation = model.layers[0], model.layers[1]
    gamma, beta, mean, variance = (np.asarray(weight, np.float64) for weight in normalisation.weights)
    shift = beta - mean * gamma / np.sqrt(variance + np.float64(np.float32(normalisation.epsilon)))
    graph = onnx.load_from_string(converted.shipped.model).graph
    node = next(node for node in graph.node if node.op_type == "Conv")
    bias = next(item for item in graph.initializer if item.name == node.input[2])
    assert np.array_equal(onnx.numpy_helper.to_array(bias), shift.astype(np.float32))
    assert convolution.bias is None


def test_int8_is_the_same_for_the_same_faces(converted_rgb: Converted) -> None:
    """Calibration on the same images gives the same bytes; on others, other bytes."""
    import onnx

    model = onnx.load_from_string(converted_rgb.shipped.model)
    first, other = random_images(64, (96, 96, 3), 1), random_images(64, (96, 96, 3), 2) // 2

    def quantised(faces: np.ndarray) -> bytes:
        return bytes(to_int8(model, faces, lambda _done: None).SerializeToString(deterministic=True))

    assert quantised(first) == quantised(first)
    assert quantised(first) != quantised(other)


def test_a_directory_has_a_hash_of_its_contents(tmp_path: Path) -> None:
    """A SavedModel's hash follows names and contents, and nothing else."""
    gray_sequential().export(tmp_path / "saved", verbose=False)
    before = sha256_of(tmp_path / "saved")
    (tmp_path / "saved").rename(tmp_path / "moved")
    assert sha256_of(tmp_path / "moved") == before
    (tmp_path / "moved" / "assets" / "note.txt").write_text("x", "utf-8")
    assert sha256_of(tmp_path / "moved") != before
    assert tf.io.gfile.exists(str(tmp_path / "moved" / "saved_model.pb"))

"""Networks in other precisions are converted in float32, or it is said why not."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from conversion.convert import Request, convert
from conversion.errors import SourceError
from conversion.images import portrait_variants, random_images
from conversion.options import Options
from conversion.sessions import open_session, run
from conversion.sources import load
from conversion.tensorflow_quietly import keras, tf
from tests.conversion.keras_models import LABELS, options, randomise

_OTHERS = (onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


def network(kind: str) -> Any:
    """A classifier whose weights, input, nested network and constants are all of this kind."""
    layers = keras.layers
    keras.config.set_dtype_policy(kind)
    try:
        inner = keras.Sequential([keras.Input((32, 32, 3)), layers.Conv2D(4, 3), layers.ReLU()])
        images = keras.Input((32, 32, 3), dtype=kind)
        pixels = layers.Rescaling(1 / 255)(images)
        pixels = layers.Normalization(mean=[0.4] * 3, variance=[0.1] * 3)(pixels)
        adapted = layers.Normalization()
        adapted.adapt(np.random.default_rng(0).normal(0.6, 2, (64, 32, 32, 3)).astype("float32"))
        pixels = adapted(pixels)
        features = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(inner(pixels)))
        return keras.Model(images, layers.Dense(7, activation="softmax")(features))
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(
    ("name", "kind", "difference"),
    [
        ("model.keras", "float16", 0.002),
        ("model.keras", "bfloat16", 0.02),  # one in HDF5 cannot be read by Keras itself
        ("model.keras", "float64", 1e-5),
        ("model.h5", "float16", 0.002),
    ],
)
def test_a_network_wholly_in_another_precision_is_converted_in_float32(
    name: str, kind: str, difference: float, tmp_path: Path
) -> None:
    """All of the graph is float32, and answers as the source does in its own precision."""
    model = network(kind)
    model.save(tmp_path / name)
    labels = Options.parse({"source_labels": list(LABELS)}, "test")
    converted = convert(Request(tmp_path / name, tmp_path / "out" / "model.onnx", labels))
    kinds = {item.data_type for item in onnx.load(converted.shipped.path).graph.initializer}
    assert not kinds & set(_OTHERS)
    assert converted.shipped.parity["random"].max_difference < 1e-5
    faces = portrait_variants((32, 32, 3), 5)
    want = np.asarray(model(faces.astype(np.float32), training=False)).astype(np.float32)
    assert np.abs(run(open_session(converted.shipped.path), faces) - want).max() < difference


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")
@pytest.mark.parametrize(
    ("kind", "mode"), [("mixed_bfloat16", "int8"), ("mixed_bfloat16", "int4"), ("mixed_float16", "int4")]
)
def test_a_quantised_network_in_mixed_precision_keeps_its_steps(kind: str, mode: str, tmp_path: Path) -> None:
    """After `model.quantize`, too: the graph answers as that network does, which scales its whole numbers back."""
    layers = keras.layers
    images = keras.Input((16, 16, 1))
    features = layers.Dense(16, activation="relu", dtype=kind)(layers.Flatten(dtype=kind)(images))
    features = layers.Dense(8, activation="relu", dtype=kind)(features)
    model = randomise(keras.Model(images, layers.Dense(7, activation="softmax")(features)))
    model.quantize(mode)
    model.save(tmp_path / "model.keras")
    how = options(scale=1 / 255, source_labels=list(LABELS))
    converted = convert(Request(tmp_path / "model.keras", tmp_path / "out" / "model.onnx", how))
    noise = random_images(16, (16, 16, 1))
    want = np.asarray(keras.ops.cast(model(noise / np.float32(255), training=False), "float32"))
    assert np.abs(run(open_session(converted.shipped.path), noise) - want).max() < 0.02


@keras.saving.register_keras_serializable(package="tests")
class Halved(keras.layers.Layer):  # type: ignore[misc]
    """A layer that wants its weight in float16, whatever it is told."""

    def build(self, _shape: Any) -> None:
        """As a layer of a user's may."""
        self.half = self.add_weight(shape=(), dtype="float16", name="half")

    def call(self, inputs: Any) -> Any:
        """Use it."""
        return inputs * tf.cast(self.half, inputs.dtype)


def test_a_precision_that_cannot_be_left_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network with a layer of the user's own that is float16 even when made anew, or that cannot be."""
    layers = keras.layers
    model = keras.Sequential([keras.Input((16, 16, 3)), Halved(), layers.Flatten(), layers.Dense(7)])
    model.save(tmp_path / "model.keras")
    advice = r"its weights are float16, .*set_dtype_policy\(\"float32\"\)"
    with pytest.raises(SourceError, match=advice):
        load(tmp_path / "model.keras", Options())

    def get_config(_layer: Any) -> Any:
        raise NotImplementedError("not written yet")

    monkeypatch.setattr(Halved, "get_config", get_config)
    with pytest.raises(SourceError, match=rf"{advice}.* \(not written yet\)$"):
        load(tmp_path / "model.keras", Options())


def test_what_a_layer_raises_is_quoted_without_colours(tmp_path: Path) -> None:
    """Keras prints it in bold; in a log, or in JSON, that is noise."""
    layers = keras.layers
    images = keras.Input((None, None, 3))
    scores = layers.Dense(7)(layers.Flatten()(layers.Reshape((8, 8, 3))(images)))
    keras.Model(images, scores).save(tmp_path / "model.keras")
    with pytest.raises(SourceError, match=r"fails on an image of \[16, 16, 3\]: [^\x1b]+$"):
        load(tmp_path / "model.keras", Options.parse({"input_size": "16x16"}, "test"))

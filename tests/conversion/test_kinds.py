"""Every kind of Keras classifier converts, and answers as its source does."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import onnx
import pytest

from conversion.convert import Converted, specify
from conversion.errors import OptionError, SourceError
from conversion.images import portrait_variants, random_images
from conversion.options import Options
from conversion.sessions import open_session, run
from conversion.sourcefile import HDF5_ATTRIBUTE, KERAS_MEMBER, SAVEDMODEL_MEMBER, identify
from conversion.sources import load
from conversion.tensorflow_quietly import keras, tf
from service.store.schema import emotion_class, model_version
from tests.conversion.keras_models import (
    LABELS,
    SOURCE_LABELS,
    gray_sequential,
    options,
    randomise,
    rgb_functional,
    subclassed,
)

Convert = Callable[..., Converted]


def expected(model: Any, inputs: npt.NDArray[Any], *, logits: bool) -> npt.NDArray[np.float32]:
    """The model's answer, written down here a second time: softmax for logits, our label order."""
    scores = np.asarray(model(inputs, training=False))
    if logits:
        scores = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return scores[:, [SOURCE_LABELS.index(label) for label in LABELS]]


def answers(converted: Converted, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return run(open_session(converted.shipped.path), images)


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model.hdf5"])
def test_sequential_files_convert(name: str, tmp_path: Path, convert_here: Convert) -> None:
    """A gray Sequential model in each single-file format answers as Keras does, in our label order."""
    model = gray_sequential()
    model.save(tmp_path / name)
    converted = convert_here(tmp_path / name, options(scale=1 / 127.5, offset=-1.0))
    faces = portrait_variants((48, 48, 1), 5)
    want = expected(model, faces.astype(np.float32) / 127.5 - 1, logits=False)
    assert np.abs(answers(converted, faces) - want).max() < 1e-5
    assert converted.source.kind == "Sequential"
    assert converted.specification.activation == "softmax"


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_rgb_logits_are_found_and_turned_into_probabilities(
    name: str, tmp_path: Path, convert_here: Convert
) -> None:
    """A 96x96 RGB Functional model that ends in logits is recognised as such, and its ONNX ends in softmax."""
    model = rgb_functional()
    model.save(tmp_path / name)
    converted = convert_here(tmp_path / name, options())
    faces = portrait_variants((96, 96, 3), 5)
    got = answers(converted, faces)
    assert np.abs(got - expected(model, faces.astype(np.float32) / 255, logits=True)).max() < 1e-5
    assert np.allclose(got.sum(axis=1), 1, atol=1e-5)
    assert converted.shipped.metadata["activation"] == "logits"
    assert converted.source.kind == "Functional"


def test_channel_order_and_per_channel_offsets_are_folded_in(tmp_path: Path, convert_here: Convert) -> None:
    """A network trained on BGR with a mean per channel takes plain RGB images after conversion."""
    model = rgb_functional(logits=False)
    model.save(tmp_path / "model.keras")
    means = [-103.9, -116.8, -123.7]
    converted = convert_here(tmp_path / "model.keras", options(scale=0.02, offset=means, channel_order="bgr"))
    faces = portrait_variants((96, 96, 3), 5)
    inputs = faces[..., ::-1].astype(np.float32) * np.float32(0.02) + np.array(means, np.float32)
    assert np.abs(answers(converted, faces) - expected(model, inputs, logits=False)).max() < 1e-5
    assert json.loads(converted.shipped.metadata["preprocessing"]) == {
        "scale": 0.02,
        "offset": means,
        "channel_order": "bgr",
    }


def test_savedmodel_exported_by_keras_converts(tmp_path: Path, convert_here: Convert) -> None:
    """A directory written by `model.export` converts through its serving signature."""
    model = rgb_functional()
    model.export(tmp_path / "saved", verbose=False)
    converted = convert_here(tmp_path / "saved", options())
    faces = portrait_variants((96, 96, 3), 5)
    want = expected(model, faces.astype(np.float32) / 255, logits=True)
    assert np.abs(answers(converted, faces) - want).max() < 1e-5
    assert converted.source.kind == "SavedModel"
    assert converted.source.parameters == model.count_params()


def test_savedmodel_written_by_tensorflow_converts(tmp_path: Path, convert_here: Convert) -> None:
    """A directory written by `tf.saved_model.save`, as Keras 2 did, converts through serving_default."""
    model = gray_sequential()
    module = tf.Module()
    module.model = model
    signature = tf.function(
        lambda images: {"scores": model(images, training=False)},
        input_signature=[tf.TensorSpec((None, 48, 48, 1), tf.float32, "images")],
        autograph=False,
    )
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures={"serving_default": signature})
    converted = convert_here(tmp_path / "saved", options())
    faces = portrait_variants((48, 48, 1), 5)
    want = expected(model, faces.astype(np.float32) / 255, logits=False)
    assert np.abs(answers(converted, faces) - want).max() < 1e-5


def test_subclassed_model_converts_with_its_custom_layers(tmp_path: Path, convert_here: Convert) -> None:
    """A subclassed model with a custom layer converts once its classes are known and its size is given."""
    _, model = subclassed(tmp_path)
    model.save(tmp_path / "model.keras")
    converted = convert_here(tmp_path / "model.keras", options(input_size="32x40", color="rgb"))
    faces = portrait_variants((32, 40, 3), 5)
    want = expected(model, faces.astype(np.float32) / 255, logits=False)
    assert np.abs(answers(converted, faces) - want).max() < 1e-5
    assert converted.source.kind == "subclassed"
    assert (converted.specification.height, converted.specification.width) == (32, 40)


def test_open_input_size_is_fixed_by_the_option(tmp_path: Path, convert_here: Convert) -> None:
    """A network that takes any size is converted for the size that was asked for."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((None, None, 1)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(7, activation="softmax"),
        ]
    )
    model.save(tmp_path / "model.keras")
    converted = convert_here(tmp_path / "model.keras", options(input_size=[40, 24]))
    assert open_session(converted.shipped.path).get_inputs()[0].shape == ["batch", 40, 24, 1]


def test_model_with_rescaling_needs_no_scale(tmp_path: Path, convert_here: Convert) -> None:
    """A model that scales its own input is given raw pixels, without the option."""
    model = rgb_functional(logits=False)
    whole = keras.Sequential([keras.Input((96, 96, 3)), keras.layers.Rescaling(1 / 127.5, -1), model])
    whole.save(tmp_path / "model.keras")
    converted = convert_here(
        tmp_path / "model.keras", Options.parse({"source_labels": list(SOURCE_LABELS)}, "test")
    )
    assert set(converted.specification.scale) == {1.0}
    faces = portrait_variants((96, 96, 3), 5)
    want = expected(whole, faces.astype(np.float32), logits=False)
    assert np.abs(answers(converted, faces) - want).max() < 1e-5


def behind(*layers: Any) -> Any:
    """A small classifier behind these layers."""
    images = features = keras.Input((32, 32, 3))
    for layer in layers:
        features = layer(features)
    scores = keras.layers.Dense(7, activation="softmax")(keras.layers.GlobalAveragePooling2D()(features))
    return randomise(keras.Model(images, scores))


def nested(*layers: Any) -> Any:
    return keras.Sequential([keras.Input((32, 32, 3)), *layers])


Layers = keras.layers
SCALED: dict[str, Callable[[], Any]] = {
    "augmented": lambda: behind(Layers.RandomFlip(), Layers.RandomRotation(0.1), Layers.Rescaling(1 / 255)),
    "resized": lambda: behind(Layers.Resizing(40, 40), Layers.CenterCrop(32, 32), Layers.Rescaling(1 / 255)),
    "nested": lambda: behind(nested(Layers.RandomFlip(), Layers.Rescaling(1 / 255)), Layers.Conv2D(4, 3)),
    "nested augmentation": lambda: behind(
        nested(Layers.RandomFlip(), Layers.RandomZoom(0.1)), Layers.Rescaling(0.01)
    ),
    "sequential": lambda: nested(
        Layers.RandomFlip(),
        Layers.CenterCrop(30, 30),
        Layers.Rescaling(0.01),
        Layers.Flatten(),
        Layers.Dense(7),
    ),
    "normalised": lambda: behind(Layers.Normalization(mean=[120.0] * 3, variance=[3000.0] * 3)),
}
UNSCALED: dict[str, Callable[[], Any]] = {
    "temperature": lambda: nested(behind(), Layers.Rescaling(1 / 1.7), Layers.Softmax()),
    "after a convolution": lambda: behind(Layers.Conv2D(4, 3), Layers.Rescaling(0.5)),
    "after a nested convolution": lambda: behind(nested(Layers.Conv2D(3, 1)), Layers.Rescaling(0.5)),
    "in a nested network": lambda: behind(Layers.Conv2D(3, 1), nested(Layers.Rescaling(0.5))),
    "none": lambda: behind(Layers.Resizing(40, 40)),
}


@pytest.mark.parametrize("name", [*SCALED, *UNSCALED])
def test_only_layers_that_see_pixels_are_taken_for_preprocessing(name: str, tmp_path: Path) -> None:
    """A Rescaling behind augmentation, crop or resizing scales the input; one inside the network, as a temperature,
    says nothing about it."""
    path = tmp_path / "model.keras"
    (SCALED | UNSCALED)[name]().save(path)
    assert load(path, Options()).shape.scales_itself == (name in SCALED)


@pytest.mark.parametrize(
    ("written", "name"),
    [("a.keras", "b.h5"), ("a.h5", "b.keras"), ("a.keras", "b.KERAS"), ("a.h5", "b.model"), ("a.keras", "b")],
)
def test_a_file_is_read_by_what_it_holds(
    written: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renamed, and named from the current folder, each kind of file is read as what it is."""
    monkeypatch.chdir(tmp_path)
    model = behind(Layers.Rescaling(1 / 255))
    model.save(written)
    Path(written).rename(name)
    source = load(Path(name), Options())
    noise = random_images(2, (32, 32, 3)).astype(np.float32)
    assert (source.path.name, identify(source.path)) == (name, "keras" if "keras" in written else "hdf5")
    assert np.array_equal(source.call(tf.constant(noise)), model(noise, training=False))


def test_a_temperature_leaves_the_input_range_open(tmp_path: Path, convert_here: Convert) -> None:
    """A network with no scaling but a temperature asks for --scale."""
    UNSCALED["temperature"]().save(tmp_path / "model.keras")
    with pytest.raises(OptionError, match=r"the input range of model\.keras is not known: give --scale"):
        convert_here(tmp_path / "model.keras", Options.parse({"source_labels": list(SOURCE_LABELS)}, "test"))


def test_preprocessing_by_operations_is_told_by_one_and_zero(tmp_path: Path, convert_here: Convert) -> None:
    """`preprocess_input` in the network is arithmetic like any other: the error says what to give for such a one, and
    with that it is converted."""
    images = keras.Input((32, 32, 3))
    pixels = keras.applications.mobilenet_v2.preprocess_input(images)
    features = Layers.GlobalAveragePooling2D()(Layers.Conv2D(4, 3)(pixels))
    keras.Model(images, Layers.Dense(7, activation="softmax")(features)).save(tmp_path / "model.keras")
    labels = {"source_labels": list(SOURCE_LABELS)}
    with pytest.raises(OptionError, match="1 and 0 where it scales them itself"):
        convert_here(tmp_path / "model.keras", Options.parse(labels, "test"))
    told = Options.parse(labels | {"scale": 1.0, "offset": 0.0}, "test")
    assert convert_here(tmp_path / "model.keras", told).shipped.parity["random"].max_difference < 1e-5


def test_mixed_precision_model_is_converted_in_float32(tmp_path: Path, convert_here: Convert) -> None:
    """A network saved under a mixed_bfloat16 policy becomes a float32 graph."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((32, 32, 1)),
            layers.Conv2D(4, 3, activation="relu", dtype="mixed_bfloat16"),
            layers.GlobalAveragePooling2D(dtype="mixed_bfloat16"),
            layers.Dense(7, activation="softmax", dtype="float32"),
        ]
    )
    model.save(tmp_path / "model.keras")
    converted = convert_here(tmp_path / "model.keras", options())
    graph = onnx.load(converted.shipped.path).graph
    kinds = {item.data_type for item in graph.initializer}
    assert not kinds & {onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT16}
    assert converted.shipped.parity["random"].max_difference < 1e-5


OWN = json.dumps(
    {"conversion": {"source_labels": SOURCE_LABELS, "scale": 1 / 255, "offset": 0, "version_tag": "own-1"}}
)


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "saved"])
def test_the_models_own_metadata_is_used(name: str, tmp_path: Path, convert_here: Convert) -> None:
    """Options kept inside each format of model are used, and the caller's options win over them."""
    path = tmp_path / name
    if name == "saved":
        rgb_functional().export(path, verbose=False)
        (path / SAVEDMODEL_MEMBER).parent.mkdir()
        (path / SAVEDMODEL_MEMBER).write_text(OWN, "utf-8")
    else:
        rgb_functional().save(path)
        if name.endswith(".keras"):
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr(KERAS_MEMBER, OWN)
        else:
            with h5py.File(path, "a") as file:
                file.attrs[HDF5_ATTRIBUTE] = OWN
    converted = convert_here(path, Options.parse({"version_tag": "mine-2"}, "test"))
    assert converted.specification.source_labels == SOURCE_LABELS
    assert converted.specification.version_tag == "mine-2"


def test_names_fit_the_columns_of_the_services_database(tmp_path: Path) -> None:
    """The tag of a file with a long name keeps the whole hash, and what may be given is what can be stored."""
    path = tmp_path / f"{'a' * 200}.keras"
    behind().save(path)
    source = load(path, options())
    tag = specify(source, options()).version_tag
    assert tag == f"{'a' * 91}-{source.sha256[:8]}"
    assert repr(model_version.c.model_version_tag.type) == f"String(length={len(tag)})"
    names = ["b" * 50, "c"]
    assert repr(emotion_class.c.emotion_name.type) == f"String(length={len(names[0])})"
    parsed = Options.parse({"labels": names, "version_tag": tag}, "test")
    assert (parsed.labels, parsed.version_tag) == (tuple(names), tag)


def test_independent_sigmoids_are_not_taken_for_probabilities(tmp_path: Path, convert_here: Convert) -> None:
    """Outputs in 0..1 that do not sum to one are refused: they are neither softmax nor logits."""
    model = keras.Sequential(
        [
            keras.Input((32, 32, 1)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(7, activation="sigmoid"),
        ]
    )
    model.save(tmp_path / "model.keras")
    with pytest.raises(SourceError, match="do not sum to 1"):
        convert_here(tmp_path / "model.keras", options())

"""HDF5 files as Keras 2 wrote them: arguments that its layers do not use, and calls that it counted otherwise."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from conversion.convert import Converted
from conversion.images import random_images
from conversion.sessions import open_session, run
from conversion.tensorflow_quietly import keras
from tests.conversion.keras_models import options, randomise

# What Keras 2.15 writes of these layers, beside what Keras 3 does.
UNUSED: dict[str, dict[str, Any]] = {
    "Conv2DTranspose": {"groups": 1},
    "DepthwiseConv2D": {"groups": 1},
    "LSTM": {"time_major": False},
    "RandomFlip": {"rng_type": "stateful"},
    "SeparableConv2D": {
        "groups": 1,
        "kernel_constraint": None,
        "kernel_initializer": {"class_name": "GlorotUniform", "config": {"seed": None}},
        "kernel_regularizer": None,
    },
    "SpatialDropout2D": {"noise_shape": None, "trainable": True},
}


def network() -> Any:
    """A network of these layers, some of them within another network."""
    layers = keras.layers
    inner = [keras.Input((16, 16, 3)), layers.DepthwiseConv2D(3), layers.SeparableConv2D(8, 3, strides=2)]
    return randomise(
        keras.Sequential(
            [
                keras.Input((16, 16, 3)),
                layers.RandomFlip("horizontal"),
                keras.Sequential(inner),
                layers.SpatialDropout2D(0.2),
                layers.Conv2DTranspose(4, 3),
                layers.Reshape((4, 64)),
                layers.LSTM(8, unroll=True),
                layers.Dense(7, activation="softmax"),
            ]
        )
    )


def written_by_keras_2(path: Path, copy: Path, unused: dict[str, dict[str, Any]]) -> Path:
    """Write a copy whose layers have these arguments, too."""

    def added(configuration: Any) -> Any:
        if isinstance(configuration, list):
            return [added(each) for each in configuration]
        if not isinstance(configuration, dict):
            return configuration
        more = unused.get(configuration.get("class_name", ""), {})
        return {
            key: added(value) | more if key == "config" else added(value)
            for key, value in configuration.items()
        }

    return changed(path, copy, added)


def changed(path: Path, copy: Path, change: Callable[[Any], Any]) -> Path:
    """Write a copy that Keras 2 seems to have written, with another configuration."""
    shutil.copy(path, copy)
    with h5py.File(copy, "r+") as file:
        file.attrs["model_config"] = json.dumps(change(json.loads(file.attrs["model_config"])))
        file.attrs["keras_version"] = "2.15.0"
    return copy


def counted_by_keras_2(configuration: dict[str, Any]) -> dict[str, Any]:
    """The calls of a Functional network's layers as lists; those of a network in it are counted from 1."""
    own = configuration["config"]
    within = {layer["name"]: layer["class_name"] for layer in own["layers"] if "layers" in layer["config"]}
    for layer in own["layers"]:
        if layer["class_name"] == "Functional":
            counted_by_keras_2(layer)
        calls = [node["args"][0]["config"]["keras_history"] for node in layer["inbound_nodes"]]
        layer["inbound_nodes"] = [
            [[name, number + (name in within), output, {}]] for name, number, output in calls
        ]
    name, number, output = own["output_layers"]
    # Of a Functional one Keras 3 still counts this as Keras 2 does.
    own["output_layers"] = [[name, number + (within.get(name) == "Sequential"), output]]
    return configuration


def assert_same_answers(new: Path, old: Path, convert: Callable[..., Converted]) -> None:
    """Convert both files, and demand that what comes out answers alike."""
    images = random_images(8, (16, 16, 3))
    answers = [run(open_session(convert(each, options()).shipped.model), images) for each in (new, old)]
    assert np.abs(answers[0] - answers[1]).max() == 0


def test_what_keras_2_wrote_of_no_account_is_passed_over(
    tmp_path: Path, convert_here: Callable[..., Converted]
) -> None:
    """The network converts, and answers as that of a file without it."""
    new = tmp_path / "new.h5"
    network().save(new)
    old = written_by_keras_2(new, tmp_path / "old.h5", UNUSED)
    assert_same_answers(new, old, convert_here)


@pytest.mark.parametrize("head", ["Functional", "Sequential"])
def test_networks_within_networks(head: str, tmp_path: Path, convert_here: Callable[..., Converted]) -> None:
    """As transfer learning makes them: a trained body, and a head of its own."""
    layers = keras.layers
    images, features = keras.Input((16, 16, 3)), keras.Input((14, 14, 4))
    body = keras.Model(images, layers.Conv2D(4, 3)(images))
    last = [layers.GlobalAveragePooling2D(), layers.Dense(7, activation="softmax")]
    ends: Any = (
        keras.Sequential([features, *last])
        if head == "Sequential"
        else keras.Model(features, last[1](last[0](features)))
    )
    pixels = keras.Input((16, 16, 3))
    new = tmp_path / "new.h5"
    randomise(keras.Model(pixels, ends(layers.ReLU()(body(pixels))))).save(new)
    assert_same_answers(new, changed(new, tmp_path / "old.h5", counted_by_keras_2), convert_here)


def test_a_network_within_a_sequential_one(tmp_path: Path, convert_here: Callable[..., Converted]) -> None:
    """The shortest way to put a head on a trained body, of whose answer and axis Keras 2 writes a list of one."""
    layers = keras.layers
    images = keras.Input((16, 16, 3))
    body = keras.Model(images, layers.BatchNormalization(axis=3)(layers.Conv2D(4, 3)(images)))
    head = [layers.Flatten(), layers.Dropout(0.2), layers.Dense(7, activation="softmax")]
    new = tmp_path / "new.h5"
    randomise(keras.Sequential([keras.Input((16, 16, 3)), body, *head])).save(new)

    def counted(configuration: dict[str, Any]) -> dict[str, Any]:
        inner = counted_by_keras_2(configuration["config"]["layers"][1])
        normalization = inner["config"]["layers"][-1]
        normalization["config"]["axis"] = [3]
        normalization |= {"module": "keras.layers", "registered_name": None}  # since Keras 2.13
        return configuration

    assert_same_answers(new, changed(new, tmp_path / "old.h5", counted), convert_here)


def test_a_slash_in_a_name_is_no_hindrance(tmp_path: Path, convert_here: Callable[..., Converted]) -> None:
    """Keras 3 takes none; Keras 2 gives them to a DenseNet's first layers."""
    layers = keras.layers
    images, pixels = keras.Input((14, 14, 4)), keras.Input((16, 16, 3))
    body = keras.Model(images, layers.BatchNormalization(name="conv2_bn")(images))
    features = body(layers.Conv2D(4, 3, name="conv1_conv")(pixels))
    new = tmp_path / "new.h5"
    scores = layers.Dense(7, activation="softmax")(layers.Flatten()(features))
    randomise(keras.Model(pixels, scores)).save(new)

    def named(configuration: dict[str, Any]) -> Any:
        text = json.dumps(counted_by_keras_2(configuration))
        return json.loads(text.replace('"conv1_', '"conv1/').replace('"conv2_', '"conv2/'))

    old = changed(new, tmp_path / "old.h5", named)
    with h5py.File(old, "r+") as file:
        weights = file["model_weights"]
        weights.move("conv1_conv", "conv1/conv")
        weights.attrs["layer_names"] = [
            name.replace("conv1_", "conv1/") for name in weights.attrs["layer_names"]
        ]
    assert_same_answers(new, old, convert_here)


@keras.saving.register_keras_serializable("tests")
class Stack(keras.layers.Layer):  # type: ignore[misc]
    """A layer of somebody's own, with an argument by a name that networks have in their configuration, too."""

    def __init__(self, layers: Any, **others: Any) -> None:
        super().__init__(**others)
        self.given = layers

    def call(self, images: Any) -> Any:
        """Nothing is done to them."""
        return images

    def get_config(self) -> dict[str, Any]:
        """With the argument."""
        return {**super().get_config(), "layers": self.given}


@pytest.mark.parametrize("given", [3, [8, 16], []])
def test_a_custom_layer_with_layers_is_no_network(
    given: Any, tmp_path: Path, convert_here: Callable[..., Converted]
) -> None:
    """How many layers of its own it has, say."""
    pixels = keras.Input((16, 16, 3))
    scores = keras.layers.Dense(7, activation="softmax")(keras.layers.Flatten()(Stack(given)(pixels)))
    new = tmp_path / "new.h5"
    randomise(keras.Model(pixels, scores)).save(new)
    assert_same_answers(new, changed(new, tmp_path / "old.h5", counted_by_keras_2), convert_here)


def test_what_means_something_is_not_passed_over(refused: Callable[..., str], tmp_path: Path) -> None:
    """An argument that Keras 3 does not take is left out with the value that changes nothing only, and else named."""
    network().save(tmp_path / "new.h5")
    old = written_by_keras_2(tmp_path / "new.h5", tmp_path / "old.h5", {"DepthwiseConv2D": {"groups": 2}})
    line = refused(old)
    assert "Keras cannot load it: DepthwiseConv2D: Unrecognized keyword arguments" in line
    assert "{'groups': 2}" in line


def test_an_operation_of_keras_2_is_not_taken_for_a_custom_layer(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    """Nobody has a Python file of what Keras 2 made of `images / 255`: its line says where to save it as what."""
    layers = keras.layers
    pixels = keras.Input((16, 16, 3))
    new = tmp_path / "new.h5"
    keras.Model(pixels, layers.Dense(7)(layers.Flatten()(layers.ReLU()(pixels)))).save(new)

    def divided(configuration: Any) -> Any:
        return json.loads(json.dumps(configuration).replace('"ReLU"', '"TFOpLambda"'))

    assert "Keras 2 wrote it, with a class TFOpLambda" in refused(changed(new, tmp_path / "old.h5", divided))


def test_a_keras_file_of_keras_2_is_told(refused: Callable[..., str], tmp_path: Path) -> None:
    """Its network is of a module that Keras 3 has not, and no custom class either."""
    new, old = tmp_path / "new.keras", tmp_path / "old.keras"
    pixels = keras.Input((16, 16, 3))
    keras.Model(pixels, keras.layers.Dense(7)(keras.layers.Flatten()(pixels))).save(new)
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(old, "w") as copy:
        for name in source.namelist():
            content = source.read(name)
            copy.writestr(
                name, content.replace(b"keras.src.models.functional", b"keras.src.engine.functional")
            )
    assert "Keras 2 wrote it, with a class Functional" in refused(old)

"""HDF5 files as Keras 2 wrote them: with arguments that its layers do not use, and Keras 3 does not take."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

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

    shutil.copy(path, copy)
    with h5py.File(copy, "r+") as file:
        file.attrs["model_config"] = json.dumps(added(json.loads(file.attrs["model_config"])))
    return copy


def test_what_keras_2_wrote_of_no_account_is_passed_over(
    tmp_path: Path, convert_here: Callable[..., Converted]
) -> None:
    """The network converts, and answers as that of a file without it."""
    new = tmp_path / "new.h5"
    network().save(new)
    old = written_by_keras_2(new, tmp_path / "old.h5", UNUSED)
    images = random_images(8, (16, 16, 3))
    answers = [run(open_session(convert_here(each, options()).shipped.model), images) for each in (new, old)]
    assert np.abs(answers[0] - answers[1]).max() == 0


def test_what_means_something_is_not_passed_over(refused: Callable[..., str], tmp_path: Path) -> None:
    """An argument that Keras 3 does not take is left out with the value that changes nothing only."""
    network().save(tmp_path / "new.h5")
    old = written_by_keras_2(tmp_path / "new.h5", tmp_path / "old.h5", {"LSTM": {"time_major": True}})
    assert "'time_major': True" in refused(old)

"""Files of Keras networks: those that tell emotions are loaded, and others refused with a line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from models.architecture import VARIANTS, build
from models.networks import ModelError, load_network, load_trained
from models.sources import ROOT

# Keras hands its variables to NumPy in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def network(
    *,
    inputs: int = 1,
    shape: tuple[int | None, ...] = (48, 48, 1),
    outputs: int = 7,
    dictionary: bool = False,
) -> keras.Model:
    """A network that could tell emotions from such images."""
    images = [keras.Input(shape) for _ in range(inputs)]
    joined = keras.layers.Add()(images) if inputs > 1 else images[0]
    scores = keras.layers.Dense(outputs, activation="softmax")(keras.layers.GlobalAveragePooling2D()(joined))
    return keras.Model(images if inputs > 1 else images[0], {"scores": scores} if dictionary else scores)


@keras.saving.register_keras_serializable(package="tests")
class Unknown(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """A layer that will not be known when its network is loaded."""

    def call(self, inputs: Any) -> Any:
        """Pass on."""
        return inputs


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: network(shape=(None, None, 1)), r"takes \[None, None, None, 1\]"),
        (lambda: network(shape=(48, 48, 4)), r"takes \[None, 48, 48, 4\]"),
        (lambda: network(inputs=2), "takes"),
        (lambda: network(dictionary=True), "gives dict"),
        (lambda: network(outputs=5), r"gives \[1, 5\]"),
    ],
)
def test_a_network_of_another_form_is_refused(
    make: Callable[[], keras.Model], message: str, tmp_path: Path
) -> None:
    """One image of a fixed size in, seven scores out: anything else is named."""
    make().save(tmp_path / "model.keras")
    with pytest.raises(ModelError, match=message):
        load_network(tmp_path / "model.keras")


def test_what_keras_cannot_load_is_refused(tmp_path: Path) -> None:
    """A missing file, one that is something else or was cut off, and a class that is not known here."""
    with pytest.raises(ModelError, match="no such file"):
        load_network(tmp_path / "none.keras")
    (tmp_path / "text.keras").write_text("hello")
    with pytest.raises(ModelError, match="not a Keras model"):
        load_network(tmp_path / "text.keras")
    whole = (ROOT / "models/modelo_emociones.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"cut\.keras: truncated or damaged \.keras file"):
        load_network(tmp_path / "cut.keras")
    keras.Sequential([keras.Input((48, 48, 1)), Unknown(), keras.layers.Flatten()]).save(
        tmp_path / "own.keras"
    )
    registered = keras.saving.get_custom_objects()
    kept = registered.pop("tests>Unknown")
    try:
        with pytest.raises(ModelError, match="Keras cannot load it") as caught:
            load_network(tmp_path / "own.keras")
    finally:
        registered["tests>Unknown"] = kept
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((96, 96, 1), "not grey faces"), ((48, 48, 3), "not grey faces"), ((48, 48, 1), "exported already")],
)
def test_a_network_that_training_does_not_leave_is_refused(
    shape: tuple[int, int, int], message: str, tmp_path: Path
) -> None:
    """What is trained on, labels or is exported takes grey faces of 48x48 and gives logits."""
    network(shape=shape).save(tmp_path / "model.keras")
    with pytest.raises(ModelError, match=message):
        load_trained(tmp_path / "model.keras")


@pytest.mark.parametrize("load", [load_network, load_trained])
def test_a_network_whose_training_diverged_is_refused(load: Callable[[Path], Any], tmp_path: Path) -> None:
    """What answers NaN is not gone on from, labels nothing and is not exported over the one that is served."""
    broken = build(VARIANTS["tiny"], "tiny")
    broken.set_weights([weight * np.float32("nan") for weight in broken.get_weights()])
    broken.save(tmp_path / "tiny.keras")
    with pytest.raises(ModelError, match=r"tiny\.keras: answers NaN or infinity"):
        load(tmp_path / "tiny.keras")


def test_a_network_that_has_no_answer_to_black_is_loaded(tmp_path: Path) -> None:
    """One that divides by an image's own contrast, as some do, is not taken for broken."""
    images = keras.Input((48, 48, 1))
    divided = keras.ops.mean(images / keras.ops.std(images, axis=(1, 2, 3), keepdims=True), axis=(1, 2))
    keras.Model(images, keras.layers.Dense(7, activation="softmax")(divided)).save(tmp_path / "own.keras")
    load_network(tmp_path / "own.keras")

"""How the pixels are to be scaled is asked for wherever it is not certain that the network does it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conversion.cli import main
from conversion.images import random_images
from conversion.options import Options
from conversion.sessions import open_session, run
from conversion.sources import load
from conversion.tensorflow_quietly import keras, tf
from tests.conversion.keras_models import LABELS, randomise

SEVEN = ",".join(LABELS)
Layers = keras.layers


def adapted(highest: float) -> Any:
    """A Normalization that has seen pixels from 0 to `highest`."""
    layer = Layers.Normalization()
    layer.adapt(np.random.RandomState(0).uniform(0, highest, (50, 16, 16, 3)).astype("float32"))
    return layer


OF_BYTES: dict[str, Callable[[], Any]] = {
    "divided": lambda: Layers.Rescaling(1 / 127.5, -1),
    "divided by channel": lambda: Layers.Rescaling([1 / 255, 1 / 128, 1 / 64], [0, -1, 0.5]),
    "mean taken away": lambda: Layers.Rescaling(1.0, [-103.9, -116.8, -123.7]),
    "adapted": lambda: adapted(255),
    "adapted to dark images": lambda: adapted(20),
    "mean taken away by Normalization": lambda: Layers.Normalization(mean=[120.0] * 3, variance=[1.0] * 3),
}
OF_ZERO_TO_ONE: dict[str, Callable[[], Any]] = {
    "centred": lambda: Layers.Rescaling(2.0, -1.0),
    "made bytes": lambda: Layers.Rescaling(255.0),
    "made bytes and centred": lambda: Layers.Rescaling(255.0, -127.5),
    "adapted to [0, 1]": lambda: adapted(1),
    "of ImageNet": lambda: Layers.Normalization(mean=[0.485, 0.456, 0.406], variance=[0.05, 0.05, 0.05]),
    "never adapted": Layers.Normalization,
    "one channel small": lambda: Layers.Rescaling([0.01, 0.01, 2.0]),
}


@pytest.mark.parametrize("name", [*OF_BYTES, *OF_ZERO_TO_ONE])
def test_only_what_is_for_bytes_scales_bytes(name: str, tmp_path: Path) -> None:
    """A normalisation of pixels in [0, 1] is at the entry, too, but is given what somebody has scaled: the range is
    asked for then."""
    layer = (OF_BYTES | OF_ZERO_TO_ONE)[name]()
    model = keras.Sequential([keras.Input((16, 16, 3)), layer, Layers.Flatten(), Layers.Dense(7)])
    model.save(tmp_path / "model.keras")
    assert load(tmp_path / "model.keras", Options()).shape.scales_itself == (name in OF_BYTES)


def test_an_offset_alone_is_no_range(refused: Callable[..., str], rgb_model: Path) -> None:
    """What is added to the pixels does not say what they are multiplied by."""
    line = refused(rgb_model, "--source-labels", SEVEN, "--offset", "0")
    assert "the input range of rgb.keras is not known: give --scale and --offset" in line


def serving_integers(folder: Path, kind: Any) -> Path:
    """A SavedModel that takes whole numbers of this type and divides them by 255, and what it answers is logits."""
    model = randomise(
        keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Flatten(), keras.layers.Dense(7)])
    )
    module = tf.Module()
    module.model = model

    @tf.function(input_signature=[tf.TensorSpec((None, 16, 16, 3), kind)], autograph=False)  # type: ignore[untyped-decorator]
    def serve(images: Any) -> dict[str, Any]:
        return {"scores": model(tf.cast(images, tf.float32) / 255, training=False)}

    tf.saved_model.save(module, str(folder), signatures=serve)
    return folder


def test_a_network_of_whole_numbers_is_given_pixels(refused: Callable[..., str], tmp_path: Path) -> None:
    """A SavedModel with an integer input needs no scale, and is refused one: pixels below 1 would all be 0 to it."""
    saved, output = serving_integers(tmp_path / "saved", tf.uint8), tmp_path / "out" / "model.onnx"
    for given in (["--scale", "0.00392"], ["--offset", "-0.5"]):
        assert "takes pixels as whole numbers (uint8)" in refused(saved, "--source-labels", SEVEN, *given)
    small = serving_integers(tmp_path / "small", tf.int8)
    assert "int8, which does not hold a pixel" in refused(small, "--source-labels", SEVEN)
    assert main([str(saved), "--source-labels", SEVEN, "-o", str(output)]) == 0
    answers = run(open_session(output), random_images(16, (16, 16, 3)))
    assert np.abs(answers - answers[0]).max() > 0.1

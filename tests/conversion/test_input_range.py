"""How the pixels are to be scaled is asked for wherever it is not certain that the network does it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from conversion.cli import main
from conversion.images import random_images
from conversion.sessions import open_session, run
from conversion.tensorflow_quietly import keras, tf
from tests.conversion.keras_models import LABELS, randomise

SEVEN = ",".join(LABELS)


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

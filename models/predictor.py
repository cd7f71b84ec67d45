"""A model file as a function from faces to probabilities, for evaluation: .onnx or .keras."""

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from conversion.errors import quoted
from models.dataset import EMOTIONS
from models.networks import ModelError, are_probabilities, load_network

Faces = NDArray[np.uint8]
Probabilities = NDArray[np.float32]

_BATCH = 64
_WARM_UP_RUNS = 20
_TIMED_FACES, _TIMED_RUNS = 200, 3


class Predictor:
    """A loaded model, by the `name` that errors give it.

    `run` maps uint8 [n, height, width, channels] of the model's size to float32 [n, 7].
    """

    def __init__(
        self, name: str, run: Callable[[Faces], Probabilities], height: int, width: int, channels: int
    ) -> None:
        self.run = run
        self._name = name
        self._height, self._width, self._channels = height, width, channels

    def probabilities(self, images: Faces) -> Probabilities:
        """Return probabilities float32 [n, 7] in the order of EMOTIONS for grey faces uint8 [n, h, w].

        Raises ModelError when what the model gives are none.
        """
        batches = [
            self.run(self.prepared(images[start : start + _BATCH])) for start in range(0, len(images), _BATCH)
        ]
        answers = np.concatenate(batches) if batches else np.zeros((0, len(EMOTIONS)), np.float32)
        if not np.isfinite(answers).all():
            raise ModelError(f"{self._name}: answers NaN or infinity")
        if not are_probabilities(answers):
            raise ModelError(f"{self._name}: gives logits, not probabilities: export it first")
        return answers

    def ms_per_face(self, images: Faces) -> float:
        """Return the milliseconds of one face by itself, on one thread, resizing not counted: the mean over faces, for
        a network may look longer at some, of the median of each face's runs."""
        faces = self.prepared(images[: min(len(images), _TIMED_FACES)])
        for _ in range(_WARM_UP_RUNS):
            self.run(faces[:1])
        return statistics.fmean(self.median_ms(face[None]) for face in faces)

    def median_ms(self, prepared: Faces) -> float:
        """Return the median milliseconds of a few runs of the same faces, `prepared` already."""
        times = []
        for _ in range(_TIMED_RUNS):
            start = time.perf_counter()
            self.run(prepared)
            times.append(time.perf_counter() - start)
        return statistics.median(times) * 1000

    def prepared(self, images: Faces) -> Faces:
        """Return grey faces uint8 [n, h, w] in the model's size and channels, as `run` takes them."""
        size = (self._width, self._height)
        if images.shape[1:] != (self._height, self._width):
            images = np.stack([cv2.resize(image, size, interpolation=cv2.INTER_LINEAR) for image in images])
        return np.repeat(images[..., None], self._channels, axis=-1)


def load_predictor(path: Path, *, timed: bool = False) -> Predictor:
    """Load a converted .onnx (which describes itself), or a .keras that takes grey pixels 0..255 and gives the
    probabilities of EMOTIONS, as `models.architecture.with_temperature` makes it. Raises ModelError.

    One that is to be `timed` runs on one thread. TensorFlow can be told so before its first operation only, and
    raises RuntimeError later; an .onnx runs on one thread always.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    if path.suffix == ".onnx":
        return _load_onnx(path)
    if path.suffix == ".keras":
        return _load_keras(path, timed)
    raise ModelError(f"{path}: expected .onnx or .keras (convert anything else first)")


def _load_onnx(path: Path) -> Predictor:
    # ONNX Runtime's Linux wheels may send telemetry; the switch works only before the import.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # pybind11 exceptions without a common base but Exception.
        raise ModelError(f"{path}: ONNX Runtime cannot load it ({quoted(error)})") from error
    about = session.get_modelmeta().custom_metadata_map
    try:
        labels, size = list(json.loads(about["visionai.labels"])), json.loads(about["visionai.input"])
        height, width, channels = int(size["height"]), int(size["width"]), 1 if size["color"] == "gray" else 3
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path}: its metadata does not describe an emotion classifier ({type(error).__name__}: {error});"
            " convert it with python -m conversion"
        ) from error
    if sorted(map(str, labels)) != sorted(EMOTIONS):
        raise ModelError(
            f"{path}: its classes are {', '.join(map(str, labels))}; only {', '.join(EMOTIONS)} can be scored: convert"
            " it with these as --source-labels if they mean the same"
        )
    order = [labels.index(name) for name in EMOTIONS]
    ends = [(end.name, end.type, end.shape[1:]) for end in (*session.get_inputs(), *session.get_outputs())]
    expected = [("images", "tensor(uint8)", [height, width, channels])]
    expected += [("probabilities", "tensor(float)", [len(EMOTIONS)])]
    if ends != expected:
        raise ModelError(f"{path}: takes and gives {ends}, not {expected}")

    def run(faces: Faces) -> Probabilities:
        probabilities: Probabilities = session.run(["probabilities"], {"images": faces})[0]
        return probabilities[:, order]

    return Predictor(str(path), run, height, width, channels)


def _load_keras(path: Path, timed: bool) -> Predictor:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    if timed:
        tf.config.threading.set_intra_op_parallelism_threads(1)
    network = load_network(path)
    _, height, width, channels = network.input_shape
    graph = tf.function(lambda faces: network(tf.cast(faces, tf.float32), training=False), autograph=False)

    def run(faces: Faces) -> Probabilities:
        probabilities: Probabilities = graph(tf.constant(faces)).numpy()
        return probabilities

    return Predictor(str(path), run, height, width, channels)

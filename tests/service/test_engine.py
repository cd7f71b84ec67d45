"""The engine: models describe themselves, and wrong ones are refused with the reason."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from service.engine import Engine
from service.engine.onnx import OnnxRunner
from service.errors import StartupError
from service.images.decode import ImageDecoder
from tests.service.harness import FACE, MODEL, ROOT


def test_the_card_says_what_the_model_is(engine: Engine) -> None:
    """Labels in alphabetical order, input, version and source come from the file."""
    card = engine.card
    assert card.labels == ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
    assert card.version_tag
    assert len(card.source_sha256) == 64
    assert card.parameters > 10_000


def test_probabilities_are_a_distribution_for_any_batch(engine: Engine) -> None:
    """Each row sums to 1, whatever the images and their number."""
    shape = engine.card.shape
    images = np.random.default_rng(1).integers(
        0, 256, (5, shape.height, shape.width, shape.channels), np.uint8
    )
    for size in (1, 2, 5):
        probabilities = engine.run(images[:size])
        assert probabilities.shape == (size, len(engine.card.labels))
        assert probabilities.dtype == np.float32
        assert probabilities.min() >= 0
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_an_image_has_the_same_answer_in_any_batch(engine: Engine) -> None:
    """Batch-mates do not influence each other."""
    shape = engine.card.shape
    images = np.random.default_rng(2).integers(
        0, 256, (4, shape.height, shape.width, shape.channels), np.uint8
    )
    together = engine.run(images)
    alone = np.concatenate([engine.run(images[i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_happy_face_is_happy(engine: Engine) -> None:
    """The whole of decoding, preprocessing and label order, on a real face."""
    shape = engine.card.shape
    image = np.empty((1, shape.height, shape.width, shape.channels), np.uint8)
    ImageDecoder(shape, 10**7).decode_into(FACE, image[0])
    assert engine.card.labels[int(engine.run(image)[0].argmax())] == "happy"


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(1000)])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    """One line that names the file."""
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(StartupError, match=r"bad\.onnx") as caught:
        Engine(path)
    assert "\n" not in str(caught.value)


def test_a_model_whose_outputs_are_not_those_that_it_names_is_refused(tmp_path: Path) -> None:
    """It would end a worker with the first image whose emotion has no name."""
    path = tmp_path / "short.onnx"
    names = b'"sad", "surprise"]'
    content = (ROOT / "models/build/modelo_emociones.onnx").read_bytes()
    assert content.count(names) == 1
    path.write_bytes(content.replace(names, b'"sad   surprise" ]'))
    with pytest.raises(
        StartupError, match=r"short\.onnx names 6 emotions, and its output for an image is 7:"
    ):
        Engine(path)


def changed(folder: Path, old: bytes, new: bytes) -> Path:
    """The served model, with other bytes in the place of some."""
    content = MODEL.read_bytes()
    assert old in content
    assert len(old) == len(new)
    path = folder / "wrong.onnx"
    path.write_bytes(content.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"height"', b'"hoehe "'),
        (b'"height": 48', b'"height": []'),
        (b'{"color": "gray", "height": 48, "width": 48}', b"[]".ljust(44)),
        (b'["angry", "disgust"', b'"angry", "disgust" '),
        (b"visionai.opset\x12\x0217", b"visionai.opset\x12\x02xx"),
    ],
)
def test_metadata_that_cannot_be_read_is_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    """One line that names the file, and no traceback."""
    with pytest.raises(StartupError, match=r"wrong\.onnx has metadata that cannot be read \(\w+: ") as caught:
        Engine(changed(tmp_path, old, new))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "batch"),
    [
        # The first dimension, which has a name, is the number 1, in as many bytes.
        (b"\x07\x12\x05batch", b"\x07\x08\x81\x80\x80\x80\x80\x00", 2),
        (b"\x06images", b"\x06pixels", 1),
        (b'"height": 48', b'"height": 96', 1),
    ],
)
def test_a_model_that_loads_and_cannot_run_is_refused(
    tmp_path: Path, old: bytes, new: bytes, batch: int
) -> None:
    """With the file, and what ONNX Runtime says."""
    with pytest.raises(StartupError, match=rf"wrong\.onnx does not run on a batch of {batch}: \S+") as caught:
        Engine(changed(tmp_path, old, new))
    assert "\n" not in str(caught.value)


def test_a_model_that_answers_with_no_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request would be answered as a failure."""
    run = OnnxRunner.run

    def without_numbers(runner: OnnxRunner, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return run(runner, images) * np.float32("nan")

    monkeypatch.setattr(OnnxRunner, "run", without_numbers)
    with pytest.raises(StartupError, match=rf"{re.escape(str(MODEL))} answers .* no numbers"):
        Engine(MODEL)


def test_a_provider_that_is_missing_is_an_error() -> None:
    """Asked for a GPU where there is none, the service does not quietly use the CPU."""
    with pytest.raises(StartupError, match="CUDAExecutionProvider"):
        Engine(ROOT / "models/build/modelo_emociones.onnx", "cuda")

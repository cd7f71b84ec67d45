"""The model and what runs it: what it says of itself, and running it on batches.

The ONNX file describes itself: labels, input size and colour, version tag and source are in its metadata, put
there by the conversion step. Nothing about a particular model is written down in the service.

Rooms: ``onnx`` (ONNX Runtime: CPU, CUDA, TensorRT) and ``openvino`` run it, ``gate`` tells whether one that computes
with less precision still says the same, ``calibration`` chooses what suits this machine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from service.engine import onnx
from service.errors import StartupError
from service.images.decode import InputShape
from service.settings import Provider

_METADATA_SCHEMA = "1"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a model's metadata says of it.

    `labels` are in the order of the output; `parameters` counts the source network's weights.
    """

    path: Path
    version_tag: str
    labels: tuple[str, ...]
    shape: InputShape
    source: str
    source_sha256: str
    precision: str
    opset: int
    parameters: int


class Runner(Protocol):
    """What runs a model. `name` is the execution provider's own, `buckets` the sizes of batches it is prepared for."""

    name: str
    buckets: tuple[int, ...] | None

    def run(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """As `Engine.run`."""


class Engine:
    """One model, ready to run. `run` may be called from several threads at once.

    With one thread per run the calling thread computes, so that the number of executors alone decides how many cores
    are used, and no thread spins while the service is idle.

    Args:
        path: the ONNX file.
        provider: what to run it with. One that is asked for and missing is an error, never a silent fall back to
            the CPU.
        threads: CPU threads that compute one run together.
        callers: threads that will call `run` at the same time.

    Raises:
        StartupError: the file is missing, unreadable, not what its manifest says or not made by the conversion
            step, it does not run on one image and on two, its outputs are no numbers or not those that it names, or
            the provider is missing.
    """

    def __init__(self, path: Path, provider: Provider = "cpu", threads: int = 1, callers: int = 1) -> None:
        self._runner: Runner
        if provider == "openvino":
            from service.engine.openvino import OpenVINORunner

            self._runner = OpenVINORunner(path, threads, callers)
            metadata = onnx.read_metadata(path)
        else:
            session = onnx.open_session(path, provider, threads)
            self._runner = onnx.OnnxRunner(session) if provider == "cpu" else onnx.BucketRunner(session)
            metadata = onnx.metadata_of(session)
        self.provider = self._runner.name
        self.card = _read_card(path, metadata)
        self._try_out()

    def _try_out(self) -> None:
        """Find out what would fail with every image. A batch of two: the file may be for one image at a time."""
        path = self.card.path
        for batch in (1, 2):
            try:
                scored = self._score_nothing(batch)
            except Exception as exc:  # ONNX Runtime's exceptions share no narrower base
                raise StartupError(
                    f"{path} does not run on a batch of {batch}: {onnx.first_line(exc)}"
                ) from exc
            if scored.shape != (batch, len(self.card.labels)):
                raise StartupError(
                    f"{path} names {len(self.card.labels)} emotions, and its output for an image is "
                    f"{' x '.join(map(str, scored.shape[1:]))}: convert it anew with the labels of its outputs"
                )
            if not np.isfinite(scored).all():
                raise StartupError(f"{path} answers an image without light with what are no numbers")

    def run(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Probabilities of a batch: uint8 [n, height, width, channels] in, float32 [n, labels] out."""
        return self._runner.run(images)

    def warm(self, batch: int) -> None:
        """Run once with each size of batch that is prepared for, so that no client waits for the first."""
        buckets = self._runner.buckets
        sizes = {1, batch} if buckets is None else {size for size in buckets if size < batch} | {batch}
        for size in sorted(sizes):
            self._score_nothing(size)

    def _score_nothing(self, batch: int) -> npt.NDArray[np.float32]:
        shape = self.card.shape
        return self.run(np.zeros((batch, shape.height, shape.width, shape.channels), np.uint8))


def _read_card(path: Path, metadata: dict[str, str]) -> ModelCard:
    def read(key: str) -> str:
        try:
            return metadata[f"visionai.{key}"]
        except KeyError:
            raise StartupError(
                f"{path} does not say its {key}: it was not made by `python -m conversion`, which puts it there"
            ) from None

    if (schema := read("schema")) != _METADATA_SCHEMA:
        raise StartupError(f"{path} has metadata of schema {schema}; this service reads {_METADATA_SCHEMA}")
    if (kind := read("kind")) != "classifier":
        raise StartupError(f"{path} is a {kind}; MODEL_PATH is an emotion classifier")
    try:
        wanted: dict[str, Any] = json.loads(read("input"))
        return ModelCard(
            path=path,
            version_tag=read("version_tag"),
            labels=tuple(json.loads(read("labels"))),
            shape=InputShape(int(wanted["height"]), int(wanted["width"]), wanted["color"]),
            source=read("source"),
            source_sha256=read("source_sha256"),
            precision=read("precision"),
            opset=int(read("opset")),
            parameters=int(read("parameters")),
        )
    except (ValueError, KeyError, TypeError) as exc:
        raise StartupError(
            f"{path} has metadata that cannot be read ({type(exc).__name__}: {exc}): convert it anew"
        ) from exc

"""The model under ONNX Runtime: what it says of itself, and running it on batches.

The ONNX file describes itself: labels, input size and colour, version tag and source are in its metadata, put
there by the conversion step. Nothing about a particular model is written down in the service.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from service.errors import StartupError
from service.images.decode import InputShape
from service.modelfile import read_model
from service.settings import Provider

# ONNX Runtime's Linux wheels can send telemetry; this must be said before the import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort

_PROVIDERS: dict[Provider, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

_METADATA_SCHEMA = "1"

log = logging.getLogger(__name__)


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


def open_session(path: Path, provider: Provider = "cpu") -> ort.InferenceSession:
    """Load a model that its manifest vouches for, as each worker runs its models: computing in the calling thread.

    Raises:
        StartupError: the file is missing, unreadable or not what its manifest says, or the provider is missing or
            cannot be loaded.
    """
    name = _PROVIDERS[provider]
    if name not in ort.get_available_providers():
        raise StartupError(
            f"PROVIDER={provider}: this onnxruntime has no {name}"
            + ("; install onnxruntime-gpu in place of onnxruntime" if provider == "cuda" else "")
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The layout optimisation is worth 3x on convolutions; never load with less.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    model, checked = read_model(path)
    try:
        session = ort.InferenceSession(model, options, providers=[name])
    except Exception as exc:  # ONNX Runtime's exceptions share no narrower base
        raise StartupError(f"{path} cannot be loaded: {_first_line(exc)}") from exc
    if session.get_providers()[0] != name:
        raise StartupError(f"PROVIDER={provider}: {name} could not be loaded (is its driver installed?)")
    if not checked:
        log.warning("%s has no manifest beside it: it is served unchecked", path)
    return session


class Engine:
    """One model, ready to run. `run` may be called from several threads at once.

    With one intra-op thread ONNX Runtime computes in the calling thread and keeps no pool of its own, so that
    the number of executors alone decides how many cores are used, and no thread spins while the service is idle.

    Args:
        path: the ONNX file.
        provider: the execution provider to run it with. One that is asked for and missing is an error,
            never a silent fall back to the CPU.

    Raises:
        StartupError: the file is missing, unreadable, not what its manifest says or not made by the conversion
            step, or the provider is missing.
    """

    def __init__(self, path: Path, provider: Provider = "cpu") -> None:
        self._session = open_session(path, provider)
        self.provider = _PROVIDERS[provider]
        self.card = _read_card(path, self._session)

    def run(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Probabilities of a batch: uint8 [n, height, width, channels] in, float32 [n, labels] out."""
        return cast("npt.NDArray[np.float32]", self._session.run(_OUTPUTS, {_INPUT: images})[0])

    def warm(self, batch: int) -> None:
        """Run once with the smallest and the largest batch, so that the first client does not wait for it."""
        shape = self.card.shape
        for size in {1, batch}:
            self.run(np.zeros((size, shape.height, shape.width, shape.channels), np.uint8))


_INPUT = "images"
_OUTPUTS = ["probabilities"]


def _read_card(path: Path, session: ort.InferenceSession) -> ModelCard:
    metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map

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
    wanted: dict[str, Any] = json.loads(read("input"))
    return ModelCard(
        path=path,
        version_tag=read("version_tag"),
        labels=tuple(json.loads(read("labels"))),
        shape=InputShape(wanted["height"], wanted["width"], wanted["color"]),
        source=read("source"),
        source_sha256=read("source_sha256"),
        precision=read("precision"),
        opset=int(read("opset")),
        parameters=int(read("parameters")),
    )


def _first_line(exc: BaseException) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0] if lines else type(exc).__name__

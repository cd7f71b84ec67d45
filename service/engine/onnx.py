"""ONNX Runtime: sessions on its execution providers."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from service.errors import StartupError
from service.modelfile import read_model
from service.settings import ON_GPU, Provider

# ONNX Runtime's Linux wheels can send telemetry; this must be said before the import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort

# TensorRT compiles for half precision where the GPU has it; what it cannot take, CUDA runs.
_PROVIDERS: dict[Provider, list[tuple[str, dict[str, Any]]]] = {
    "cpu": [("CPUExecutionProvider", {})],
    "cuda": [("CUDAExecutionProvider", {"cudnn_conv_algo_search": "EXHAUSTIVE"})],
    "tensorrt": [
        ("TensorrtExecutionProvider", {"trt_fp16_enable": True, "trt_engine_cache_enable": True}),
        ("CUDAExecutionProvider", {}),
    ],
}

_INPUT = "images"
_OUTPUT = "probabilities"

# Batches on a GPU are filled up to one of these: each new size would be planned anew, for up to seconds.
_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)

log = logging.getLogger(__name__)


def available(provider: Provider) -> bool:
    """Whether this onnxruntime has what the provider needs. It may fail to load all the same."""
    return provider in _PROVIDERS and _PROVIDERS[provider][0][0] in ort.get_available_providers()


def open_session(path: Path, provider: Provider = "cpu", threads: int = 1) -> ort.InferenceSession:
    """Load a model that its manifest vouches for; one run is computed by `threads`, the calling one among them.

    Raises:
        StartupError: the file is missing, unreadable or not what its manifest says, or the provider is missing or
            cannot be loaded.
    """
    chosen = _PROVIDERS[provider]
    name = chosen[0][0]
    if not available(provider):
        raise StartupError(
            f"PROVIDER={provider}: this onnxruntime has no {name}"
            + ("" if provider == "cpu" else "; install onnxruntime-gpu in place of onnxruntime")
        )
    if provider in ON_GPU:
        ort.preload_dlls()  # CUDA and cuDNN from NVIDIA's wheels, where the system has none
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The layout optimisation is worth 3x on convolutions; never load with less.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    model, checked = read_model(path)
    try:
        session = ort.InferenceSession(model, options, providers=chosen)
    except Exception as exc:  # ONNX Runtime's exceptions share no narrower base
        raise StartupError(f"{path} cannot be loaded: {first_line(exc)}") from exc
    if session.get_providers()[0] != name:
        raise StartupError(f"PROVIDER={provider}: {name} could not be loaded (is its driver installed?)")
    if not checked:
        log.warning("%s has no manifest beside it: it is served unchecked", path)
    return session


def metadata_of(session: ort.InferenceSession) -> dict[str, str]:
    """What the conversion step wrote into the model."""
    return cast("dict[str, str]", session.get_modelmeta().custom_metadata_map)


def read_metadata(path: Path) -> dict[str, str]:
    """The same, of a file that something else runs.

    Raises:
        StartupError: it cannot be read.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    model, _ = read_model(path)
    try:
        return metadata_of(ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]))
    except Exception as exc:  # as above
        raise StartupError(f"{path} cannot be loaded: {first_line(exc)}") from exc


class OnnxRunner:
    """Runs batches of any size, as they come."""

    buckets: tuple[int, ...] | None = None

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self.name: str = session.get_providers()[0]

    def run(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """As `Engine.run`."""
        return cast("npt.NDArray[np.float32]", self._session.run([_OUTPUT], {_INPUT: images})[0])


class BucketRunner(OnnxRunner):
    """For a GPU: batches are filled up to sizes that it has planned for, and bound without detours."""

    buckets = _BUCKETS

    def run(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """As `Engine.run`."""
        count = len(images)
        size = next((bucket for bucket in _BUCKETS if bucket >= count), count)
        if size > count:
            filled = np.zeros((size, *images.shape[1:]), np.uint8)
            filled[:count] = images
            images = filled
        binding = self._session.io_binding()
        binding.bind_cpu_input(_INPUT, np.ascontiguousarray(images))
        binding.bind_output(_OUTPUT, "cpu")
        self._session.run_with_iobinding(binding)
        result: npt.NDArray[np.float32] = binding.copy_outputs_to_cpu()[0]
        return result[:count]


def first_line(exc: BaseException) -> str:
    """Of what an exception says."""
    lines = str(exc).strip().splitlines()
    return lines[0] if lines else type(exc).__name__

"""ONNX Runtime sessions for checking: CPU, one thread, no telemetry, no warnings on the terminal."""

import os
from pathlib import Path

# Read by the library when it is loaded.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort

from conversion.errors import GraphError, quoted
from conversion.images import Images, Probabilities

_BATCH = 64
# Every level that ONNX Runtime has; "all" is its default and what the service runs.
OPTIMISATION_LEVELS: dict[str, ort.GraphOptimizationLevel] = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "layout": ort.GraphOptimizationLevel.ORT_ENABLE_LAYOUT,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def open_session(model: bytes | Path, level: str = "all") -> ort.InferenceSession:
    """Open a model on one CPU thread at an optimisation level of `OPTIMISATION_LEVELS`.

    Raises GraphError when ONNX Runtime refuses the model.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = OPTIMISATION_LEVELS[level]
    target = str(model) if isinstance(model, Path) else model
    try:
        return ort.InferenceSession(target, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # pybind11 exceptions without a common base but Exception.
        raise GraphError(f"ONNX Runtime refuses the model: {quoted(error)}") from error


def run(session: ort.InferenceSession, images: Images) -> Probabilities:
    """Return [N, classes] for uint8 [N, h, w, c], in batches of 64. Raises GraphError when ONNX Runtime fails."""
    name = session.get_inputs()[0].name
    try:
        batches = [
            np.asarray(session.run(None, {name: images[start : start + _BATCH]})[0], np.float32)
            for start in range(0, len(images), _BATCH)
        ]
    except Exception as error:  # As above.
        raise GraphError(f"ONNX Runtime cannot run the model: {quoted(error)}") from error
    return np.concatenate(batches)

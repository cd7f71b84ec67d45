"""OpenVINO: faster on CPUs that compute in bfloat16 (AMX, AVX512-BF16). An extra, see docs/performance.md.

OpenVINO reads the same ONNX file. It is used directly and not as an execution provider of ONNX Runtime: that comes in a
wheel that takes the place of onnxruntime.
"""

from __future__ import annotations

import importlib.util
import io
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt

from service.engine.onnx import first_line
from service.errors import StartupError
from service.modelfile import read_model


def available() -> bool:
    """Whether the extra is installed."""
    return importlib.util.find_spec("openvino") is not None


class OpenVINORunner:
    """Runs batches of any size. A request object belongs to one thread, so each thread has its own.

    Raises:
        StartupError: the extra is not installed, or the model cannot be loaded.
    """

    buckets: tuple[int, ...] | None = None

    def __init__(self, path: Path, threads: int, callers: int) -> None:
        if not available():
            raise StartupError("PROVIDER=openvino: it is not installed; docs/performance.md says how")
        import openvino

        self._tensor = openvino.Tensor
        model, _ = read_model(path)
        core = openvino.Core()
        try:
            self._model = core.compile_model(
                core.read_model(io.BytesIO(model)),
                "CPU",
                {
                    "INFERENCE_NUM_THREADS": threads * callers,
                    "NUM_STREAMS": callers,
                    # Workers are spread over the cores by the system, which knows what else runs.
                    "ENABLE_CPU_PINNING": False,
                },
            )
        except RuntimeError as exc:
            raise StartupError(f"PROVIDER=openvino: {path} cannot be loaded: {first_line(exc)}") from exc
        precision = self._model.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.name = f"OpenVINO ({precision})"
        self._local = threading.local()

    def run(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """As `Engine.run`."""
        try:
            request = self._local.request
        except AttributeError:
            request = self._local.request = self._model.create_infer_request()
        request.set_input_tensor(self._tensor(images, shared_memory=True))
        request.infer()
        result: npt.NDArray[np.float32] = request.get_output_tensor().data.copy()
        return result

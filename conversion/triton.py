"""A model repository for NVIDIA Triton Inference Server."""

from pathlib import Path

from conversion.onnxfile import INPUT, OUTPUT
from conversion.options import Specification

MAX_BATCH = 64


def repository_files(
    folder: Path, name: str, model: bytes, specification: Specification
) -> dict[Path, bytes]:
    """Return the contents of `folder/name/{config.pbtxt,labels.txt,1/model.onnx}` by path.

    The layout and the configuration are those of Triton's model repository and model configuration pages. The
    batch dimension is Triton's own (`max_batch_size`), so `dims` leave it out; dynamic batching waits for
    nothing (no queue delay), so it batches what has piled up.
    """
    root = folder / name
    return {
        root / "1" / "model.onnx": model,
        root / "labels.txt": "".join(f"{label}\n" for label in specification.labels).encode(),
        root / "config.pbtxt": _configuration(name, specification).encode(),
    }


def _configuration(name: str, specification: Specification) -> str:
    height, width, channels = specification.height, specification.width, specification.channels
    return f"""\
name: "{name}"
backend: "onnxruntime"
max_batch_size: {MAX_BATCH}
input [
  {{
    name: "{INPUT}"
    data_type: TYPE_UINT8
    dims: [ {height}, {width}, {channels} ]
  }}
]
output [
  {{
    name: "{OUTPUT}"
    data_type: TYPE_FP32
    dims: [ {len(specification.labels)} ]
    label_filename: "labels.txt"
  }}
]
dynamic_batching {{ }}
version_policy: {{ latest: {{ num_versions: 1 }} }}
"""

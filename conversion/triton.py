"""Write a model repository for NVIDIA Triton Inference Server."""

from pathlib import Path

from conversion.atomic import write_atomically
from conversion.onnxfile import INPUT, OUTPUT
from conversion.options import Specification

MAX_BATCH = 64


def write_repository(folder: Path, name: str, model: bytes, specification: Specification) -> list[Path]:
    """Write `folder/name/{config.pbtxt,labels.txt,1/model.onnx}` and return the paths written.

    The layout and the configuration are those of Triton's model repository and model configuration pages. The
    batch dimension is Triton's own (`max_batch_size`), so `dims` leave it out; dynamic batching waits for
    nothing (no queue delay), so it batches what has piled up.
    """
    root = folder / name
    files = {
        root / "1" / "model.onnx": model,
        root / "labels.txt": "".join(f"{label}\n" for label in specification.labels).encode(),
        root / "config.pbtxt": _configuration(name, specification).encode(),
    }
    for path, content in files.items():
        write_atomically(path, content)
    return list(files)


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

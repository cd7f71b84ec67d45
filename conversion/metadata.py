"""The metadata of a converted model: everything a service needs to know, inside the ONNX file.

All values are strings, those with structure JSON. Keys, each with the prefix `visionai.`:

| key             | value                                                                      |
|-----------------|----------------------------------------------------------------------------|
| `schema`        | `1`, the version of this table                                             |
| `kind`          | `classifier`                                                               |
| `labels`        | JSON list: the class of each output                                        |
| `input`         | JSON: `height`, `width`, `color` (`gray` or `rgb`)                          |
| `preprocessing` | JSON: what is folded in: `scale`, `offset`, `channel_order`                |
| `activation`    | what the source ended in: `softmax`, or `logits` (softmax was added)       |
| `version_tag`   | the version shown to clients and stored with predictions                   |
| `source`        | file name of the source                                                    |
| `source_sha256` | its hash                                                                   |
| `opset`         | ONNX operator set                                                          |
| `precision`     | `fp32`, `fp16` or `int8`                                                   |
| `parameters`    | number of weights in the source                                            |
| `parity`        | JSON: the bounds against the source that this file was proven to keep      |

Bounds, not measurements: a measured difference changes in its last digit from CPU to CPU, and the file would
change with it. The measurements are in the manifest.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import onnx

from conversion.onnxfile import PREFIX
from conversion.options import Specification
from conversion.parity import Thresholds
from conversion.sources import Source

SCHEMA = "1"


def describe(
    source: Source, specification: Specification, precision: str, thresholds: Thresholds
) -> dict[str, str]:
    """Return the metadata of a converted model, keys without prefix."""
    scale, offset = set(specification.scale), set(specification.offset)
    preprocessing = {
        "scale": specification.scale[0] if len(scale) == 1 else list(specification.scale),
        "offset": specification.offset[0] if len(offset) == 1 else list(specification.offset),
        "channel_order": specification.channel_order,
    }
    size = {"height": specification.height, "width": specification.width, "color": specification.color}
    return {
        "schema": SCHEMA,
        "kind": "classifier",
        "labels": _json(list(specification.labels)),
        "input": _json(size),
        "preprocessing": _json(preprocessing),
        "activation": specification.activation,
        "version_tag": specification.version_tag,
        "source": source.path.name,
        "source_sha256": source.sha256,
        "opset": str(specification.opset),
        "precision": precision,
        "parameters": str(source.parameters),
        "parity": _json(asdict(thresholds)),
    }


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def write(model: onnx.ModelProto, entries: Mapping[str, str]) -> None:
    """Replace the metadata of `model` by `entries`, sorted by key."""
    del model.metadata_props[:]
    for key in sorted(entries):
        model.metadata_props.add(key=PREFIX + key, value=entries[key])

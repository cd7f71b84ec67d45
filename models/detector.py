"""Face detectors from TensorFlow Lite to ONNX: uint8 images in, any batch, described by metadata as classifiers are."""

import contextlib
import hashlib
import json
import os
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conversion.atomic import write_all
from conversion.digests import sha256_of
from models.sources import ModelSource, ModelSourceError

_OPSET = 17


def is_detector(source: ModelSource) -> bool:
    """Whether a source is described as a detector."""
    return "detector" in _describe(source)


def _describe(source: ModelSource) -> dict[str, Any]:
    return tomllib.loads(source.description.read_text("utf-8"))


def convert_detector(source: ModelSource, tflite: Path, output: Path) -> float:
    """Convert one detector, and write it with its manifest: both complete or not at all.

    Returns by how much it differs from TensorFlow Lite at most.

    The ONNX takes `images`, uint8 [batch, size, size, 3] RGB, and gives `boxes`, float32 [batch, anchors, 16]
    (offsets in pixels of the input), and `scores`, float32 [batch, anchors] (logits).

    Raises:
        ModelSourceError: TensorFlow Lite and ONNX do not agree.
        ConversionError: a file cannot be written.
    """
    described = _describe(source)["detector"]
    model = _build(tflite, described["size"])
    difference = _difference(model, tflite, described["size"])
    if difference > _MAX_DIFFERENCE:
        raise ModelSourceError(f"{source.name}: TensorFlow Lite and ONNX differ by {difference:.2g}")
    _write(model, source, tflite, output, described, difference)
    return difference


# Of outputs that reach some hundred (offsets in pixels): float32 rounding in another order of operations.
_MAX_DIFFERENCE = 1e-2


def _build(tflite: Path, size: int) -> Any:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from conversion.onnxfile import canonicalise
    from conversion.tensorflow_quietly import tf2onnx
    from models.blocks import fill_blocks

    with _stderr_dropped():  # it asks an interpreter for shapes
        model, _ = tf2onnx.convert.from_tflite(str(tflite), opset=_OPSET)
    graph = model.graph
    # Reshapes name a batch of 1; 0 copies whatever it is.
    for initializer in graph.initializer:
        values = numpy_helper.to_array(initializer)
        used_by_reshape = any(
            node.op_type == "Reshape" and node.input[1] == initializer.name for node in graph.node
        )
        if used_by_reshape and values.tolist()[:1] == [1]:
            values = values.copy()
            values[0] = 0
            initializer.CopyFrom(numpy_helper.from_array(values, initializer.name))
    # Pixels 0..255 become -1..1, in the graph.
    float_input = graph.input[0].name
    constants = {"pixel_scale": 1 / 127.5, "pixel_offset": -1.0}
    graph.initializer.extend(
        helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in constants.items()
    )
    head = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "pixel_scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "pixel_offset"], [float_input]),
    ]
    raw = {output.type.tensor_type.shape.dim[2].dim_value: output for output in graph.output}
    anchors = raw[16].type.tensor_type.shape.dim[1].dim_value
    graph.initializer.append(helper.make_tensor("last_axis", TensorProto.INT64, [1], [2]))
    tail = [
        helper.make_node("Identity", [raw[16].name], ["boxes"]),
        helper.make_node("Squeeze", [raw[1].name, "last_axis"], ["scores"]),
    ]
    nodes = [*head, *graph.node, *tail]
    new_graph = helper.make_graph(
        nodes,
        "face_detector",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", size, size, 3])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["batch", anchors, 16]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", anchors]),
        ],
        graph.initializer,
    )
    # Shapes with a batch of 1 that the converter noted inside the graph would contradict other batches.
    converted = helper.make_model(new_graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)
    canonicalise(converted)
    fill_blocks(converted.graph)
    canonicalise(converted)
    onnx.checker.check_model(converted, full_check=True)
    return converted


@contextlib.contextmanager
def _stderr_dropped() -> Iterator[None]:
    """Drop what is written to stderr, by libraries in C too. What fails raises all the same.

    TensorFlow Lite's interpreter announces its successor, whatever the warning filters say, and its kernels.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def _difference(model: Any, tflite: Path, size: int) -> float:
    """The largest difference of any output on noise and on smooth images, with a batch of 3 against single images."""
    import numpy as np
    import onnxruntime

    from conversion.tensorflow_quietly import tf

    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (2, size, size, 3), np.uint8)
    ramp = np.broadcast_to(np.linspace(0, 255, size).astype(np.uint8)[None, :, None], (1, size, size, 3))
    images = np.concatenate([noise, ramp])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    boxes, scores = session.run(["boxes", "scores"], {"images": images})
    with _stderr_dropped():
        interpreter = tf.lite.Interpreter(
            str(tflite),
            # Plain kernels: the default ones round differently per CPU.
            experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
    interpreter.allocate_tensors()
    worst = 0.0
    for image, box, score in zip(images, boxes, scores, strict=True):
        interpreter.set_tensor(
            interpreter.get_input_details()[0]["index"], image[None].astype(np.float32) / 127.5 - 1
        )
        interpreter.invoke()
        for detail in interpreter.get_output_details():
            expected = interpreter.get_tensor(detail["index"])[0]
            actual = box if expected.shape[-1] == 16 else score[:, None]
            worst = max(worst, float(np.abs(expected - actual).max()))
    return worst


def _write(
    model: Any, source: ModelSource, tflite: Path, output: Path, described: dict[str, Any], difference: float
) -> None:
    from conversion import metadata
    from conversion.manifest import SCHEMA, manifest_path, serialise_manifest
    from conversion.onnxfile import serialise

    entries = {
        "schema": metadata.SCHEMA,
        "kind": "detector",
        "detector": json.dumps(described, sort_keys=True),
        "source": tflite.name,
        "source_sha256": sha256_of(tflite),
        "opset": str(_OPSET),
        "precision": "fp32",
    }
    metadata.write(model, entries)
    content = serialise(model)
    manifest = {
        "schema": SCHEMA,
        "model": output.name,
        "model_sha256": hashlib.sha256(content).hexdigest(),
        "model_bytes": len(content),
        "source": tflite.name,
        "source_sha256": entries["source_sha256"],
        "metadata": entries,
        "licence": source.package.licence if source.package else "",
        "parity": {"noise and ramp": {"max_difference": float(f"{difference:.2g}")}},
    }
    write_all({output: content, manifest_path(output): serialise_manifest(manifest)})

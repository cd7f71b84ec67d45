"""The other precisions of a converted model: fp16 for GPUs, and static INT8 with per-channel weights."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.transformers.float16 import convert_float_to_float16

from conversion.errors import OptionError
from conversion.images import Images
from conversion.onnxfile import OUTPUT, canonicalise, copied, exposing
from conversion.sessions import open_session

# Fewer faces than this say little about the range of an activation.
LEAST_CALIBRATION_FACES = 64
# The range of each activation is measured on at most this many; more does not move it.
MOST_CALIBRATION_FACES = 512
_BATCH = 32


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model` with float16 weights and arithmetic; input stays uint8 and output float32.

    Every pixel value is exact in float16. Softmax stays in float32: it is one row, and its sum should be 1.
    """
    half = convert_float_to_float16(copied(model), keep_io_types=True, op_block_list=["Softmax"])
    canonicalise(half)
    return half


def to_int8(model: onnx.ModelProto, faces: Images, advance: Callable[[int], None]) -> onnx.ModelProto:
    """Return `model` quantised to INT8 (QDQ, static, weights per channel), calibrated on real `faces`.

    Preprocessing and everything after the last weighted layer stay in float32. `advance` is called with the
    number of faces done. The same faces give the same bytes. Raises OptionError when there are fewer than 64.
    """
    if len(faces) < LEAST_CALIBRATION_FACES:
        raise OptionError(
            f"INT8 is calibrated on real faces, {LEAST_CALIBRATION_FACES} or more, and {len(faces)} were given:"
            " give a folder or .npz of faces with --images"
        )
    shaped = onnx.shape_inference.infer_shapes(model)
    ranges = _activation_ranges(shaped, faces, advance)
    quantiser = QDQQuantizer(
        shaped,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
        nodes_to_quantize=_quantised_nodes(shaped),
        nodes_to_exclude=[],
        op_types_to_quantize=sorted({node.op_type for node in shaped.graph.node}),
        extra_options={},
    )
    quantiser.quantize_model()
    quantised = copied(quantiser.model.model)
    quantised.producer_name, quantised.producer_version = model.producer_name, model.producer_version
    domains = {node.domain or "" for node in quantised.graph.node}
    kept = [entry for entry in quantised.opset_import if entry.domain in domains]
    pairs = sorted((entry.domain, entry.version) for entry in kept)
    del quantised.opset_import[:]
    quantised.opset_import.extend(onnx.helper.make_opsetid(*pair) for pair in pairs)
    canonicalise(quantised)
    return quantised


_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def _quantised_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes from the first weighted layer to the last."""
    nodes = list(model.graph.node)
    weighted = [index for index, node in enumerate(nodes) if node.op_type in _WEIGHTED]
    if not weighted:
        return []
    # Nodes are in topological order: preprocessing comes before the first weighted layer, softmax after.
    return [node.name for node in nodes[weighted[0] : weighted[-1] + 1]]


def _activation_ranges(
    model: onnx.ModelProto, faces: Images, advance: Callable[[int], None]
) -> dict[str, TensorData]:
    """Return the range that each float32 tensor takes on `faces`, widened to three significant digits.

    Widened, because the last bits of an activation differ between CPUs, and scales computed from them would
    make the file differ too.
    """
    names = [
        value.name
        for value in model.graph.value_info
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and value.name != OUTPUT
    ]
    session = open_session(exposing(model, names), "disabled")
    lowest = dict.fromkeys([*names, OUTPUT], math.inf)
    highest = dict.fromkeys([*names, OUTPUT], -math.inf)
    for start in range(0, len(faces), _BATCH):
        batch = faces[start : start + _BATCH]
        values = session.run(list(lowest), {session.get_inputs()[0].name: batch})
        for name, value in zip(lowest, values, strict=True):
            lowest[name] = min(lowest[name], float(value.min()))
            highest[name] = max(highest[name], float(value.max()))
        advance(len(batch))
    return {
        name: TensorData(
            lowest=_float32(_widened(lowest[name], down=True)), highest=_float32(_widened(highest[name]))
        )
        for name in lowest
    }


def _float32(value: float) -> npt.NDArray[np.float32]:
    return np.array(value, np.float32)


def _widened(value: float, *, down: bool = False) -> float:
    """Round away from the range's middle to three significant digits."""
    if value == 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 2)
    return (math.floor(value / step) if down else math.ceil(value / step)) * step

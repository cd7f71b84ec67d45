"""Fold constant arithmetic of a frozen TensorFlow graph in NumPy, so that every machine gets the same bits.

A batch normalization holds `gamma / sqrt(variance + epsilon)`. TensorFlow would fold it with the CPU's
approximate reciprocal square root plus a refinement step, whose last bit differs between CPU makes, and the
ONNX file with it. NumPy's float64 add, multiply, divide and square root are IEEE 754 operations, rounded
exactly; so is the one rounding to float32 at the end.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from conversion.tensorflow_quietly import tf

_Array = npt.NDArray[Any]

_FOLDED: dict[str, Callable[..., _Array]] = {
    "Add": np.add,
    "AddV2": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "RealDiv": np.divide,
    "Neg": np.negative,
    "Sqrt": np.sqrt,
    "Rsqrt": lambda x: 1.0 / np.sqrt(x),
    "Identity": lambda x: x,
}


def fold_constants(graph: Any) -> Any:
    """Return a copy of a frozen GraphDef with float32 arithmetic on constants replaced by its result.

    Intermediate results stay in float64 until they are used by something that is not folded.
    """
    folded = tf.compat.v1.GraphDef()
    folded.CopyFrom(graph)
    values: dict[str, _Array] = {}
    # A frozen function lists nodes in no order that can be relied on: repeat until nothing more folds.
    pending = [node for node in folded.node if node.op == "Const" or node.op in _FOLDED]
    progress = True
    while progress:
        progress, waiting = False, []
        for node in pending:
            value = _value(node, values)
            if value is None:
                waiting.append(node)
            else:
                values[node.name], progress = value, True
        pending = waiting
    for node in folded.node:
        if node.op != "Const" and node.name in values:
            _become_constant(node, values[node.name].astype(np.float32))
    return folded


def _value(node: Any, values: dict[str, _Array]) -> _Array | None:
    """Return the float64 value of a constant or foldable node, None if it is neither (yet)."""
    if node.op == "Const":
        is_float = node.attr["dtype"].type == tf.float32.as_datatype_enum
        return tf.make_ndarray(node.attr["value"].tensor).astype(np.float64) if is_float else None
    if node.attr["T"].type != tf.float32.as_datatype_enum:
        return None
    operands = [values.get(name.removesuffix(":0")) for name in node.input if not name.startswith("^")]
    if any(operand is None for operand in operands):
        return None
    return np.asarray(_FOLDED[node.op](*operands))


def _become_constant(node: Any, value: _Array) -> None:
    name = node.name
    node.Clear()
    node.name, node.op = name, "Const"
    node.attr["dtype"].type = tf.float32.as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, tf.float32))

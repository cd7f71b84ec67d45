"""Rewrite what tf2onnx stumbles over in a frozen TensorFlow graph into what it converts well."""

from typing import Any

import numpy as np

from conversion.tensorflow_quietly import tf

_BINARY = frozenset({"AddV2", "Add", "Sub", "Mul"})
_FLOAT = tf.float32.as_datatype_enum


def lower(graph: Any) -> None:
    """Rewrite a frozen GraphDef in place; its answers stay the same.

    - Keras wraps grouped convolutions in functions that XLA must compile. They are ordinary functions
      otherwise: without the mark they are inlined.
    - `erfc(x)`, in exact GELU, has no ONNX form: it becomes `1 - erf(x)`.
    - A scalar added to a convolution (in hard swish) ends tf2onnx's removal of transposes with an error that it
      swallows: such scalars become vectors of one element, which broadcast alike.
    """
    for function in graph.library.function:
        _unmark(function)
        for node in function.node_def:
            _unmark(node)
    for node in list(graph.node):
        _unmark(node)
        if node.op == "Erfc":
            _expand_erfc(graph, node)
    scalars = {node.name: node for node in graph.node if node.op == "Const" and _is_float_scalar(node)}
    for node in list(graph.node):
        if node.op in _BINARY and node.attr["T"].type == _FLOAT:
            for index, name in enumerate(node.input):
                scalar = scalars.get(name.removesuffix(":0"))
                if scalar is not None:
                    node.input[index] = _as_vector(graph, scalar, node.name, index)


def _unmark(node: Any) -> None:
    for mark in ("_XlaMustCompile", "_noinline"):
        if mark in node.attr:
            del node.attr[mark]


def _is_float_scalar(node: Any) -> bool:
    return bool(node.attr["dtype"].type == _FLOAT and not node.attr["value"].tensor.tensor_shape.dim)


def _as_vector(graph: Any, scalar: Any, user: str, index: int) -> str:
    value = tf.make_ndarray(scalar.attr["value"].tensor).reshape(1)
    return _add_constant(graph, f"{user}/vector_{index}", value)


def _expand_erfc(graph: Any, node: Any) -> None:
    inner = graph.node.add()
    inner.CopyFrom(node)
    inner.op, inner.name = "Erf", f"{node.name}/erf"
    one = _add_constant(graph, f"{node.name}/one", np.ones(1, np.float32))
    node.op = "Sub"
    node.input[:] = [one, inner.name]


def _add_constant(graph: Any, name: str, value: Any) -> str:
    constant = graph.node.add()
    constant.name, constant.op = name, "Const"
    constant.attr["dtype"].type = _FLOAT
    constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, tf.float32))
    return name

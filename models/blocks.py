"""Channels of a depthwise network filled up to blocks of 16, so that ONNX Runtime keeps its blocked layout.

ONNX Runtime lays channels out in blocks of 16 (with AVX-512; 8 with AVX2) and converts back and forth around each
tensor that doesn't fill its blocks, and around each `Pad`. BlazeFace's 24, 28, 36, 42, ... channels made it convert
33 times a run. The added channels have zero weights: they stay zero and change nothing.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from conversion.onnxfile import copied

BLOCK = 16

# Where channels stand in the `pads` of a four-dimensional Pad: begins of n, c, h, w, then ends.
_CHANNELS_END = 5


def fill_blocks(graph: onnx.GraphProto) -> None:
    """Fill up, in place, the channels of every tensor between the first convolution and the heads.

    Understands what BlazeFace is made of: Conv with bias (plain or depthwise), Relu, MaxPool, Add, and Pad that
    appends channels, which becomes a 1x1 convolution with ones (exact, and in the blocked layout). A convolution
    that feeds a Transpose is a head: its outputs stay as they are. Nodes must be in topological order.
    Raises ValueError for a network of another make.
    """
    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    consumers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, set()).add(node.op_type)
    filled: dict[str, int] = {}  # tensor: its channels before they were filled up
    renamed: dict[str, str] = {}  # what a Pad gave that is not needed any more: its input
    nodes, added = [], {}
    for number, node in enumerate(graph.node):
        node.input[:] = [renamed.get(name, name) for name in node.input]
        source, result = node.input[0], node.output[0]
        if node.op_type == "Conv":
            weights, bias = constants[node.input[1]], constants[node.input[2]]
            head = consumers[result] == {"Transpose"}
            outputs = len(bias) if head else _whole_blocks(len(bias))
            depthwise = _group(node).i > 1
            if depthwise and filled.get(source) != len(bias):
                raise ValueError(f"{node.name}: a grouped convolution that is not depthwise")
            if depthwise:
                _group(node).i = outputs
            inputs = (
                _whole_blocks(weights.shape[1]) if source in filled and not depthwise else weights.shape[1]
            )
            added[f"blocks_{number}_w"] = _zeros_behind(weights, (outputs, inputs, *weights.shape[2:]))
            added[f"blocks_{number}_b"] = _zeros_behind(bias, (outputs,))
            node.input[1:] = [f"blocks_{number}_w", f"blocks_{number}_b"]
            if not head:
                filled[result] = len(bias)
        elif node.op_type == "Pad" and source in filled:
            pads = constants[node.input[1]].tolist()
            more = pads.pop(_CHANNELS_END)
            if any(pads):
                raise ValueError(f"{node.name}: pads more than channels")
            before, after = _whole_blocks(filled[source]), _whole_blocks(filled[source] + more)
            if before == after:
                # The channels it would append are there already, and zero.
                renamed[result] = source
                continue
            filled[result] = filled[source] + more
            added[f"blocks_{number}_w"] = np.eye(after, before, dtype=np.float32)[:, :, None, None]
            node = helper.make_node("Conv", [source, f"blocks_{number}_w"], [result])
        elif node.op_type in ("Relu", "MaxPool", "Add") and source in filled:
            if len({_whole_blocks(filled[name]) for name in node.input}) != 1:
                raise ValueError(f"{node.name}: inputs of different widths")
            filled[result] = max(filled[name] for name in node.input)
        elif source in filled:
            raise ValueError(f"{node.name}: {node.op_type} is no part of BlazeFace")
        nodes.append(node)
    _replace(graph, nodes, added)


def _whole_blocks(channels: int) -> int:
    return -(-channels // BLOCK) * BLOCK


def _group(node: onnx.NodeProto) -> onnx.AttributeProto:
    return next(attribute for attribute in node.attribute if attribute.name == "group")


def _zeros_behind(array: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.pad(array, [(0, wanted - there) for there, wanted in zip(array.shape, shape, strict=True)])


def _replace(
    graph: onnx.GraphProto, nodes: list[onnx.NodeProto], added: dict[str, NDArray[np.float32]]
) -> None:
    """Put `nodes` in the place of the graph's own, and drop the constants that nobody uses any more."""
    used = {name for node in nodes for name in node.input}
    constants = [
        *(item for item in graph.initializer if item.name in used),
        *(numpy_helper.from_array(array, name) for name, array in added.items()),
    ]
    kept_nodes, kept_constants = [copied(node) for node in nodes], [copied(item) for item in constants]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept_nodes)
    graph.initializer.extend(kept_constants)

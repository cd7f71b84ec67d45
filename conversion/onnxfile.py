"""The form of the ONNX files: the names of their ends, one order of their parts, the same bytes each time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `verify` takes the names from here, and does without the package.
    import onnx

INPUT = "images"
OUTPUT = "probabilities"
BATCH = "batch"
# Of the keys of the metadata, see `metadata`.
PREFIX = "visionai."


def canonicalise(model: onnx.ModelProto) -> dict[str, str]:
    """Put nodes and initializers into one order, and name every tensor by its place in it.

    tf2onnx walks Python sets, so the order of its nodes, and the survivor of two equal ones with its name, may
    change from run to run. Nodes are put in depth-first order from the output, which depends on the graph
    alone; `Conv_4` is the fourth node, `Conv_4.1` its constant input 1. Returns the names that tensors had, by
    their new ones.
    """
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    ordered: list[onnx.NodeProto] = []
    seen: set[str] = set()
    stack: list[tuple[onnx.NodeProto, bool]] = [(producers[v.name], False) for v in reversed(graph.output)]
    while stack:
        node, inputs_done = stack.pop()
        if inputs_done:
            ordered.append(node)
        elif node.output[0] not in seen:
            seen.add(node.output[0])
            stack.append((node, True))
            stack.extend((producers[name], False) for name in reversed(node.input) if name in producers)
    # An input that is left out has the empty name.
    names = {"": "", **{value.name: value.name for value in [*graph.input, *graph.output]}}
    for number, node in enumerate(ordered, 1):
        node.name = f"{node.op_type}_{number}"
        node.doc_string = ""
        for index, name in enumerate(node.input):
            names.setdefault(name, f"{node.name}.{index}")
        for index, name in enumerate(node.output):
            names.setdefault(name, node.name if index == 0 else f"{node.name}:{index}")
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    order = {name: position for position, name in enumerate(names)}
    constants = sorted(
        (item for item in graph.initializer if item.name in names), key=lambda i: order[i.name]
    )
    for item in constants:
        item.name = names[item.name]
    constants, nodes = [copied(item) for item in constants], [copied(node) for node in ordered]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    graph.doc_string = model.doc_string = ""
    return {new: old for old, new in names.items()}


def consumers_of(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Return the nodes that take each tensor, in their order, by the tensor's name."""
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    return consumers


def mirrored_look(
    tensor: str, consumers: dict[str, list[onnx.NodeProto]]
) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """Return the node that mirrors `tensor` and the one that puts the mirror image behind it; None where anything else
    takes it, or nothing does."""
    found = sorted(consumers.get(tensor, []), key=lambda node: node.op_type)
    if [node.op_type for node in found] != ["Concat", "Slice"]:
        return None
    both, mirror = found
    return (mirror, both) if list(both.input) == [tensor, mirror.output[0]] else None


def copied(message: Any) -> Any:
    """Return a copy of a part of a model: what a repeated field holds dies with the field."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def exposing(model: onnx.ModelProto, names: Iterable[str]) -> bytes:
    """Return the bytes of a model that also gives these of its tensors, float32, behind its own output."""
    import onnx

    probe = copied(model)
    probe.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    return bytes(probe.SerializeToString())


def serialise(model: onnx.ModelProto) -> bytes:
    """Return the bytes of the ONNX file; equal for equal models."""
    return bytes(model.SerializeToString(deterministic=True))

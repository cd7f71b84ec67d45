"""The form of the ONNX files: the names of their ends, one order of their parts, the same bytes each time."""

import re
from collections.abc import Collection
from typing import Any

import onnx

INPUT = "images"
OUTPUT = "probabilities"
BATCH = "batch"


def canonicalise(model: onnx.ModelProto, keep: Collection[str] = ()) -> None:
    """Put nodes and initializers into one order and give made-up names one numbering.

    tf2onnx walks Python sets of names, so both would change with the process's hash seed. Nodes are put in
    depth-first order from the output, which depends on the graph alone; so is then the numbering. Names in
    `keep` were given by the source and stay.
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
    names: dict[str, str] = {}
    for node in ordered:
        for name in [*node.input, *node.output]:
            if name not in names and name not in keep and re.search(r"__\d+", name):
                base = re.sub(r"__\d+", "", name)
                names[name] = f"{base}__{len(names) + 1}"
    for number, node in enumerate(ordered, 1):
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        node.name = f"{node.op_type}_{number}"
        node.doc_string = ""
    initializers = {names.get(item.name, item.name): item for item in graph.initializer}
    for name, item in initializers.items():
        item.name = name
    used = {name for node in ordered for name in node.input}
    kept = [initializers[name] for name in sorted(initializers) if name in used]
    nodes = [_copy(node) for node in ordered]
    constants = [_copy(item) for item in kept]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    graph.doc_string = model.doc_string = ""


def _copy(message: Any) -> Any:
    # What a repeated field holds dies with the field; keep a copy of our own.
    copied = type(message)()
    copied.CopyFrom(message)
    return copied


def serialise(model: onnx.ModelProto) -> bytes:
    """Return the bytes of the ONNX file; equal for equal models."""
    return bytes(model.SerializeToString(deterministic=True))

"""A second look only where it counts: a branch of the ONNX graph that the sure images of a batch do not take.

A network may look at an image and at its mirror image, and let the second look count by a factor that is zero where the
first is sure of itself (`models.architecture.with_mirrored_look`). Its graph gives both looks of all images to one
body, as a batch of twice the size. Here the body comes to stand there twice, with the same constants: once for all
images as they are, and once in a branch, for the mirror images of those whose factor is not zero. What it answers is
the same; what it costs depends on the images.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from conversion.onnxfile import INPUT, consumers_of, copied, mirrored_look

_PREFIX = "second_look."

_Constants = dict[str, npt.NDArray[Any]]


def look_twice_where_unsure(source: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose second look is in a branch; `source` itself where no second look is weighed."""
    model = copied(source)
    graph = model.graph
    found = _find(graph)
    if found is None:
        return source
    for name, value in (("last", [1]), ("flat", [-1])):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.int64), _PREFIX + name))
    first = found.body[-1].output[0]
    kinds = {item.name: item.type for item in onnx.shape_inference.infer_shapes(source).graph.value_info}
    precision = kinds[first].tensor_type.elem_type
    ordered = [
        *_renamed(found.body, {found.both.output[0]: INPUT}),
        *_renamed(found.doubt, dict.fromkeys(found.looks[0], first)),
        *_branch(found, first, precision),
        *_renamed(found.rest, dict.fromkeys(found.looks[0], first)),
    ]
    del graph.node[:]
    graph.node.extend(ordered)
    inner = [
        part for node in ordered for item in node.attribute if item.HasField("g") for part in item.g.node
    ]
    used = {name for node in (*ordered, *inner) for name in node.input}
    constants = [copied(item) for item in graph.initializer if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend(constants)
    return model


@dataclass(frozen=True, slots=True)
class _Found:
    """The parts of a network that weighs a second look.

    `mirror` and `both` give the pixels of image and mirror image; `body` makes the logits of either. `looks` are the
    names of the first and of the second half of these. `doubt` is made of the first half alone, up to `factor`,
    [n, 1], that the second is weighed by; the last of `blend` adds what is weighed to the first; `rest` follows.
    """

    mirror: onnx.NodeProto
    both: onnx.NodeProto
    body: list[onnx.NodeProto]
    looks: tuple[set[str], set[str]]
    doubt: list[onnx.NodeProto]
    factor: str
    blend: list[onnx.NodeProto]
    rest: list[onnx.NodeProto]


def _find(graph: onnx.GraphProto) -> _Found | None:
    constants: _Constants = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    pair = mirrored_look(INPUT, consumers_of(graph))
    stacked = next((node for node in graph.node if _stacks(node, constants)), None)
    if pair is None or stacked is None:
        return None
    mirror, both = pair
    # Which halves each tensor behind `stacked` depends on.
    halves: dict[str, set[int]] = {}
    looks: tuple[set[str], set[str]] = (set(), set())
    for node in graph.node:
        if stacked.output[0] in node.input:
            half = _half(node, constants)
            if half is None:
                return None  # the plain mean of both, or something else that needs them all
            halves[node.output[0]] = {half}
            looks[half].add(node.output[0])
        elif depends := set[int]().union(*(halves.get(name, set()) for name in node.input)):
            halves[node.output[0]] = depends
            for half in (0, 1):
                if node.op_type == "Squeeze" and node.input[0] in looks[half]:
                    looks[half].add(node.output[0])
    behind = [node for node in graph.node if node.output[0] in halves.keys() - looks[0] - looks[1]]
    for weighed in behind:
        factors = [name for name in weighed.input if halves.get(name) == {0}]
        sums = [node for node in behind if node.op_type == "Add" and weighed.output[0] in node.input]
        if (
            weighed.op_type != "Mul"
            or len(factors) != 1
            or len(sums) != 1
            or not set(sums[0].input) & looks[0]
        ):
            continue
        late = [node for node in behind if 1 in halves[node.output[0]]]
        blend = _makers(late, sums[0].output[0])
        return _Found(
            mirror=mirror,
            both=both,
            body=_makers([node for node in graph.node if node not in pair], stacked.input[0]),
            looks=looks,
            doubt=[node for node in behind if halves[node.output[0]] == {0}],
            factor=factors[0],
            blend=blend,
            rest=[node for node in late if node not in blend],
        )
    return None


def _stacks(node: onnx.NodeProto, constants: _Constants) -> bool:
    """Whether a node makes [2, n, classes] of the [2 n, classes] logits."""
    shape = constants.get(node.input[1]) if node.op_type == "Reshape" else None
    return shape is not None and shape.shape == (3,) and list(shape[:2]) == [2, -1]


def _half(node: onnx.NodeProto, constants: _Constants) -> int | None:
    """Return which half of what is stacked a node takes: 0 or 1; None for one that takes something else."""
    bounds = [constants[name] for name in node.input[1:4] if name in constants]
    if node.op_type != "Slice" or len(bounds) != 3 or any(each.size != 1 for each in bounds):
        return None
    start, end, axis = (int(each.ravel()[0]) for each in bounds)
    return start if axis == 0 and start in (0, 1) and end == start + 1 else None


def _makers(nodes: list[onnx.NodeProto], end: str) -> list[onnx.NodeProto]:
    """Return those of `nodes` that `end` is made by, in their order."""
    wanted = {end}
    makers = []
    for node in reversed(nodes):
        if node.output[0] in wanted:
            makers.append(node)
            wanted.update(node.input)
    return makers[::-1]


def _branch(found: _Found, first: str, precision: int) -> list[onnx.NodeProto]:
    """Return the nodes that give the blended logits: those of the first look where no factor is above zero."""
    again = {name: _PREFIX + name for node in found.body for name in node.output}
    blended = found.blend[-1].output[0]
    second = dict.fromkeys(found.looks[0], first) | dict.fromkeys(found.looks[1], f"{_PREFIX}second")
    own = {name: _PREFIX + name for node in found.blend for name in node.output}
    taken = [
        _node("Reshape", [found.factor, f"{_PREFIX}flat"], "factors"),
        _node("NonZero", [f"{_PREFIX}factors"], "found"),
        _node("Reshape", [f"{_PREFIX}found", f"{_PREFIX}flat"], "rows"),
        _node("Gather", [INPUT, f"{_PREFIX}rows"], "images", axis=0),
        _node("Slice", [f"{_PREFIX}images", *found.mirror.input[1:]], "mirrored"),
        *_renamed(found.body, again | {found.both.output[0]: f"{_PREFIX}mirrored"}),
        _node("Unsqueeze", [f"{_PREFIX}rows", f"{_PREFIX}last"], "places"),
        _node("ScatterND", [first, f"{_PREFIX}places", again[first]], "second"),
        *_renamed(found.blend, second | own),
    ]
    passed = [_node("Identity", [first], "passed")]
    branches = {
        name: onnx.helper.make_graph(
            nodes,
            _PREFIX + name,
            [],
            [onnx.helper.make_tensor_value_info(nodes[-1].output[0], precision, None)],
        )
        for name, nodes in (("then_branch", taken), ("else_branch", passed))
    }
    return [
        _node("ReduceMax", [found.factor], "largest", keepdims=0),
        _node("Cast", [f"{_PREFIX}largest"], "any", to=onnx.TensorProto.BOOL),
        onnx.helper.make_node("If", [f"{_PREFIX}any"], [blended], name=f"{_PREFIX}branch", **branches),
    ]


def _node(operation: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return onnx.helper.make_node(operation, inputs, [_PREFIX + output], name=_PREFIX + output, **attributes)


def _renamed(nodes: list[onnx.NodeProto], names: dict[str, str]) -> list[onnx.NodeProto]:
    """Return copies of nodes, with other names for some of the tensors that they use and make."""
    copies = [copied(node) for node in nodes]
    for node in copies:
        if node.output[0] in names:
            node.name = _PREFIX + node.name
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    return copies

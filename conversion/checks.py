"""Structural checks of a converted graph, and a run at every optimisation level of ONNX Runtime."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from conversion.errors import GraphError, quoted
from conversion.images import Images
from conversion.onnxfile import consumers_of
from conversion.parity import compare
from conversion.sessions import OPTIMISATION_LEVELS, open_session, run

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
# Operations that keep the layout of what they are given.
_ELEMENTWISE = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "Cast",
        "Relu",
        "Clip",
        "Sigmoid",
        "Tanh",
        "Mul",
        "Add",
        "Sub",
        "Div",
    }
)


@dataclass(frozen=True, slots=True)
class GraphSummary:
    """What the graph is made of.

    `operations` counts nodes by type; `transposes` names those left beside a convolution; `level_difference`
    is the largest difference of a probability between ONNX Runtime's optimisation levels.
    """

    nodes: int
    operations: dict[str, int]
    transposes: tuple[str, ...]
    level_difference: float

    def as_dict(self) -> dict[str, Any]:
        """What does not depend on the machine, as JSON can hold it."""
        return {"nodes": self.nodes, "operations": self.operations, "transposes": list(self.transposes)}


def check_graph(model: onnx.ModelProto, images: Images, tolerance: float) -> GraphSummary:
    """Check the structure of `model` and run it on `images`; raise GraphError on the first fault.

    Holds afterwards: onnx.checker passes in full; no batch normalization is left; every optimisation level of
    ONNX Runtime loads it, answers within `tolerance` of the unoptimised graph, and gives for a batch the
    answers it gives one by one.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(f"onnx.checker: {quoted(error)}") from error
    check_batch_normalization(model)
    operations = Counter(node.op_type for node in model.graph.node)
    level_difference = _check_levels(model, images, tolerance)
    transposes = leftover_transposes(model)
    return GraphSummary(len(model.graph.node), dict(sorted(operations.items())), transposes, level_difference)


def check_batch_normalization(model: onnx.ModelProto) -> None:
    """Raise GraphError when a batch normalization is left beside a convolution or a dense layer.

    Folded means: where nothing but a scaling by constants uses the output of either, the constants are in its
    weights.
    """
    constants = {item.name for item in model.graph.initializer}
    uses = Counter(name for node in model.graph.node for name in node.input)
    weighted = {
        node.output[0]
        for node in model.graph.node
        if node.op_type in ("Conv", "MatMul") and node.input[1] in constants and uses[node.output[0]] == 1
    }
    for node in model.graph.node:
        scaling = node.op_type == "Mul" and set(node.input) & weighted and set(node.input) & constants
        if node.op_type == "BatchNormalization" or scaling:
            raise GraphError(f"{node.output[0]}: batch normalization was not folded into the layer before it")


def leftover_transposes(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the outputs of the Transpose nodes that a convolution touches, straight or through elementwise
    operations, but for the one at the entry that turns the image from channels-last to channels-first.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    consumers = consumers_of(model.graph)

    def sources(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        return [producers[name] for name in node.input if name in producers]

    def sinks(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        return [consumer for name in node.output for consumer in consumers.get(name, [])]

    def reaches_convolution(
        node: onnx.NodeProto, step: Callable[[onnx.NodeProto], list[onnx.NodeProto]]
    ) -> bool:
        return any(
            near.op_type in _CONVOLUTIONS
            or (near.op_type in _ELEMENTWISE and reaches_convolution(near, step))
            for near in step(node)
        )

    def at_entry(node: onnx.NodeProto) -> bool:
        return all(near.op_type in _ELEMENTWISE | {"Gather"} and at_entry(near) for near in sources(node))

    return tuple(
        node.output[0]
        for node in model.graph.node
        if node.op_type == "Transpose"
        and not at_entry(node)
        and (reaches_convolution(node, sources) or reaches_convolution(node, sinks))
    )


def _check_levels(model: onnx.ModelProto, images: Images, tolerance: float) -> float:
    serialised = model.SerializeToString()
    plain = run(open_session(serialised, "disabled"), images)
    largest = 0.0
    for level in OPTIMISATION_LEVELS:
        session = open_session(serialised, level)
        together = run(session, images)
        single = np.concatenate(
            [run(session, images[index : index + 1]) for index in range(min(3, len(images)))]
        )
        for answer, expected, what in (
            (together, plain, f"optimisation level {level!r} changes"),
            (single, together[: len(single)], "what else is in a batch changes"),
        ):
            difference = compare(expected, answer).max_difference
            if not difference <= tolerance:
                raise GraphError(f"{what} probabilities by {difference:.3g} (> {tolerance:g})")
            largest = max(largest, difference)
    return largest

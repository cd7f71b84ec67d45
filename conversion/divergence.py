"""Find where a converted graph starts to differ from the network it was made from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from conversion.graph import FrozenGraph
from conversion.images import Images
from conversion.onnxfile import INPUT, OUTPUT, exposing
from conversion.sessions import open_session

# Relative to the largest magnitude of a layer's output. float32 sums in another order stay below 1e-5 per
# layer; a wrong weight or input is far above.
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first node that differs, and the last before it that agreed (None: not one did).

    `tensor` is the source's name of the node's output; `difference` is the largest absolute difference in it,
    relative to its largest value.
    """

    node: str
    tensor: str
    difference: float
    last_agreeing: str | None

    def __str__(self) -> str:
        after = (
            f"everything up to {self.last_agreeing} agrees"
            if self.last_agreeing
            else "nothing before it agrees"
        )
        return f"first diverging node: {self.node} ({self.tensor}), off by {self.difference:.2g}; {after}"


def first_divergence(
    frozen: FrozenGraph, model: onnx.ModelProto, names: Mapping[str, str], images: Images
) -> Divergence | None:
    """Run both graphs on `images` with every shared tensor exposed and return the first that differs.

    `names` gives the source's name of each tensor of `model`; those that operations were fused into have none
    of the source. Nodes are in topological order, so that everything a diverging node depends on was compared
    before it. Returns None when all shared tensors agree: the difference lies outside the graph.
    """
    operations = {f"{operation.name}:0": operation for operation in frozen.function.graph.get_operations()}
    shared: list[tuple[onnx.NodeProto, str, Any]] = []
    for node in model.graph.node:
        operation = operations.get(names[node.output[0]])
        if operation is not None and operation.outputs and operation.outputs[0].dtype.is_floating:
            shared.append((node, names[node.output[0]], operation.outputs[0]))
    shared.append((model.graph.node[-1], OUTPUT, frozen.output))
    expected = _run_source(frozen, [tensor for _, _, tensor in shared], images)
    found = _run_onnx(model, [node.output[0] for node, _, _ in shared[:-1]], images)
    last_agreeing = None
    for (node, name, _), want, have in zip(shared, expected, found, strict=True):
        difference = _relative_difference(want, have)
        if not difference <= _TOLERANCE:
            return Divergence(node.name, name, difference, last_agreeing)
        last_agreeing = node.name
    return None


def _run_source(frozen: FrozenGraph, tensors: list[Any], images: Images) -> list[npt.NDArray[np.float32]]:
    pruned = frozen.function.prune(feeds=[frozen.input], fetches=tensors)
    from conversion.tensorflow_quietly import tf

    return [np.asarray(value, np.float32) for value in pruned(tf.constant(images))]


def _run_onnx(model: onnx.ModelProto, names: list[str], images: Images) -> list[npt.NDArray[np.float32]]:
    session = open_session(exposing(model, names), "disabled")
    return [np.asarray(value, np.float32) for value in session.run([*names, OUTPUT], {INPUT: images})]


def _relative_difference(want: npt.NDArray[np.float32], have: npt.NDArray[np.float32]) -> float:
    """Compare in either layout: convolutions run channels-first in ONNX and channels-last in TensorFlow."""
    layouts = [have]
    if have.ndim == 4:
        layouts.append(have.transpose(0, 2, 3, 1))
    scale = max(float(np.abs(want).max()), 1e-6)
    fitting = [layout for layout in layouts if layout.shape == want.shape]
    if not fitting:
        # The same numbers in another shape (a squeezed pooling): compare as they lie.
        fitting = [have.reshape(want.shape)] if have.size == want.size else []
    differences = [float(np.abs(want - layout).max()) / scale for layout in fitting]
    return min(differences, default=float("inf"))

"""Foldings that tf2onnx leaves undone: normalisations, the transpose before a dense layer, scaling before layout."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx

from conversion.onnxfile import consumers_of, mirrored_look

_CHANNELS_LAST = [0, 2, 3, 1]
_CHANNELS_FIRST = [0, 3, 1, 2]
_WEIGHTED = frozenset({"Conv", "MatMul"})
_ELEMENTWISE = frozenset({"Add", "Mul"})


def fold(model: onnx.ModelProto) -> None:
    """Fold in place what can be folded into the weights of convolutions and dense layers.

    - Keras flattens channels-last, convolutions here run channels-first: tf2onnx puts a transpose between.
      Permuting the rows of the dense layer's weights does the same once and for all.
    - A batch normalization is a scale and a shift. Behind a layer it goes into the layer's weights and bias;
      elsewhere it is written as a multiplication and an addition with constants.
    - A constant scale or shift of the pixels goes behind their change to channels-first. Before it ONNX Runtime
      repeats the constant along the last axis, and with one channel there that is element by element: 50 us for a
      grey 48x48 face, a tenth of the network, where behind it a scale and a shift take some six.
    - The same, and the cast of the pixels, go behind a look at the mirrored image, which is bytes then.

    Arithmetic is in float64 and rounded once, so that every machine writes the same bytes.
    """
    _fold_flatten(model)
    _expand_batch_normalization(model)
    _fold_affine(model)
    # A cast and each constant scale or shift, with the look at both image and mirror that follows; then the latter
    # with the change to channels-first.
    _while_any(_swap_mirror, model, frozenset({"Cast", *_ELEMENTWISE}))
    _while_any(_swap, model, _ELEMENTWISE)


class _Graph:
    """Who makes and who uses each tensor, and the constants, of a graph as it stands."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.constants = {item.name: item for item in model.graph.initializer}
        self.consumers = consumers_of(model.graph)
        self.outputs = {value.name for value in model.graph.output}

    def only_consumer(self, node: onnx.NodeProto, operation: str) -> onnx.NodeProto | None:
        """Return the one node that uses the output of `node`, if it is an `operation`."""
        users = self.consumers.get(node.output[0], [])
        if node.output[0] in self.outputs or len(users) != 1 or users[0].op_type != operation:
            return None
        return users[0]

    def constant(self, name: str) -> npt.NDArray[np.float64] | None:
        """Return a float constant by name, None where `name` is not one."""
        item = self.constants.get(name)
        if item is None or item.data_type != onnx.TensorProto.FLOAT:
            return None
        return np.asarray(onnx.numpy_helper.to_array(item), np.float64)

    def other_constant(self, node: onnx.NodeProto, tensor: str) -> npt.NDArray[np.float64] | None:
        """Return the constant operand of a two-operand node whose other operand is `tensor`."""
        others = [name for name in node.input if name != tensor]
        return self.constant(others[0]) if len(others) == 1 else None

    def add_constant(self, name: str, value: npt.NDArray[np.float64]) -> str:
        """Add a float32 constant under a name derived from `name`, and return that."""
        derived = f"{name}__0"
        while derived in self.constants:
            derived += "0"
        item = onnx.numpy_helper.from_array(np.array(value, np.float32, order="C"), derived)
        self.model.graph.initializer.append(item)
        self.constants[derived] = item
        return derived


def _permutation(transpose: onnx.NodeProto) -> list[int]:
    """Return the order of the axes; none where it is not said, which turns them all round."""
    return next((list(item.ints) for item in transpose.attribute if item.name == "perm"), [])


def _fold_flatten(model: onnx.ModelProto) -> None:
    graph = _Graph(model)
    shaped = onnx.shape_inference.infer_shapes(model)
    shapes = {
        value.name: [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in shaped.graph.value_info
    }
    for transpose in [node for node in model.graph.node if node.op_type == "Transpose"]:
        permutation = _permutation(transpose)
        reshape = graph.only_consumer(transpose, "Reshape")
        dense = graph.only_consumer(reshape, "MatMul") if reshape is not None else None
        if permutation != _CHANNELS_LAST or reshape is None or dense is None:
            continue
        weights = graph.constant(dense.input[1])
        _, height, width, channels = shapes.get(transpose.output[0], [0, 0, 0, 0])
        flattened = weights is not None and height * width * channels == weights.shape[0] > 0
        if weights is None or not flattened or len(shapes.get(reshape.output[0], [])) != 2:
            continue
        columns = weights.shape[1]
        permuted = (
            weights.reshape(height, width, channels, columns).transpose(2, 0, 1, 3).reshape(-1, columns)
        )
        dense.input[1] = graph.add_constant(dense.input[1], permuted)
        reshape.input[0] = transpose.input[0]
        model.graph.node.remove(transpose)


def _expand_batch_normalization(model: onnx.ModelProto) -> None:
    """Write each BatchNormalization as the scale and shift that it is at inference."""
    graph = _Graph(model)
    for position, node in reversed(list(enumerate(model.graph.node))):
        if node.op_type != "BatchNormalization":
            continue
        gamma, beta, mean, variance = (graph.constant(name) for name in node.input[1:5])
        if gamma is None or beta is None or mean is None or variance is None:
            continue
        epsilon = next((item.f for item in node.attribute if item.name == "epsilon"), 1e-5)
        scale = gamma / np.sqrt(variance + epsilon)
        shift = beta - mean * scale
        scaled = f"{node.output[0]}__0"
        factor = graph.add_constant(node.input[1], scale[:, None, None])
        term = graph.add_constant(node.input[2], shift[:, None, None])
        multiply = onnx.helper.make_node("Mul", [node.input[0], factor], [scaled])
        add = onnx.helper.make_node("Add", [scaled, term], [node.output[0]])
        model.graph.node.remove(node)
        model.graph.node.insert(position, add)
        model.graph.node.insert(position, multiply)


def _fold_affine(model: onnx.ModelProto) -> None:
    """Fold constant scales and shifts into the convolution or dense layer that they follow."""
    for layer in [node for node in model.graph.node if node.op_type in _WEIGHTED]:
        while _fold_next(_Graph(model), layer):
            pass


def _while_any(
    swap: Callable[[_Graph, onnx.NodeProto], bool], model: onnx.ModelProto, operations: frozenset[str]
) -> None:
    """Swap, in place, nodes of these kinds with what follows them, as long as there is one to swap."""
    moved = True
    while moved:
        graph = _Graph(model)
        moved = any(swap(graph, node) for node in model.graph.node if node.op_type in operations)


def _swap_mirror(graph: _Graph, pixelwise: onnx.NodeProto) -> bool:
    """Let the look at both behind `pixelwise` come first, if there is one; return whether there was."""
    pixels = pixelwise.output[0]
    found = mirrored_look(pixels, graph.consumers)
    if found is None:
        return False
    mirror, looks = found
    if {pixels, looks.output[0]} & graph.outputs:
        return False
    if graph.only_consumer(mirror, "Concat") is None:
        return False
    variables = [index for index, name in enumerate(pixelwise.input) if name not in graph.constants]
    constants = [graph.constants[name] for name in pixelwise.input if name in graph.constants]
    if len(variables) != 1 or any(each.dims not in ([], [1]) for each in constants):
        return False  # a scale for each column would have to be mirrored, too
    source = variables[0]
    # What comes of it keeps its name: it is a tensor of the source.
    pixelwise.output[0] = looks.output[0]
    mirror.input[0] = looks.input[0] = pixelwise.input[source]
    mirror.output[0] = looks.input[1] = f"{mirror.output[0]}__first"
    pixelwise.input[source] = looks.output[0] = f"{looks.output[0]}__first"
    nodes = graph.model.graph.node
    nodes.remove(pixelwise)
    nodes.insert(list(nodes).index(looks) + 1, pixelwise)
    return True


def _swap(graph: _Graph, scale: onnx.NodeProto) -> bool:
    """Let the change of layout behind `scale` come first, if it is one; return whether it was."""
    layout = graph.only_consumer(scale, "Reshape") or graph.only_consumer(scale, "Transpose")
    variable = next((name for name in scale.input if name not in graph.constants), None)
    operand = graph.other_constant(scale, variable) if variable is not None else None
    if layout is None or variable is None or operand is None or layout.output[0] in graph.outputs:
        return False
    if operand.ndim > 1:
        return False  # behind a change of shape it might lie along other axes
    if operand.size != 1:
        first = layout.op_type == "Transpose" and (_permutation(layout) == _CHANNELS_FIRST)
        if not first:
            return False
        operand = operand[:, None, None]
    position = next(index for index, name in enumerate(scale.input) if name != variable)
    scale.input[position] = graph.add_constant(scale.input[position], operand)
    # What was scaled keeps its name, in the other layout: it is a tensor of the source.
    for consumer in graph.consumers[layout.output[0]]:
        consumer.input[:] = [scale.output[0] if name == layout.output[0] else name for name in consumer.input]
    layout.input[0], layout.output[0] = variable, f"{layout.output[0]}__first"
    scale.input[1 - position] = layout.output[0]
    graph.model.graph.node.remove(layout)
    graph.model.graph.node.insert(list(graph.model.graph.node).index(scale), layout)
    return True


def _fold_next(graph: _Graph, layer: onnx.NodeProto) -> bool:
    """Fold the one Mul or Add behind `layer` into it; return whether there was one to fold."""
    weights = graph.constant(layer.input[1])
    following = graph.only_consumer(layer, "Mul") or graph.only_consumer(layer, "Add")
    if weights is None or following is None:
        return False
    operand = graph.other_constant(following, layer.output[0])
    vector = _per_channel(operand, layer, weights)
    if vector is None:
        return False
    if following.op_type == "Mul":
        axis = _channel_axis(layer)
        shape = [-1 if index == axis else 1 for index in range(weights.ndim)]
        bias = graph.constant(layer.input[2]) if len(layer.input) > 2 else None
        if len(layer.input) > 2 and bias is None:
            return False
        layer.input[1] = graph.add_constant(layer.input[1], weights * vector.reshape(shape))
        if bias is not None:
            layer.input[2] = graph.add_constant(layer.input[2], bias * vector)
    elif layer.op_type == "MatMul":
        return _fold_behind_bias(graph, layer, following, vector, weights)
    elif len(layer.input) > 2:
        bias = graph.constant(layer.input[2])
        if bias is None:
            return False
        layer.input[2] = graph.add_constant(layer.input[2], bias + vector)
    else:
        layer.input.append(graph.add_constant(layer.input[1], vector))
    # The last tensor keeps its name: it is a tensor of the source.
    layer.output[0] = following.output[0]
    graph.model.graph.node.remove(following)
    return True


def _fold_behind_bias(
    graph: _Graph,
    dense: onnx.NodeProto,
    bias: onnx.NodeProto,
    shift: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
) -> bool:
    """A MatMul has no bias of its own: fold a Mul or Add that follows its Add into both."""
    following = graph.only_consumer(bias, "Mul") or graph.only_consumer(bias, "Add")
    operand = graph.other_constant(following, bias.output[0]) if following is not None else None
    vector = _per_channel(operand, dense, weights)
    if following is None or vector is None:
        return False
    constant = next(index for index, name in enumerate(bias.input) if name != dense.output[0])
    if following.op_type == "Mul":
        dense.input[1] = graph.add_constant(dense.input[1], weights * vector)
        shift = shift * vector
    else:
        shift = shift + vector
    bias.input[constant] = graph.add_constant(bias.input[constant], shift)
    bias.output[0] = following.output[0]
    graph.model.graph.node.remove(following)
    return True


def _channel_axis(layer: onnx.NodeProto) -> int:
    """Return the axis of the output channels in a layer's weights."""
    return 0 if layer.op_type == "Conv" else 1


def _per_channel(
    operand: npt.NDArray[np.float64] | None, layer: onnx.NodeProto, weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64] | None:
    """Return a constant as one number per output channel of `layer`; None where it is not that."""
    if operand is None:
        return None
    channels = weights.shape[_channel_axis(layer)]
    if operand.size == 1:
        return np.full(channels, operand.ravel()[0])
    # The axis, counted from the end, that lines up with the output's channels: [C] behind a dense layer,
    # [C, 1, 1] behind a convolution, [C, 1, 1, 1] behind one in three dimensions.
    axis = 1 if layer.op_type == "MatMul" else weights.ndim - 1
    return (
        operand.ravel() if operand.ndim >= axis and operand.shape[-axis] == channels == operand.size else None
    )

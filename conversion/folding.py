"""Two foldings that tf2onnx leaves undone: the transpose before a dense layer, and the normalisation after one."""

import numpy as np
import numpy.typing as npt
import onnx

_CHANNELS_LAST = [0, 2, 3, 1]


def fold(model: onnx.ModelProto) -> None:
    """Fold in place what can be folded into the weights of dense layers.

    - Keras flattens channels-last, convolutions here run channels-first: tf2onnx puts a transpose between.
      Permuting the rows of the dense layer's weights does the same once and for all.
    - A batch normalization after a dense layer is a scale and a shift of its columns.

    Arithmetic is in float64 and rounded once, so that every machine writes the same bytes.
    """
    _fold_flatten(model)
    _fold_scaled_dense(model)


class _Graph:
    """Who makes and who uses each tensor, and the constants, of a graph as it stands."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.constants = {item.name: item for item in model.graph.initializer}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
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
        item = onnx.numpy_helper.from_array(np.ascontiguousarray(value, np.float32), derived)
        self.model.graph.initializer.append(item)
        self.constants[derived] = item
        return derived


def _fold_flatten(model: onnx.ModelProto) -> None:
    graph = _Graph(model)
    shaped = onnx.shape_inference.infer_shapes(model)
    shapes = {
        value.name: [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in shaped.graph.value_info
    }
    for transpose in [node for node in model.graph.node if node.op_type == "Transpose"]:
        permutation = list(onnx.helper.get_node_attr_value(transpose, "perm"))
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


def _fold_scaled_dense(model: onnx.ModelProto) -> None:
    graph = _Graph(model)
    for dense in [node for node in model.graph.node if node.op_type == "MatMul"]:
        weights = graph.constant(dense.input[1])
        bias = graph.only_consumer(dense, "Add")
        shift = graph.other_constant(bias, dense.output[0]) if bias is not None else None
        last = bias if bias is not None and shift is not None else dense
        scaling = graph.only_consumer(last, "Mul")
        scale = graph.other_constant(scaling, last.output[0]) if scaling is not None else None
        if weights is None or scaling is None or scale is None or scale.ndim > 1:
            continue
        dense.input[1] = graph.add_constant(dense.input[1], weights * scale)
        if bias is not None and shift is not None:
            constant = next(index for index, name in enumerate(bias.input) if name != dense.output[0])
            bias.input[constant] = graph.add_constant(bias.input[constant], shift * scale)
        # The tensor after the scaling keeps its name: it is a tensor of the source.
        last.output[0] = scaling.output[0]
        model.graph.node.remove(scaling)

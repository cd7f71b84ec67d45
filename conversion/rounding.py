"""What a network rounds to whole steps, as ONNX has it: QuantizeLinear and DequantizeLinear around each operation.

A network that was trained for INT8 says so in its own graph: `round(clip(x / step, low, high)) * step` with bounds
of a byte, and kernels whose weights are whole steps. ONNX Runtime computes in integers where it finds the two
operations instead, and answers what the source answers.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from conversion.onnxfile import consumers_of, mirrored_look
from conversion.tensorflow_quietly import tf

_BOUNDS = frozenset({(0.0, 255.0), (-128.0, 127.0)})
# float32 holds a step, its reciprocal and a weight of some steps to 6e-8 each.
_TOLERANCE = 1e-5
# An integer kernel of CPUs without VNNI adds two products of an unsigned and a signed byte in 16 bits: with
# weights of up to 64 steps that never saturates.
_LARGEST_WEIGHT = 64
# What the step of a kernel's channel without weights is taken from: its bias is counted in it.
_LEAST_WEIGHT = 1e-4


def lower_rounding(graph: Any) -> None:
    """Replace, in a frozen GraphDef, each chain that rounds to steps by the one operation that TensorFlow has for it.

    tf2onnx turns that into QuantizeLinear and DequantizeLinear, and moves transposes through them.
    """
    nodes = {node.name: node for node in graph.node}
    constants = {node.name: _scalar(node) for node in graph.node if node.op == "Const"}

    def operands(node: Any) -> tuple[Any, float] | None:
        """The variable and the constant operand of a two-operand node."""
        names = [name.removesuffix(":0") for name in node.input]
        values = [constants.get(name) for name in names]
        if len(names) != 2 or (values[0] is None) == (values[1] is None):
            return None
        variable, value = (names[0], values[1]) if values[0] is None else (names[1], values[0])
        return (nodes.get(variable), float(value)) if value is not None else None

    def follow(node: Any, operation: str) -> tuple[Any, float] | None:
        return operands(node) if node is not None and node.op == operation else None

    for node in list(graph.node):
        scaled = follow(node, "Mul")
        rounded = scaled[0] if scaled is not None else None
        if scaled is None or rounded is None or rounded.op != "Round":
            continue
        lower = follow(nodes.get(rounded.input[0].removesuffix(":0")), "Maximum")
        upper = follow(lower[0], "Minimum") if lower is not None else None
        steps = follow(upper[0], "Mul") if upper is not None else None
        if lower is None or upper is None or steps is None or steps[0] is None:
            continue
        step, bounds = scaled[1], (lower[1], upper[1])
        if bounds not in _BOUNDS or abs(step * steps[1] - 1) > _TOLERANCE:
            continue
        _become_fake_quantisation(node, steps[0].name, step, bounds)


def _become_fake_quantisation(node: Any, source: str, step: float, bounds: tuple[float, float]) -> None:
    node.op = "FakeQuantWithMinMaxArgs"
    node.input[:] = [source]
    node.attr.clear()
    node.attr["min"].f, node.attr["max"].f = bounds[0] * step, bounds[1] * step
    node.attr["num_bits"].i = 8
    node.attr["narrow_range"].b = False


def _scalar(node: Any) -> float | None:
    if node.attr["dtype"].type != tf.float32.as_datatype_enum:
        return None
    value = tf.make_ndarray(node.attr["value"].tensor)
    return float(value.ravel()[0]) if value.size == 1 else None


def is_rounded(model: onnx.ModelProto) -> bool:
    """Whether a converted network computes in integers."""
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def round_weights(model: onnx.ModelProto) -> None:
    """Write, in place, as integers what a network that rounds its activations holds: pixels, kernels and biases.

    - Pixels that are scaled by 1/step and shifted by whole steps are bytes with a zero point: they are given to
      the first convolution as they come.
    - The kernels of convolutions between rounded activations become bytes with a step for each channel, biases
      32-bit integers.

    A network that rounds nothing is left as it is. A kernel whose weights are not whole steps stays in floats.
    """
    graph = model.graph
    if not is_rounded(model):
        return
    _round_pixels(model)
    constants = {item.name: item for item in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    for node in [node for node in graph.node if node.op_type == "Conv"]:
        source = producers.get(node.input[0])
        if source is None or source.op_type != "DequantizeLinear" or node.input[1] not in constants:
            continue
        kernel = np.asarray(onnx.numpy_helper.to_array(constants[node.input[1]]), np.float64)
        steps = weight_steps(kernel)
        if steps is None:
            _keep_in_floats(model, node, source)
            continue
        input_step = float(onnx.numpy_helper.to_array(constants[source.input[1]]))
        bias = np.zeros(len(steps))
        if len(node.input) > 2:
            bias = np.asarray(onnx.numpy_helper.to_array(constants[node.input[2]]), np.float64)
        whole_bias = np.round(bias / (steps * input_step))
        if np.abs(whole_bias).max() > np.iinfo(np.int32).max:
            _keep_in_floats(model, node, source)
            continue
        whole = np.round(kernel / steps[:, None, None, None]).astype(np.int8)
        node.input[1] = _dequantised(model, node, node.input[1], whole, steps)
        if len(node.input) > 2:
            as_int32 = whole_bias.astype(np.int32)
            node.input[2] = _dequantised(model, node, node.input[2], as_int32, steps * input_step)


def weight_steps(kernel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    """Return the step of each output channel of a kernel [out, in, height, width], None if its weights are not whole
    steps of which the largest has 63 or 64.
    """
    largest = np.abs(kernel).max(axis=(1, 2, 3))
    largest[largest == 0] = _LEAST_WEIGHT
    for count in (_LARGEST_WEIGHT - 1, _LARGEST_WEIGHT):
        steps: npt.NDArray[np.float64] = largest / count
        whole = kernel / steps[:, None, None, None]
        if np.abs(whole - np.round(whole)).max() <= count * _TOLERANCE:
            return steps
    return None


def _keep_in_floats(model: onnx.ModelProto, node: onnx.NodeProto, source: onnx.NodeProto) -> None:
    """Let `node` have what `source` dequantises by arithmetic.

    Behind a DequantizeLinear, ONNX Runtime makes bytes of a float kernel by itself: with one step for all of it, and of
    eight bits, which saturate on CPUs without VNNI.
    """
    whole, step, zero = source.input
    graph = model.graph
    name = f"{node.output[0]}__input"
    (zeros,) = (item for item in graph.initializer if item.name == zero)
    shift = onnx.numpy_helper.to_array(zeros).astype(np.float32)
    graph.initializer.append(onnx.numpy_helper.from_array(shift, f"{name}_zero"))
    steps = [
        onnx.helper.make_node("Cast", [whole], [f"{name}_whole"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Sub", [f"{name}_whole", f"{name}_zero"], [f"{name}_steps"]),
        onnx.helper.make_node("Mul", [f"{name}_steps", step], [name]),
    ]
    node.input[0] = name
    place = list(graph.node).index(node)
    for offset, each in enumerate(steps):
        graph.node.insert(place + offset, each)
    if not any(source.output[0] in each.input for each in graph.node):
        graph.node.remove(source)


def _dequantised(
    model: onnx.ModelProto,
    user: onnx.NodeProto,
    name: str,
    values: npt.NDArray[np.int8 | np.int32],
    steps: npt.NDArray[np.float64],
) -> str:
    """Add a constant of whole `steps` along its first axis, before `user`; return the name of its float32 form."""
    zeros = np.zeros(len(steps), values.dtype)
    for suffix, value in (("whole", values), ("step", steps.astype(np.float32)), ("zero", zeros)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, f"{name}__{suffix}"))
    names = [f"{name}__{suffix}" for suffix in ("whole", "step", "zero")]
    node = onnx.helper.make_node("DequantizeLinear", names, [f"{name}__rounded"], axis=0)
    model.graph.node.insert(list(model.graph.node).index(user), node)
    return f"{name}__rounded"


def _round_pixels(model: onnx.ModelProto) -> None:
    """Replace cast, layout, scale and shift of the pixels by layout and DequantizeLinear, where that is the same."""
    graph = model.graph
    constants = {item.name: item for item in graph.initializer}
    consumers = consumers_of(graph)
    pixels = graph.input[0].name
    looks = mirrored_look(pixels, consumers)
    chain = [pixels if looks is None else looks[1].output[0]]
    found: list[onnx.NodeProto] = []
    for operations in (("Cast",), ("Reshape", "Transpose"), ("Mul",), ("Add",)):
        users = consumers.get(chain[-1], [])
        if len(users) != 1 or users[0].op_type not in operations:
            return
        found.append(users[0])
        chain.append(users[0].output[0])
    cast, layout, scale, shift = found
    factor, term = (
        [onnx.numpy_helper.to_array(constants[name]) for name in node.input if name in constants]
        for node in (scale, shift)
    )
    if len(factor) != 1 or len(term) != 1 or factor[0].size != 1 or term[0].size != 1:
        return
    step = float(factor[0].ravel()[0])
    zero = -float(term[0].ravel()[0]) / step
    if not 0 <= zero <= 255 or abs(zero - round(zero)) > _TOLERANCE:
        return
    layout.input[0] = cast.input[0]
    for name, value in (("step", np.float32(step)), ("zero", np.uint8(round(zero)))):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), f"{scale.output[0]}__{name}"))
    names = [layout.output[0], f"{scale.output[0]}__step", f"{scale.output[0]}__zero"]
    scaled = onnx.helper.make_node("DequantizeLinear", names, [shift.output[0]])
    graph.node.insert(list(graph.node).index(scale), scaled)
    for node in (cast, scale, shift):
        graph.node.remove(node)

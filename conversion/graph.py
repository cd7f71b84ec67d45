"""Build the ONNX graph: preprocessing, network, softmax and class order in one, uint8 images in."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from conversion.constants import fold_constants
from conversion.errors import GraphError, quoted
from conversion.lowering import lower
from conversion.onnxfile import BATCH, INPUT, OUTPUT
from conversion.options import Specification
from conversion.rounding import lower_rounding
from conversion.sources import Source
from conversion.tensorflow_quietly import convert_variables_to_constants_v2, tf, tf2onnx

# The newest file format of ONNX 1.13, the first with opset 18; tf2onnx would write that of its own onnx.
_IR_VERSION = 8


@dataclass(frozen=True)
class FrozenGraph:
    """A TensorFlow function without variables: uint8 [N, h, w, c] in, probabilities [N, classes] out."""

    function: Any

    @property
    def input(self) -> Any:
        """The symbolic input tensor."""
        return self.function.inputs[0]

    @property
    def output(self) -> Any:
        """The symbolic output tensor."""
        return self.function.outputs[0]


def freeze(source: Source, specification: Specification) -> FrozenGraph:
    """Wrap the network in preprocessing, softmax (for logits) and our class order, and freeze its weights.

    Raises GraphError when it does not answer as a function of the images alone.
    """
    scale = np.array(specification.scale, np.float32)
    offset = np.array(specification.offset, np.float32)
    uniform_scale = scale[0] if (scale == scale[0]).all() else scale
    uniform_offset = offset[0] if (offset == offset[0]).all() else offset

    def forward(images: Any) -> Any:
        if specification.channel_order == "bgr" and specification.channels == 3:
            images = tf.gather(images, [2, 1, 0], axis=3)
        pixels = tf.cast(images, tf.float32)
        if np.any(scale != 1):
            pixels = tf.multiply(pixels, uniform_scale)
        if np.any(offset != 0):
            pixels = tf.add(pixels, uniform_offset)
        scores = source.call(pixels)
        if specification.activation == "logits":
            scores = tf.nn.softmax(scores)
        if specification.order != tuple(range(len(specification.order))):
            scores = tf.gather(scores, specification.order, axis=1)
        return tf.identity(scores)

    shape = (None, specification.height, specification.width, specification.channels)
    traced = tf.function(forward, autograph=False, input_signature=[tf.TensorSpec(shape, tf.uint8, INPUT)])
    try:
        concrete = traced.get_concrete_function()
    except ValueError as error:
        raise GraphError(f"the network cannot be traced for any number of images: {quoted(error)}") from error
    try:
        return FrozenGraph(convert_variables_to_constants_v2(concrete))
    except ValueError as error:  # A variable that is written to, such as a seed, is no constant.
        raise GraphError(f"the network changes as it answers, or draws numbers: {quoted(error)}") from error


def to_onnx(frozen: FrozenGraph, specification: Specification) -> onnx.ModelProto:
    """Convert a frozen graph to ONNX with our names for input, output and batch dimension.

    The result is the same graph for the same frozen graph, whatever else this process has converted, but not
    yet in one order. Raises GraphError when the network holds an operation that ONNX cannot express.
    """
    graph = fold_constants(frozen.function.graph.as_graph_def())
    lower_rounding(graph)
    lower(graph)
    # tf2onnx numbers the names it makes up from a counter that lives as long as the process.
    tf2onnx.utils.INTERNAL_NAME = 1
    try:
        model, _ = tf2onnx.convert.from_graph_def(
            graph,
            name="visionai",
            input_names=[frozen.input.name],
            output_names=[frozen.output.name],
            opset=specification.opset,
        )
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise GraphError(f"tf2onnx cannot convert the network: {quoted(error)}") from error
    if any(attribute.HasField("g") for node in model.graph.node for attribute in node.attribute):
        raise GraphError(
            "the network holds loops or branches; only straight classifiers can be converted (LSTM, GRU and SimpleRNN"
            " are that with unroll=True: build the network with it, give it these weights, and save that)"
        )
    foreign = sorted({node.op_type for node in model.graph.node if node.domain not in ("", "ai.onnx")})
    unknown = sorted({n.op_type for n in model.graph.node if not onnx.defs.has(n.op_type)} - set(foreign))
    if foreign or unknown:
        raise GraphError(f"no ONNX form for: {', '.join(foreign + unknown)}; replace these layers")
    _rename(model, frozen.input.name, INPUT)
    _rename(model, frozen.output.name, OUTPUT)
    return model


def _rename(model: onnx.ModelProto, old: str, new: str) -> None:
    graph = model.graph
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for value in [*graph.input, *graph.output]:
        if value.name == old:
            value.name = new


def describe_ends(model: onnx.ModelProto, specification: Specification) -> None:
    """Write input and output with exact shapes and a batch dimension of one name, and the versions."""
    sides = [BATCH, specification.height, specification.width, specification.channels]
    images = onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.UINT8, sides)
    classes = [BATCH, len(specification.labels)]
    result = onnx.helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, classes)
    del model.graph.input[:], model.graph.output[:], model.opset_import[:]
    model.graph.input.append(images)
    model.graph.output.append(result)
    model.opset_import.append(onnx.helper.make_opsetid("", specification.opset))
    model.ir_version = _IR_VERSION
    model.graph.name = "visionai"
    model.producer_name, model.producer_version = "tf2onnx", tf2onnx.__version__

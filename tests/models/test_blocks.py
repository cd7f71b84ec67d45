"""Channels filled up to whole blocks: another layout, the same function."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.blocks import BLOCK, fill_blocks


def blazeface_in_small() -> onnx.ModelProto:
    """A stem of 12 channels, a block that appends 6, a striding one that appends 20, and a head of 5."""
    random = np.random.default_rng(0)
    nodes, constants = [], []

    def constant(name: str, array: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(array, name))
        return name

    def convolution(
        source: str, result: str, shape: tuple[int, ...], group: int = 1, stride: int = 1
    ) -> None:
        weights = constant(f"{result}_w", random.normal(0, 0.3, shape).astype(np.float32))
        bias = constant(f"{result}_b", random.normal(0, 0.3, shape[0]).astype(np.float32))
        pads = [shape[2] // 2] * 4
        nodes.append(
            helper.make_node(
                "Conv", [source, weights, bias], [result], group=group, pads=pads, strides=[stride, stride]
            )
        )

    def block(source: str, name: str, before: int, after: int, stride: int) -> str:
        convolution(source, f"{name}_dw", (before, 1, 3, 3), group=before, stride=stride)
        convolution(f"{name}_dw", f"{name}_pw", (after, before, 1, 1))
        shortcut = source
        if stride > 1:
            nodes.append(
                helper.make_node("MaxPool", [source], [f"{name}_pool"], kernel_shape=[2, 2], strides=[2, 2])
            )
            shortcut = f"{name}_pool"
        pads = constant(f"{name}_pads", np.array([0, 0, 0, 0, 0, after - before, 0, 0]))
        nodes.append(helper.make_node("Pad", [shortcut, pads], [f"{name}_pad"]))
        nodes.append(helper.make_node("Add", [f"{name}_pad", f"{name}_pw"], [f"{name}_sum"]))
        nodes.append(helper.make_node("Relu", [f"{name}_sum"], [name]))
        return name

    convolution("images", "stem", (12, 3, 3, 3))
    nodes.append(helper.make_node("Relu", ["stem"], ["features"]))
    # 12 to 18 channels cross a block's end; 18 to 30 do not.
    last = block(block(block("features", "a", 12, 14, 1), "b", 14, 18, 1), "c", 18, 38, 2)
    convolution(last, "head", (5, 38, 1, 1))
    nodes.append(helper.make_node("Transpose", ["head"], ["out"], perm=[0, 2, 3, 1]))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 4, 4, 5])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": images})[0])


def test_filled_channels_change_no_output() -> None:
    """Blocks that append within a block, beyond one, and while striding."""
    images = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    model = blazeface_in_small()
    expected = run(model, images)
    fill_blocks(model.graph)
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(run(model, images), expected, atol=1e-4)


def test_only_the_heads_keep_their_channels() -> None:
    """No Pad is left, and every other convolution gives whole blocks."""
    model = blazeface_in_small()
    fill_blocks(model.graph)
    shapes = {item.name: list(item.dims) for item in model.graph.initializer}
    widths = [shapes[node.input[1]][0] for node in model.graph.node if node.op_type == "Conv"]
    assert widths[-1] == 5
    assert all(width % BLOCK == 0 for width in widths[:-1])
    assert "Pad" not in {node.op_type for node in model.graph.node}


def test_a_network_of_another_make_is_refused() -> None:
    """What is not understood is not changed silently into something else."""
    model = blazeface_in_small()
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Sigmoid"
    with pytest.raises(ValueError, match="Sigmoid is no part of BlazeFace"):
        fill_blocks(model.graph)

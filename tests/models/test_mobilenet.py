import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from models.inception import Inception
from models.mobilenet import MobileNet, build_mobilenet, read_convolutions
from models.recipe import FINE_TUNING
from models.training import Trainer

SMALL = MobileNet(side=32, frozen=2)


def graph_file(folder: Path) -> Path:
    """A TensorFlow.js graph: a 1x1 convolution with bias, then a depthwise one with scale and bias.

    Its weights are 1, 2, 3, … in the order of the file.
    """
    shapes = {"pw": [1, 1, 3, 2], "pw_bias": [2], "dw": [3, 3, 2, 1], "scale": [2], "shift": [2]}
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    (folder / "net.bin").write_bytes(np.arange(1, count + 1, dtype="<f4").tobytes())
    weights = [{"name": name, "shape": shape, "dtype": "float32"} for name, shape in shapes.items()]
    nodes = [
        {"name": "image", "op": "Placeholder"},
        {"name": "a", "op": "Conv2D", "input": ["image", "pw"]},
        {"name": "b", "op": "Add", "input": ["a", "pw_bias"]},
        {"name": "c", "op": "DepthwiseConv2dNative", "input": ["b", "dw"]},
        {"name": "d", "op": "Mul", "input": ["c", "scale"]},
        {"name": "e", "op": "Add", "input": ["d", "shift"]},
    ]
    model = {
        "modelTopology": {"node": nodes},
        "weightsManifest": [{"paths": ["net.bin"], "weights": weights}],
    }
    path = folder / "net.json"
    path.write_text(json.dumps(model))
    return path


def test_convolutions_are_read_with_their_normalisation_folded_in(tmp_path: Path) -> None:
    """Kernels come in the order of the graph; a depthwise kernel is multiplied by the scale of its channel."""
    (pointwise, bias), (depthwise, shift) = read_convolutions(graph_file(tmp_path))
    assert pointwise.reshape(-1).tolist() == [1, 2, 3, 4, 5, 6]
    assert bias.tolist() == [7, 8]
    assert depthwise.shape == (3, 3, 2, 1)
    assert depthwise[0, 0, :, 0].tolist() == [9 * 27, 10 * 28]
    assert depthwise[2, 2, :, 0].tolist() == [25 * 27, 26 * 28]
    assert shift.tolist() == [29, 30]


def test_a_teacher_takes_the_faces_that_students_take() -> None:
    """Grey 48x48 in, seven logits out; 3.2 million weights."""
    network = build_mobilenet(MobileNet(), "teacher", None)
    assert network.input_shape == (None, 48, 48, 1)
    assert network.output_shape == (None, 7)
    assert 3_000_000 < network.count_params() < 3_500_000


@pytest.mark.parametrize(
    ("teacher", "names"),
    [
        (SMALL, ("stem", "block1_pointwise", "block2_depthwise", "logits")),
        (Inception(side=80), ("Conv2d_1a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "logits")),
    ],
    ids=["teacher", "inception"],
)
def test_the_first_layers_of_a_teacher_keep_their_weights(
    teacher: MobileNet | Inception, names: tuple[str, ...]
) -> None:
    """A step of fine-tuning moves the later layers and the head, by rates of their own, and not the frozen ones."""
    trainer = Trainer({"teacher": teacher}, FINE_TUNING)
    (network,) = trainer.networks
    before = {name: network.get_layer(name).get_weights()[0] for name in names}
    faces = np.random.default_rng(0).uniform(0, 255, (8, 48, 48, 1)).astype(np.float32)
    targets = np.eye(7, dtype=np.float32)[[0, 1, 2, 3, 4, 5, 6, 0]]
    trainer.train_step(faces, targets, progress=0.5)
    moved = {
        name: float(np.abs(network.get_layer(name).get_weights()[0] - before[name]).max()) for name in names
    }
    first, last_frozen, first_moving, head = names
    assert moved[first] == moved[last_frozen] == 0
    assert moved[first_moving] > 0
    # Adam's first step is as long as the learning rate, whatever the gradient.
    assert moved[head] == pytest.approx(FINE_TUNING.head_rate * moved[first_moving], rel=0.2)


def test_the_stem_sees_grey_as_three_equal_channels(tmp_path: Path) -> None:
    """The weights' kernel for colour is summed over its channels."""
    source = build_mobilenet(SMALL, "source", None)
    arrays: list[np.ndarray] = []
    nodes: list[dict[str, object]] = [{"name": "image", "op": "Placeholder"}]
    entries: list[dict[str, object]] = []
    kinds = {"Conv2D": "Conv2D", "DepthwiseConv2D": "DepthwiseConv2dNative"}
    for number, layer in enumerate(layer for layer in source.layers if type(layer).__name__ in kinds):
        kernel, bias = layer.get_weights()
        if layer.name == "stem":
            kernel = np.repeat(kernel, 3, axis=2) / 3
        for name, array in ((f"k{number}", kernel), (f"b{number}", bias)):
            arrays.append(array.astype("<f4"))
            entries.append({"name": name, "shape": list(array.shape), "dtype": "float32"})
        op = kinds[type(layer).__name__]
        nodes.append({"name": f"c{number}", "op": op, "input": ["x", f"k{number}"]})
        nodes.append({"name": f"a{number}", "op": "Add", "input": [f"c{number}", f"b{number}"]})
    (tmp_path / "w.bin").write_bytes(b"".join(array.tobytes() for array in arrays))
    manifest = [{"paths": ["w.bin"], "weights": entries}]
    path = tmp_path / "w.json"
    path.write_text(json.dumps({"modelTopology": {"node": nodes}, "weightsManifest": manifest}))
    loaded = build_mobilenet(SMALL, "loaded", path)
    loaded.get_layer("logits").set_weights(source.get_layer("logits").get_weights())
    faces = tf.constant(np.random.default_rng(1).uniform(0, 255, (2, 48, 48, 1)), tf.float32)
    assert loaded(faces).numpy() == pytest.approx(source(faces).numpy(), abs=1e-4)

"""A teacher for the emotion networks: MobileNet v1 that already knows faces, to be trained on for emotions.

FER2013 has 28,000 small faces, too few to learn from alone what a face is. The weights come from a network that
was trained on photos of persons (`models/sources/faceres.toml`). It takes nine times as long as the one that is served.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from models.dataset import EMOTIONS, INPUT_SIDE

# Channels and stride of each depthwise-separable block (Howard et al., "MobileNets", 2017, table 1).
_BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)
# The mean pixel of the photos it was trained on, over blue, green and red (Caffe's convention).
_MEAN = float(np.mean([103.939, 116.779, 123.68]))


@dataclass(frozen=True, slots=True)
class MobileNet:
    """How a teacher is made. Faces are enlarged to `side` pixels, because the weights expect large ones: the
    larger, the better and the slower. The first `frozen` blocks keep their weights: edges are edges."""

    side: int = 144
    frozen: int = 2
    dropout: float = 0.3


def build_mobilenet(teacher: MobileNet, name: str, weights: Path | None) -> keras.Model:
    """Build a teacher: float32 [n, 48, 48, 1] in 0..255 to logits [n, 7] in the order of EMOTIONS.

    `weights` is faceres-deep.json with faceres-deep.bin beside it; None leaves the weights random. The last layer
    is always untrained.
    """
    images = keras.Input((INPUT_SIDE, INPUT_SIDE, 1), name="images")
    x = keras.layers.Resizing(teacher.side, teacher.side, name="enlarge")(images)
    x = keras.layers.Rescaling(1.0, offset=-_MEAN, name="center")(x)
    x = keras.layers.Conv2D(32, 3, 2, padding="same", name="stem")(x)
    x = keras.layers.ReLU(6, name="stem_relu")(x)
    for number, (channels, stride) in enumerate(_BLOCKS):
        x = keras.layers.DepthwiseConv2D(3, stride, padding="same", name=f"block{number}_depthwise")(x)
        x = keras.layers.ReLU(6, name=f"block{number}_depthwise_relu")(x)
        x = keras.layers.Conv2D(channels, 1, name=f"block{number}_pointwise")(x)
        x = keras.layers.ReLU(6, name=f"block{number}_pointwise_relu")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.BatchNormalization(momentum=0.95, name="norm")(x)
    x = keras.layers.Dropout(teacher.dropout, name="dropout")(x)
    network = keras.Model(images, keras.layers.Dense(len(EMOTIONS), name="logits")(x), name=name)
    kinds = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
    convolutions = [layer for layer in network.layers if isinstance(layer, kinds)]
    if weights is not None:
        for layer, (kernel, bias) in zip(convolutions, read_convolutions(weights), strict=True):
            # The stem takes one grey channel: the same as three equal ones under the summed kernel.
            layer.set_weights([kernel.sum(axis=2, keepdims=True) if layer.name == "stem" else kernel, bias])
    for layer in convolutions[: 1 + 2 * teacher.frozen]:
        layer.trainable = False
    return network


def read_convolutions(topology: Path) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Yield kernel and bias of each convolution of a TensorFlow.js graph model, in the order of the graph.

    `topology` is its JSON file. A batch normalisation behind a depthwise convolution (Mul, Add) is folded in.
    Kernels are float32 [height, width, in, out], or [height, width, channels, 1] of a depthwise one.
    """
    model = json.loads(topology.read_text("utf-8"))
    constants = _constants(model, topology.parent)
    nodes: list[dict[str, Any]] = model["modelTopology"]["node"]
    after = {name: node for node in nodes for name in node.get("input", []) if name not in constants}
    for node in nodes:
        if node["op"] not in ("Conv2D", "DepthwiseConv2dNative"):
            continue
        kernel = constants[node["input"][1]]
        follower = after[node["name"]]
        if follower["op"] == "Mul":
            scale = _constant_of(follower, constants)
            kernel = kernel * scale.reshape(-1, 1)
            follower = after[follower["name"]]
        yield kernel, _constant_of(follower, constants).reshape(-1)


def _constant_of(node: dict[str, Any], constants: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    return next(constants[name] for name in node["input"] if name in constants)


def _constants(model: dict[str, Any], folder: Path) -> dict[str, NDArray[np.float32]]:
    constants = {}
    for group in model["weightsManifest"]:
        content = b"".join((folder / path).read_bytes() for path in group["paths"])
        offset = 0
        for entry in group["weights"]:
            shape = tuple(entry["shape"])
            count = int(np.prod(shape))
            constants[entry["name"]] = np.frombuffer(content, "<f4", count, offset).reshape(shape)
            offset += 4 * count
    return constants

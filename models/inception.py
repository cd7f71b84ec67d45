"""A teacher for the emotion networks: Inception-ResNet v1 that already knows faces, to be trained on for emotions.

The weights come from a network that tells persons apart (`models/sources/facenet.toml`): another one, and of another
kind, than that of `models.mobilenet`, so that the two make different mistakes and their mean fewer.
"""

from dataclasses import dataclass
from pathlib import Path

import h5py
import keras
import numpy as np
from numpy.typing import NDArray

from models.dataset import EMOTIONS, INPUT_SIDE

# Of the batch normalisations in the file, which have no scale.
_EPSILON = 1e-3
# The convolutions of a residual block's branches, by the last part of their names, which ends with height x width.
_POINT = ("1x1",)
_BLOCK35 = (_POINT, ("0a_1x1", "0b_3x3"), ("0a_1x1", "0b_3x3", "0c_3x3"))
_BLOCK17 = (_POINT, ("0a_1x1", "0b_1x7", "0c_7x1"))
_BLOCK8 = (_POINT, ("0a_1x1", "0b_1x3", "0c_3x1"))


@dataclass(frozen=True, slots=True)
class Inception:
    """How a teacher is made. Faces are enlarged to `side` pixels, because the weights expect large ones: the
    larger, the better and the slower; below 107 the last grid is a single pixel. The first `frozen` convolutions
    keep their weights: edges are edges."""

    side: int = 108
    frozen: int = 3
    dropout: float = 0.3


def build_inception(teacher: Inception, name: str, weights: Path | None) -> keras.Model:
    """Build a teacher: float32 [n, 48, 48, 1] in 0..255 to logits [n, 7] in the order of EMOTIONS.

    Widths and scales are those of the file, after Szegedy et al., "Inception-v4, Inception-ResNet and the impact of
    residual connections on learning", 2016; so are the names of the convolutions. `weights` is the file, HDF5 of Keras;
    None leaves the weights random. The last layer is always untrained.
    """
    images = keras.Input((INPUT_SIDE, INPUT_SIDE, 1), name="images")
    x = keras.layers.Resizing(teacher.side, teacher.side, name="enlarge")(images)
    # Each image by itself has a mean of zero and a standard deviation of one, as those had that it was trained on.
    x = keras.layers.LayerNormalization(axis=(1, 2, 3), center=False, scale=False, name="standardize")(x)
    x = _convolution(x, "Conv2d_1a_3x3", 32, stride=2, padding="valid")
    x = _convolution(x, "Conv2d_2a_3x3", 32, padding="valid")
    x = _convolution(x, "Conv2d_2b_3x3", 64)
    x = keras.layers.MaxPooling2D(3, 2)(x)
    x = _convolution(x, "Conv2d_3b_1x1", 80)
    x = _convolution(x, "Conv2d_4a_3x3", 192, padding="valid")
    x = _convolution(x, "Conv2d_4b_3x3", 256, stride=2, padding="valid")
    for number in range(1, 6):
        x = keras.layers.ReLU()(_residual(x, f"Block35_{number}", 32, _BLOCK35, 0.17))
    x = _reduction(x, "Mixed_6a", ((384,), (192, 192, 256)))
    for number in range(1, 11):
        x = keras.layers.ReLU()(_residual(x, f"Block17_{number}", 128, _BLOCK17, 0.1))
    x = _reduction(x, "Mixed_7a", ((256, 384), (256, 256), (256, 256, 256)))
    for number in range(1, 6):
        x = keras.layers.ReLU()(_residual(x, f"Block8_{number}", 192, _BLOCK8, 0.2))
    x = _residual(x, "Block8_6", 192, _BLOCK8, 1.0)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.BatchNormalization(momentum=0.95, name="norm")(x)
    x = keras.layers.Dropout(teacher.dropout, name="dropout")(x)
    network = keras.Model(images, keras.layers.Dense(len(EMOTIONS), name="logits")(x), name=name)
    convolutions = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    if weights is not None:
        with h5py.File(weights) as file:
            for layer in convolutions:
                kernel, bias = read_convolution(file["model_weights"], layer.name)
                # One grey channel: the same as three equal ones under the summed kernel.
                grey = kernel.sum(axis=2, keepdims=True) if layer is convolutions[0] else kernel
                layer.set_weights([grey, bias])
    for layer in convolutions[: teacher.frozen]:
        layer.trainable = False
    return network


def read_convolution(layers: h5py.Group, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return kernel, float32 [height, width, in, out], and bias, [out], of a convolution in the file.

    Where it has no bias, the batch normalisation behind it is folded in.
    """
    convolution = layers[name][name]
    kernel = convolution["kernel:0"][:]
    if "bias:0" in convolution:
        return kernel, convolution["bias:0"][:]
    norm = layers[f"{name}_BatchNorm"][f"{name}_BatchNorm"]
    factor = 1 / np.sqrt(norm["moving_variance:0"][:] + _EPSILON)
    return kernel * factor, norm["beta:0"][:] - norm["moving_mean:0"][:] * factor


def _convolution(
    x: keras.KerasTensor, name: str, channels: int, stride: int = 1, padding: str = "same"
) -> keras.KerasTensor:
    """A convolution with the kernel at the end of its name."""
    height, width = map(int, name.rpartition("_")[2].split("x"))
    return keras.layers.Conv2D(channels, (height, width), stride, padding, activation="relu", name=name)(x)


def _residual(
    x: keras.KerasTensor, name: str, channels: int, branches: tuple[tuple[str, ...], ...], scale: float
) -> keras.KerasTensor:
    """Add to x what branches of convolutions beside each other find, scaled."""
    ends = []
    for number, parts in enumerate(branches):
        end = x
        for part in parts:
            end = _convolution(end, f"{name}_Branch_{number}_Conv2d_{part}", channels)
        ends.append(end)
    found = keras.layers.Concatenate()(ends)
    found = keras.layers.Conv2D(x.shape[-1], 1, name=f"{name}_Conv2d_1x1")(found)
    return keras.layers.Add()([x, keras.layers.Rescaling(scale)(found)])


def _reduction(x: keras.KerasTensor, name: str, branches: tuple[tuple[int, ...], ...]) -> keras.KerasTensor:
    """Halve the grid: branches of these channels that end in a stride of two, and a pooling beside them."""
    ends = []
    for number, channels in enumerate(branches):
        end = x
        for part, width in zip(("0a_1x1", "0b_3x3"), channels[:-1], strict=False):
            end = _convolution(end, f"{name}_Branch_{number}_Conv2d_{part}", width)
        last = f"{name}_Branch_{number}_Conv2d_1a_3x3"
        ends.append(_convolution(end, last, channels[-1], stride=2, padding="valid"))
    return keras.layers.Concatenate()([*ends, keras.layers.MaxPooling2D(3, 2)(x)])

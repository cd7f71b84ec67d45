"""The INT8 form of a network: which values it can hold, and how it is trained to do well with them.

Everything between the pixels and the last average is a whole number of steps: activations of 0..255 steps behind a
ReLU and of -128..127 elsewhere, weights of -63..63, with a step of its own for each tensor, or each output channel of a
kernel. Training rounds in the forward pass and lets gradients through as if it had not (the straight-through estimator;
Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018). The
network that is saved is of Keras's own layers and operations, its kernels rounded already: it computes in
floating point what an integer kernel computes exactly.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from models.architecture import Variant
from models.dataset import EMOTIONS, INPUT_SIDE

# Seven bits: CPUs without VNNI add two products of an unsigned and a signed byte in 16 bits, and 2 x 255 x 64 fits.
LARGEST_WEIGHT = 63
LEAST_WEIGHT = 1e-4
_UNSIGNED, _SIGNED = (0, 255), (-128, 127)
# The candidates for a step are these shares of the one that holds the largest value seen.
_SHARES = np.linspace(0.2, 1.0, 41)
_BATCH = 64

Quantizer = Callable[[Any, str, tuple[int, int]], Any]


@dataclass(frozen=True, slots=True)
class Quantized:
    """A size of the network in INT8: `steps` has the step of each activation, by the name of its layer."""

    variant: Variant
    steps: Mapping[str, float]


def on_grid(kernel: tf.Tensor) -> tf.Tensor:
    """Round a kernel, float32 [height, width, in, out], to whole steps: a channel's largest weight is 63 of its own.

    A channel that training has let die, its largest weight below 1e-4, is zero: a bias is counted in its steps.
    """
    largest = tf.reduce_max(tf.abs(kernel), axis=(0, 1, 2), keepdims=True)
    step = tf.maximum(largest, LEAST_WEIGHT) / LARGEST_WEIGHT
    return tf.where(largest < LEAST_WEIGHT, 0.0, tf.round(kernel / step) * step)


class RoundedConvolution(keras.layers.Conv2D):  # type: ignore[misc]  # Keras has no types
    """A convolution that computes with its kernel on the grid and passes gradients to the kernel itself."""

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Convolve float32 [n, height, width, in] with the rounded kernel."""
        return super().convolution_op(inputs, kernel + tf.stop_gradient(on_grid(kernel) - kernel))


class RoundedActivation(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Rounds to whole steps within `bounds`; gradients pass within them as if nothing was rounded."""

    def __init__(self, step: float, bounds: tuple[int, int], name: str) -> None:
        super().__init__(name=name)
        self._step, self._bounds = step, bounds

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Round float32 of any shape."""
        steps = tf.clip_by_value(inputs * (1 / self._step), *self._bounds)
        return (steps + tf.stop_gradient(tf.round(steps) - steps)) * self._step


def build_quantized(quantized: Quantized, name: str, *, for_training: bool) -> keras.Model:
    """Build a network float32 [n, 48, 48, 1] in 0..255 to logits [n, 7], all weights in the order of the layers.

    That `for_training` rounds its kernels as it goes. The other consists of Keras's own parts and takes kernels
    that are `on_grid`. With the same weights both compute the same.
    """
    steps = quantized.steps

    def rounded(x: Any, layer: str, bounds: tuple[int, int]) -> Any:
        step = float(np.float32(steps[layer]))
        if for_training:
            return RoundedActivation(step, bounds, f"{layer}_rounded")(x)
        return keras.ops.round(keras.ops.clip(x * (1 / step), *bounds)) * step

    convolution = RoundedConvolution if for_training else keras.layers.Conv2D
    return _assemble(quantized.variant, name, convolution, rounded)


def _assemble(variant: Variant, name: str, convolution: type[Any], rounded: Quantizer) -> keras.Model:
    def convolve(x: Any, channels: int, size: int, stride: int, layer: str, bounds: tuple[int, int]) -> Any:
        x = convolution(channels, size, stride, padding="same", name=f"{layer}_conv")(x)
        return rounded(x, layer, bounds)

    images = keras.Input((INPUT_SIDE, INPUT_SIDE, 1), name="images")
    # A pixel is a byte already: 128 is zero, a step 1/128.
    features = keras.layers.Rescaling(1 / 128, offset=-1.0, name="scale")(images)
    features = convolve(features, variant.stem, 3, 2, "stem", _UNSIGNED)
    for stage, (channels, blocks) in enumerate(variant.stages):
        for block in range(blocks):
            layer = f"stage{stage}_block{block}"
            stride = 2 if stage and block == 0 else 1
            shortcut = features
            if stride > 1 or shortcut.shape[-1] != channels:
                # The average of four pixels and the 1x1 convolution behind it are one convolution, rounded once.
                shortcut = convolve(shortcut, channels, stride, stride, f"{layer}_shortcut", _SIGNED)
            features = convolve(features, channels, 3, stride, f"{layer}_a", _UNSIGNED)
            features = convolve(features, channels, 3, 1, f"{layer}_b", _SIGNED)
            added = keras.layers.Add(name=f"{layer}_add")([shortcut, features])
            features = rounded(added, layer, _UNSIGNED)
    features = keras.layers.GlobalAveragePooling2D(name="pool")(features)
    return keras.Model(images, keras.layers.Dense(len(EMOTIONS), name="logits")(features), name=name)


def quantize(
    network: keras.Model, variant: Variant, faces: NDArray[np.uint8], name: str
) -> tuple[Quantized, keras.Model]:
    """Return the INT8 form of a trained network for training: its normalisations are folded into the convolutions,
    its steps measured on `faces`, uint8 [n, 48, 48]. It answers nearly what `network` does.

    Raises KeyError or ValueError for a network that is none of `variant`.
    """
    quantized = Quantized(variant, measure_steps(network, faces))
    built = build_quantized(quantized, name, for_training=True)
    for layer in built.layers:
        if layer.name.endswith("_conv"):
            kernel, bias = _folded(network, layer.name.removesuffix("_conv"))
            size = layer.kernel_size[0]
            if size != kernel.shape[0]:
                kernel = np.tile(kernel, (size, size, 1, 1)) / size**2
            layer.set_weights([kernel, bias])
    built.get_layer("logits").set_weights(network.get_layer("logits").get_weights())
    kernel, bias = built.get_layer("stem_conv").get_weights()
    # From pixel / 127.5 - 1 to (pixel - 128) / 128.
    built.get_layer("stem_conv").set_weights(
        [kernel * (128 / 127.5), bias + kernel.sum((0, 1, 2)) * (0.5 / 127.5)]
    )
    return quantized, built


def rounded_for_good(trained: keras.Model, quantized: Quantized) -> keras.Model:
    """Return a network of Keras's own parts that computes what `trained`, built for training, does."""
    built = build_quantized(quantized, trained.name, for_training=False)
    for layer in built.layers:
        weights = trained.get_layer(layer.name).get_weights() if layer.get_weights() else []
        if layer.name.endswith("_conv"):
            kernel = on_grid(tf.constant(weights[0])).numpy()
            steps = input_step(quantized, layer.name.removesuffix("_conv")) * kernel_steps(kernel)
            weights = [kernel, (np.round(weights[1] / steps) * steps).astype(np.float32)]
        layer.set_weights(weights)
    return built


def kernel_steps(kernel: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the step of each output channel of a kernel, float32 [height, width, in, out]."""
    largest = np.abs(kernel).max((0, 1, 2)).astype(np.float64)
    return np.asarray(np.maximum(largest, LEAST_WEIGHT) / LARGEST_WEIGHT)


def input_step(quantized: Quantized, layer: str) -> float:
    """Return the step of what a convolution is given: a bias is a whole number of that times its kernel's."""
    if layer == "stem":
        return 1 / 128
    block, _, place = layer.rpartition("_")
    if place == "b":
        return quantized.steps[f"{block}_a"]
    # The block before it: of the same stage, the last of the one before, or the stem.
    names = ["stem"] + [
        f"stage{stage}_block{number}"
        for stage, (_, blocks) in enumerate(quantized.variant.stages)
        for number in range(blocks)
    ]
    return quantized.steps[names[names.index(block) - 1]]


def measure_steps(network: keras.Model, faces: NDArray[np.uint8]) -> dict[str, float]:
    """Return the step of each activation of a trained network that is not in INT8 yet: of those that hold up to
    the largest value on `faces`, uint8 [n, 48, 48], and smaller ones, the one with the least squared error.
    """
    kinds = {"relu": _UNSIGNED, "norm": _SIGNED}
    seen = {}
    names = {layer.name for layer in network.layers}
    for layer in network.layers:
        tensor, _, kind = layer.name.rpartition("_")
        # A normalisation before a ReLU is never rounded by itself: the ReLU's result is.
        if kind in kinds and not (kind == "norm" and f"{tensor}_relu" in names):
            seen[tensor] = (layer.output, kinds[kind])
    outputs = keras.Model(network.input, {tensor: output for tensor, (output, _) in seen.items()})
    values: dict[str, list[NDArray[np.float32]]] = {tensor: [] for tensor in seen}
    for start in range(0, len(faces), _BATCH):
        batch = tf.constant(faces[start : start + _BATCH, ..., None], tf.float32)
        for tensor, output in outputs(batch, training=False).items():
            # A prime stride takes from all channels and places alike.
            values[tensor].append(output.numpy().ravel()[::29])
    return {tensor: best_step(np.concatenate(values[tensor]), bounds) for tensor, (_, bounds) in seen.items()}


def best_step(values: NDArray[np.float32], bounds: tuple[int, int]) -> float:
    """Return the step with the least squared error for values float32 [n] that are rounded within `bounds`."""
    low, high = bounds
    largest = max(float(np.abs(values).max()), 1e-6) / high
    candidates = largest * _SHARES
    errors = [
        np.mean((np.clip(np.round(values / step), low, high) * step - values) ** 2) for step in candidates
    ]
    return float(candidates[int(np.argmin(errors))])


def _folded(network: keras.Model, layer: str) -> list[NDArray[np.float32]]:
    (kernel,) = network.get_layer(f"{layer}_conv").get_weights()
    normalization = network.get_layer(f"{layer}_norm")
    gamma, beta, mean, variance = normalization.get_weights()
    scale = gamma / np.sqrt(variance + normalization.epsilon)
    return [kernel * scale, beta - mean * scale]

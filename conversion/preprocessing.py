"""What the layers at a network's entry do to the pixels that it is given."""

from collections.abc import Callable
from typing import Any

import numpy as np

from conversion.tensorflow_quietly import keras

# Layers that leave pixels pixels, beside `Random...`: what comes behind them still sees the input's range.
_GEOMETRY_LAYERS = ("CenterCrop", "Cropping2D", "CutMix", "InputLayer", "MixUp", "Resizing", "ZeroPadding2D")
# What divides pixels by so much, or takes so much away from them, is for 0..255: in [0, 1] it would leave nothing.
_MOST_SCALE = 0.1
_LEAST_DEVIATION = 2
_LEAST_MEAN = 2
# Keras's own augmentations that draw numbers at inference, too, and use none: they would change their seed in a graph.
_DRAW_ALWAYS = (
    "MixUp",
    "RandomColorDegeneration",
    "RandomGrayscale",
    "RandomHue",
    "RandomPosterization",
    "RandomSaturation",
    "RandomSharpness",
)


def draw_in_training_only(model: Any) -> None:
    """Let the augmentations of a network, which do nothing at inference, draw nothing then either."""
    for layer in model._flatten_layers():
        if type(layer).__name__ in _DRAW_ALWAYS and type(layer).__module__.startswith("keras."):
            layer.get_random_transformation = _in_training_only(layer.get_random_transformation)


def _in_training_only(draw: Callable[..., Any]) -> Callable[..., Any]:
    return lambda data, training=True, seed=None: draw(data, training, seed) if training else None


def scales_itself(model: Any) -> bool:
    """Whether a Rescaling or Normalization of pixels in 0..255 sees the input's own, augmented, cropped or resized at
    most.

    One further on is part of the network, such as a temperature; one whose numbers are for pixels in [0, 1] is given
    what somebody has scaled before. What a subclassed model does first is not known.
    """
    pixels = {id(tensor) for tensor in getattr(model, "inputs", None) or ()}
    for node in _nodes(model):
        if not all(id(tensor) in pixels for tensor in node.input_tensors):
            continue
        if _takes_bytes(node.operation) or scales_itself(node.operation):
            return True
        if _keeps_pixels(node.operation):
            pixels |= {id(tensor) for tensor in node.outputs}
    return False


def _takes_bytes(layer: Any) -> bool:
    if isinstance(layer, keras.layers.Rescaling):
        scale, offset = np.abs(np.asarray(layer.scale)), np.abs(np.asarray(layer.offset))
        return bool((scale <= _MOST_SCALE).all() or (offset >= _LEAST_MEAN * scale).all())
    if isinstance(layer, keras.layers.Normalization) and not layer.invert:
        deviation, mean = np.sqrt(np.asarray(layer.variance)), np.abs(np.asarray(layer.mean))
        return bool((deviation >= _LEAST_DEVIATION).all() or (mean >= _LEAST_MEAN).all())
    return False


def _keeps_pixels(operation: Any) -> bool:
    inner = _nodes(operation)
    if inner:
        return all(_keeps_pixels(node.operation) for node in inner)
    name = type(operation).__name__
    return name.startswith("Random") or name in _GEOMETRY_LAYERS


def _nodes(model: Any) -> list[Any]:
    """Return the calls in the graph of a Sequential or Functional model, from its inputs on; none of anything else."""
    graph = getattr(model, "_functional", None) or model
    by_depth: dict[int, list[Any]] = getattr(graph, "_nodes_by_depth", {})
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]

"""The emotion network in Keras: a residual network of dense 3x3 convolutions over 48x48 grey faces.

Chosen by time on one core through ONNX Runtime, not by parameters: its convolutions work in blocks of 16
channels, so every width is a multiple of 16; dense convolutions reach about 55 G multiply-adds/s there where
depthwise and grouped ones of the same cost reach 40-48, and only dense ones gain from INT8.
"""

from dataclasses import dataclass
from typing import Any

import keras

from models.dataset import EMOTIONS, INPUT_SIDE


@dataclass(frozen=True, slots=True)
class Variant:
    """One size of the network: channels of the stem, then (channels, residual blocks) for each stage.

    The stem halves the image to 24x24; every stage but the first halves it again.
    """

    stem: int
    stages: tuple[tuple[int, int], ...]
    dropout: float = 0.0


# Sizes; `SERVED` is the one in modelo_emociones.keras, in its INT8 form (`models.quantization`).
VARIANTS = {
    "tiny": Variant(stem=16, stages=((16, 1), (32, 1), (64, 2), (96, 1))),
    "small": Variant(stem=16, stages=((16, 1), (48, 2), (96, 2), (128, 1))),
    "large": Variant(stem=32, stages=((32, 1), (64, 2), (128, 2), (256, 1)), dropout=0.2),
}
SERVED = "small"

# Within this share below the bound of doubt, a second look comes to count in full.
_BLENDING = 0.05


def build(
    variant: Variant, name: str, normalization: type[Any] = keras.layers.BatchNormalization
) -> keras.Model:
    """Build an untrained network: float32 [n, 48, 48, 1] in 0..255 to logits [n, 7] in the order of EMOTIONS.

    `normalization` is the class of the batch normalisation layers, with the same weights whichever it is.
    """
    images = keras.Input((INPUT_SIDE, INPUT_SIDE, 1), name="images")
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="scale")(images)
    features = _convolution(scaled, variant.stem, 3, 2, "stem", normalization)
    for stage, (channels, blocks) in enumerate(variant.stages):
        for block in range(blocks):
            stride = 2 if stage and block == 0 else 1
            features = _residual_block(
                features, channels, stride, f"stage{stage}_block{block}", normalization
            )
    features = keras.layers.GlobalAveragePooling2D(name="pool")(features)
    if variant.dropout:
        features = keras.layers.Dropout(variant.dropout, name="dropout")(features)
    return keras.Model(images, keras.layers.Dense(len(EMOTIONS), name="logits")(features), name=name)


def with_mirrored_look(network: keras.Model, unsure_below: float | None = None) -> keras.Model:
    """Return a network that shares `network`'s weights and gives the mean of its logits, [n, 7], for a face and for the
    face's mirror image. It takes nearly twice the time: both looks are one batch of twice the size.

    With `unsure_below`, 0..1, only where the highest probability of the first look is below that (the temperature is
    not in it yet); up to a twentieth below it the second look counts for less than half, so that no answer jumps.
    Keras computes both looks of every face all the same; what conversion makes of it does not
    (`conversion.second_look`).

    Raises ValueError for one without the layer `scale`: conversion has to find that at the input.
    """
    scaled = network.get_layer("scale").output
    looks = keras.layers.Concatenate(axis=0, name="looks")([scaled, scaled[:, :, ::-1]])
    said = keras.Model(scaled, network.output, name="look")(looks)
    both = keras.ops.reshape(said, (2, -1, len(EMOTIONS)))
    if unsure_below is None:
        return keras.Model(network.input, keras.ops.mean(both, axis=0), name=network.name)
    first, second = both[0], both[1]
    sure = keras.ops.max(keras.ops.softmax(first), axis=-1, keepdims=True)
    doubt = keras.ops.clip((unsure_below - sure) * (0.5 / (_BLENDING * unsure_below)), 0.0, 0.5)
    return keras.Model(network.input, first + (second - first) * doubt, name=network.name)


def with_temperature(network: keras.Model, temperature: float) -> keras.Model:
    """Return a network that shares `network`'s weights and gives probabilities, its logits divided by
    `temperature` first (Guo et al., "On Calibration of Modern Neural Networks", 2017)."""
    calibrated = keras.layers.Rescaling(1 / temperature, name="temperature")(network.output)
    probabilities = keras.layers.Softmax(name="probabilities")(calibrated)
    return keras.Model(network.input, probabilities, name=network.name)


def _convolution(
    x: Any, channels: int, size: int, stride: int, name: str, normalization: type[Any], *, relu: bool = True
) -> Any:
    x = keras.layers.Conv2D(
        channels,
        size,
        stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    x = normalization(momentum=0.95, epsilon=1e-5, name=f"{name}_norm")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x) if relu else x


def _residual_block(x: Any, channels: int, stride: int, name: str, normalization: type[Any]) -> Any:
    shortcut = x
    if stride > 1 or x.shape[-1] != channels:
        # Averaging before the 1x1 convolution keeps the three of four pixels that a stride would drop.
        if stride > 1:
            shortcut = keras.layers.AveragePooling2D(stride, padding="same", name=f"{name}_shrink")(shortcut)
        shortcut = _convolution(shortcut, channels, 1, 1, f"{name}_shortcut", normalization, relu=False)
    x = _convolution(x, channels, 3, stride, f"{name}_a", normalization)
    x = _convolution(x, channels, 3, 1, f"{name}_b", normalization, relu=False)
    return keras.layers.ReLU(name=f"{name}_relu")(keras.layers.Add(name=f"{name}_add")([shortcut, x]))

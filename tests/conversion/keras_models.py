"""Small Keras models of every kind, and the options that convert them."""

from pathlib import Path
from typing import Any

import numpy as np

from conversion.options import Options
from conversion.tensorflow_quietly import keras, tf

LABELS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
# The order of a network trained elsewhere.
SOURCE_LABELS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")

CUSTOM_MODEL = '''
"""A subclassed model and its custom layer, as a user would keep them in a file of their own."""

import keras


@keras.saving.register_keras_serializable(package="tests")
class Doubled(keras.layers.Layer):
    def call(self, inputs):
        return inputs * 2.0


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.convolution = keras.layers.Conv2D(8, 3, strides=2, activation="relu")
        self.normalisation = keras.layers.BatchNormalization()
        self.doubled = Doubled()
        self.pooling = keras.layers.GlobalAveragePooling2D()
        self.dense = keras.layers.Dense(7, activation="softmax")

    def call(self, images, training=False):
        features = self.normalisation(self.convolution(images), training=training)
        return self.dense(self.pooling(self.doubled(features)))

    def get_config(self):
        return super().get_config()
'''


def randomise(model: Any) -> Any:
    """Give every weight a random value, batch-norm statistics included: zeros and ones would hide faults."""
    random = np.random.RandomState(7)
    for weight in model.weights:
        shape = tuple(weight.shape)
        if weight.path.endswith(("moving_variance", "gamma")):
            value = random.uniform(0.5, 1.5, shape)
        elif weight.path.endswith(("kernel", "depthwise_kernel", "pointwise_kernel")):
            value = random.normal(0, 1.4 / np.sqrt(np.prod(shape[:-1])), shape)
        else:
            value = random.normal(0, 0.3, shape)
        if weight.dtype == "float32":
            weight.assign(value)
    return model


def gray_sequential() -> Any:
    """64x64 gray, softmax; separable convolutions and a flatten before a normalised dense layer."""
    layers = keras.layers
    return randomise(
        keras.Sequential(
            [
                keras.Input((48, 48, 1)),
                layers.Conv2D(8, 3, padding="same", use_bias=False),
                layers.BatchNormalization(),
                layers.ReLU(),
                layers.SeparableConv2D(8, 3, strides=2, padding="same"),
                layers.BatchNormalization(),
                layers.Activation("relu"),
                layers.MaxPooling2D(4),
                layers.Flatten(),
                layers.Dropout(0.5),
                layers.Dense(12),
                layers.BatchNormalization(),
                layers.Activation("relu"),
                layers.Dense(7, activation="softmax"),
            ]
        )
    )


def rgb_functional(*, logits: bool = True) -> Any:
    """96x96 RGB, logits by default; residual."""
    layers = keras.layers
    images = keras.Input((96, 96, 3))
    trunk = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(images)
    trunk = layers.BatchNormalization()(trunk)
    trunk = layers.Activation("relu")(trunk)
    branch = layers.DepthwiseConv2D(3, padding="same")(trunk)
    branch = layers.BatchNormalization()(branch)
    trunk = layers.Add()([trunk, branch])
    trunk = layers.AveragePooling2D(2)(trunk)
    trunk = layers.Conv2D(8, 3, activation="relu")(trunk)
    pooled = layers.GlobalAveragePooling2D()(trunk)
    scores = layers.Dense(7, activation=None if logits else "softmax")(pooled)
    return randomise(keras.Model(images, scores))


def subclassed(folder: Path) -> tuple[Path, Any]:
    """Write the module of a subclassed model and return its path and a built instance."""
    from conversion.sources import import_custom_layers

    module = folder / "custom_layers.py"
    module.write_text(CUSTOM_MODEL, "utf-8")
    import_custom_layers(module)
    model = keras.saving.get_registered_object("tests>Subclassed")()
    model(tf.zeros((1, 32, 40, 3)))
    return module, randomise(model)


def options(**entries: Any) -> Options:
    """Options with the class order of a foreign network and pixels in [0, 1], changed by `entries`."""
    return Options.parse(
        {"source_labels": list(SOURCE_LABELS), "scale": 1 / 255, "offset": 0.0, **entries}, "test"
    )

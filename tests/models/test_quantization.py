"""The INT8 form of a network computes in whole steps, answers what the network did, and can be trained."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.architecture import VARIANTS, Variant, build, with_temperature
from models.quantization import (
    LARGEST_WEIGHT,
    LEAST_WEIGHT,
    Quantized,
    RoundedActivation,
    best_step,
    build_quantized,
    input_step,
    kernel_steps,
    measure_steps,
    on_grid,
    quantize,
    rounded_for_good,
)
from models.training import predict_logits

SMALL = Variant(stem=16, stages=((16, 1), (32, 2)))

# Keras hands its variables to NumPy in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def faces(count: int = 64) -> np.ndarray:
    """Smooth images: blobs of noise, uint8 [count, 48, 48]."""
    coarse = np.random.default_rng(3).integers(0, 256, (count, 6, 6, 1)).astype(np.float32)
    return np.asarray(np.clip(tf.image.resize(coarse, (48, 48)).numpy()[..., 0], 0, 255), np.uint8)


def trained(variant: Variant = SMALL) -> keras.Model:
    """A network whose weights and batch statistics are as a training run would leave them."""
    keras.utils.set_random_seed(1)
    network = build(variant, "network")
    random = np.random.default_rng(2)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            count = layer.gamma.shape[0]
            statistics = [random.normal(0, 0.3, count), random.uniform(0.5, 1.5, count)]
            layer.set_weights([random.uniform(0.5, 1.5, count), random.normal(0, 0.3, count), *statistics])
    return network


def test_a_kernel_on_the_grid_is_whole_steps_of_its_channel() -> None:
    """63 steps for each channel's largest weight, at most half a step from what it was; a dead channel is zero."""
    kernel = np.random.default_rng(0).normal(0, 0.1, (3, 3, 8, 5)).astype(np.float32)
    kernel[..., 4] = LEAST_WEIGHT / 2
    rounded = on_grid(tf.constant(kernel)).numpy()
    whole = rounded / kernel_steps(rounded)
    assert np.abs(whole - np.round(whole)).max() < 1e-4
    assert np.abs(whole[..., :4]).max((0, 1, 2)) == pytest.approx(LARGEST_WEIGHT)
    assert (np.abs(rounded - kernel)[..., :4] <= kernel_steps(rounded)[:4] * 0.5001).all()
    assert not rounded[..., 4].any()


def test_gradients_pass_where_values_are_rounded_and_stop_where_they_are_clipped() -> None:
    """The straight-through estimator: 1 inside the bounds, 0 outside."""
    values = tf.constant([-3.0, 0.26, 0.5, 300.0])
    rounding = RoundedActivation(0.5, (0, 255), "rounded")
    with tf.GradientTape() as tape:
        tape.watch(values)
        rounded = rounding(values)
    assert rounded.numpy() == pytest.approx([0.0, 0.5, 0.5, 127.5])
    assert tape.gradient(rounded, values).numpy() == pytest.approx([0, 1, 1, 0])


def test_the_int8_form_answers_nearly_what_the_network_did() -> None:
    """Folding the normalisations, the pixels' scale and the shortcut's average changes nothing but the rounding."""
    network, images = trained(), faces()
    _, quantized = quantize(network, SMALL, images, "network")
    wanted, found = predict_logits(network, images), predict_logits(quantized, images)
    spread = wanted.std(axis=0).mean()
    assert np.abs(wanted - found).mean() < 0.1 * spread
    assert np.corrcoef(wanted.ravel(), found.ravel())[0, 1] > 0.99


def test_what_ships_computes_what_was_trained(tmp_path: Path) -> None:
    """The saved file needs none of our classes, and only its biases are rounded on top."""
    images = faces()
    quantized, network = quantize(trained(), SMALL, images, "network")
    path = tmp_path / "network.keras"
    with_temperature(rounded_for_good(network, quantized), 2.0).save(path)
    loaded = keras.saving.load_model(path, compile=False, safe_mode=True)
    wanted = tf.nn.softmax(predict_logits(network, images) / 2.0).numpy()
    assert np.abs(predict_logits(loaded, images) - wanted).max() < 0.02


def test_every_convolution_that_ships_is_given_whole_steps() -> None:
    """0..255 of its input's step, on any image; for the stem, pixels from -128 to 127."""
    quantized, network = quantize(trained(), SMALL, faces(), "network")
    shipped = rounded_for_good(network, quantized)
    noise = np.random.default_rng(1).integers(0, 256, (4, 48, 48, 1)).astype(np.float32)
    convolutions = [layer for layer in shipped.layers if isinstance(layer, keras.layers.Conv2D)]
    assert len(convolutions) == 8
    for layer in convolutions:
        name = layer.name.removesuffix("_conv")
        whole = keras.Model(shipped.input, layer.input)(noise).numpy() / input_step(quantized, name)
        assert np.abs(whole - np.round(whole)).max() < 1e-3
        low, high = (-128, 127) if name == "stem" else (0, 255)
        assert round(float(whole.min())) >= low
        assert round(float(whole.max())) <= high


def test_a_step_is_chosen_for_what_is_common_not_for_the_largest() -> None:
    """One value ten times as large as most is clipped, since its step would be coarse for the rest; alone it is not."""
    common = np.random.default_rng(0).normal(0, 1, 1_000_000).astype(np.float32)
    outlier = np.float32(20)
    assert best_step(np.append(common, outlier), (-128, 127)) * 127 < 10
    assert best_step(np.array([outlier]), (-128, 127)) * 127 == pytest.approx(20)


def test_each_rounded_activation_has_a_step_and_no_other() -> None:
    """Of a convolution with a ReLU it is the ReLU's result that is rounded, not what goes into it."""
    network, images = trained(), faces()
    steps = measure_steps(network, images)
    assert set(steps) == {
        "stem",
        "stage0_block0_a",
        "stage0_block0_b",
        "stage0_block0",
        "stage1_block0_shortcut",
        "stage1_block0_a",
        "stage1_block0_b",
        "stage1_block0",
        "stage1_block1_a",
        "stage1_block1_b",
        "stage1_block1",
    }
    values = keras.Model(network.input, network.get_layer("stem_relu").output)(
        images[..., None].astype(np.float32)
    ).numpy()
    assert np.percentile(values, 99) < steps["stem"] * 255 <= values.max() * 1.0001


@pytest.mark.parametrize("name", VARIANTS)
def test_every_size_has_an_int8_form_in_either_form_alike(name: str) -> None:
    """The form for training and the one that ships have the same weights in the same order."""
    steps = dict.fromkeys(measure_steps(build(VARIANTS[name], name), faces(4)), 0.05)
    size = Quantized(VARIANTS[name], steps)
    first, second = (build_quantized(size, name, for_training=training) for training in (True, False))
    assert [weight.shape for weight in first.get_weights()] == [
        weight.shape for weight in second.get_weights()
    ]

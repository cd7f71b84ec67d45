from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from models.inception import Inception, build_inception, read_convolution

SMALL = Inception(side=80)


def write_weights(path: Path, network: keras.Model) -> None:
    """The file that the weights of a network would have come from: each convolution that has an activation with a
    batch normalisation behind it, which shifts and scales, and the first one for colour."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for layer in network.layers:
            if not isinstance(layer, keras.layers.Conv2D):
                continue
            kernel, bias = layer.get_weights()
            if layer.name == "Conv2d_1a_3x3":
                kernel = np.repeat(kernel, 3, axis=2) / 3
            within = f"model_weights/{layer.name}/{layer.name}"
            if layer.activation is keras.activations.linear:
                file[f"{within}/bias:0"] = bias
            else:
                norm = f"model_weights/{layer.name}_BatchNorm/{layer.name}_BatchNorm"
                variance = rng.uniform(0.1, 3, bias.shape).astype(np.float32)
                mean = rng.normal(size=bias.shape).astype(np.float32)
                deviation = np.sqrt(variance + np.float32(1e-3))
                file[f"{norm}/moving_variance:0"] = variance
                file[f"{norm}/moving_mean:0"] = mean
                file[f"{norm}/beta:0"] = bias + mean / deviation
                kernel = kernel * deviation
            file[f"{within}/kernel:0"] = kernel


def test_a_normalisation_behind_a_convolution_is_folded_in(tmp_path: Path) -> None:
    """The kernel is divided by the deviation of its channel, and the mean taken off in the bias."""
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["a/a/kernel:0"] = np.full((1, 1, 1, 2), 6, np.float32)
        file["a_BatchNorm/a_BatchNorm/moving_variance:0"] = np.array([4, 9], np.float32) - 1e-3
        file["a_BatchNorm/a_BatchNorm/moving_mean:0"] = np.array([2, 3], np.float32)
        file["a_BatchNorm/a_BatchNorm/beta:0"] = np.array([10, 20], np.float32)
        kernel, bias = read_convolution(file, "a")
    assert kernel.reshape(-1) == pytest.approx([3, 2], rel=1e-6)
    assert bias == pytest.approx([9, 19], rel=1e-6)


def test_a_teacher_takes_the_faces_that_students_take() -> None:
    """Grey 48x48 in, seven logits out; 22.6 million weights; what it pools is more than one pixel."""
    network = build_inception(Inception(), "inception", None)
    assert network.input_shape == (None, 48, 48, 1)
    assert network.output_shape == (None, 7)
    assert network.get_layer("pool").input.shape == (None, 2, 2, 1792)
    assert 22_500_000 < network.count_params() < 22_600_000


def test_a_teacher_is_read_from_a_file_of_the_network_for_colour(tmp_path: Path) -> None:
    """With its normalisations folded in and the first kernel summed over its channels it says what was written."""
    keras.utils.set_random_seed(0)
    source = build_inception(SMALL, "source", None)
    write_weights(tmp_path / "w.h5", source)
    loaded = build_inception(SMALL, "loaded", tmp_path / "w.h5")
    loaded.get_layer("logits").set_weights(source.get_layer("logits").get_weights())
    faces = np.random.default_rng(1).uniform(0, 255, (2, 48, 48, 1)).astype(np.float32)
    said = source(faces).numpy()
    assert np.abs(said).max() > 0.1
    assert loaded(faces).numpy() == pytest.approx(said, abs=1e-4)

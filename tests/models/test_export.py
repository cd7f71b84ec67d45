from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.architecture import VARIANTS, build, with_mirrored_look
from models.calibration import fit_biases, fit_temperature, settle_temperature, short_of
from models.export import deflated, mean_weights
from models.quantization import on_grid


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_fit_finds_the_temperature_that_the_truth_was_drawn_at(temperature: float) -> None:
    """Truth drawn from the softmax of logits / T is best explained by T again."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 7)).astype(np.float32)
    # The Gumbel trick: the largest of logits plus Gumbel noise is a draw from their softmax.
    truth = (logits / temperature + rng.gumbel(size=logits.shape)).argmax(axis=1)
    assert fit_temperature(logits, truth) == pytest.approx(temperature, rel=0.05)


def test_a_face_that_the_network_is_far_too_sure_of_does_not_spoil_the_fit() -> None:
    """Its true class has a probability that float32 does not hold, at any temperature."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 7)).astype(np.float32)
    truth = (logits / 2 + rng.gumbel(size=logits.shape)).argmax(axis=1)
    logits[0, truth[0]] = -500
    assert fit_temperature(logits, truth) == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("fitted", [0.95, 1.05])
def test_the_temperature_settles_where_confidence_is_accuracy(fitted: float) -> None:
    """From wherever it was fitted; and no further than a tenth away, whatever is there."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(30_000, 7)).astype(np.float32)
    truth = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    assert settle_temperature(logits, truth, fitted) == pytest.approx(1, rel=0.03)
    assert settle_temperature(logits, truth, 2 * fitted) == pytest.approx(1.8 * fitted)


def test_a_rare_emotion_gets_the_least_bias_that_finds_more_than_half_of_its_faces() -> None:
    """Two of four rare faces are found from a bias of 0.5 on, three from 1.0; the common emotion keeps its logits."""
    logits = np.zeros((8, 2), np.float32)
    logits[:4, 0] = [0.2, 0.45, 0.95, 3.0]  # how far the rare class is behind on its own faces
    logits[4:, 0] = 2.5
    truth = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    assert fit_biases(logits, truth) == pytest.approx([0.0, 1.0])


def test_a_bias_that_another_one_undoes_is_raised_again() -> None:
    """The second class loses its faces to the third; what it is given takes the first's faces from it, so that gets
    more."""
    rows = [[1.0, 1.02, 0.0]] * 4 + [[0.0, 1.0, 1.25]] * 4 + [[0.0, 0.0, 3.0]] * 9
    truth = np.repeat([0, 1, 2], [4, 4, 9])
    logits = np.array(rows, np.float32)
    biases = fit_biases(logits, truth)
    assert biases == pytest.approx([0.4, 0.3, 0.0])
    assert not short_of(logits + biases, truth)


def test_two_emotions_that_cannot_both_be_found_are_not_raised_for_nothing() -> None:
    """Each needs more than the other: the biases stay the least with which one of them is found, and it is told which
    is not."""
    logits = np.array([[1.0, 1.02, 0.0]] * 4 + [[1.25, 1.0, 0.0]] * 6, np.float32)
    truth = np.repeat([0, 1], [4, 6])
    biases = fit_biases(logits, truth)
    assert biases == pytest.approx([0.1, 0.4, 0.0])
    assert short_of(logits + biases, truth) == {0: 0.0}


def test_an_emotion_that_no_bias_finds_is_left_as_it_is() -> None:
    """What helps nobody is not added: the others would only lose faces to it."""
    logits = np.array([[1.0, 9.0]] * 4 + [[1.0, 1.5]] * 4, np.float32)
    assert not fit_biases(logits, np.repeat([0, 1], [4, 4])).any()


def test_an_emotion_without_faces_keeps_its_logits() -> None:
    assert not fit_biases(np.ones((3, 4), np.float32), np.zeros(3, np.int64)).any()


def test_the_weights_of_several_cycles_are_averaged_one_by_one() -> None:
    """Each weight is the mean of its own values; networks of different sizes are refused."""
    first = [np.array([1.0, 2.0], np.float32), np.array([[4.0]], np.float32)]
    second = [np.array([3.0, 6.0], np.float32), np.array([[0.0]], np.float32)]
    kernel, bias = mean_weights([first, second])
    assert kernel.tolist() == [2, 4]
    assert bias.tolist() == [[2]]
    assert kernel.dtype == np.float32
    with pytest.raises(ValueError, match="shorter"):
        mean_weights([first, second[:1]])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_deflated_network_is_smaller_and_the_same(tmp_path: Path) -> None:
    """Keras loads the same weights from it."""
    network, path = build(VARIANTS["tiny"], "tiny"), tmp_path / "tiny.keras"
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D):
            layer.set_weights([on_grid(tf.constant(layer.get_weights()[0])).numpy()])
    network.save(path)
    stored = path.stat().st_size
    path.write_bytes(deflated(network))
    assert path.stat().st_size < 0.8 * stored
    loaded = keras.saving.load_model(path, compile=False)
    for before, after in zip(network.get_weights(), loaded.get_weights(), strict=True):
        assert (before == after).all()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_mirrored_look_is_the_mean_of_both_after_saving_too(tmp_path: Path) -> None:
    """A face and its mirror image get the same logits: the mean of what the network says of either."""
    network, faces = build(VARIANTS["tiny"], "tiny"), np.random.default_rng(0).uniform(0, 255, (3, 48, 48, 1))
    # What a network says before any training is nearly the same for all faces.
    network.get_layer("logits").set_weights([np.eye(96, 7, dtype=np.float32) * 100, np.zeros(7, np.float32)])
    path = tmp_path / "mirrored.keras"
    path.write_bytes(deflated(with_mirrored_look(network)))
    loaded = keras.saving.load_model(path, compile=False)
    said, of_mirrored = (np.asarray(network(each)) for each in (faces, faces[:, :, ::-1]))
    assert np.abs(said - of_mirrored).max() > 0.01
    for each in (faces, faces[:, :, ::-1]):
        assert np.asarray(loaded(each)) == pytest.approx((said + of_mirrored) / 2, abs=1e-4)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_second_look_counts_only_where_the_first_is_unsure(tmp_path: Path) -> None:
    """Sure faces get what the network says of them alone, unsure ones the mean of both looks, and what is between
    changes without a jump: with a bound a little higher no answer is another by much."""
    keras.utils.set_random_seed(1)
    network = build(VARIANTS["tiny"], "tiny")
    network.get_layer("logits").set_weights([np.eye(96, 7, dtype=np.float32), np.zeros(7, np.float32)])
    squares = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 1))
    faces = np.kron(squares, np.ones((1, 12, 12, 1))).astype(np.float32)
    first, mirrored = (np.asarray(network(each)) for each in (faces, faces[:, :, ::-1]))
    highest = np.asarray(keras.ops.softmax(first)).max(axis=1)
    bound = float(np.quantile(highest, 0.6))
    path = tmp_path / "unsure.keras"
    path.write_bytes(deflated(with_mirrored_look(network, bound)))
    said = np.asarray(keras.saving.load_model(path, compile=False)(faces))
    sure, unsure = highest >= bound, highest < 0.95 * bound
    assert said[sure] == pytest.approx(first[sure], abs=1e-4)
    assert said[unsure] == pytest.approx((first + mirrored)[unsure] / 2, abs=1e-4)
    assert 20 < sure.sum() < 40
    assert unsure.sum() > 5
    higher = np.asarray(with_mirrored_look(network, bound * 1.001)(faces))
    assert np.abs(higher - said).max() < 0.05 * np.abs(mirrored - first).max()

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.architecture import SERVED, VARIANTS, Variant, build, with_temperature
from models.recipe import Recipe
from models.training import (
    FusedBatchNormalization,
    Trainer,
    batches,
    epoch_order,
    predict_logits,
    settle,
    settle_statistics,
    steps_per_epoch,
)

ROOT = Path(__file__).parents[2]
MINUTE = Variant(stem=16, stages=((16, 1),))


def patterns(count: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Bright-above and bright-below images in turn, with certain targets `happy` and `sad`."""
    images = np.full((count, 48, 48), 40, np.uint8)
    images[::2, :24] = 220
    images[1::2, 24:] = 220
    targets = np.zeros((count, 7), np.float32)
    targets[::2, 3] = targets[1::2, 5] = 1
    return images, targets


@pytest.mark.parametrize("name", VARIANTS)
def test_every_size_maps_grey_faces_to_seven_logits_in_channels_of_sixteen(name: str) -> None:
    """Widths are multiples of 16, the block of ONNX Runtime's AVX-512 convolutions."""
    network = build(VARIANTS[name], name)
    assert network.input_shape == (None, 48, 48, 1)
    assert network.output_shape == (None, 7)
    convolutions = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    assert all(layer.filters % 16 == 0 for layer in convolutions)


def test_the_served_network_fits_in_the_repository() -> None:
    """Some 0.7 million weights that are whole steps, deflated."""
    assert (ROOT / "models" / "modelo_emociones.keras").stat().st_size < 2_500_000
    assert build(VARIANTS[SERVED], SERVED).count_params() < 1_000_000


def test_the_fused_normalisation_agrees_with_kerass_own() -> None:
    """Training output and the statistics it gathers are those of the layer it stands in for.

    The fused operation gathers the unbiased variance (n / (n - 1)), which for n = 256 is 0.4 % more.
    """
    inputs = tf.constant(np.random.default_rng(0).normal(3, 2, (4, 8, 8, 16)).astype(np.float32))
    fused, plain = FusedBatchNormalization(momentum=0.9), keras.layers.BatchNormalization(momentum=0.9)
    difference = np.abs(fused(inputs, training=True).numpy() - plain(inputs, training=True).numpy())
    assert difference.max() < 1e-2
    for name in ("moving_mean", "moving_variance"):
        ours, theirs = getattr(fused, name).numpy(), getattr(plain, name).numpy()
        assert ours == pytest.approx(theirs, rel=5e-3)
    assert fused(inputs).numpy() == pytest.approx(plain(inputs).numpy(), abs=1e-2)


def test_a_student_and_its_teacher_learn_a_simple_pattern() -> None:
    """After a few dozen steps both averaged networks tell bright-above from bright-below."""
    keras.utils.set_random_seed(1)
    images, targets = patterns()
    recipe = Recipe(epochs=1, average_decay=0.8, peak_rate=0.05)
    trainer = Trainer({"teacher": MINUTE, "student": MINUTE}, recipe)
    batch = images[..., None].astype(np.float32)
    losses = [trainer.train_step(batch, targets, step / 40) for step in range(40)]
    assert len(losses[0]) == 2
    for index, network in enumerate(trainer.averaged):
        assert losses[-1][index] < losses[0][index] / 2
        assert (predict_logits(network, images).argmax(axis=1) == targets.argmax(axis=1)).all()


def test_a_mirrored_look_is_taught_as_it_is_exported() -> None:
    """The loss is that of the mean logits of both looks, and so the same for a batch that is mirrored."""
    keras.utils.set_random_seed(1)
    images, targets = patterns()
    images[:, :, :24] //= 2
    start = build(MINUTE, "one")
    batch = images[..., None].astype(np.float32)
    losses = {}
    for mirrored in (False, True):
        for view, faces in (("as it is", batch), ("mirrored", batch[:, :, ::-1])):
            trainer = Trainer({"one": MINUTE}, Recipe(mirrored=mirrored))
            trainer.start_from({"one": start})
            losses[mirrored, view] = trainer.train_step(faces, targets, 0.5)[0]
    assert losses[True, "as it is"] == pytest.approx(losses[True, "mirrored"], rel=1e-5)
    assert losses[False, "as it is"] != pytest.approx(losses[False, "mirrored"], rel=1e-3)


@pytest.mark.parametrize("size", [MINUTE, replace(MINUTE, dropout=0.5)], ids=["plain", "dropout"])
def test_a_resumed_run_goes_on_exactly_where_it_stopped(size: Variant, tmp_path: Path) -> None:
    """Weights, averages, momentum and what dropout draws next come back: the next step gives the same networks."""
    images, targets = patterns()
    batch = images[..., None].astype(np.float32)
    keras.utils.set_random_seed(2)
    trainer = Trainer({"one": size}, Recipe())
    for _ in range(3):
        trainer.train_step(batch, targets, 0.5)
    saved = trainer.checkpoint.save(tmp_path / "checkpoint")
    trainer.train_step(batch, targets, 0.5)
    resumed = Trainer({"one": size}, Recipe())
    resumed.checkpoint.restore(saved).assert_consumed()
    assert int(resumed.step.numpy()) == 3
    resumed.train_step(batch, targets, 0.5)
    for expected, got in zip(trainer.averaged[0].weights, resumed.averaged[0].weights, strict=True):
        assert got.numpy() == pytest.approx(expected.numpy(), abs=1e-5)


def test_another_cycle_starts_from_the_trained_weights() -> None:
    """Both the trained and the averaged copy take them over; a network that nobody trained yet starts anew."""
    trained = build(MINUTE, "trained")
    trainer = Trainer({"new": MINUTE, "one": MINUTE}, Recipe())
    untouched = trainer.networks[0].get_weights()
    trainer.start_from({"one": trained})
    for network, weights in zip(
        (*trainer.networks, *trainer.averaged), (untouched, trained.get_weights()) * 2, strict=True
    ):
        for expected, got in zip(weights, network.get_weights(), strict=True):
            assert np.array_equal(expected, got)


def test_rare_emotions_are_drawn_more_often() -> None:
    """An epoch holds every row, those of an oversampled emotion several times, in an order of its own."""
    targets = np.eye(7, dtype=np.float32)[[0, 1, 3, 4]]
    recipe = Recipe(oversample=(1, 4, 2, 1, 1, 1, 1))
    order = epoch_order(targets, recipe, 0)
    assert sorted(order.tolist()) == [0, 1, 1, 1, 1, 2, 3]
    assert order.tolist() != epoch_order(targets, recipe, 1).tolist()


def test_an_epochs_batches_can_be_made_again() -> None:
    """Same recipe and epoch, same batches: what makes a resumed run equal to an uninterrupted one."""
    images, targets = patterns(40)
    recipe = Recipe(batch_size=16, epochs=2)
    first, again = list(batches(images, targets, recipe, 0)), list(batches(images, targets, recipe, 0))
    assert len(first) == steps_per_epoch(targets, recipe) == 2
    for (a, _), (b, _) in zip(first, again, strict=True):
        assert np.array_equal(a, b)


def test_the_temperature_divides_the_logits() -> None:
    """The exported network gives the softmax of its logits over the temperature, and the same classes."""
    network = build(MINUTE, "one")
    images, _ = patterns(4)
    faces = tf.constant(images[..., None], tf.float32)
    logits = network(faces, training=False) / 2.5
    probabilities = with_temperature(network, 2.5)(faces, training=False).numpy()
    assert probabilities == pytest.approx(tf.nn.softmax(logits).numpy(), abs=1e-6)


def test_settled_statistics_are_those_of_the_batches() -> None:
    """The first normalisation's mean is that of what reaches it, over all batches; its scale and shift stay."""
    network = build(MINUTE, "one")
    rng = np.random.default_rng(4)
    batches = [rng.uniform(0, 255, (16, 48, 48, 1)).astype(np.float32) for _ in range(3)]
    before = network.get_layer("stem_norm").get_weights()
    settle_statistics(network, batches)
    gamma, beta, mean, variance = network.get_layer("stem_norm").get_weights()
    reaching = keras.Model(network.input, network.get_layer("stem_conv").output)
    features = np.concatenate([reaching(batch).numpy() for batch in batches])
    assert mean == pytest.approx(features.mean(axis=(0, 1, 2)), abs=1e-3)
    assert variance == pytest.approx(features.var(axis=(0, 1, 2)), rel=0.05)
    assert np.array_equal(gamma, before[0])
    assert np.array_equal(beta, before[1])
    assert network.get_layer("stem_norm").momentum == 0.95
    with pytest.raises(ValueError, match="no batch"):
        settle_statistics(network, [])


def test_an_averaged_network_settles_on_the_faces_that_it_is_given() -> None:
    """Its statistics are those of these faces, lightly augmented, wherever they were before."""
    images, targets = patterns()
    networks = [build(MINUTE, "one") for _ in range(2)]
    networks[1].set_weights(networks[0].get_weights())
    norm = networks[1].get_layer("stem_norm")
    gamma, beta, mean, variance = norm.get_weights()
    norm.set_weights([gamma, beta, mean + 9, variance * 4])
    for network in networks:
        settle(network, images, targets, Recipe(batch_size=16))
    for mine, theirs in zip(
        norm.get_weights(), networks[0].get_layer("stem_norm").get_weights(), strict=True
    ):
        assert mine == pytest.approx(theirs, abs=1e-5)
    assert not np.array_equal(norm.get_weights()[2], mean)

"""The training loop: one or several networks on the same augmented batches, the first teaching the others.

Nothing here touches files or the command line. `batches` is pure in its seed; `Trainer` owns the networks, their
averaged copies and the optimiser, and everything that a checkpoint must hold is in `Trainer.checkpoint`.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from models.architecture import Variant, build
from models.augmentation import LIGHT, augment_batch
from models.dataset import EMOTIONS, DataError
from models.inception import Inception, build_inception
from models.labels import Labels
from models.mobilenet import MobileNet, build_mobilenet
from models.quantization import Quantized, build_quantized
from models.recipe import Recipe, is_light, learning_rate

# Faces, [batch_size, height, width, 1] in 0..255, and their targets, [batch_size, 7] in the order of EMOTIONS.
Batch = tuple[NDArray[np.float32], NDArray[np.float32]]
Size = Variant | MobileNet | Inception | Quantized

_BATCHES_AHEAD = 6
# Ten thousand faces in batches of 128, and of a teacher's 48 four thousand.
_SETTLING_BATCHES = 80
_ASKED_AT_ONCE = 64


def epoch_order(targets: NDArray[np.float32], recipe: Recipe, epoch: int) -> NDArray[np.int64]:
    """Return the shuffled row numbers of one epoch, rare emotions as often as `oversample` says.

    `targets` is [n, 7]; a row's emotion is its largest.
    """
    repeats = np.asarray(recipe.oversample)[targets.argmax(axis=1)]
    order = np.repeat(np.arange(len(targets)), repeats)
    return np.random.default_rng([recipe.seed, epoch]).permutation(order)


def steps_per_epoch(targets: NDArray[np.float32], recipe: Recipe) -> int:
    """How many full batches an epoch has; the rest of the shuffled rows is left for another epoch.

    Raises DataError when it has none.
    """
    rows = len(epoch_order(targets, recipe, 0))
    if rows < recipe.batch_size:
        raise DataError(f"an epoch of {rows} faces is less than a batch of {recipe.batch_size}")
    return rows // recipe.batch_size


def batches(
    images: NDArray[np.uint8],
    targets: NDArray[np.float32],
    recipe: Recipe,
    epoch: int,
    labels: Labels | None = None,
) -> Iterator[Batch]:
    """Yield the augmented batches of one epoch, made ahead in a thread beside the training step.

    `images` is [n, height, width], `targets` [n, 7].
    The same recipe and epoch give the same batches, so a resumed run sees what an uninterrupted one would. With
    a teacher's `labels` the epochs take turns over the views that it has labelled, mirrored in every second
    turn, and the targets are a blend of its probabilities and the annotators'.
    """
    light = is_light(recipe, epoch)
    if labels is None:
        yield from view(images, targets, recipe, epoch, light)
        return
    of_views = labels.light if light else labels.strong
    turn, number = divmod(epoch, len(of_views))
    start = 0
    for faces, votes in view(images, targets, recipe, number, light):
        if turn % 2:
            faces = faces[:, :, ::-1]
        taught = of_views[number, start : start + len(faces)].astype(np.float32)
        start += len(faces)
        yield faces, recipe.teaching * taught + (1 - recipe.teaching) * votes


def view(
    images: NDArray[np.uint8], targets: NDArray[np.float32], recipe: Recipe, number: int, light: bool
) -> Iterator[Batch]:
    """Yield the batches of one view of all faces: shuffled and augmented by the recipe's seed and `number`.

    `images` is [n, height, width], `targets` [n, 7]; where `light`, the augmentation is LIGHT and not the recipe's.
    """
    how = LIGHT if light else recipe.augmentation
    order = epoch_order(targets, recipe, number)
    count = steps_per_epoch(targets, recipe)

    def make(batch: int) -> Batch:
        rows = order[batch * recipe.batch_size : (batch + 1) * recipe.batch_size]
        rng = np.random.default_rng([recipe.seed, number, batch])
        return augment_batch(images[rows], targets[rows], how, rng)

    with ThreadPoolExecutor(1, thread_name_prefix="augment") as executor:
        ahead: list[Future[Batch]] = [
            executor.submit(make, batch) for batch in range(min(_BATCHES_AHEAD, count))
        ]
        for batch in range(count):
            made = ahead.pop(0).result()
            if batch + _BATCHES_AHEAD < count:
                ahead.append(executor.submit(make, batch + _BATCHES_AHEAD))
            yield made


class FusedBatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]  # Keras has no types
    """Batch normalisation over the last axis that trains through TensorFlow's fused operation.

    Keras 3 composes it of separate operations, which made a step on a CPU 1.3x slower. The weights and what it
    does at inference are those of the layer it extends.
    """

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Normalise float32 [n, height, width, channels], by the batch's own statistics when `training`."""
        if not training:
            return super().call(inputs, training=False, mask=mask)
        empty = tf.zeros([0])
        normalized, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma,
            offset=self.beta,
            mean=empty,
            variance=empty,
            epsilon=self.epsilon,
            is_training=True,
        )
        self.moving_mean.assign(self.moving_mean * self.momentum + mean * (1 - self.momentum))
        self.moving_variance.assign(self.moving_variance * self.momentum + variance * (1 - self.momentum))
        return normalized


class Trainer:
    """Trains networks that give logits, all on the same batches.

    The first network learns from the annotators' vote shares alone. The others learn from a blend of those and of
    its probabilities for the very same augmented face (Hinton et al., 2015; Beyer et al., "Knowledge
    distillation: a good teacher is patient and consistent", 2022), at the price of no extra forward pass.
    Where the batches come with a teacher's labels (`labelled`), all networks learn from these alike.
    `averaged[i]` follows `networks[i]` as an exponential moving average of its weights and batch statistics: it
    is what gets evaluated and exported. `weights` is the file that a pretrained teacher starts from.
    """

    def __init__(
        self,
        variants: Mapping[str, Size],
        recipe: Recipe,
        *,
        labelled: bool = False,
        weights: Path | None = None,
    ) -> None:
        self.recipe = recipe
        self._labelled = labelled
        self.networks = [
            _build(variant, name, FusedBatchNormalization, weights) for name, variant in variants.items()
        ]
        self.averaged = [
            _build(variant, name, keras.layers.BatchNormalization, None) for name, variant in variants.items()
        ]
        for averaged, network in zip(self.averaged, self.networks, strict=True):
            averaged.set_weights(network.get_weights())
        trainable = [variable for network in self.networks for variable in network.trainable_variables]
        heads = [variable for variable in trainable if variable.path.split("/")[0] in ("norm", "logits")]
        bodies = [variable for variable in trainable if all(variable is not head for head in heads)]
        # One optimiser for each group of variables that has a rate of its own.
        self._variables = [bodies, heads] if recipe.head_rate != 1 else [trainable]
        self._optimizers = [_optimizer(recipe, variables) for variables in self._variables]
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.epoch = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.checkpoint = tf.train.Checkpoint(
            networks=self.networks,
            averaged=self.averaged,
            optimizers=self._optimizers,
            # Keras keeps what dropout draws next beside a network's weights: a checkpoint of the network lacks it.
            seeds=[
                layer.seed_generator.state
                for network in self.networks
                for layer in network.layers
                if isinstance(layer, keras.layers.Dropout)
            ],
            step=self.step,
            epoch=self.epoch,
        )
        self._graph = tf.function(self._train_step, autograph=False)

    def start_from(self, networks: Mapping[str, keras.Model]) -> None:
        """Take over the weights of trained networks of the same names, for another cycle.

        Raises ValueError for one of another size.
        """
        for mine, averaged in zip(self.networks, self.averaged, strict=True):
            if mine.name in networks:
                for network in (mine, averaged):
                    network.set_weights(networks[mine.name].get_weights())

    def train_step(
        self, images: NDArray[np.float32], targets: NDArray[np.float32], progress: float
    ) -> list[float]:
        """Take one step on a batch; return each network's loss against the annotators' vote shares.

        `images` is float32 [n, height, width, 1] in 0..255, `targets` [n, 7], `progress` the share of the run
        that lies behind.
        """
        rate = learning_rate(self.recipe, progress)
        for optimizer, factor in zip(self._optimizers, (1.0, self.recipe.head_rate), strict=False):
            optimizer.learning_rate.assign(rate * factor)
        step = int(self.step.numpy())
        # An average that starts from nothing would take thousands of steps to forget the random weights.
        decay = min(self.recipe.average_decay, (1 + step) / (10 + step))
        # A teacher that knows nothing yet teaches nothing: its weight grows during the warm-up.
        teaching = self.recipe.teaching * min(1.0, progress / max(self.recipe.warmup_share, 1e-9))
        if self._labelled:
            teaching = 0.0
        losses = self._graph(
            tf.constant(images), tf.constant(targets), tf.constant(decay), tf.constant(teaching)
        )
        self.step.assign_add(1)
        return [float(loss) for loss in losses.numpy()]

    def _train_step(
        self, images: tf.Tensor, targets: tf.Tensor, decay: tf.Tensor, teaching: tf.Tensor
    ) -> tf.Tensor:
        losses = []
        total = tf.constant(0.0)
        with tf.GradientTape() as tape:
            taught = targets
            for index, network in enumerate(self.networks):
                logits = _logits(network, images, self.recipe.mirrored)
                blend = targets if index == 0 else teaching * taught + (1 - teaching) * targets
                total += tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(blend, logits))
                losses.append(tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits)))
                if index == 0:
                    taught = tf.stop_gradient(tf.nn.softmax(logits))
        for optimizer, variables, gradients in zip(
            self._optimizers, self._variables, tape.gradient(total, self._variables), strict=True
        ):
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
        for averaged, network in zip(self.averaged, self.networks, strict=True):
            for slow, fast in zip(averaged.weights, network.weights, strict=True):
                slow.assign(slow * decay + fast * (1 - decay))
        return tf.stack(losses)


def _logits(network: keras.Model, images: tf.Tensor, mirrored: bool) -> tf.Tensor:
    """What a network in training says of faces [n, h, w, 1], [n, 7]; `mirrored`, the mean with their mirror images."""
    if not mirrored:
        return network(images, training=True)
    said = network(tf.concat([images, images[:, :, ::-1]], axis=0), training=True)
    return tf.reduce_mean(tf.reshape(said, (2, -1, len(EMOTIONS))), axis=0)


def _build(size: Size, name: str, normalization: type[Any], weights: Path | None) -> keras.Model:
    if isinstance(size, MobileNet):
        return build_mobilenet(size, name, weights)
    if isinstance(size, Inception):
        return build_inception(size, name, weights)
    if isinstance(size, Quantized):
        return build_quantized(size, name, for_training=True)
    return build(size, name, normalization)


def _optimizer(recipe: Recipe, variables: list[keras.Variable]) -> keras.Optimizer:
    if recipe.adaptive:
        optimizer = keras.optimizers.AdamW(
            learning_rate=recipe.peak_rate, weight_decay=recipe.weight_decay, global_clipnorm=2.0
        )
    else:
        optimizer = keras.optimizers.SGD(
            learning_rate=recipe.peak_rate,
            momentum=recipe.momentum,
            nesterov=True,
            weight_decay=recipe.weight_decay,
        )
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    optimizer.build(variables)
    return optimizer


def settle(
    network: keras.Model, images: NDArray[np.uint8], targets: NDArray[np.float32], recipe: Recipe
) -> None:
    """Give a network with averaged weights batch statistics of its own, of lightly augmented faces, in place.

    `images` is [n, height, width], `targets` [n, 7]. Raises DataError where they make no batch of the recipe's.
    """
    light = view(images, targets, recipe, number=0, light=True)
    settle_statistics(network, (faces for faces, _ in islice(light, _SETTLING_BATCHES)))


def settle_statistics(network: keras.Model, batches: Iterable[NDArray[np.float32]]) -> None:
    """Set the means and variances of all batch normalisation to their averages over `batches`, in place.

    Those that a network with averaged weights inherits belong to other weights (Izmailov et al., 2018, section 3.2).
    Each batch is float32 [n, height, width, 1] in 0..255. Raises ValueError without any.
    """
    layers = [each for each in network.layers if isinstance(each, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in layers]
    seen: list[list[NDArray[np.float32]]] = []
    for layer in layers:
        layer.momentum = 0.0  # each batch's own statistics, as they are
    for batch in batches:
        network(tf.constant(batch), training=True)
        seen.append([statistic for layer in layers for statistic in layer.get_weights()[2:]])
    if not seen:
        raise ValueError("no batch to gather statistics from")
    settled = [np.mean(same, axis=0, dtype=np.float32) for same in zip(*seen, strict=True)]
    for number, (layer, momentum) in enumerate(zip(layers, momenta, strict=True)):
        layer.set_weights([*layer.get_weights()[:2], *settled[2 * number : 2 * number + 2]])
        layer.momentum = momentum


def predict_logits(network: keras.Model, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the logits, float32 [n, 7], of faces uint8 [n, height, width]."""
    graph = tf.function(lambda batch: network(batch, training=False), autograph=False)
    logits = [
        graph(tf.constant(images[start : start + _ASKED_AT_ONCE, ..., None], tf.float32)).numpy()
        for start in range(0, len(images), _ASKED_AT_ONCE)
    ]
    return np.concatenate(logits) if logits else np.zeros((0, len(EMOTIONS)), np.float32)

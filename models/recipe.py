"""What a training run does, apart from its data and networks: plain values and the learning rate over time."""

import math
from dataclasses import dataclass

from models.augmentation import MEDIUM, STRONG, Augmentation


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a run does, apart from data and networks.

    `oversample` says how many times a face of each emotion is drawn in an epoch (in the order of EMOTIONS): FER+
    has some 200 disgusted faces in 25,000. `light_share` is the last part of the run, with light augmentation.
    `teaching` is the weight of the teacher's probabilities against the annotators' in the students' loss.
    With `adaptive`, AdamW takes the steps and not SGD with momentum; `head_rate` multiplies the rate of the last
    layers of a network whose others are trained already. Where `mirrored`, the mean of the logits of a face and of
    its mirror image is taught, as `models.architecture.with_mirrored_look` gives it, for twice the time.
    """

    epochs: int = 60
    batch_size: int = 128
    peak_rate: float = 0.1
    warmup_share: float = 0.12
    momentum: float = 0.9
    weight_decay: float = 5e-3
    average_decay: float = 0.998
    teaching: float = 0.6
    light_share: float = 0.12
    oversample: tuple[int, ...] = (1, 4, 2, 1, 1, 1, 1)
    augmentation: Augmentation = STRONG
    adaptive: bool = False
    head_rate: float = 1.0
    mirrored: bool = False
    seed: int = 20260101


# Networks that come with weights, and the source of these (`models.sources`).
PRETRAINED = {"teacher": "faceres", "inception": "facenet"}

# For a network that comes with weights: small steps, or it forgets what it knows.
FINE_TUNING = Recipe(
    epochs=8,
    batch_size=48,
    peak_rate=8e-5,
    weight_decay=0.02,
    augmentation=MEDIUM,
    light_share=0.2,
    adaptive=True,
    head_rate=12.0,
)

# For the INT8 form of a trained network: it only has to find the nearest weights that are whole steps.
QUANTIZING = Recipe(epochs=8, peak_rate=0.005, average_decay=0.995)


def is_light(recipe: Recipe, epoch: int) -> bool:
    """Whether an epoch, counted from 0, is one of the last part of the run, with light augmentation."""
    return epoch >= recipe.epochs * (1 - recipe.light_share)


def learning_rate(recipe: Recipe, progress: float) -> float:
    """One cycle: linear up to `peak_rate` within `warmup_share` of the run, then half a cosine down to zero.

    `progress` is the share of the run that lies behind, 0..1.
    """
    if progress < recipe.warmup_share:
        return recipe.peak_rate * (0.05 + 0.95 * progress / recipe.warmup_share)
    rest = (progress - recipe.warmup_share) / (1 - recipe.warmup_share)
    return recipe.peak_rate * 0.5 * (1 + math.cos(math.pi * rest))

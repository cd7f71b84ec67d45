"""Training-time changes to grey faces: what a camera, a codec and a face detector do to them.

All functions take a numpy Generator and are deterministic in it. One face costs some 60 µs of one core, so an
epoch of FER2013 is augmented in about two seconds, in a thread beside the training step.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

_INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How strongly to change faces. Probabilities are per face; the rest are the ends of uniform ranges.

    About zero, both ways: `rotation_degrees`; `scale`, `contrast` and `gamma`, natural logarithms of a factor and of an
    exponent (0.18 is 0.84 to 1.2 times); `shift`, in shares of a side; `shear`, in pixels aside per pixel down;
    `brightness`, in grey levels of 255. A face is shrunk to `smallest_side` pixels or more; `jpeg_quality` is from the
    one to below the other; a mixup's weight is drawn from Beta(`mixup_alpha`, `mixup_alpha`).

    The geometry stands for the jitter of a detector's box and for tilted heads; resampling, JPEG and blur for far
    faces and cheap cameras; erasing for hands, hair and masks.
    """

    rotation_degrees: float = 15.0
    scale: float = 0.18
    shift: float = 0.08
    shear: float = 0.10
    contrast: float = 0.35
    brightness: float = 35.0
    gamma: float = 0.3
    resample_probability: float = 0.25
    smallest_side: int = 16
    jpeg_probability: float = 0.20
    jpeg_quality: tuple[int, int] = (25, 90)
    blur_probability: float = 0.12
    noise_probability: float = 0.10
    erase_probability: float = 0.40
    mixup_probability: float = 0.35
    mixup_alpha: float = 0.4


STRONG = Augmentation()
# For a second cycle over networks that already generalise: they underfit what the strong one makes of a face.
MEDIUM = Augmentation(
    rotation_degrees=12.0,
    scale=0.12,
    shift=0.06,
    shear=0.06,
    contrast=0.25,
    brightness=25.0,
    gamma=0.2,
    resample_probability=0.15,
    smallest_side=18,
    jpeg_probability=0.12,
    blur_probability=0.08,
    noise_probability=0.06,
    erase_probability=0.30,
    mixup_probability=0.15,
    mixup_alpha=0.3,
)
# For the last epochs: closer to what will be served, so that the batch statistics and confidences settle there.
LIGHT = Augmentation(
    rotation_degrees=10.0,
    scale=0.12,
    shift=0.06,
    shear=0.05,
    resample_probability=0.15,
    erase_probability=0.0,
    mixup_probability=0.0,
)


def augment(image: Image, how: Augmentation, rng: np.random.Generator) -> Image:
    """Return a changed copy of one face, uint8 [h, w]."""
    image = _warp(image, how, rng)
    if rng.random() < how.resample_probability:
        image = _resample(image, how.smallest_side, rng)
    if rng.random() < how.blur_probability:
        image = _as_image(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.2)))
    image = _relight(image, how, rng)
    if rng.random() < how.noise_probability:
        noise = rng.normal(0, rng.uniform(2, 10), image.shape)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    if rng.random() < how.jpeg_probability:
        quality = int(rng.integers(*how.jpeg_quality))
        encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        image = _as_image(cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE))
    if rng.random() < how.erase_probability:
        _erase(image, rng)
    return image


def augment_batch(
    images: Image, targets: NDArray[np.float32], how: Augmentation, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return changed faces, float32 [n, h, w, 1] in 0..255, and their targets [n, 7], mixed up in part.

    Mixup (Zhang et al., 2018): a face and its target are blended with another of the batch by the same weight.
    """
    faces = np.stack([augment(image, how, rng) for image in images])[..., None].astype(np.float32)
    weight = rng.beta(how.mixup_alpha, how.mixup_alpha, len(faces)).astype(np.float32)
    weight = np.maximum(weight, 1 - weight)
    weight[rng.random(len(faces)) >= how.mixup_probability] = 1
    other = rng.permutation(len(faces))
    mixed = weight[:, None, None, None] * faces + (1 - weight)[:, None, None, None] * faces[other]
    return mixed, weight[:, None] * targets + (1 - weight)[:, None] * targets[other]


def _as_image(array: object) -> Image:
    return np.asarray(array, np.uint8)


def _warp(image: Image, how: Augmentation, rng: np.random.Generator) -> Image:
    """Flip, turn, scale, shear and shift about the image's centre, in one resampling."""
    height, width = image.shape
    angle = np.deg2rad(rng.uniform(-how.rotation_degrees, how.rotation_degrees))
    scale = np.exp(rng.uniform(-how.scale, how.scale))
    shear = rng.uniform(-how.shear, how.shear)
    flip = -1.0 if rng.random() < 0.5 else 1.0
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = scale * rotation @ np.array([[flip, shear], [0.0, 1.0]])
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    shift = rng.uniform(-how.shift, how.shift, 2) * (width, height)
    matrix = np.column_stack([linear, centre + shift - linear @ centre])
    border = cv2.BORDER_REPLICATE if rng.random() < 0.5 else cv2.BORDER_REFLECT_101
    return _as_image(
        cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=border)
    )


def _resample(image: Image, smallest_side: int, rng: np.random.Generator) -> Image:
    """Shrink to a random side and blow up again: a far face, or one resized by somebody else's software."""
    height, width = image.shape
    side = int(rng.integers(smallest_side, height))
    down, up = rng.choice(_INTERPOLATIONS[1:], 2)
    small = cv2.resize(image, (side, side), interpolation=int(down))
    return _as_image(cv2.resize(small, (width, height), interpolation=int(up)))


def _relight(image: Image, how: Augmentation, rng: np.random.Generator) -> Image:
    """Contrast about mid-grey, brightness and gamma, through one lookup table."""
    levels = np.arange(256) / 255.0
    levels = levels ** np.exp(rng.uniform(-how.gamma, how.gamma))
    contrast = np.exp(rng.uniform(-how.contrast, how.contrast))
    table = (levels * 255 - 128) * contrast + 128 + rng.uniform(-how.brightness, how.brightness)
    return _as_image(np.clip(table, 0, 255).astype(np.uint8)[image])


def _erase(image: Image, rng: np.random.Generator) -> None:
    """Cover a random rectangle with noise or a flat grey, in place (Zhong et al., Random Erasing, 2017)."""
    height, width = image.shape
    area = rng.uniform(0.02, 0.2) * height * width
    ratio = np.exp(rng.uniform(np.log(0.4), np.log(2.5)))
    rows, columns = (
        min(height, max(1, int((area * ratio) ** 0.5))),
        min(width, max(1, int((area / ratio) ** 0.5))),
    )
    top, left = int(rng.integers(0, height - rows + 1)), int(rng.integers(0, width - columns + 1))
    flat = rng.random() < 0.5
    patch = rng.integers(0, 256) if flat else rng.integers(0, 256, (rows, columns))
    image[top : top + rows, left : left + columns] = patch

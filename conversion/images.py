"""Images to compare two models on: noise, a bundled portrait, and faces that the caller gives.

All are uint8 [N, height, width, channels] with channels 1 (gray) or 3 (RGB), the form that models take.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from conversion.arrays import ArraysError, read_arrays
from conversion.errors import OptionError

Images = npt.NDArray[np.uint8]
# [N, classes]; each row sums to 1.
Probabilities = npt.NDArray[np.float32]
Geometry = tuple[int, int, int]

# A 128x128 crop of the portrait of astronaut Eileen Collins, NASA 1999, public domain.
PORTRAIT = Path(__file__).with_name("portrait.png")
# FILE.npz[:PREFIX]; a folder may have such a name within its path.
_ARRAYS = re.compile(r"(.*\.npz)(?::[^/\\]*)?", re.IGNORECASE | re.DOTALL)
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images with, for each, the index of its class in `labels`."""

    images: Images
    classes: npt.NDArray[np.int64]
    labels: tuple[str, ...]


def random_images(count: int, geometry: Geometry, seed: int = 0) -> Images:
    """Return uniform noise; the same for a seed on every machine and with every NumPy."""
    # RandomState's stream is frozen by NumPy's compatibility policy; Generator's is not.
    noise = np.random.RandomState(seed).randint(0, 256, (count, *geometry), np.uint8)
    return np.asarray(noise, np.uint8)


def portrait_variants(geometry: Geometry, count: int = 32) -> Images:
    """Return the bundled portrait cropped, mirrored, brightened and darkened in `count` different ways."""
    portrait = _read(PORTRAIT)
    variants = []
    for index in range(count):
        side = 128 - 8 * (index % 5)
        x, y = (3 * index) % (129 - side), (5 * index) % (129 - side)
        crop = portrait[y : y + side, x : x + side]
        if index % 2:
            crop = crop[:, ::-1]
        # Contrast in sixteenths and brightness in steps: integers, so that every machine rounds alike.
        contrast, brightness = 10 + 3 * (index % 4), 24 * (index // 4 % 5 - 2)
        pixels = crop.astype(np.int32) * contrast // 16 + brightness
        variants.append(fit(np.clip(pixels, 0, 255).astype(np.uint8), geometry))
    return np.stack(variants)


def fit(image: Images, geometry: Geometry) -> Images:
    """Scale one gray [h, w] or [h, w, 1] or RGB [h, w, 3] image to `geometry`, in its colour."""
    height, width, channels = geometry
    if channels == 1 and image.ndim == 3 and image.shape[2] == 3:
        image = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY).astype(np.uint8)
    elif channels == 3 and (image.ndim == 2 or image.shape[2] == 1):
        image = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_GRAY2RGB).astype(np.uint8)
    if image.shape[:2] != (height, width):
        # The one interpolation that OpenCV promises to be bit-exact on every CPU.
        scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
        image = scaled.astype(np.uint8)
    return np.ascontiguousarray(image.reshape(geometry))


def _read(path: Path) -> Images:
    # Not cv2.imread: it cannot open a name outside the system's code page on Windows, and only warns.
    try:
        decoded = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR_RGB)
    except OSError as error:
        raise OptionError(f"{path}: {error.strerror}") from None
    except cv2.error:  # An empty file, or one that claims to be larger than OpenCV allows.
        decoded = None
    if decoded is None:
        raise OptionError(f"{path}: not an image that OpenCV can read")
    return decoded.astype(np.uint8)


def load_faces(where: str, geometry: Geometry, most: int) -> Images:
    """Load faces from a folder of image files, or from `FILE.npz[:PREFIX]` (array `x` or `PREFIX_x`).

    Of more than `most`, evenly spaced ones are taken. Raises OptionError where there are none.
    """
    if _ARRAYS.fullmatch(where):
        faces = _arrays(where, ["x"])["x"]
        return _fit_all(faces[spread(len(faces), most)], geometry)
    files = sorted(path for path in _folder(where).rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise OptionError(f"{where}: no image files ({', '.join(sorted(_SUFFIXES))})")
    return np.stack([fit(_read(files[index]), geometry) for index in spread(len(files), most)])


def spread(count: int, most: int) -> npt.NDArray[np.int64]:
    """At most `most` of the numbers below `count`, from first to last: files are in the order of their labels."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def load_labelled(where: str, geometry: Geometry, labels: Sequence[str]) -> LabelledImages:
    """Load labelled faces: a folder with one subfolder per label, or `FILE.npz[:PREFIX]`.

    The .npz holds `x` (images), `y` (class numbers) and, without prefix, `classes` (the names of the class
    numbers, in order). Raises OptionError for a class that is not among `labels`.
    """
    if _ARRAYS.fullmatch(where):
        arrays = _arrays(where, ["x", "y", "classes"])
        names = [str(name) for name in arrays["classes"].ravel()]
        images = _fit_all(arrays["x"], geometry)
        if arrays["y"].dtype.kind not in "iu" or arrays["y"].shape != (len(images),):
            raise OptionError(
                f"{where}: class numbers are {arrays['y'].dtype} {list(arrays['y'].shape)}; expected whole numbers"
                f" [{len(images)}], one for each image"
            )
        numbers = arrays["y"].astype(np.int64)
    else:
        folder = _folder(where)
        files = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in _SUFFIXES)
        if not files:
            raise OptionError(f"{where}: no image files in subfolders named by their label")
        names = sorted({path.parent.name for path in files})
        numbers = np.array([names.index(path.parent.name) for path in files], np.int64)
        images = np.stack([fit(_read(path), geometry) for path in files])
    unknown = sorted(set(names) - set(labels))
    if unknown:
        raise OptionError(f"{where}: class {unknown[0]!r} is not one of the model's: {', '.join(labels)}")
    if not 0 <= numbers.min() <= numbers.max() < len(names):
        wrong = numbers.min() if numbers.min() < 0 else numbers.max()
        raise OptionError(f"{where}: class number {wrong} among {len(names)} classes")
    ours = np.array([list(labels).index(name) for name in names], np.int64)
    return LabelledImages(images, ours[numbers], tuple(labels))


def _folder(where: str) -> Path:
    folder = Path(where)
    if not folder.is_dir():
        raise OptionError(f"{where}: neither a folder of images nor a .npz file")
    return folder


def faces_path(where: str) -> Path:
    """Return the folder or the .npz file of `where`, which may end in a prefix (`FILE.npz:PREFIX`)."""
    return Path(where[: _end_of_path(where)])


def _end_of_path(where: str) -> int:
    found = _ARRAYS.fullmatch(where)
    return found.end(1) if found else len(where)


def _arrays(where: str, names: list[str]) -> dict[str, npt.NDArray[Any]]:
    path, prefix = faces_path(where), where[_end_of_path(where) :].removeprefix(":")
    keys = {name: f"{prefix}_{name}" if prefix and name != "classes" else name for name in names}
    try:
        found, present = read_arrays(path, keys.values())
    except ArraysError as error:
        raise OptionError(f"{path}: {error}") from None
    missing = [key for key in keys.values() if key not in found]
    if missing:
        raise OptionError(f"{path}: no array named {missing[0]!r} (it has {', '.join(present)})")
    images = found[keys["x"]]
    if (
        images.dtype != np.uint8
        or not images.size
        or images.shape[3:] not in ((), (1,), (3,))
        or images.ndim < 3
    ):
        raise OptionError(
            f"{where}: images are {images.dtype} {list(images.shape)}; expected uint8 [N, h, w], [N, h, w, 1] or"
            " [N, h, w, 3]"
        )
    return {name: found[key] for name, key in keys.items()}


def _fit_all(images: Images, geometry: Geometry) -> Images:
    return np.stack([fit(image, geometry) for image in images])

"""What a teacher says of every training face, seen in several augmented ways: `label` asks, `training` learns from it.

A student that learns from these labels sees the very same pixels as its teacher did (Beyer et al., "Knowledge
distillation: a good teacher is patient and consistent", 2022). The pixels are not stored: recipe, seed and number
of a view make them again.
"""

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conversion.arrays import ArraysError, read_arrays
from conversion.atomic import write_atomically
from models.dataset import EMOTIONS, DataError, Split
from models.recipe import Recipe, is_light

# What the pixels of a view depend on, of all that a recipe says.
_OF_VIEWS = ("batch_size", "oversample", "augmentation", "seed")


@dataclass(frozen=True, slots=True)
class Labels:
    """A teacher's probabilities, float16 [views, faces of a view, 7], for views with the recipe's own augmentation
    (`strong`) and for light ones, each in the order in which a view has its faces; there may be none of one kind."""

    strong: NDArray[np.float16]
    light: NDArray[np.float16]


def save_labels(path: Path, labels: Labels, recipe: Recipe, faces: Split) -> None:
    """Write labels and what their views depend on, recipe and faces, as an .npz file: complete or not at all.

    Raises ConversionError.
    """
    content = io.BytesIO()
    np.savez(
        content,
        strong=labels.strong,
        light=labels.light,
        recipe=np.array(fingerprint(recipe)),
        faces=np.array(faces_digest(faces)),
    )
    write_atomically(path, content.getvalue())


def load_labels(path: Path, recipe: Recipe, faces: Split) -> Labels:
    """Read labels. Raises DataError when the file is unreadable or holds something else, when `recipe` or `faces` make
    other views than the ones that were labelled, or when the run has epochs of a kind of which none was."""
    names = ("strong", "light", "recipe", "faces")
    try:
        found, _ = read_arrays(path, names)
    except ArraysError as error:
        raise DataError(f"{path}: {error}") from error
    if found.keys() != set(names):
        raise DataError(f"{path}: not a file of labels (it lacks {', '.join(set(names) - found.keys())})")
    if str(found["recipe"]) != fingerprint(recipe):
        raise DataError(f"{path}: labels views of another recipe: {found['recipe']}")
    if str(found["faces"]) != faces_digest(faces):
        raise DataError(f"{path}: these labels are for other faces")
    for name in ("strong", "light"):
        views = found[name]
        form = views.dtype.kind == "f" and views.shape[2:] == (len(EMOTIONS),)
        if not form or not np.isfinite(views).all():
            raise DataError(
                f"{path}: {name} must be finite floats [views, faces, {len(EMOTIONS)}], got {views.dtype}"
                f" {list(views.shape)}"
            )
    labels = Labels(found["strong"], found["light"])
    phases = {is_light(recipe, epoch) for epoch in (0, recipe.epochs - 1)}
    for light, views, remedy in (
        (False, labels.strong, "--light-share 1"),
        (True, labels.light, "--light-share 0"),
    ):
        if light in phases and not len(views):
            kind = "lightly" if light else "strongly"
            raise DataError(
                f"{path}: labels no {kind} augmented views, and the run has such epochs: {remedy}"
            )
    return labels


def faces_digest(faces: Split) -> str:
    """Return a sha256, in hex, of the images and votes of a split."""
    digest = hashlib.sha256()
    for array in (faces.images, faces.votes):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def fingerprint(recipe: Recipe) -> str:
    """Return what the pixels of a view depend on, of all that a recipe says, as JSON."""
    values = asdict(recipe)
    return json.dumps({name: values[name] for name in _OF_VIEWS})

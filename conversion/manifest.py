"""The manifest beside a model, `<model>.manifest.json`: what was converted, how, and what was proven.

It also holds reference answers: what the source network said about a few images that every machine can make
for itself. A model whose hash was recorded after a wrong conversion is still caught by these.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from conversion.errors import VerificationError
from conversion.images import Geometry, Images, Probabilities, portrait_variants, random_images

SCHEMA = 1
_REFERENCE_IMAGES = 8
_REFERENCE_SEED = 20250101
# Answers are kept to this many decimals: far below every threshold, and equal on every machine but for ties.
_DECIMALS = 6


def manifest_path(model: Path) -> Path:
    """Return where the manifest of `model` is: the model's file name with `.manifest.json` appended."""
    return model.with_name(model.name + ".manifest.json")


def reference_images(geometry: Geometry) -> Images:
    """Return the images whose answers a manifest holds: 8 of noise, 8 variants of the bundled portrait."""
    noise = random_images(_REFERENCE_IMAGES, geometry, _REFERENCE_SEED)
    return np.concatenate([noise, portrait_variants(geometry, _REFERENCE_IMAGES)])


def reference_entry(images: Images, answers: Probabilities) -> dict[str, Any]:
    """Return the `reference` entry: a hash over the images, and the source's answers to them."""
    rounded = np.round(answers.astype(np.float64), _DECIMALS)
    return {"images_sha256": _digest(images), "probabilities": rounded.tolist()}


def serialise_manifest(manifest: dict[str, Any]) -> bytes:
    """Return the file's bytes: keys sorted, nothing in it but `manifest`."""
    return (json.dumps(manifest, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest; raise VerificationError when it is missing, unreadable or of another schema."""
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise VerificationError(
            f"{path}: {error.strerror}; convert the model again to get its manifest"
        ) from None
    except ValueError as error:
        raise VerificationError(f"{path}: not JSON ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise VerificationError(f"{path}: not a manifest of schema {SCHEMA}")
    return manifest


def expected_answers(manifest: dict[str, Any], images: Images) -> npt.NDArray[np.float32]:
    """Return the reference answers, [N, classes], for `images`, which must be those of `reference_images`.

    Raises VerificationError where the manifest's are others.
    """
    entry = manifest["reference"]
    if entry["images_sha256"] != _digest(images):
        raise VerificationError("the reference images made here differ from those in the manifest")
    return np.array(entry["probabilities"], np.float32)


def _digest(images: Images) -> str:
    digest = hashlib.sha256(json.dumps(list(images.shape)).encode())
    digest.update(np.ascontiguousarray(images).tobytes())
    return digest.hexdigest()

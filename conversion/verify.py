"""Check a model against its manifest, without TensorFlow, ONNX and its source."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from conversion.digests import sha256_of
from conversion.errors import GraphError, VerificationError
from conversion.images import Geometry
from conversion.manifest import expected_answers, manifest_path, read_manifest, reference_images
from conversion.onnxfile import INPUT, OUTPUT, PREFIX
from conversion.parity import Parity, Thresholds, compare, failures
from conversion.sessions import open_session, run


@dataclass(frozen=True, slots=True)
class Verified:
    """A model that is what its manifest says. `parity` is on the manifest's reference images."""

    model: Path
    model_sha256: str
    source_sha256: str
    version_tag: str
    precision: str
    parity: Parity

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON can hold it."""
        return {
            "model": str(self.model),
            "model_sha256": self.model_sha256,
            "source_sha256": self.source_sha256,
            "version_tag": self.version_tag,
            "precision": self.precision,
            "reference": asdict(self.parity),
        }


def verify(model: Path, manifest: Path | None = None, source: Path | None = None) -> Verified:
    """Check `model`, and raise VerificationError with the reason for the first thing that is wrong.

    In this order: the model is there; the manifest is there and readable; the model's sha256 is the manifest's;
    so is the source's, if a source is given; ONNX Runtime loads the model; its metadata, input and output are those
    of the manifest; it gives the source network's answers, as the manifest holds them, within the manifest's
    thresholds; the parity that the manifest reports kept those thresholds too.
    """
    try:
        model.stat()
    except OSError as error:
        raise VerificationError(f"{model}: {error.strerror}") from None
    entries = read_manifest(manifest or manifest_path(model))
    try:
        if entries["metadata"].get("kind") == "detector":
            raise VerificationError(
                f"{model}: a face detector, whose manifest has no answers to check; `python -m models convert` compares"
                " its hashes, and converts it again where they differ"
            )
        return _verify(model, entries, source)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise VerificationError(f"{model}: the manifest lacks or garbles an entry: {error}") from None


def _verify(model: Path, manifest: dict[str, Any], source: Path | None) -> Verified:
    _check_hash(model, manifest["model_sha256"], "model")
    if source is not None:
        _check_hash(source, manifest["source_sha256"], "source")
    try:
        session = open_session(model)
    except GraphError as error:
        raise VerificationError(f"{model}: {error}") from None
    _check_metadata(model, session, manifest)
    size = manifest["specification"]
    geometry = (size["height"], size["width"], 1 if size["color"] == "gray" else 3)
    _check_ends(model, session, geometry, len(size["labels"]))
    thresholds = Thresholds(**manifest["thresholds"])
    images = reference_images(geometry)
    try:
        answers = run(session, images)
    except GraphError as error:
        raise VerificationError(f"{model}: {error}") from None
    parity = compare(expected_answers(manifest, images), answers)
    failed = failures(parity, thresholds)
    if failed:
        raise VerificationError(f"{model}: does not answer like its source: {'; '.join(failed)}")
    for name, figures in manifest["parity"].items():
        broken = failures(Parity(**figures), thresholds)
        if broken:
            raise VerificationError(
                f"{model}: its manifest reports failed parity on {name}: {'; '.join(broken)}"
            )
    return Verified(
        model,
        manifest["model_sha256"],
        manifest["source_sha256"],
        size["version_tag"],
        manifest["precision"],
        parity,
    )


def _check_hash(path: Path, expected: str, what: str) -> None:
    try:
        found = sha256_of(path)
    except OSError as error:
        raise VerificationError(f"{path}: {error.strerror}") from None
    if found != expected:
        raise VerificationError(f"{path}: sha256 is {found[:16]}…, the manifest's {what} is {expected[:16]}…")


def _check_metadata(model: Path, session: ort.InferenceSession, manifest: dict[str, Any]) -> None:
    stored = session.get_modelmeta().custom_metadata_map
    expected = {PREFIX + key: value for key, value in manifest["metadata"].items()}
    for key in sorted(expected.keys() | stored.keys()):
        if stored.get(key) != expected.get(key):
            raise VerificationError(
                f"{model}: metadata {key} is {stored.get(key)!r}, in the manifest {expected.get(key)!r}"
            )
    for key in ("source_sha256", "precision"):
        if stored.get(PREFIX + key) != manifest[key]:
            raise VerificationError(f"{model}: metadata {key} is not the manifest's {manifest[key]!r}")
    if json.loads(stored[PREFIX + "labels"]) != manifest["specification"]["labels"]:
        raise VerificationError(f"{model}: labels are not the manifest's")


def _check_ends(model: Path, session: ort.InferenceSession, geometry: Geometry, classes: int) -> None:
    for found, name, kind, shape in (
        (session.get_inputs(), INPUT, "tensor(uint8)", list(geometry)),
        (session.get_outputs(), OUTPUT, "tensor(float)", [classes]),
    ):
        ends = [(end.name, end.type, list(end.shape)[1:]) for end in found]
        if ends != [(name, kind, shape)]:
            raise VerificationError(f"{model}: expected {name} {kind} {shape}, found {ends}")

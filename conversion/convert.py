"""Convert a model from source to shipped files: the order of the steps, and what each must prove."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx

from conversion import metadata
from conversion.atomic import write_all
from conversion.destinations import check_destinations, model_files, variant_path
from conversion.divergence import first_divergence
from conversion.errors import GraphError, OptionError, ParityError
from conversion.evidence import Evidence, Stage, gather
from conversion.folding import fold
from conversion.graph import FrozenGraph, describe_ends, freeze, to_onnx
from conversion.images import Images, faces_path, spread
from conversion.latency import BATCHES, Latencies, measure_latency
from conversion.manifest import SCHEMA, manifest_path, reference_entry, serialise_manifest
from conversion.onnxfile import canonicalise
from conversion.options import LONGEST_TAG, Options, Specification, resolve
from conversion.parity import DEFAULT_THRESHOLDS, ROUNDED, Thresholds
from conversion.precisions import MOST_CALIBRATION_FACES, to_fp16, to_int8
from conversion.reference import detect_activation
from conversion.rounding import is_rounded, round_weights
from conversion.sources import Source, load
from conversion.tools import tool_versions
from conversion.variants import Unbuilt, Variant, gate, measure_variant, parity_failures

ALL_SETS = ("random", "faces")
_DIVERGENCE_IMAGES = 4


def quiet(_name: str, _steps: int) -> Callable[[int], None]:
    """Show no progress."""
    return lambda _done: None


@dataclass(frozen=True, slots=True)
class Request:
    """What to convert, where to, and what to prove.

    `images` and `evaluation` name faces as `conversion.images` reads them. `precisions` are built beside
    an fp32 model: "fp16", "int8" or both. `max_accuracy_drop` is in points. `latency` measures speed even when no
    precision depends on it.
    """

    source: Path
    output: Path
    options: Options
    images: str | None = None
    evaluation: str | None = None
    precisions: tuple[str, ...] = ()
    thresholds: Mapping[str, Thresholds] = field(default_factory=lambda: DEFAULT_THRESHOLDS)
    max_accuracy_drop: float = 0.3
    latency: bool = False


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion made and measured. `variants` starts with the source in its own precision, fp32 or INT8; those
    with refusals were not written. `unbuilt` are further precisions that this network cannot have.
    """

    source: Source
    specification: Specification
    evidence: Evidence
    variants: tuple[Variant, ...]
    latencies: Latencies
    unbuilt: tuple[Unbuilt, ...] = ()

    @property
    def shipped(self) -> Variant:
        """The model in the precision of its source."""
        return self.variants[0]


def nothing_further(_converted: Converted) -> dict[Path, bytes]:
    """Write the models and their manifests only."""
    return {}


def convert(
    request: Request,
    stage: Stage = quiet,
    further: Callable[[Converted], Mapping[Path, bytes]] = nothing_further,
) -> Converted:
    """Convert `request.source` and write the models that pass, each with its manifest, and the `further` files.

    Guarantees that each file appears complete or not at all, and none before every check of the first has passed. A
    further precision that cannot be built, or that fails its gate, is not written, and what an earlier conversion left
    in its place is removed. `stage` is told of each part that may take long. Raises ConversionError, of the kind that
    says what was wrong; nothing was written then, and what the request reads is never written to.
    """
    faces = [faces_path(where) for where in (request.images, request.evaluation) if where]
    check_destinations(model_files(request.output, request.precisions), request.source, faces)
    done = stage("load the source", 1)
    source = load(request.source, request.options)
    specification = specify(source, request.options.over(source.own_options))
    done(1)
    done = stage("build the graph", 1)
    frozen = freeze(source, specification)
    model, names = build(frozen, specification)
    done(1)
    precision = "int8" if is_rounded(model) else "fp32"
    if precision == "int8" and request.precisions:
        raise OptionError("this network was trained for INT8: --precision has nothing to reduce")
    evidence = gather(source, specification, request.images, request.evaluation, stage)
    thresholds = request.thresholds[ROUNDED if precision == "int8" else precision]
    entries = metadata.describe(source, specification, precision, thresholds)
    shipped = measure_variant(
        model, precision, request.output, entries, evidence, thresholds, ALL_SETS, stage
    )
    _demand_parity(shipped, frozen, model, names, evidence.images["faces"])
    attempts = [
        _measure_reduced(request, source, specification, evidence, model, reduced, stage)
        for reduced in request.precisions
    ]
    candidates = [attempt for attempt in attempts if isinstance(attempt, Variant)]
    unbuilt = tuple(attempt for attempt in attempts if isinstance(attempt, Unbuilt))
    latencies: Latencies = {}
    if candidates or request.latency:
        models = {variant.precision: variant.model for variant in (shipped, *candidates)}
        advance = stage("measure latency", len(BATCHES))
        latencies = measure_latency(models, evidence.images["faces"], advance)
    judged = [gate(variant, shipped, latencies, request.max_accuracy_drop) for variant in candidates]
    converted = Converted(source, specification, evidence, (shipped, *judged), latencies, unbuilt)
    _write(converted, further(converted))
    return converted


def specify(source: Source, options: Options) -> Specification:
    """Settle what `options` leave open for this source. Raises OptionError, SourceError."""
    activation = options.activation or "auto"
    if activation == "auto":
        activation = detect_activation(source)
    version = f"-{source.sha256[:8]}"
    default_tag = source.path.stem[: LONGEST_TAG - len(version)] + version
    return resolve(options, source.shape, source.path.name, default_tag, activation)


def build(frozen: FrozenGraph, specification: Specification) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Return the ONNX graph of a frozen network, folded and in canonical form, and the names that its tensors had in
    the source, by their new ones: in fp32, or with integers where the network rounds. Raises GraphError.
    """
    model = to_onnx(frozen, specification)
    fold(model)
    round_weights(model)
    names = canonicalise(model)
    describe_ends(model, specification)
    return model, names


def _measure_reduced(
    request: Request,
    source: Source,
    specification: Specification,
    evidence: Evidence,
    model: onnx.ModelProto,
    precision: str,
    stage: Stage,
) -> Variant | Unbuilt:
    thresholds = request.thresholds[precision]
    entries = metadata.describe(source, specification, precision, thresholds)
    path = variant_path(request.output, precision)
    # Noise lies outside the ranges that INT8 is calibrated for.
    sets = ("faces",) if precision == "int8" else ALL_SETS
    try:
        reduced = _reduce(model, precision, evidence, stage)
        return measure_variant(reduced, precision, path, entries, evidence, thresholds, sets, stage)
    except GraphError as error:
        return Unbuilt(precision, path, f"there is no {precision} of this network: {error}")


def _reduce(model: onnx.ModelProto, precision: str, evidence: Evidence, stage: Stage) -> onnx.ModelProto:
    if precision == "fp16":
        return to_fp16(model)
    if not evidence.real_faces:
        raise OptionError("INT8 is calibrated on real faces: give a folder or .npz of them with --images")
    faces = evidence.images["faces"]
    faces = faces[spread(len(faces), MOST_CALIBRATION_FACES)]
    return to_int8(model, faces, stage("calibrate", len(faces)))


def _demand_parity(
    shipped: Variant, frozen: FrozenGraph, model: onnx.ModelProto, names: dict[str, str], faces: Images
) -> None:
    failed = parity_failures(shipped)
    if failed:
        divergence = first_divergence(frozen, model, names, faces[:_DIVERGENCE_IMAGES])
        where = (
            str(divergence)
            if divergence
            else "the network agrees: preprocessing, softmax or class order differ"
        )
        raise ParityError(f"ONNX and its source differ on {'; '.join(failed)}; {where}")


def manifest_of(converted: Converted, variant: Variant) -> dict[str, Any]:
    """Return the manifest of a variant: nothing in it depends on the time, the place or the machine's speed."""
    evidence, thresholds = converted.evidence, variant.thresholds
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "model": variant.path.name,
        "model_sha256": hashlib.sha256(variant.model).hexdigest(),
        "model_bytes": len(variant.model),
        "source": converted.source.path.name,
        "source_sha256": converted.source.sha256,
        "source_kind": converted.source.kind,
        "parameters": converted.source.parameters,
        "precision": variant.precision,
        "specification": converted.specification.as_dict(),
        "metadata": dict(variant.metadata),
        "tools": tool_versions(),
        "thresholds": asdict(thresholds),
        "parity": {name: asdict(parity) for name, parity in variant.parity.items()},
        "graph": variant.graph.as_dict(),
        "reference": reference_entry(evidence.images["reference"], evidence.answers["reference"]),
    }
    if variant.evaluation is not None and evidence.labelled_name is not None:
        name = Path(evidence.labelled_name).name
        manifest["accuracy"] = {"set": name, **variant.evaluation.as_dict()}
    return manifest


def _write(converted: Converted, further: Mapping[Path, bytes]) -> None:
    files: dict[Path, bytes] = {}
    obsolete = [path for each in converted.unbuilt for path in (each.path, manifest_path(each.path))]
    for variant in converted.variants:
        manifest = manifest_path(variant.path)
        if variant.refusals:
            obsolete += [variant.path, manifest]
            continue
        # The model first: a manifest without its model would be the lie; a model whose manifest is of
        # the previous one is refused by its hash.
        files[variant.path] = variant.model
        files[manifest] = serialise_manifest(manifest_of(converted, variant))
    write_all({**files, **further}, obsolete)

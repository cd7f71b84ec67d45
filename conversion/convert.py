"""Convert a model from source to shipped file: the order of the steps, and what each must prove."""

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from conversion import metadata
from conversion.checks import GraphSummary, check_graph
from conversion.errors import ConversionError, ParityError
from conversion.graph import freeze, serialise, to_onnx
from conversion.images import Images, load_faces, portrait_variants, random_images
from conversion.options import Options, Specification, resolve
from conversion.parity import DEFAULT_THRESHOLDS, Parity, Thresholds, compare, failures
from conversion.reference import detect_activation, reference_probabilities
from conversion.sessions import open_session, run
from conversion.sources import Source, load

_RANDOM_IMAGES = 128
_LEVEL_IMAGES = 16

Progress = Callable[[str], None]


def _silent(_step: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Request:
    """What to convert, where to, and what to prove. `images` and `evaluation` are for `conversion.images`."""

    source: Path
    output: Path
    options: Options
    images: str | None = None
    thresholds: Mapping[str, Thresholds] = field(default_factory=lambda: DEFAULT_THRESHOLDS)


@dataclass(frozen=True, slots=True)
class Converted:
    """A shipped model, with what was proven of it. `parity` is by set of images: `random` and `faces`."""

    source: Source
    specification: Specification
    output: Path
    model: bytes
    graph: GraphSummary
    parity: Mapping[str, Parity]


def convert(request: Request, progress: Progress = _silent) -> Converted:
    """Convert `request.source` and write `request.output`.

    Guarantees that the output appears complete or not at all: every check comes before the write, and the
    write is a rename. Raises ConversionError, of the kind that says what was wrong.
    """
    progress("load")
    source = load(request.source, request.options)
    progress("inspect")
    options = request.options.over(source.own_options)
    specification = specify(source, options)
    image_sets = parity_images(source, request.images)
    thresholds = request.thresholds["fp32"]
    progress("convert")
    frozen = freeze(source, specification)
    model = to_onnx(frozen, specification)
    metadata.write(model, metadata.describe(source, specification, "fp32", thresholds))
    progress("check")
    summary = check_graph(model, image_sets["faces"][:_LEVEL_IMAGES], thresholds.max_difference)
    progress("compare")
    parity = check_parity(source, specification, model, image_sets, thresholds)
    serialised = serialise(model)
    write_atomically(request.output, serialised)
    return Converted(source, specification, request.output, serialised, summary, parity)


def specify(source: Source, options: Options) -> Specification:
    """Settle what `options` leave open for this source. Raises OptionError, SourceError."""
    activation = options.activation or "auto"
    if activation == "auto":
        activation = detect_activation(source)
    default_tag = f"{source.path.stem}-{source.sha256[:8]}"
    return resolve(options, source.shape, source.path.name, default_tag, activation)


def parity_images(source: Source, faces: str | None) -> dict[str, Images]:
    """Return noise and real faces: those at `faces`, or variants of the bundled portrait."""
    return {
        "random": random_images(_RANDOM_IMAGES, source.geometry),
        "faces": load_faces(faces, source.geometry) if faces else portrait_variants(source.geometry),
    }


def check_parity(
    source: Source,
    specification: Specification,
    model: onnx.ModelProto,
    image_sets: Mapping[str, Images],
    thresholds: Thresholds,
) -> dict[str, Parity]:
    """Compare `model` with its source on every set of images; raise ParityError for the first that fails."""
    session = open_session(model.SerializeToString())
    parity = {}
    for name, images in image_sets.items():
        reference = reference_probabilities(source, specification, images)
        parity[name] = compare(reference, run(session, images))
        failed = failures(parity[name], thresholds)
        if failed:
            raise ParityError(f"ONNX and {source.path.name} differ on {name} images: {'; '.join(failed)}")
    return parity


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that appears complete or not at all. Raises ConversionError naming the path."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # The mode of a temporary file is private; a model is for whoever serves it.
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise ConversionError(f"{path}: cannot write: {error.strerror}") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)

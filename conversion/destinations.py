"""Where a conversion writes, and that this destroys nothing that it reads."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from conversion.atomic import check_writable
from conversion.errors import ConversionError, OptionError
from conversion.manifest import manifest_path


def variant_path(output: Path, precision: str) -> Path:
    """Return where a further precision goes: `NAME.int8.onnx` beside `output`."""
    return output.with_name(f"{output.stem}.{precision}{output.suffix}")


def model_files(output: Path, precisions: Sequence[str]) -> list[Path]:
    """Return every model and manifest that a conversion to `output` writes or replaces. Raises OptionError."""
    if not output.name:
        raise OptionError(f"-o {output}: name the file to write")
    models = [output, *(variant_path(output, precision) for precision in dict.fromkeys(precisions))]
    return [path for model in models for path in (model, manifest_path(model))]


def report_paths(folder: Path) -> list[Path]:
    """Return every file that a report in `folder` may have."""
    confusions = (f"confusion-{precision}.png" for precision in ("fp32", "fp16", "int8"))
    return [folder / name for name in ("report.md", "parity.png", "latency.png", *confusions)]


def repository_paths(folder: Path, name: str) -> list[Path]:
    """Return the files that Triton's repository `folder` has of the model `name`."""
    return [folder / name / part for part in ("1/model.onnx", "labels.txt", "config.pbtxt")]


def check_destinations(files: Iterable[Path], source: Path, inputs: Iterable[Path]) -> None:
    """Raise OptionError where one of `files` is the source or one of the other `inputs`, lies in one that is a folder
    (a SavedModel, or faces), or is another of `files`; ConversionError where one cannot be written.
    """
    inputs = (source, *inputs)
    taken: set[Path] = set()
    for path in files:
        try:
            overwritten = [each for each in inputs if path.exists() and each.exists() and path.samefile(each)]
            # A link is replaced, and not what it points to; and `resolve` fails on links that go in a circle.
            place = Path(os.path.realpath(path.parent), path.name)
            around = [each for each in inputs if each.is_dir() and each.resolve() in place.parents]
        except OSError as error:
            raise ConversionError(f"{path}: cannot write: {error.strerror}") from None
        if overwritten:
            raise OptionError(
                f"{path}: is read by this conversion and would be overwritten; choose another name"
            )
        if around:
            raise OptionError(
                f"{path}: lies inside {around[0]}, which this conversion reads; choose another place"
            )
        if place in taken:
            raise OptionError(f"{path}: two results would be written there; choose another name")
        taken.add(place)
        check_writable(path)

"""Where a conversion writes, and that this destroys nothing that it reads."""

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
    models = [output, *(variant_path(output, precision) for precision in precisions)]
    return [path for model in models for path in (model, manifest_path(model))]


def check_destinations(files: Iterable[Path], source: Path, inputs: Iterable[Path]) -> None:
    """Raise OptionError where one of `files` is the source, lies in it (a SavedModel) or is one of the other `inputs`;
    ConversionError where one cannot be written.
    """
    inputs = (source, *inputs)
    for path in files:
        try:
            overwritten = [each for each in inputs if path.exists() and each.exists() and path.samefile(each)]
            inside = source.is_dir() and source.resolve() in path.resolve().parents
        except OSError as error:
            raise ConversionError(f"{path}: cannot write: {error.strerror}") from None
        if overwritten:
            raise OptionError(
                f"{path}: is read by this conversion and would be overwritten; choose another name"
            )
        if inside:
            raise OptionError(f"{path}: lies inside the source, {source}; choose another place")
        check_writable(path)

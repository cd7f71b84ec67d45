"""Find out what a source file is from its contents, before TensorFlow is loaded to read it."""

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

from conversion.errors import SourceError
from conversion.options import Options

SourceFormat = Literal["keras", "hdf5", "savedmodel"]

# Where each format keeps what the model says of itself: a JSON document of the sidecar's form.
KERAS_MEMBER = "visionai.json"
HDF5_ATTRIBUTE = "visionai"
SAVEDMODEL_MEMBER = "assets.extra/visionai.json"

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_ZIP_MAGIC = b"PK\x03\x04"
_EXPECTED = "expected a .keras file, a Keras .h5/.hdf5 file or a SavedModel directory"


def identify(path: Path) -> SourceFormat:
    """Return the format of the model at `path`, judged by content and not by name.

    Raises SourceError for what is missing, truncated, foreign, or holds weights without a network.
    """
    try:
        if path.is_dir():
            return _identify_directory(path)
        with path.open("rb") as file:
            head = file.read(len(_HDF5_MAGIC))
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}; {_EXPECTED}") from None
    if not head:
        raise SourceError(f"{path}: the file is empty; {_EXPECTED}")
    if head.startswith(_ZIP_MAGIC):
        return _identify_zip(path)
    if head == _HDF5_MAGIC:
        return _identify_hdf5(path)
    raise SourceError(f"{path}: not a Keras model{_guess(path, head)}; {_EXPECTED}")


def _identify_directory(path: Path) -> SourceFormat:
    if (path / "saved_model.pb").is_file():
        if not (path / "variables" / "variables.index").is_file():
            raise SourceError(f"{path}: a SavedModel without its variables folder; copy the whole directory")
        return "savedmodel"
    raise SourceError(f"{path}: a directory without saved_model.pb; {_EXPECTED}")


def _identify_zip(path: Path) -> SourceFormat:
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            if not {"config.json", "model.weights.h5"} <= names:
                kind = " (a PyTorch file?)" if any(name.endswith("data.pkl") for name in names) else ""
                raise SourceError(f"{path}: a zip file but not a Keras model{kind}; {_EXPECTED}")
            damaged = archive.testzip()
    # RuntimeError: what is encrypted, or packed in a way that Python does not know.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise SourceError(f"{path}: truncated or damaged .keras file ({error})") from None
    if damaged is not None:
        raise SourceError(f"{path}: damaged .keras file (checksum of {damaged} is wrong)")
    return "keras"


def _identify_hdf5(path: Path) -> SourceFormat:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            has_network = "model_config" in file.attrs
            has_weights = bool(file.keys())
    except OSError as error:
        raise SourceError(f"{path}: truncated or damaged HDF5 file ({_first_line(error)})") from None
    if not has_network:
        what = "weights without a network" if has_weights else "HDF5, but not a Keras model"
        raise SourceError(f"{path}: {what}; save the whole model with model.save(...)")
    return "hdf5"


def _guess(path: Path, head: bytes) -> str:
    if path.suffix.lower() == ".onnx":
        return " (an ONNX file is already converted: see `python -m conversion verify`)"
    if head[4:8] == b"TFL3":
        return " (a TensorFlow Lite file)"
    if path.suffix.lower() in {".keras", ".h5", ".hdf5"}:
        return " (its first bytes are foreign: damaged or misnamed)"
    return ""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def read_own_options(path: Path, source_format: SourceFormat) -> Options:
    """Return what the model at `path` says of itself; empty options where it says nothing.

    Raises OptionError where it says something unusable, SourceError where the text cannot be read.
    """
    text = _read_own_text(path, source_format)
    if text is None:
        return Options()
    try:
        document: Any = json.loads(text)
    except ValueError as error:
        raise SourceError(f"{path}: the options kept in the model are not JSON ({error})") from None
    table = document.get("conversion") if isinstance(document, dict) else None
    if not isinstance(table, dict):
        raise SourceError(f"{path}: the options kept in the model have no 'conversion' table")
    return Options.parse(table, f"options kept in {path.name}")


def _read_own_text(path: Path, source_format: SourceFormat) -> str | bytes | None:
    if source_format == "keras":
        with zipfile.ZipFile(path) as archive:
            return archive.read(KERAS_MEMBER) if KERAS_MEMBER in archive.namelist() else None
    if source_format == "hdf5":
        import h5py

        with h5py.File(path, "r") as file:
            text = file.attrs.get(HDF5_ATTRIBUTE)
            return text if isinstance(text, str | bytes) or text is None else str(text)
    member = path / SAVEDMODEL_MEMBER
    return member.read_bytes() if member.is_file() else None

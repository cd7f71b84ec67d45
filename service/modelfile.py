"""From MODEL_PATH to the bytes of a model that may be served: found, and what its manifest says it is."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path

from service.errors import StartupError
from service.settings import DEFAULT_MODEL

DETECTORS = ("face_short.onnx", "face_back.onnx")


def resolve_model(model_path: Path, setting: str = "MODEL_PATH") -> Path:
    """The ONNX file to serve: `model_path` itself, or what a Keras file was converted to.

    A converted file is looked for beside the Keras file and in models/build/, under the same name. `setting` is what
    names the path.

    Raises:
        StartupError: there is none, and how to make it; or it cannot be looked for.
    """
    if model_path.suffix == ".onnx":
        if _is_file(model_path):
            return model_path
        hint = f"check {setting}"
        if model_path == DEFAULT_MODEL:
            hint = f"`make convert` builds it, and {setting} names another"
        raise StartupError(f"the model {model_path} does not exist: {hint}")
    if not model_path.name:  # set to nothing, or to a root
        raise StartupError(f"{setting} names no file: set it to an .onnx or a .keras file")
    beside = model_path.with_suffix(".onnx")
    built = DEFAULT_MODEL.parent / beside.name
    for candidate in (beside, built):
        if _is_file(candidate):
            return candidate
    raise StartupError(
        f"{setting}={model_path} is served as ONNX, and neither {beside} nor {built} exists: "
        f"build it with `{_conversion(model_path, built)}`"
    )


def resolve_detectors(model: Path) -> tuple[Path, Path]:
    """The files of the face detectors, `DETECTORS`: each beside the emotion model, or where `make convert` puts it.

    Raises:
        StartupError: one is not there, and how to make it; or it cannot be looked for.
    """
    short_range, second = (_resolve_detector(model, name) for name in DETECTORS)
    return short_range, second


def _resolve_detector(model: Path, name: str) -> Path:
    for candidate in (model.with_name(name), DEFAULT_MODEL.with_name(name)):
        if _is_file(candidate):
            return candidate
    raise StartupError(
        f"the face detector {name} is not beside {model}: `make convert` builds it, to be put there"
    )


def read_model(onnx: Path) -> tuple[bytes, bool]:
    """The file's bytes, and whether they were checked against the manifest that the conversion step put beside it.

    What is checked is what is returned, so that the file cannot change in between. A model without a manifest cannot
    be checked; nothing says that it is wrong.

    Raises:
        StartupError: the file cannot be read, or is not what its manifest says.
    """
    try:
        model = onnx.read_bytes()
    except OSError as exc:
        raise StartupError(f"{onnx} cannot be read: {exc.strerror}") from None
    manifest = onnx.with_name(onnx.name + ".manifest.json")
    try:
        expected = json.loads(manifest.read_bytes())["model_sha256"]
    except FileNotFoundError:
        return model, False
    except OSError as exc:
        raise StartupError(f"{manifest} cannot be read: {exc.strerror}") from None
    except (ValueError, KeyError, TypeError) as exc:
        raise StartupError(f"{manifest} is not a manifest ({exc!r}); convert the model again") from None
    found = hashlib.sha256(model).hexdigest()
    if found != expected:
        raise StartupError(
            f"{onnx} is not the file that its manifest describes: its sha256 is {found[:12]}..., not "
            f"{str(expected)[:12]}...; convert the model again"
        )
    return model, True


def check_source(model_path: Path, onnx: Path, source_sha256: str) -> None:
    """Where MODEL_PATH names a Keras file that is there, the ONNX file must have been made from it as it is now.

    Raises:
        StartupError: it was made from another, and how to make it again; or it cannot be read.
    """
    if model_path.suffix == ".onnx" or not _is_file(model_path):
        return
    try:
        source = model_path.read_bytes()
    except OSError as exc:
        raise StartupError(f"{model_path} cannot be read: {exc.strerror}") from None
    if hashlib.sha256(source).hexdigest() != source_sha256:
        raise StartupError(
            f"{onnx} was not converted from {model_path} as it is now: "
            f"build it again with `{_conversion(model_path, onnx)}`"
        )


def _is_file(path: Path) -> bool:
    """Whether there is such a file.

    Raises:
        StartupError: nobody can tell, as where a folder is closed to this user, which `Path.is_file` does not say alike
            in all versions of Python.
    """
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last where the name has a zero byte
        return False
    except OSError as exc:
        raise StartupError(f"{path} cannot be read: {exc.strerror}") from None


def _conversion(source: Path, onnx: Path) -> str:
    return f"python -m conversion {source} -o {onnx}"

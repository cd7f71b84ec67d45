"""`python -m models convert`: convert the served models, and do nothing when nothing changed."""

import hashlib
import json
import sys
from pathlib import Path

from conversion.atomic import write_atomically
from conversion.digests import sha256_of
from conversion.errors import ConversionError
from conversion.telling import told
from conversion.tools import tool_versions
from models.detector import convert_detector, is_detector
from models.fetch import ensure_fetched
from models.sources import ROOT, ModelSource, ModelSourceError, read_source

# What `make convert` builds: the emotion model that the service loads by default, and the face detectors.
SERVED = ("modelo_emociones", "face_short", "face_back")
_DETECTOR_CODE = ("detector.py", "blocks.py")


def inputs_digest(source: ModelSource) -> str:
    """Return a hash over everything that the converted file depends on.

    That is the source model's hash, its description with the conversion options, the conversion code, and the
    versions of the tools that are installed.
    """
    digest = hashlib.sha256()
    model = source.package.model_sha256 if source.package else sha256_of(source.path)
    digest.update(f"{model}\n{sha256_of(source.description)}\n".encode())
    code = [*(ROOT / "conversion").glob("*.p*"), *(ROOT / "models" / name for name in _DETECTOR_CODE)]
    for path in sorted(code, key=lambda path: path.name):
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    for tool, version in tool_versions().items():
        digest.update(f"{tool} {version}\n".encode())
    return digest.hexdigest()


def _stamp_path(output: Path) -> Path:
    return output.with_name(output.name + ".inputs.json")


def _stamp(source: ModelSource, output: Path) -> dict[str, str]:
    manifest = output.with_name(output.name + ".manifest.json")
    return {"inputs": inputs_digest(source), "output": sha256_of(output), "manifest": sha256_of(manifest)}


def is_current(source: ModelSource, output: Path) -> bool:
    """Whether `output` is what a conversion of `source` would write now: by hashes, not by time stamps."""
    try:
        return bool(json.loads(_stamp_path(output).read_text("utf-8")) == _stamp(source, output))
    except (OSError, ValueError):  # no stamp, or one that is damaged
        return False


def convert_command(wanted: list[str], *, force: bool, report: Path | None) -> int:
    """Convert the named sources (the served ones when none is named) and return the exit status.

    Needs neither network nor TensorFlow when nothing changed. A reader of its output that goes early changes nothing.
    With `report`, a folder, each source is converted whether or not it changed, and its report goes into a subfolder by
    its name.
    """
    try:
        for name in wanted or SERVED:
            source = read_source(name)
            if source.output is None:
                raise ModelSourceError(f"{source.description.name}: [conversion] has no 'output'")
            if not force and report is None and is_current(source, source.output):
                status = _tell(
                    f"{source.output.name}: nothing changed", f"{source.output.name} is up to date"
                )
            else:
                status = _convert(source, source.output, report / name if report else None)
            if status != 0:
                return status
    except (ModelSourceError, ConversionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _convert(source: ModelSource, output: Path, report: Path | None) -> int:
    path = ensure_fetched(source)
    try:
        if is_detector(source):
            difference = convert_detector(source, path, output)
            _write_stamp(source, output)
            line = f"{output.name}: converted; differs from TensorFlow Lite by at most {difference:.1e}"
            return _tell(line, f"{output.name} is converted")
        from conversion.cli import main

        arguments = [str(path), "-o", str(output), "--sidecar", str(source.description)]
        status = main([*arguments, "--report", str(report)] if report else arguments)
    except ImportError as error:
        raise ModelSourceError(f"{error}; install the conversion tools: pip install -e '.[build]'") from None
    if status == 0:
        _write_stamp(source, output)
    return status


def _tell(line: str, done: str) -> int:
    return told(lambda: print(line), done)


def _write_stamp(source: ModelSource, output: Path) -> None:
    write_atomically(_stamp_path(output), (json.dumps(_stamp(source, output)) + "\n").encode())

"""The command line: `python -m conversion SOURCE -o OUT` and `python -m conversion verify MODEL`."""

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from conversion.destinations import check_destinations, model_files, report_paths, repository_paths
from conversion.errors import ConversionError, OptionError
from conversion.images import faces_path
from conversion.options import Options, read_sidecar
from conversion.parity import DEFAULT_THRESHOLDS, Thresholds
from conversion.sourcefile import identify
from conversion.telling import told

_EPILOGUE = """
examples:
  python -m conversion model.keras -o model.onnx --sidecar model.toml
  python -m conversion model.h5 -o model.onnx --scale 0.00392156862745098 --offset 0 \\
      --source-labels angry,disgust,fear,happy,neutral,sad,surprise
  python -m conversion saved_model/ -o model.onnx --sidecar model.toml --json \\
      --precision int8 --images faces.npz:train --evaluation faces.npz:val --report out/
  python -m conversion verify model.onnx

exit status: 0 converted; 2 wrong source or option; 3 graph or parity check failed; 1 anything else.
Nothing is written unless the status is 0, or the line says so. See also: python -m conversion verify --help
"""
_VERIFY_EPILOGUE = """
examples:
  python -m conversion verify model.onnx
  python -m conversion verify model.onnx --source model.keras --json

exit status: 0 the model is what its manifest says; 4 it is not, and one line says why.
"""
_MODEL_OPTIONS = {
    "source_labels": ("A,B,...", "classes in the order of the source's outputs"),
    "labels": ("A,B,...", "classes in the order wanted (default: alphabetical)"),
    "color": ("gray|rgb", "colour of the images (default: by the network's channels)"),
    "channel_order": ("rgb|bgr", "order of colours the network was trained on (default: rgb)"),
    "scale": ("N[,N,N]", "the network takes pixel * scale + offset, pixel 0..255"),
    "offset": ("N[,N,N]", "see --scale"),
    "activation": ("auto|softmax|logits", "what the source's outputs are (default: auto)"),
    "input_size": ("HxW", "image size, where the network leaves it open"),
    "opset": ("N", "ONNX operator set (default: 17)"),
    "version_tag": ("TAG", "version that the service shows and stores"),
}
_PRECISIONS = ("fp16", "int8")
# What .venv-build has and the serving environment has not.
_BUILD_TOOLS = frozenset({"h5py", "keras", "matplotlib", "onnx", "tensorflow", "tf2onnx"})
# What shells give for a program that Ctrl-C ended.
_INTERRUPTED = 130
_MEASURES = ("max_difference", "mean_difference", "agreement")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message}; see `{self.prog} --help`")


def _parser(prog: str, description: str, epilogue: str) -> _Parser:
    formatter = argparse.RawDescriptionHelpFormatter
    return _Parser(
        prog=prog, description=description, epilog=epilogue, formatter_class=formatter, allow_abbrev=False
    )


def _convert_parser() -> _Parser:
    parser = _parser(
        "python -m conversion",
        "Convert a Keras image classifier (.keras, .h5, .hdf5, SavedModel) to a checked ONNX file.",
        _EPILOGUE,
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the Keras model")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="the ONNX file to write"
    )
    parser.add_argument("--sidecar", type=Path, metavar="FILE", help="TOML or JSON with a [conversion] table")
    model = parser.add_argument_group(
        "about the model (each may stand in the sidecar, or in the model itself)"
    )
    for name, (metavar, text) in _MODEL_OPTIONS.items():
        kind = int if name == "opset" else str
        model.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=text)
    model.add_argument(
        "--custom", type=Path, metavar="FILE.py", help="Python file that registers custom layers"
    )
    proof = parser.add_argument_group("proof")
    proof.add_argument(
        "--images",
        metavar="DIR|NPZ",
        help="real faces to compare and calibrate on (default: a bundled portrait)",
    )
    proof.add_argument("--evaluation", metavar="DIR|NPZ", help="labelled faces to measure accuracy on")
    proof.add_argument(
        "--precision",
        action="append",
        default=[],
        choices=_PRECISIONS,
        help="also build this precision; repeatable",
    )
    for measure in _MEASURES:
        proof.add_argument(
            f"--{measure.replace('_', '-')}",
            action="append",
            default=[],
            metavar="[PRECISION=]N",
            help=f"parity threshold (fp32 default: {getattr(DEFAULT_THRESHOLDS['fp32'], measure):g})",
        )
    proof.add_argument(
        "--max-accuracy-drop",
        type=_finite,
        default=0.3,
        metavar="POINTS",
        help="of a precision (default: 0.3)",
    )
    result = parser.add_argument_group("results")
    result.add_argument("--json", action="store_true", help="print the report as JSON")
    result.add_argument("--report", type=Path, metavar="DIR", help="write report.md with plots")
    result.add_argument("--triton", type=Path, metavar="DIR", help="write a Triton model repository")
    return parser


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def joined(arguments: Sequence[str]) -> list[str]:
    """Return `arguments` with `--offset -1,2,3` as `--offset=-1,2,3`: argparse takes `-1,2,3` for an option."""
    result: list[str] = []
    for argument in arguments:
        if result and result[-1] in ("--scale", "--offset") and re.match(r"-[\d.]", argument):
            result[-1] += f"={argument}"
        else:
            result.append(argument)
    return result


def thresholds_from(given: dict[str, list[str]]) -> dict[str, Thresholds]:
    """Return the default thresholds with `[PRECISION=]N` entries applied, by measure. Raises OptionError."""
    thresholds = dict(DEFAULT_THRESHOLDS)
    for measure, entries in given.items():
        for entry in entries:
            precision, _, number = entry.rpartition("=")
            precision = precision or "fp32"
            try:
                value = float(number)
            except ValueError:
                value = -1.0
            if precision not in thresholds or not 0 <= value <= 1:
                option = f"--{measure.replace('_', '-')}"
                raise OptionError(f"{option} {entry}: expected N or PRECISION=N, with N in 0..1")
            changed: dict[str, float] = {measure: value}
            thresholds[precision] = replace(thresholds[precision], **changed)
    return thresholds


def _convert(arguments: Sequence[str]) -> int:
    parsed = _convert_parser().parse_args(joined(arguments))
    given = Options.parse({name: getattr(parsed, name) for name in _MODEL_OPTIONS}, "command line")
    options = given.over(read_sidecar(parsed.sidecar)) if parsed.sidecar else given
    thresholds = thresholds_from({measure: getattr(parsed, measure) for measure in _MEASURES})

    # Before TensorFlow is imported, which takes seconds: a wrong path is answered at once.
    identify(parsed.source)
    files = model_files(parsed.output, parsed.precision)
    if parsed.report:
        files += report_paths(parsed.report)
    if parsed.triton:
        files += repository_paths(parsed.triton, parsed.output.stem)
    faces = [faces_path(where) for where in (parsed.images, parsed.evaluation) if where]
    own_files = [path for path in (parsed.sidecar, parsed.custom) if path]
    check_destinations(files, parsed.source, [*faces, *own_files])
    from conversion.convert import Converted, Request, convert
    from conversion.progress import shown
    from conversion.report import as_json, print_report, report_files
    from conversion.sources import import_custom_layers
    from conversion.triton import repository_files

    if parsed.custom:
        import_custom_layers(parsed.custom)
    request = Request(
        parsed.source,
        parsed.output,
        options,
        images=parsed.images,
        evaluation=parsed.evaluation,
        precisions=tuple(dict.fromkeys(parsed.precision)),
        thresholds=thresholds,
        max_accuracy_drop=parsed.max_accuracy_drop,
        latency=parsed.report is not None,
    )

    def further(converted: Converted) -> dict[Path, bytes]:
        files = report_files(converted, parsed.report) if parsed.report else {}
        if parsed.triton:
            model, name = converted.shipped.model, parsed.output.stem
            files |= repository_files(parsed.triton, name, model, converted.specification)
        return files

    with shown() as stage:
        converted = convert(request, stage, further)
    if parsed.json:
        return told(lambda: print(json.dumps(as_json(converted), indent=2)), "the models are written")
    return told(lambda: print_report(converted), "the models are written")


def _verify(arguments: Sequence[str]) -> int:
    parser = _parser(
        "python -m conversion verify", "Check a converted model against its manifest.", _VERIFY_EPILOGUE
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="the ONNX file")
    parser.add_argument("--manifest", type=Path, metavar="FILE", help="default: MODEL.manifest.json")
    parser.add_argument("--source", type=Path, metavar="SOURCE", help="also check the source's hash")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parsed = parser.parse_args(arguments)
    from conversion.verify import verify

    verified = verify(parsed.model, parsed.manifest, parsed.source)
    text = (
        json.dumps(verified.as_dict(), indent=2)
        if parsed.json
        else f"{parsed.model}: verified, {verified.version_tag} {verified.precision},"
        f" sha256 {verified.model_sha256[:16]}, {verified.parity.images} reference images within"
        f" {verified.parity.max_difference:.1e} of the source"
    )
    return told(lambda: print(text), "the model is verified")


def missing_build_tool(error: ModuleNotFoundError) -> str | None:
    """Return the tool of the build environment that is missing here; None where it is something else."""
    tool = (error.name or "").partition(".")[0]
    return tool if tool in _BUILD_TOOLS else None


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status; an error is one line on stderr."""
    try:
        if arguments and arguments[0] == "verify":
            return _verify(arguments[1:])
        return _convert(arguments)
    except ConversionError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except ModuleNotFoundError as error:
        tool = missing_build_tool(error)
        if tool is None:
            raise
        print(
            f"error: the conversion needs {tool}: run it in .venv-build, which `make convert` makes"
            " (.venv-build/bin/python -m conversion ...)",
            file=sys.stderr,
        )
        return 1

"""The command line: `python -m conversion SOURCE -o OUT` and `python -m conversion verify MODEL`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conversion.errors import ConversionError, OptionError
from conversion.options import Options, read_sidecar

_EXAMPLES = """
examples:
  python -m conversion model.keras -o model.onnx --sidecar model.toml
  python -m conversion model.h5 -o model.onnx --scale 0.00392156862745098 --offset 0 \\
      --source-labels angry,disgust,fear,happy,neutral,sad,surprise
  python -m conversion saved_model/ -o model.onnx --sidecar model.toml --images faces/ --json
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise OptionError(f"{message}; see `{self.prog} --help`")


def _convert_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m conversion",
        description="Convert a Keras image classifier (.keras, .h5, .hdf5, SavedModel) to a checked ONNX file.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the Keras model")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="the ONNX file to write"
    )
    parser.add_argument(
        "--sidecar", type=Path, metavar="FILE", help="TOML or JSON file with a [conversion] table"
    )
    model = parser.add_argument_group(
        "about the model (each can stand in the sidecar, or in the model itself)"
    )
    model.add_argument(
        "--source-labels", metavar="A,B,...", help="classes in the order of the source's outputs"
    )
    model.add_argument(
        "--labels", metavar="A,B,...", help="classes in the order wanted (default: alphabetical)"
    )
    model.add_argument("--color", metavar="gray|rgb", help="colour of the images (default: by the channels)")
    model.add_argument(
        "--channel-order", metavar="rgb|bgr", help="what the network was trained on (default: rgb)"
    )
    model.add_argument("--scale", metavar="N[,N,N]", help="the network takes pixel * scale + offset")
    model.add_argument("--offset", metavar="N[,N,N]", help="see --scale")
    model.add_argument(
        "--activation", metavar="auto|softmax|logits", help="what the outputs are (default: auto)"
    )
    model.add_argument("--input-size", metavar="HxW", help="image size, where the network leaves it open")
    model.add_argument("--opset", type=int, metavar="N", help="ONNX operator set (default: 17)")
    model.add_argument("--version-tag", metavar="TAG", help="version that the service shows and stores")
    model.add_argument(
        "--custom", type=Path, metavar="FILE.py", help="Python file that registers custom layers"
    )
    proof = parser.add_argument_group("proof")
    proof.add_argument(
        "--images", metavar="DIR|NPZ", help="real faces to compare on (default: a bundled portrait)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


_OPTION_NAMES = [
    "source_labels",
    "labels",
    "color",
    "channel_order",
    "scale",
    "offset",
    "activation",
    "input_size",
    "opset",
    "version_tag",
]


def _convert(arguments: Sequence[str]) -> int:
    parsed = _convert_parser().parse_args(arguments)
    given = Options.parse({name: getattr(parsed, name) for name in _OPTION_NAMES}, "command line")
    options = given.over(read_sidecar(parsed.sidecar)) if parsed.sidecar else given

    from conversion.sourcefile import identify

    # Before TensorFlow is imported, which takes seconds: a wrong path is answered at once.
    identify(parsed.source)
    from conversion.convert import Request, convert
    from conversion.report import as_json, print_report
    from conversion.sources import import_custom_layers

    if parsed.custom:
        import_custom_layers(parsed.custom)
    converted = convert(Request(parsed.source, parsed.output, options, parsed.images))
    if parsed.json:
        print(json.dumps(as_json(converted), indent=2))
    else:
        print_report(converted)
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status; errors are one line on stderr."""
    try:
        return _convert(arguments)
    except ConversionError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status

"""What a conversion has to know about a model, and where it is told.

An entry is looked up in this order, and the first that has it wins:

1. the command line,
2. a sidecar: a TOML or JSON file whose `conversion` table holds entries by the names of `Options`,
3. the model itself (`conversion.sources` tells where in each format),
4. what the network's shape implies (`color`), or a stated default.

Class order and scaling have no default: a model converted with a guess there answers wrongly and looks right.
"""

import difflib
import json
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from conversion.errors import OptionError

# Read by ONNX Runtime since 1.11; QDQ per channel needs 13; the newest that tf2onnx writes is 18.
DEFAULT_OPSET = 17
OPSETS = range(13, 19)
# As long as the service's database takes them.
_LONGEST_NAME = 50
LONGEST_TAG = 100


def _strings(value: Any) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, Sequence) or not all(isinstance(item, str) for item in items):
        raise ValueError("a list of names")
    names = tuple(item.strip() for item in items)
    if len(names) < 2 or not all(names) or len(set(names)) != len(names):
        raise ValueError("two or more different names")
    if any(len(name) > _LONGEST_NAME for name in names):
        raise ValueError(f"names of at most {_LONGEST_NAME} characters")
    return names


def _numbers(value: Any) -> tuple[float, ...]:
    """One number for all channels, or one per channel."""
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    try:
        numbers = tuple(float(item) for item in items)
    except (TypeError, ValueError):
        raise ValueError("a number, or one number per channel") from None
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError("finite numbers")
    if len(numbers) not in (1, 3):
        raise ValueError("a number, or three numbers (one per channel)")
    return numbers


def _scale(value: Any) -> tuple[float, ...]:
    numbers = _numbers(value)
    if 0 in numbers:
        raise ValueError("numbers other than 0, which would make all images alike")
    return numbers


def _size(value: Any) -> tuple[int, int]:
    items = value.lower().split("x") if isinstance(value, str) else value
    try:
        height, width = (int(item) for item in items)
    except (TypeError, ValueError):
        raise ValueError("HEIGHTxWIDTH, such as 96x96") from None
    if not (8 <= height <= 2048 and 8 <= width <= 2048):
        raise ValueError("a height and a width of 8 to 2048")
    return height, width


def _choice(*choices: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in choices:
            raise ValueError("one of " + ", ".join(choices))
        return str(value)

    return parse


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > LONGEST_TAG:
        raise ValueError(f"a text of 1 to {LONGEST_TAG} characters")
    return value.strip()


def _opset(value: Any) -> int:
    # bool is an int to Python.
    if isinstance(value, bool) or not isinstance(value, int) or value not in OPSETS:
        raise ValueError(f"a number from {OPSETS.start} to {OPSETS.stop - 1}")
    return value


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "labels": _strings,
    "source_labels": _strings,
    "color": _choice("gray", "rgb"),
    "channel_order": _choice("rgb", "bgr"),
    "scale": _scale,
    "offset": _numbers,
    "activation": _choice("auto", "softmax", "logits"),
    "input_size": _size,
    "opset": _opset,
    "version_tag": _text,
}
# Entries of a `conversion` table that are for `python -m models convert`, which reads the same file.
_FOREIGN = frozenset({"output"})


@dataclass(frozen=True, slots=True)
class Options:
    """What one place says about a model; None where it says nothing.

    | entry           | meaning                                                                   |
    |-----------------|---------------------------------------------------------------------------|
    | `source_labels` | class names in the order of the source's outputs                          |
    | `labels`        | class names in the order wanted; alphabetical unless given                |
    | `color`         | `gray` (one channel) or `rgb`                                             |
    | `channel_order` | order of colour channels the network was trained on: `rgb` or `bgr`        |
    | `scale`,`offset`| the network takes `pixel * scale + offset`; pixel is 0..255; per channel   |
    |                 | in the network's own channel order                                        |
    | `activation`    | last step of the network: `softmax`, `logits`, or `auto` to find out      |
    | `input_size`    | height and width, where the network leaves them open                      |
    | `opset`         | ONNX operator set                                                         |
    | `version_tag`   | the version that the service shows and stores with each prediction        |
    """

    labels: tuple[str, ...] | None = None
    source_labels: tuple[str, ...] | None = None
    color: str | None = None
    channel_order: str | None = None
    scale: tuple[float, ...] | None = None
    offset: tuple[float, ...] | None = None
    activation: str | None = None
    input_size: tuple[int, int] | None = None
    opset: int | None = None
    version_tag: str | None = None

    @classmethod
    def parse(cls, entries: Mapping[str, Any], where: str) -> Self:
        """Check `entries`; raise OptionError naming `where` and the entry that is unknown or wrong."""
        parsed: dict[str, Any] = {}
        for name, value in entries.items():
            if value is None or name in _FOREIGN:
                continue
            if name not in _PARSERS:
                close = difflib.get_close_matches(name, _PARSERS, n=1)
                hint = f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(_PARSERS)
                raise OptionError(f"{where}: unknown option {name!r}; {hint}")
            try:
                parsed[name] = _PARSERS[name](value)
            except ValueError as error:
                raise OptionError(f"{where}: {name} is {value!r}; expected {error}") from None
        return cls(**parsed)

    def over(self, lower: "Options") -> "Options":
        """These options, with the gaps filled from `lower`."""
        gaps = {
            item.name: getattr(lower, item.name) for item in fields(self) if getattr(self, item.name) is None
        }
        return replace(self, **gaps)


def read_sidecar(path: Path) -> Options:
    """Read the `conversion` table of a TOML or JSON file. Raises OptionError."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise OptionError(f"sidecar {path}: {reason}") from None
    try:
        document = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise OptionError(f"sidecar {path}: {error}") from None
    table = document.get("conversion") if isinstance(document, dict) else None
    if not isinstance(table, dict):
        raise OptionError(f"sidecar {path}: no table named 'conversion'; put the options under [conversion]")
    return Options.parse(table, f"sidecar {path}")


@dataclass(frozen=True, slots=True)
class Specification:
    """Everything a conversion needs to know, with nothing left open.

    `scale` and `offset` have one number per channel, in the network's channel order.
    """

    height: int
    width: int
    color: str
    channel_order: str
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    source_labels: tuple[str, ...]
    labels: tuple[str, ...]
    activation: str
    opset: int
    version_tag: str

    @property
    def channels(self) -> int:
        """1 for gray, 3 for RGB."""
        return 1 if self.color == "gray" else 3

    @property
    def order(self) -> tuple[int, ...]:
        """For each label, in our order, its index among the source's outputs."""
        return tuple(self.source_labels.index(label) for label in self.labels)

    def as_dict(self) -> dict[str, Any]:
        """The specification as JSON can hold it."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """What the network itself says: its input and output, None where it leaves a size open."""

    height: int | None
    width: int | None
    channels: int | None
    classes: int
    scales_itself: bool


def input_geometry(options: Options, shape: NetworkShape, name: str) -> tuple[int, int, int]:
    """Return (height, width, channels) of the input. Raises OptionError where sizes are open or contradict."""
    if shape.height in (1, 3) and shape.channels not in (None, 1, 3):
        raise OptionError(
            f"{name} takes {shape.height}x{shape.width}x{shape.channels}: its channels come first, and an image's last."
            ' Build it with data_format="channels_last", normalise along axis -1, give it these weights (set_weights),'
            " and save that"
        )
    channels = {None: shape.channels, "gray": 1, "rgb": 3}[options.color]
    if shape.height is None or shape.width is None:
        if options.input_size is None:
            raise OptionError(f"{name} leaves its input size open: give --input-size HEIGHTxWIDTH")
        height, width = options.input_size
    else:
        height, width = shape.height, shape.width
        if options.input_size not in (None, (height, width)):
            raise OptionError(f"{name} takes {height}x{width} images, not {_joined(options.input_size)}")
    if channels is None:
        raise OptionError(f"{name} leaves its colour channels open: give --color gray or --color rgb")
    if shape.channels not in (None, channels):
        raise OptionError(f"{name} takes {shape.channels} channel(s), which is not --color {options.color}")
    if channels not in (1, 3):
        raise OptionError(f"{name} takes {channels} channels; 1 (gray) or 3 (RGB) can be served")
    return height, width, channels


def _joined(size: tuple[int, int] | None) -> str:
    return "x".join(str(side) for side in size or ())


def resolve(
    options: Options, shape: NetworkShape, name: str, default_tag: str, activation: str
) -> Specification:
    """Settle every entry of `options` for a network of this `shape`.

    `name` is for messages; `activation` is what was found for `auto`. Raises OptionError for what is missing or
    contradicts the network.
    """
    height, width, channels = input_geometry(options, shape, name)
    source_labels = options.source_labels
    if source_labels is None:
        raise OptionError(
            f"the class order of {name} is not known: give --source-labels with {shape.classes} names"
            " in the order of its outputs"
        )
    if len(source_labels) != shape.classes:
        raise OptionError(
            f"{name} has {shape.classes} outputs, but {len(source_labels)} class names were given"
        )
    labels = options.labels or tuple(sorted(source_labels))
    if sorted(labels) != sorted(source_labels):
        odd = sorted(set(labels) ^ set(source_labels))
        raise OptionError(f"labels and source_labels name different classes: {', '.join(odd)}")
    scale, offset = options.scale, options.offset
    if scale is None and not shape.scales_itself:
        raise OptionError(
            f"the input range of {name} is not known: give --scale and --offset"
            " (the network takes pixel * scale + offset, pixel 0..255; 1 and 0 where it scales them itself)"
        )
    return Specification(
        height=height,
        width=width,
        color="gray" if channels == 1 else "rgb",
        channel_order=options.channel_order or "rgb",
        scale=_per_channel(scale or (1.0,), channels, "scale"),
        offset=_per_channel(offset or (0.0,), channels, "offset"),
        source_labels=source_labels,
        labels=labels,
        activation=activation,
        opset=options.opset or DEFAULT_OPSET,
        version_tag=options.version_tag or default_tag,
    )


def _per_channel(values: tuple[float, ...], channels: int, name: str) -> tuple[float, ...]:
    if len(values) == 1:
        return values * channels
    if len(values) != channels:
        raise OptionError(f"{name} has {len(values)} numbers for {channels} channel(s)")
    return values

"""Load a Keras image classifier: .keras, .h5/.hdf5 or SavedModel; Sequential, Functional or subclassed."""

import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from conversion.digests import sha256_of
from conversion.errors import OptionError, SourceError, quoted
from conversion.float32 import in_float32
from conversion.keras2 import copy_for_keras_3
from conversion.options import NetworkShape, Options, input_geometry
from conversion.preprocessing import draw_in_training_only, scales_itself
from conversion.sourcefile import identify, read_own_options
from conversion.tensorflow_quietly import keras, tf

# What Keras, which goes by the name, takes for a file of the format.
_SUFFIXES = {"keras": (".keras",), "hdf5": (".h5", ".hdf5")}
# Classes of its own modules, as it wrote .keras files, and of TensorFlow's operations in a Functional network.
_OF_KERAS_2 = frozenset({"Functional", "SlicingOpLambda", "TFOpLambda"})
_ONE_AT_A_TIME = "takes one image at a time, not a batch; save it with its batch size left open"


@dataclass(frozen=True)
class Source:
    """A loaded network.

    `call` takes float32 [N, height, width, channels] and returns float32 [N, classes], in inference mode.
    `own_options` is what the file says of itself.
    """

    path: Path
    sha256: str
    kind: str
    shape: NetworkShape
    geometry: tuple[int, int, int]
    parameters: int
    call: Callable[[Any], Any]
    own_options: Options


def import_custom_layers(module: Path) -> None:
    """Run a Python file that defines and registers custom layers or models. Raises OptionError."""
    name = f"_visionai_custom_{module.stem}"
    spec = importlib.util.spec_from_file_location(name, module)
    if spec is None or spec.loader is None or not module.is_file():
        raise OptionError(f"--custom {module}: not a Python file")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    try:
        spec.loader.exec_module(loaded)
    # A script calls sys.exit() when it is done: here that would end the conversion, as one that succeeded.
    except (Exception, SystemExit) as error:
        raise OptionError(f"--custom {module}: {type(error).__name__}: {quoted(error)}") from error


def load(path: Path, options: Options) -> Source:
    """Load the classifier at `path`; `options` say what the network leaves open (input size, colour).

    Guarantees that what is returned answers: it has been run. Raises SourceError for what cannot be loaded, has not
    one image input and one row of class scores for each image as output, or fails on images of its own size;
    OptionError where an open size is not settled by the options.
    """
    source_format = identify(path)
    own_options = read_own_options(path, source_format)
    options = options.over(own_options)
    kind, shape, geometry, parameters, call = (
        _load_savedmodel(path, options)
        if source_format == "savedmodel"
        else _load_keras(path, _SUFFIXES[source_format], options)
    )
    classes = _probe(path, call, geometry)
    if classes < 2:
        raise SourceError(f"{path}: the network has {classes} output; a classifier has two or more")
    shape = replace(shape, classes=classes)
    return Source(path, sha256_of(path), kind, shape, geometry, parameters, call, own_options)


_Loaded = tuple[str, NetworkShape, tuple[int, int, int], int, Callable[[Any], Any]]


def _load_keras(path: Path, suffixes: tuple[str, ...], options: Options) -> _Loaded:
    # Layer names must not depend on what else was loaded in this process: they end up in the ONNX graph.
    keras.backend.clear_session()
    try:
        model = _read_keras(path, suffixes)
    except Exception as error:  # Keras raises nearly every type here; each becomes one line.
        raise SourceError(f"{path}: {_why_not_loaded(error)}") from error
    model = in_float32(path, model)
    draw_in_training_only(model)
    shape = NetworkShape(*_input_shape(path, model), 0, scales_itself=False)
    geometry = input_geometry(options, shape, path.name)
    if not model.built:
        model(tf.zeros((1, *geometry), tf.float32), training=False)
    shape = replace(shape, scales_itself=scales_itself(model))
    kind = (
        "Sequential"
        if isinstance(model, keras.Sequential)
        else "Functional"
        if isinstance(model, keras.Model) and type(model).__name__ == "Functional"
        else "subclassed"
    )
    return kind, shape, geometry, int(model.count_params()), lambda images: model(images, training=False)


def _read_keras(path: Path, suffixes: tuple[str, ...]) -> Any:
    with TemporaryDirectory() as folder:
        named = Path(folder) / f"source{suffixes[0]}"
        if suffixes != _SUFFIXES["hdf5"] or not copy_for_keras_3(path, named):
            if path.suffix in suffixes:
                named = path
            else:
                named.symlink_to(path.resolve())
        return keras.models.load_model(named, compile=False)


def _why_not_loaded(error: Exception) -> str:
    text = " ".join(str(error).split())
    missing = re.search(
        r"(?:Could not (?:locate|deserialize) (?:class|function)|Unknown (?:layer|object)):? '?([\w>]+)", text
    )
    if missing and missing[1] in _OF_KERAS_2:
        return (
            f"Keras 2 wrote it, with a class {missing[1]} that Keras 3 does not know; save it there as a SavedModel:"
            ' model.save(FOLDER, save_format="tf")'
        )
    if missing:
        return f"custom layer or class {missing[1]} is missing; give the Python file with --custom FILE.py"
    if ("Lambda" in text and "safe_mode" in text) or "python bytecode" in text.lower():
        return "a Lambda layer holds Python code, which is not run; export the model as a SavedModel instead"
    # Before the cause stands all of the layer's configuration, which may be longer than a line of ours.
    layer = re.search(r".*class '(?:\w+\.)*(\w+)'.*Exception encountered: ", text)
    cause = quoted(text[layer.end() :] if layer else text) or type(error).__name__
    return f"Keras cannot load it: {f'{layer[1]}: ' if layer else ''}{cause}"


def _input_shape(path: Path, model: Any) -> tuple[int | None, int | None, int | None]:
    inputs = getattr(model, "inputs", None)
    if inputs is not None and len(inputs) != 1:
        raise SourceError(f"{path}: the network has {len(inputs)} inputs; one image input can be served")
    shape = tuple(inputs[0].shape) if inputs else (None, None, None, None)
    return _sides(path, shape)


def _sides(path: Path, shape: tuple[int | None, ...]) -> tuple[int | None, int | None, int | None]:
    """Height, width and channels of an input."""
    if len(shape) != 4:
        raise SourceError(f"{path}: the input is {_shown(shape)}; expected [batch, height, width, channels]")
    return shape[1], shape[2], shape[3]


def _shown(shape: tuple[Any, ...]) -> str:
    return "[" + ", ".join("?" if side is None else str(side) for side in shape) + "]"


def _load_savedmodel(path: Path, options: Options) -> _Loaded:
    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:  # A damaged protobuf, variable file or op: TensorFlow has a type for each.
        raise SourceError(f"{path}: TensorFlow cannot load it: {quoted(error)}") from error
    signature = loaded.signatures.get("serving_default") or loaded.signatures.get("serve")
    if signature is None:
        names = ", ".join(loaded.signatures) or "none"
        raise SourceError(f"{path}: no signature named serving_default or serve (found: {names})")
    inputs = signature.structured_input_signature[1]
    outputs = signature.structured_outputs
    if len(inputs) != 1 or len(outputs) != 1:
        raise SourceError(f"{path}: {len(inputs)} inputs and {len(outputs)} outputs; expected one of each")
    (argument, spec), (result, _) = next(iter(inputs.items())), next(iter(outputs.items()))
    sides = _sides(path, (None,) * 4 if spec.shape.rank is None else tuple(spec.shape))
    if spec.dtype.is_integer:
        _demand_whole_pixels(path, spec.dtype, options)
    shape = NetworkShape(*sides, 0, scales_itself=spec.dtype.is_integer)
    parameters = sum(int(tf.size(variable)) for variable in signature.variables if variable.dtype.is_floating)

    def call(images: Any, _keep_alive: Any = loaded) -> Any:
        return signature(**{argument: tf.cast(images, spec.dtype)})[result]

    return "SavedModel", shape, input_geometry(options, shape, path.name), parameters, call


def _demand_whole_pixels(path: Path, dtype: Any, options: Options) -> None:
    """Raise where whole numbers of this type would not hold what the network is to be given."""
    if dtype.max < 255:
        raise SourceError(f"{path}: the input is {dtype.name}, which does not hold a pixel (0..255)")
    if any(number != 1 for number in options.scale or ()) or any(options.offset or ()):
        raise OptionError(
            f"{path.name} takes pixels as whole numbers ({dtype.name}), so it scales them itself: give no --scale and"
            " --offset, or 1 and 0"
        )


def _probe(path: Path, call: Callable[[Any], Any], geometry: tuple[int, int, int]) -> int:
    """Run one black image, and two, and return the number of outputs."""
    try:
        output = call(tf.zeros((1, *geometry), tf.float32))
    except Exception as error:  # Whatever a layer raises on the size that was given.
        raise SourceError(f"{path}: fails on an image of {_shown(geometry)}: {quoted(error)}") from error
    shape = tuple(getattr(output, "shape", ()))
    if len(shape) != 2 or shape[0] != 1:
        found = _shown(shape) if shape else type(output).__name__
        raise SourceError(f"{path}: the output is {found}; expected one row of class scores per image")
    if output.dtype != tf.float32:
        raise SourceError(
            f'{path}: answers in {output.dtype.name}; give its last layer dtype="float32", or convert the .keras'
            " file, which computes in float32 here"
        )
    try:
        batch = tuple(call(tf.zeros((2, *geometry), tf.float32)).shape)
    except Exception as error:  # As above.
        raise SourceError(f"{path}: {_ONE_AT_A_TIME} ({quoted(error)})") from error
    if batch != (2, shape[1]):
        raise SourceError(f"{path}: {_ONE_AT_A_TIME} (the output for two is {_shown(batch)})")
    return int(shape[1])

"""HDF5 files of Keras 2, as Keras 3 reads them: some layers without arguments that it does not take, names without a
slash, and the calls of networks within networks numbered as it does.
"""

import inspect
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from conversion.tensorflow_quietly import keras

# What a layer does not use has this one value: it is a convolution's, say, that the layer was derived from.
_UNUSED = {"groups": 1, "noise_shape": None, "time_major": False}
# What says nothing of the answers, whatever its value.
_OF_NO_ACCOUNT = frozenset(
    {"kernel_constraint", "kernel_initializer", "kernel_regularizer", "rng_type", "trainable"}
)


def copy_for_keras_3(path: Path, copy: Path) -> bool:
    """Write `copy`: the HDF5 model at `path` without what Keras 3 would refuse and nothing depends on, and with layers
    named and calls numbered anew.

    Return whether there is any of that, and so a copy. There is none where Keras 3 wrote it.
    """
    try:
        with h5py.File(path, "r") as file:
            if str(file.attrs.get("keras_version", "")).startswith("3"):
                return False
            configuration = json.loads(file.attrs["model_config"])
    except (TypeError, ValueError):
        return False  # Keras says what is wrong with it
    readable = _readable(_renamed(configuration))
    if readable == configuration:
        return False
    shutil.copyfile(path, copy)
    with h5py.File(copy, "r+") as file:
        file.attrs["model_config"] = json.dumps(readable)
    return True


def _renamed(configuration: Any) -> Any:
    """Return a configuration without a slash in its layers' names, and where they are called by them: Keras 3 takes
    none, and goes by the order of the layers' weights.
    """
    match configuration:
        case {"name": str(name), **rest}:
            return {"name": name.replace("/", "_"), **_renamed(rest)}
        case dict():
            return {key: _renamed(value) for key, value in configuration.items()}
        case [str(name), int(number), int(output), *arguments]:
            return [name.replace("/", "_"), number, output, *_renamed(arguments)]
        case list():
            return [_renamed(value) for value in configuration]
    return configuration


def _readable(configuration: Any) -> Any:
    match configuration:
        case {"class_name": str(name), "config": dict(own)} if hasattr(keras.layers, name):
            taken = _arguments(getattr(keras.layers, name))
            kept = {key: value for key, value in own.items() if key in taken or not _is_idle(key, value)}
            match kept:
                case {"axis": [int(axis)]}:  # as batch normalisation has it
                    kept["axis"] = axis
            return {**configuration, "config": _readable(kept)}
        case {"layers": list(layers), "output_layers": list()}:
            anew = _counted_anew(configuration, layers)
            return {key: _readable(value) for key, value in anew.items()}
        case dict():
            return {key: _readable(value) for key, value in configuration.items()}
        case list():
            return [_readable(value) for value in configuration]
    return configuration


def _counted_anew(network: dict[str, Any], layers: list[Any]) -> dict[str, Any]:
    """Return a network's configuration with the calls of each of its layers numbered as Keras 3 reads them, from 0: for
    Keras 2 the first of a network is the one that it was made by.

    One answer is no list of one there: Keras 3 would hand that to the next layer of a Sequential network.
    """
    nodes = [each["inbound_nodes"] for each in layers]
    first: dict[str, int] = {}
    for name, number in _calls([*nodes, network["output_layers"]]):
        first[name] = min(number, first.get(name, number))
    # Of the others among its ends Keras 3 counts the calls anew itself.
    sequential = {each["name"] for each in layers if each["class_name"] == "Sequential"}
    ends = _anew(network["output_layers"], {name: first[name] for name in sequential & first.keys()})
    return {
        **network,
        "layers": [{**each, "inbound_nodes": _anew(each["inbound_nodes"], first)} for each in layers],
        "output_layers": ends[0] if len(ends) == 1 else ends,
    }


def _calls(nodes: Any) -> Iterator[tuple[str, int]]:
    match nodes:
        case [str(name), int(number), int(), *_]:
            yield name, number
        case [*several]:
            for each in several:
                yield from _calls(each)


def _anew(calls: Any, first: dict[str, int]) -> Any:
    match calls:
        case [str(name), int(number), int(), *_] if name in first:
            return [name, number - first[name], *calls[2:]]
        case [*several]:
            return [_anew(each, first) for each in several]
    return calls


def _is_idle(argument: str, value: Any) -> bool:
    return argument in _OF_NO_ACCOUNT or (argument in _UNUSED and value == _UNUSED[argument])


def _arguments(layer: type) -> set[str]:
    """Return the names of the arguments that a layer takes, with those that it passes on to the classes before it."""
    names: set[str] = set()
    for each in layer.__mro__:
        if "__init__" in vars(each):
            parameters = inspect.signature(vars(each)["__init__"]).parameters
            names |= parameters.keys()
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                break
    return names

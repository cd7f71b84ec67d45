"""From arguments to images: files, folders, patterns, file URLs and standard input."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from client.images import ImageSource

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


class InputError(ValueError):
    """An argument names no image at all."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image to send: a path, or bytes that were read from standard input. `name` is what to call it."""

    name: str
    source: ImageSource


def collect(
    arguments: Iterable[str], folders: Iterable[Path], *, recursive: bool, read_stdin: Callable[[], bytes]
) -> list[Image]:
    """The images that the command line names, in its order; those of a folder or a pattern by name.

    An argument is a file, a folder, ``-`` for standard input, a ``file:`` URL, or a pattern with ``*``, ``?``,
    ``[…]`` or ``**`` for shells that leave patterns alone. A file that does not exist, or that cannot, is kept: it
    becomes one failed image among the others.

    Raises:
        InputError: a folder or a pattern without images, a folder that cannot be read, a URL of another scheme, or
            nothing at all.
    """
    images: list[Image] = []
    for argument in arguments:
        images.extend(_expand(argument, recursive, read_stdin))
    for folder in folders:
        images.extend(_files(_in_folder(folder, recursive)))
    if not images:
        raise InputError("name at least one image, folder or pattern")
    return images


def _expand(argument: str, recursive: bool, read_stdin: Callable[[], bytes]) -> Iterator[Image]:
    if argument == "-":
        yield Image("-", read_stdin())
        return
    if not argument:
        # Or it would be this folder: as of a variable of a script that is not set.
        raise InputError("an image's name is empty")
    if "://" in argument or argument.startswith("file:"):
        yield from _files([_from_url(argument)])
        return
    path = Path(argument)
    # Path's own questions raise where a name is too long, or is in a folder that may not be looked into.
    if os.path.isdir(path):  # noqa: PTH112
        yield from _files(_in_folder(path, recursive))
    elif os.path.exists(path) or not glob.has_magic(argument):  # noqa: PTH110
        yield from _files([path])
    else:
        # Path.glob takes no absolute patterns.
        found = sorted(filter(os.path.isfile, glob.glob(argument, recursive=True)))  # noqa: PTH207
        matches = [path for path in map(Path, found) if path.suffix.lower() in IMAGE_SUFFIXES]
        if not matches:
            raise InputError(f"no image matches {argument}")
        yield from _files(matches)


def _from_url(url: str) -> Path:
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets where a host's address would be
        parts = None
    if parts is None or parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise InputError(f"{url}: only file:///… URLs of this machine can be read")
    return Path(url2pathname(parts.path))


def _in_folder(folder: Path, recursive: bool) -> list[Path]:
    try:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder")
        entries = folder.rglob("*") if recursive else folder.iterdir()
        images = sorted(path for path in entries if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from None
    if not images:
        raise InputError(f"no images (JPEG, PNG, WebP or BMP) in {folder}")
    return images


def _files(paths: Iterable[Path]) -> Iterator[Image]:
    return (Image(_readable(path), path) for path in paths)


def _readable(path: Path) -> str:
    """A path as text that can be written: a name need not be UTF-8, and JSON and terminals take nothing else."""
    return os.fsencode(path).decode(errors="backslashreplace")

"""What is taken for an image: the bytes of an image file, or the path of one."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import threading
from concurrent.futures import Future
from pathlib import Path

ImageSource = bytes | str | os.PathLike[str]
"""The bytes of an image file, or the path of one."""


async def bytes_of(image: ImageSource) -> bytes:
    """The bytes of the image file.

    Raises:
        OSError: the file cannot be read.
        TypeError: `image` is something else; says what to do with it.
    """
    if isinstance(image, bytes):
        return image
    if not isinstance(image, str | os.PathLike):
        raise TypeError(
            "an image is the bytes of a JPEG, PNG, WebP or BMP file, or the path of one, not "
            f"{type(image).__name__}: encode pixels (cv2.imencode), read() what is open, give bytes() of a buffer"
        )
    try:
        return await _read(Path(image))
    except ValueError as error:  # a null byte, or a letter that the system's names have no bytes for
        raise OSError(errno.EINVAL, f"{os.strerror(errno.EINVAL)}: {error}") from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        # The system's own error shows all of it, which may be a whole image.
        raise OSError(
            error.errno,
            f"{error.strerror}: text is a path; base64.b64decode() makes bytes of an image in base64",
        ) from None


async def _read(path: Path) -> bytes:
    """In one of the few threads that asyncio has for such work, however many files are asked for at once."""
    data = await asyncio.to_thread(_of_file, path)
    return await _of_stream(path) if data is None else data


def _of_file(path: Path) -> bytes | None:
    """None where it is no file proper: a named pipe, say."""
    return path.read_bytes() if stat.S_ISREG(path.stat().st_mode) else None


async def _of_stream(path: Path) -> bytes:
    """In a thread that no program's end waits for: a named pipe may have nobody who ever writes to it."""
    reading: Future[bytes] = Future()
    reading.set_running_or_notify_cancel()  # who waits may be cancelled, but not the reading

    def read() -> None:
        try:
            reading.set_result(path.read_bytes())
        except (OSError, ValueError, MemoryError, OverflowError) as error:
            reading.set_exception(error)

    threading.Thread(target=read, name="visionai client stream", daemon=True).start()
    return await asyncio.wrap_future(reading)


def check_several(images: object, concurrency: int) -> None:
    """Raise TypeError where `images` is one image and not several, ValueError where `concurrency` is impossible."""
    if isinstance(images, bytes | str | os.PathLike):
        raise TypeError("predict_many takes several images, as in a list; predict takes one")
    if concurrency < 1:
        raise ValueError(f"concurrency is at least 1, not {concurrency}")

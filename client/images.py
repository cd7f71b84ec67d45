"""What is taken for an image: the bytes of an image file, or the path of one."""

from __future__ import annotations

import asyncio
import errno
import os
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
        return await asyncio.to_thread(Path(image).read_bytes)
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


def check_several(images: object, concurrency: int) -> None:
    """Raise TypeError where `images` is one image and not several, ValueError where `concurrency` is impossible."""
    if isinstance(images, bytes | str | os.PathLike):
        raise TypeError("predict_many takes several images, as in a list; predict takes one")
    if concurrency < 1:
        raise ValueError(f"concurrency is at least 1, not {concurrency}")

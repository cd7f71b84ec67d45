"""Which way up a picture is, by its Exif block. It is the same in all formats."""

from __future__ import annotations

import struct

from service.images import ImageFile

#: What an Exif block begins with in JPEG, and in the files of some writers of WebP and PNG too.
EXIF_MAGIC = b"Exif\0\0"

_ORIENTATION = 0x0112  # Exif 2.3, section 4.6.4

# What a JPEG's segment holds. Others may announce directories of a million entries.
_MAX_BYTES = 65_536


def read_orientation(exif: ImageFile) -> int:
    """The orientation tag of the first directory, 1-8; 1 (upright) where it is absent or damaged.

    A damaged Exif block does not make the picture unreadable, so it is not an error.
    """
    tiff = exif[:_MAX_BYTES]
    if tiff[: len(EXIF_MAGIC)] == EXIF_MAGIC:
        tiff = tiff[len(EXIF_MAGIC) :]
    order = {b"II": "<", b"MM": ">"}.get(bytes(tiff[:2]))
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, _kind, _count, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if tag == _ORIENTATION:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass  # the block ends early
    return 1

"""From what a client sent to a model's input: base64, limits, decoding, orientation, size.

Everything here releases the GIL where the time goes (decoding, resizing), so that it runs in executor threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from service.errors import ImageTooLarge, InvalidImage
from service.images import ImageFile
from service.images.base64text import decode_base64
from service.images.header import Format, ImageHeader, check_scans, read_header
from service.images.png import picture_only

Color = Literal["gray", "rgb"]
Pixels = npt.NDArray[np.uint8]

# An image of fewer pixels a side than this holds no face that any network could read.
MIN_SIDE = 8

# Decoders take no longer sides: libjpeg's limit, and libpng's; OpenCV's for the others is hardly larger.
MAX_JPEG_SIDE, MAX_SIDE = 65_500, 1_000_000

# Workers share the cores by themselves; OpenCV's threads would take others' cores, and spin while they wait.
cv2.setNumThreads(1)

# Photos are decoded at least so large, in pixels of the longer side: what the search for small faces works on.
PHOTO_SIDE = 1280

# What libjpeg says where the file ends before the picture does. Its other complaints (stray bytes between
# markers, say, which some cameras write) leave a picture that is worth reading.
_JPEG_CUT_OFF = "Premature end"

# The scales that OpenCV has for JPEGs, beside the full one. Each of its flags is a bit, which goes with colour too.
_REDUCED = {
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


@dataclass(frozen=True, slots=True)
class InputShape:
    """The image that a model takes: uint8, height x width pixels, one channel (gray) or three (RGB)."""

    height: int
    width: int
    color: Color

    @property
    def channels(self) -> int:
        """1 or 3."""
        return 1 if self.color == "gray" else 3


@dataclass(frozen=True, slots=True, eq=False)
class Photo:
    """An image decoded to look for faces: `pixels`, uint8 [h, w] gray or [h, w, 3] RGB, upright, perhaps smaller
    than the sent image, whose upright size in pixels is `width` x `height`.
    """

    pixels: Pixels
    width: int
    height: int


class ImageDecoder:
    """Decodes images to the input of one model. Has no state of its own: threads may share it.

    Args:
        shape: what the model takes.
        max_pixels: images of more pixels than this are refused by their header.
    """

    def __init__(self, shape: InputShape, max_pixels: int) -> None:
        self.shape = shape
        self.max_pixels = max_pixels

    def decode_into(self, image: str | ImageFile, out: Pixels) -> None:
        """Write one image into `out`, upright and scaled to the model's size.

        Args:
            image: base64 text or the bytes of an image file.
            out: uint8 [height, width, channels], C-contiguous.

        Raises:
            InvalidBase64, InvalidImage, ImageTooLarge: the image's fault. `out` is then undefined.
        """
        shape = self.shape
        data, header = self._open(image)
        self.fit(self._decode(data, header, shape.height, shape.width), out)

    def decode_photo(self, image: str | ImageFile) -> Photo:
        """Decode an image to look for faces in it: at full size, or a size at which small faces can still be found.

        Raises:
            InvalidBase64, InvalidImage, ImageTooLarge: the image's fault.
        """
        data, header = self._open(image)
        width, height = header.upright_size
        # A side of 1 bounds nothing, so that the longer one decides.
        least = min(PHOTO_SIDE, max(width, height))
        pixels = self._decode(data, header, *((least, 1) if height > width else (1, least)))
        return Photo(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels, width, height)

    def fit(self, pixels: Pixels, out: Pixels) -> None:
        """Scale an image, uint8 [h, w] or [h, w, channels], to the model's size, into `out`."""
        shape = self.shape
        if pixels.shape[:2] != (shape.height, shape.width):
            shrinks = pixels.shape[0] >= shape.height and pixels.shape[1] >= shape.width
            # Averaging over the area keeps a shrunk face free of aliasing; it does nothing good when enlarging.
            interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            resized = cv2.resize(pixels, (shape.width, shape.height), interpolation=interpolation)
            pixels = np.asarray(resized, np.uint8)
        out[:] = pixels.reshape(out.shape)

    def _open(self, image: str | ImageFile) -> tuple[ImageFile, ImageHeader]:
        data = decode_base64(image) if isinstance(image, str) else image
        header = read_header(data)
        self._check_size(header)
        if header.multiscan:
            check_scans(data, header.width * header.height)
        if header.format is Format.PNG:
            data, orientation = picture_only(data)
            header = header._replace(orientation=orientation)
        return data, header

    def _decode(self, data: ImageFile, header: ImageHeader, min_height: int, min_width: int) -> Pixels:
        """An upright image, at least of this size if it was as large: uint8 [h, w, channels]."""
        if header.format is Format.JPEG:
            pixels = self._decode_jpeg(data, header, min_height, min_width)
        else:
            pixels = self._decode_other(data, header)
        return pixels if pixels.ndim == 3 else pixels[:, :, None]

    def _check_size(self, header: ImageHeader) -> None:
        width, height = header.width, header.height
        if width * height > self.max_pixels:
            raise ImageTooLarge(
                f"the image has {width} x {height} pixels; at most {self.max_pixels:,} are accepted: send it smaller"
            )
        longest = MAX_JPEG_SIDE if header.format is Format.JPEG else MAX_SIDE
        if width > longest or height > longest:
            raise ImageTooLarge(
                f"the image has {width} x {height} pixels; at most {longest:,} a side are accepted: send it smaller"
            )
        if width < MIN_SIDE or height < MIN_SIDE:
            raise InvalidImage(
                f"the image has {width} x {height} pixels; a face needs at least {MIN_SIDE} a side"
            )

    def _decode_jpeg(self, data: ImageFile, header: ImageHeader, min_height: int, min_width: int) -> Pixels:
        """Decode at the smallest scale (of libjpeg's eighths) that still has this size, upright."""
        gray = self.shape.color == "gray"
        # Sideways pictures (orientation 5-8) are turned after decoding, so the sides swap.
        if header.orientation >= 5:
            min_height, min_width = min_width, min_height
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(
                data, "GRAY" if gray else "RGB", min_height=min_height, min_width=min_width
            )
            return upright(pixels, header.orientation)
        except ValueError as exc:
            # libjpeg warns, or fails. OpenCV, with the same libjpeg behind it, goes on after a warning. simplejpeg
            # would too, if not strict, but takes a failure behind one for another: the picture is then what its
            # memory held before. And it forgives no stray bytes before the picture.
            if _JPEG_CUT_OFF in str(exc):
                raise InvalidImage("the JPEG is cut off: its end is missing") from None
        except KeyError:  # a sampling that libjpeg-turbo has no name for
            raise InvalidImage("the JPEG's header is damaged") from None
        reduced = 0
        for scale, flag in _REDUCED.items():
            if header.height >= scale * min_height and header.width >= scale * min_width:
                reduced = flag
        return self._decode_other(data, header, reduced)

    def _decode_other(self, data: ImageFile, header: ImageHeader, reduced: int = 0) -> Pixels:
        """Decode with OpenCV, which reduces 16 bits to 8 and drops alpha, at a scale of `_REDUCED`; turn upright."""
        color = cv2.IMREAD_GRAYSCALE if self.shape.color == "gray" else cv2.IMREAD_COLOR_RGB
        flags = color | reduced | cv2.IMREAD_IGNORE_ORIENTATION
        try:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error as exc:
            raise InvalidImage(f"the {header.format.value} cannot be read: {exc.err}") from None
        if pixels is None:
            raise InvalidImage(f"the {header.format.value} is damaged or cut off")
        return upright(np.asarray(pixels, np.uint8), header.orientation)


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an Exif orientation (1-8; Exif 2.3, section 4.6.4): [h, w] or [h, w, c] in, the same or [w, h] out."""
    match orientation:
        case 2:
            pixels = pixels[:, ::-1]
        case 3:
            pixels = pixels[::-1, ::-1]
        case 4:
            pixels = pixels[::-1]
        case 5:
            pixels = pixels.swapaxes(0, 1)
        case 6:
            pixels = pixels.swapaxes(0, 1)[:, ::-1]
        case 7:
            pixels = pixels[::-1, ::-1].swapaxes(0, 1)
        case 8:
            pixels = pixels.swapaxes(0, 1)[::-1]
    return np.ascontiguousarray(pixels)

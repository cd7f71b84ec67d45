"""Copies of images with boxes and labels drawn on them. The only part of `predict` that needs OpenCV."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from client.cli.inputs import IMAGE_SUFFIXES, Image, InputError
from client.cli.opencv import load_opencv
from client.results import Box, Prediction

if TYPE_CHECKING:
    from cv2.typing import MatLike

_GREEN = (80, 200, 60)  # BGR
_WHITE = (255, 255, 255)


class Annotator:
    """Draws predictions on copies of `images` in `folder`, which is made if need be.

    A copy has its image's name, and `.jpg` behind it where that is no image's name; where several images have the
    same one, a number is added. Photos are turned upright as their EXIF data say, as the server does.

    Raises:
        InputError: `folder` exists and is no folder, or holds one of the images themselves.
    """

    def __init__(self, folder: Path, images: Sequence[Image]) -> None:
        self._cv2 = load_opencv("--annotate")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make {folder}: {error.strerror}") from None
        self._targets: dict[str, Path] = {}
        originals = {_real(Path(image.source)) for image in images if not isinstance(image.source, bytes)}
        taken: set[Path] = set()
        for image in images:
            if image.name in self._targets:
                continue  # named twice, as by a folder and a pattern: it is one image, with one copy
            name = Path("stdin.jpg") if isinstance(image.source, bytes) else Path(Path(image.source).name)
            if name.suffix.lower() not in IMAGE_SUFFIXES:
                name = Path(f"{name}.jpg")
            target = folder / name
            number = 2
            while target in taken:
                target = folder / f"{name.stem}-{number}{name.suffix}"
                number += 1
            if _real(target) in originals:
                raise InputError(f"{folder} holds {target.name} itself: name another folder for the copies")
            taken.add(target)
            self._targets[image.name] = target

    def draw(self, image: Image, prediction: Prediction) -> Path:
        """Write the annotated copy; its path.

        Raises:
            OSError: it cannot be written, or the image cannot be read a second time.
        """
        import numpy as np

        cv2 = self._cv2
        data = image.source if isinstance(image.source, bytes) else Path(image.source).read_bytes()
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
        if pixels is None:
            raise OSError("the image cannot be read a second time; of a pipe, name it -")
        if prediction.faces:
            for face in prediction.faces:
                self._label(pixels, face.box, f"{face.emotion_name} {face.confidence * 100:.0f}%")
        else:
            height, width = pixels.shape[:2]
            whole = Box(0, 0, width, height)
            self._label(pixels, whole, f"{prediction.emotion_name} {prediction.confidence * 100:.0f}%")
        target = self._targets[image.name]
        _, encoded = cv2.imencode(target.suffix, pixels)
        target.write_bytes(encoded.tobytes())
        return target

    def _label(self, pixels: MatLike, box: Box, text: str) -> None:
        """A box with its label above it, or inside at the top where there is no room above."""
        cv2 = self._cv2
        height, width = pixels.shape[:2]
        # Sizes follow the image, so that labels are read as well on a thumbnail as on a poster.
        scale = max(0.35, min(width, height) / 900)
        thickness = max(1, round(scale * 2))
        left, top = round(box.x), round(box.y)
        right, bottom = round(box.x + box.width), round(box.y + box.height)
        cv2.rectangle(pixels, (left, top), (right - 1, bottom - 1), _GREEN, thickness + 1)
        (text_width, text_height), baseline = cv2.getTextSize(
            text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness
        )
        tag = text_height + 2 * baseline
        tag_top = top - tag if top >= tag else max(top, 0)
        tag_left = max(0, min(left, width - text_width))
        cv2.rectangle(pixels, (tag_left, tag_top), (tag_left + text_width, tag_top + tag), _GREEN, cv2.FILLED)
        cv2.putText(
            pixels,
            text,
            (tag_left, tag_top + text_height + baseline // 2),
            cv2.FONT_HERSHEY_SIMPLEX,
            scale,
            _WHITE,
            thickness,
            cv2.LINE_AA,
        )


def _real(path: Path) -> str:
    """The file that `path` leads to, by one name; for a name that no file can have, that itself."""
    try:
        return os.path.realpath(path)
    except ValueError:
        return str(path)

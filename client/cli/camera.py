"""Frames of a camera or a video, as JPEG, at the speed of life."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable

from client.cli.inputs import InputError
from client.cli.opencv import load_opencv

_JPEG_QUALITY = 90
_ASSUMED_FPS = 25.0


class Camera:
    """Reads a camera (by number) or a video file, in a thread of its own.

    A video is played at its own speed: frames that would come late are skipped, as a camera's would be lost.

    Args:
        source: a camera's number, such as ``0``, or the path of a video.
        on_frame: called in the thread with each frame as JPEG, and with None after the last.

    Raises:
        InputError: there is no such camera or video, or it cannot be read.
    """

    def __init__(self, source: str, on_frame: Callable[[bytes | None], object]) -> None:
        self._cv2 = load_opencv("--camera")
        is_camera = re.fullmatch("[0-9]{1,9}", source) is not None
        # Path's own question raises where a name is too long, or is in a folder that may not be looked into.
        if not is_camera and not os.path.isfile(source):  # noqa: PTH113
            raise InputError(f"there is no video {source}; a camera is a number, such as 0")
        try:
            source.encode()
        except UnicodeEncodeError:  # of which OpenCV crashes
            raise InputError(f"the name {source} is no UTF-8: rename the video") from None
        self._capture = self._cv2.VideoCapture(int(source) if is_camera else source)
        if not self._capture.isOpened():
            raise InputError(f"camera {source} cannot be opened" if is_camera else f"{source} is no video")
        # A camera's own frames set the pace; some files do not tell theirs.
        fps = self._capture.get(self._cv2.CAP_PROP_FPS)
        self._frame_seconds = 0.0 if is_camera else 1 / (fps if fps > 0 else _ASSUMED_FPS)
        self._on_frame = on_frame
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._play, name="visionai camera")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and release the camera. Waits for the frame at hand."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()
        self._capture.release()

    def _play(self) -> None:
        try:
            started = time.monotonic()
            number = 0
            # `grab` is cheap, decoding is not: a frame that is late is not decoded.
            while not self._ending.is_set() and self._capture.grab():
                due = started + number * self._frame_seconds
                number += 1
                early = due - time.monotonic()
                if early < -self._frame_seconds and self._frame_seconds:
                    continue
                if early > 0 and self._ending.wait(early):
                    break
                ok, pixels = self._capture.retrieve()
                if ok:
                    _, jpeg = self._cv2.imencode(
                        ".jpg", pixels, [self._cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
                    )
                    self._on_frame(jpeg.tobytes())
        finally:
            self._on_frame(None)

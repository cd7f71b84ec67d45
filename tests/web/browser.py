"""A headless Chromium with a camera that plays a face, for tests and screenshots."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import cv2
import numpy as np
from playwright.async_api import BrowserContext, async_playwright

ROOT = Path(__file__).parents[2]
ASTRONAUT = ROOT / "tests/data/astronaut.jpg"

_WIDTH, _HEIGHT = 640, 480
_FRAMES = 24
CAMERA_FPS = 8

# Nothing of the browser's own goes to the network, and the camera is there without anybody being asked.
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
]


def chromium_path() -> str:
    """Where Chromium is; an AssertionError that says how to get it if it is not there."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path is not None, "these tests need Chromium (Debian: apt-get install chromium)"
    return path


def write_face_video(path: Path, *, blank: bool = False) -> None:
    """A Y4M video for the fake camera, which plays it in a loop: NASA's portrait, panned and zoomed, or just gray."""
    portrait = cv2.imread(str(ASTRONAUT))
    assert portrait is not None
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{_WIDTH} H{_HEIGHT} F{CAMERA_FPS}:1 Ip A1:1 C420\n".encode())
        frame: cv2.typing.MatLike = np.full((_HEIGHT, _WIDTH, 3), 128, np.uint8)
        for index in range(_FRAMES):
            if not blank:
                phase = np.sin(2 * np.pi * index / _FRAMES)
                scale = 1.32 + 0.06 * phase
                move = np.array(
                    [[scale, 0, -22 + 24 * phase], [0, scale, -24.0 - 8 * phase]], dtype=np.float32
                )
                frame = cv2.warpAffine(portrait, move, (_WIDTH, _HEIGHT), borderMode=cv2.BORDER_REPLICATE)
            file.write(b"FRAME\n" + cv2.cvtColor(frame, cv2.COLOR_BGR2YUV_I420).tobytes())


@asynccontextmanager
async def browser(
    profile: Path, video: Path, *, allow_camera: bool = True, locale: str = "en-GB"
) -> AsyncIterator[BrowserContext]:
    """A browser of its own, with a new profile; closed at the end."""
    flags = [*_FLAGS, f"--use-file-for-fake-video-capture={video}"]
    if allow_camera:
        flags.append("--use-fake-ui-for-media-stream")
    async with async_playwright() as playwright:
        context = await playwright.chromium.launch_persistent_context(
            profile,
            executable_path=chromium_path(),
            headless=True,
            args=flags,
            locale=locale,
            viewport={"width": 1280, "height": 900},
        )
        try:
            yield context
        finally:
            await context.close()

"""A headless Chromium with a camera that plays a face, for tests and screenshots."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import cv2
import numpy as np
from playwright.async_api import Browser, async_playwright

ROOT = Path(__file__).parents[2]
ASTRONAUT = ROOT / "tests/data/astronaut.jpg"

_WIDTH, _HEIGHT = 640, 480
_FRAMES = 16
_FPS = 5

# Nothing of the browser's own goes to the network, and its camera is a file.
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# Run in a page before its own scripts: its camera shows a gray wall.
BLANK_CAMERA = """
  navigator.mediaDevices.getUserMedia = async () => {
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width: 320, height: 240 });
    const context = canvas.getContext("2d");
    setInterval(() => { context.fillStyle = "#808080"; context.fillRect(0, 0, 320, 240); }, 100);
    return canvas.captureStream();
  };
"""


def write_face_video(path: Path) -> None:
    """A Y4M video for the fake camera, which plays it in a loop: NASA's portrait, panned and zoomed."""
    portrait = cv2.imread(str(ASTRONAUT))
    assert portrait is not None
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{_WIDTH} H{_HEIGHT} F{_FPS}:1 Ip A1:1 C420\n".encode())
        for index in range(_FRAMES):
            phase = np.sin(2 * np.pi * index / _FRAMES)
            scale = 1.32 + 0.06 * phase
            move = np.array([[scale, 0, -22 + 24 * phase], [0, scale, -24 - 8 * phase]], dtype=np.float32)
            frame = cv2.warpAffine(portrait, move, (_WIDTH, _HEIGHT), borderMode=cv2.BORDER_REPLICATE)
            file.write(b"FRAME\n" + cv2.cvtColor(frame, cv2.COLOR_BGR2YUV_I420).tobytes())


@asynccontextmanager
async def launch(folder: Path, cameras: int | None = None) -> AsyncIterator[Browser]:
    """A browser with a new profile; its contexts may use the camera where "camera" is in their permissions.

    With `cameras` it has so many, which show Chromium's own test picture instead of a face.
    """
    chromium = shutil.which("chromium")
    assert chromium is not None, "the page's tests need Chromium (Debian: apt-get install chromium)"
    video = folder / "camera.y4m"
    write_face_video(video)
    devices = (
        ["--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={video}"]
        if cameras is None
        else [f"--use-fake-device-for-media-stream=device-count={cameras}"]
    )
    async with (
        async_playwright() as playwright,
        await playwright.chromium.launch(
            executable_path=chromium,
            headless=True,
            args=[*_FLAGS, *devices],
        ) as browser,
    ):
        yield browser

"""OpenCV, only where a command draws or reads a camera: everything else works without it."""

from __future__ import annotations

from types import ModuleType

import typer


def load_opencv(what_for: str) -> ModuleType:
    """The `cv2` module.

    Raises:
        typer.BadParameter: it is not installed; says how to install it.
    """
    try:
        import cv2
    except ImportError:
        raise typer.BadParameter(
            "needs OpenCV: pip install opencv-python-headless", param_hint=f"'{what_for}'"
        ) from None
    return cv2

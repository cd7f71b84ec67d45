"""Client of a VisionAI server: Python classes for programs, and the `visionai` command line.

Light on purpose: importing it loads neither NumPy nor OpenCV.
"""

import sys

try:
    from client.async_client import DEFAULT_URL, AsyncClient, Detect, Priority
    from client.blocking_client import Client
    from client.errors import (
        CannotConnect,
        ConnectionFailed,
        ConnectionLost,
        DeadlineExceeded,
        ImageTooLarge,
        InternalError,
        InvalidImage,
        InvalidRequest,
        NoFace,
        Overloaded,
        ProtocolViolation,
        RateLimited,
        RequestRejected,
        ShuttingDown,
        Superseded,
        Unauthorized,
        Unavailable,
        UnknownCommand,
        UnknownError,
        VisionAIError,
    )
    from client.images import ImageSource
    from client.many import Outcome
    from client.protocol import Welcome
    from client.results import (
        Box,
        Emotion,
        EmotionCount,
        Face,
        Health,
        HistoryPage,
        ModelInfo,
        ModelVersion,
        Prediction,
        Stats,
        StoredPrediction,
        Timing,
    )
    from client.retry import Retry
except ModuleNotFoundError as error:
    _package = (error.name or __name__).partition(".")[0]
    if _package == __name__:
        raise
    raise ModuleNotFoundError(
        f"{_package} is not installed for {sys.executable}: use the Python of .venv, which `make run` makes, or "
        "install the client as docs/client.md says",
        name=error.name,
    ) from None

__all__ = [
    "DEFAULT_URL",
    "AsyncClient",
    "Box",
    "CannotConnect",
    "Client",
    "ConnectionFailed",
    "ConnectionLost",
    "DeadlineExceeded",
    "Detect",
    "Emotion",
    "EmotionCount",
    "Face",
    "Health",
    "HistoryPage",
    "ImageSource",
    "ImageTooLarge",
    "InternalError",
    "InvalidImage",
    "InvalidRequest",
    "ModelInfo",
    "ModelVersion",
    "NoFace",
    "Outcome",
    "Overloaded",
    "Prediction",
    "Priority",
    "ProtocolViolation",
    "RateLimited",
    "RequestRejected",
    "Retry",
    "ShuttingDown",
    "Stats",
    "StoredPrediction",
    "Superseded",
    "Timing",
    "Unauthorized",
    "Unavailable",
    "UnknownCommand",
    "UnknownError",
    "VisionAIError",
    "Welcome",
]

"""The VisionAI WebSocket service: `python -m service`."""

__version__ = "1.0.0"

"""The VisionAI WebSocket service: `python -m service`."""

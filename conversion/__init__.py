"""Keras to ONNX, with proof: `python -m conversion`."""

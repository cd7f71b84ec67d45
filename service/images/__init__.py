"""Images: what their headers say, and their decoding to a model's input. No I/O."""

"""Images: what their headers say, and their decoding to a model's input. No I/O."""

from typing import TypeAlias

#: The bytes of an image file, as they came in. A large one is not copied to make it immutable.
ImageFile: TypeAlias = bytes | memoryview

"""Images: what their headers say, and their decoding to a model's input. No I/O.

Rooms: ``base64text`` (as they are sent), ``header`` with ``exif`` (format, size, which way up), ``peek`` (whether one
takes so long that it goes to a thread of its own), ``decode`` with ``png`` (limits, scale, colour, pixels).
"""

from typing import TypeAlias

#: The bytes of an image file, as they came in. A large one is not copied to make it immutable.
ImageFile: TypeAlias = bytes | memoryview

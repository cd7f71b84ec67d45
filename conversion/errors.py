"""What can go wrong in a conversion, each with the exit status it ends the program with.

ConversionError (1)
├── SourceError (2): the source file is missing, damaged, foreign, or not an image classifier
├── OptionError (2): an option or a sidecar entry is unknown, wrong or missing
├── GraphError (3): the ONNX graph is not what a release may hold
├── ParityError (3): ONNX and Keras do not answer alike
└── VerificationError (4): a model does not match its manifest

The message of each is one line that says what is wrong and what to do about it.
"""

import re
from typing import ClassVar

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # Keras sets some of its errors in bold, for terminals


def quoted(error: BaseException | str) -> str:
    """Return what a library says of its error, as part of a line of ours: no line breaks, no colours, not endless."""
    return " ".join(_COLOUR.sub("", str(error)).split())[:300]


class ConversionError(Exception):
    """A conversion that cannot go on. Nothing was written."""

    exit_status: ClassVar[int] = 1


class SourceError(ConversionError):
    """The source cannot be read as an image classifier."""

    exit_status = 2


class OptionError(ConversionError):
    """An option is unknown, wrong or missing."""

    exit_status = 2


class GraphError(ConversionError):
    """The converted graph failed a structural check."""

    exit_status = 3


class ParityError(ConversionError):
    """The converted graph answers differently from the source."""

    exit_status = 3


class VerificationError(ConversionError):
    """A model does not match its manifest."""

    exit_status = 4

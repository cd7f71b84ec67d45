"""Coverage-guided fuzzing with atheris, for where it installs (Linux, Python up to 3.13); not part of the test run.

::

    pip install atheris
    python -m tests.fuzz.guided messages -max_total_time=600
    python -m tests.fuzz.guided images -max_total_time=600

Other options are libFuzzer's. An input that fails is written to ``crash-…`` in the current folder; it belongs into
the corpus then.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["service.protocol.requests", "service.images"]):
    from tests.fuzz import targets
    from tests.fuzz.corpus import images, messages


def main() -> None:
    """Fuzz one target until told to stop."""
    name, options = sys.argv[1], sys.argv[2:]
    target, corpus = {"messages": (targets.parse, messages()), "images": (targets.decode, images())}[name]
    with tempfile.TemporaryDirectory(prefix="visionai-fuzz-") as folder:
        for number, seed in enumerate(corpus):
            Path(folder, str(number)).write_bytes(seed)
        atheris.Setup([sys.argv[0], *options, folder], target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

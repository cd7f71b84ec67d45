"""What is served, for people: the line that says that the service is ready, and in what workers differ."""

from __future__ import annotations

import contextlib
import os

from service import __version__
from service.processes.worker import Ready
from service.settings import Settings


def announce(ready: Ready, settings: Settings, host: str, port: int) -> None:
    """Say where the service is ready, and with what.

    It is only information: a pipe that nobody reads or a full disk does not keep us from serving.
    """
    scheme = "ws" if settings.tls_certificate is None else "wss"
    layout = f"{settings.workers} worker{'s' if settings.workers > 1 else ''}"
    if settings.executors:
        layout += f" of {settings.executors} executor threads"
    line = (
        f"VisionAI {__version__} is ready on {scheme}://{f'[{host}]' if ':' in host else host}:{port} "
        f"({models_served(ready, settings)}, {layout}, {settings.provider})\n"
    )
    # Past Python's buffer, which would try again at the end, and in each process that is forked meanwhile.
    with contextlib.suppress(OSError):
        os.write(1, line.encode())


def models_served(ready: Ready, settings: Settings) -> str:
    """The versions that a worker serves."""
    if ready.canary_tag is None:
        return f"model {ready.version_tag}"
    return f"model {ready.version_tag}, canary {ready.canary_tag} for {settings.canary_percent:g} %"


def difference(found: Ready, before: Ready | None, settings: Settings) -> str | None:
    """What a worker serves, where it is not what was served `before`; None where it is, or nothing was."""
    if before is None or before == found:
        return None
    return (
        f"{models_served(found, settings)}, where others serve {models_served(before, settings)}: "
        "a file was replaced meanwhile"
    )

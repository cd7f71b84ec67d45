"""Who a client has proved to be, and for how long that holds."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """`user` is who; `expires` is Unix time in seconds; `key` is the digest of the API key, if it was one."""

    user: str
    expires: float = math.inf
    key: str | None = None

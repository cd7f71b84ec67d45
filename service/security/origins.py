"""Which web pages may connect. Browsers say in `Origin` whose page it is; other clients send none.

A page of another site can open a WebSocket to any address that its visitor's browser reaches, and browsers do not
stop it as they stop reading over HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence

from websockets.datastructures import Headers, MultipleValuesError

# An entry of the allow-list that means the service's own page.
SAME_ORIGIN = "same-origin"


def allowed(headers: Headers, allow_list: Sequence[str]) -> bool:
    """Whether a handshake with these headers may go on.

    Args:
        allow_list: origins such as ``https://shop.example``, and `SAME_ORIGIN`; empty allows all.
    """
    if not allow_list:
        return True
    try:
        origin, host = headers.get("Origin"), headers.get("Host")
    except MultipleValuesError:
        return False
    if origin is None:
        return True
    origin = origin.lower()
    if origin in allow_list:
        return True
    return SAME_ORIGIN in allow_list and host is not None and origin.partition(":")[2] == f"//{host.lower()}"

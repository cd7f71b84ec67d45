"""`python -m service.healthcheck`: whether the service of this container answers. Exit code 0 if it does, 1 if not.

It asks /healthz, which says that the process lives; whether it takes requests is /readyz, for load balancers. Needs no
program that the image lacks. Of the settings it reads where the service listens, which a reload does not change: the
others may be edited at any time.
"""

from __future__ import annotations

import http.client
import ssl
import sys

from service.errors import StartupError
from service.settings import load_address

_TIMEOUT_SECONDS = 3.0

# An address to listen on that is all addresses, and one of them to ask at.
_ALL_ADDRESSES = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


def check(host: str, port: int) -> str | None:
    """Ask the service that listens there, with TLS or without. Returns what is wrong; None if it answers as it should.

    Whether it is with TLS is not for the settings to say: they may be for the next reload. A service with TLS gives up
    at once on who comes without it. One without it might wait for the rest, so it is not asked first.
    """
    host = _ALL_ADDRESSES.get(host, host)
    try:
        try:
            status = _status(http.client.HTTPConnection(host, port, timeout=_TIMEOUT_SECONDS))
        except (ConnectionRefusedError, TimeoutError):
            raise
        except (OSError, http.client.HTTPException):
            # It asks its own container: the certificate is for another name, and may be any authority's.
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            status = _status(
                http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_SECONDS, context=context)
            )
    except (OSError, http.client.HTTPException) as exc:
        return f"{host}:{port} does not answer: {exc}"
    return None if status == http.HTTPStatus.OK else f"/healthz answers {status}"


def _status(connection: http.client.HTTPConnection) -> int:
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status
    finally:
        connection.close()


def main() -> int:
    """Check, say what is wrong, and return the exit code."""
    try:
        fault = check(*load_address())
    except StartupError as exc:
        fault = str(exc)
    if fault is not None:
        print(fault, file=sys.stderr)
    return 0 if fault is None else 1


if __name__ == "__main__":
    sys.exit(main())

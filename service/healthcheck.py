"""`python -m service.healthcheck`: whether the service of this container answers. Exit code 0 if it does, 1 if not.

It asks /healthz, which says that the process lives; whether it takes requests is /readyz, for load balancers. Needs no
program that the image lacks.
"""

from __future__ import annotations

import http.client
import ssl
import sys

from service.errors import StartupError
from service.settings import Settings, load_settings

_TIMEOUT_SECONDS = 3.0

# An address to listen on that is all addresses, and one of them to ask at.
_ALL_ADDRESSES = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


def check(settings: Settings) -> str | None:
    """Ask the service that these settings start. Returns what is wrong; None when it answers as it should."""
    host = _ALL_ADDRESSES.get(settings.host, settings.host)
    connection: http.client.HTTPConnection
    if settings.tls_certificate is None:
        connection = http.client.HTTPConnection(host, settings.port, timeout=_TIMEOUT_SECONDS)
    else:
        # It asks its own container: the certificate is for another name, and may be any authority's.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            host, settings.port, timeout=_TIMEOUT_SECONDS, context=context
        )
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as exc:
        return f"{host}:{settings.port} does not answer: {exc}"
    finally:
        connection.close()
    return None if status == http.HTTPStatus.OK else f"/healthz answers {status}"


def main() -> int:
    """Check, say what is wrong, and return the exit code."""
    try:
        fault = check(load_settings())
    except StartupError as exc:
        fault = str(exc)
    if fault is not None:
        print(fault, file=sys.stderr)
    return 0 if fault is None else 1


if __name__ == "__main__":
    sys.exit(main())

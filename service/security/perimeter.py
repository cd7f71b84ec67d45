"""All that is decided about clients before their requests are: made once per worker, from the settings."""

from __future__ import annotations

from collections.abc import Callable

from service.processes.cells import SharedCells
from service.security.admission import Admission
from service.security.gate import Gate
from service.security.guard import Rules
from service.security.tls import Certificate
from service.settings import Settings


class Perimeter:
    """The gate, the rules behind it, and the certificate.

    Args:
        settings: what to let in.
        shared, worker: where connections are counted, see `Admission`.
        on_refusal: told why a connection was refused: a member of `metrics.REFUSALS`.

    Raises:
        StartupError: a certificate or a key cannot be used.
    """

    def __init__(
        self, settings: Settings, shared: SharedCells, worker: int, on_refusal: Callable[[str], None]
    ) -> None:
        self._credentials = None
        if settings.auth != "off":
            # Imported here: cryptography takes 10 MB that a service without it need not have.
            from service.security.credentials import Credentials

            self._credentials = Credentials(settings)
        self.certificate = None
        if settings.tls_certificate is not None and settings.tls_key is not None:
            self.certificate = Certificate(settings.tls_certificate, settings.tls_key)
        admission = Admission(shared, worker, settings.max_connections, settings.max_connections_per_address)
        self.gate = Gate(admission, self._credentials, settings.origins, settings.trusted_proxies, on_refusal)
        self.rules = Rules(
            credentials=self._credentials,
            requests_per_second=settings.max_requests_per_second,
            bytes_per_second=settings.max_bytes_per_second,
            message_seconds=settings.message_seconds,
            send_seconds=settings.send_seconds,
        )

    def refresh(self) -> bool:
        """Take replaced files. Returns whether other credentials hold now, so that connections are to be rechecked."""
        if self.certificate is not None:
            self.certificate.refresh()
        return self._credentials is not None and self._credentials.refresh()

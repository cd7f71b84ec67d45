"""TLS: the certificate that the service shows, replaced without a restart."""

from __future__ import annotations

import ssl
from pathlib import Path

from service.errors import StartupError
from service.security.files import WatchedFiles, refuse_endless


class _Replaceable(ssl.SSLContext):
    """What a server listens with, and keeps: the handshake of each connection is left to what is `current` then.

    A new certificate is not loaded into the context of the old one: a context holds one for each kind of key, and
    clients would still be shown that of an elliptic curve where one of an RSA key has taken its place.
    """

    current: ssl.SSLContext

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """What event loops make of a context for each connection."""
        return self.current.wrap_bio(incoming, outgoing, server_side, server_hostname, session)


class Certificate:
    """A certificate chain and its key, in PEM files. `context` is for servers, TLS 1.2 or newer.

    Raises:
        StartupError: a file cannot be read, or the key is not the certificate's.
    """

    def __init__(self, chain: Path, key: Path) -> None:
        self._chain, self._key = chain, key
        self._files = WatchedFiles("TLS certificate", [chain, key])
        self.context = _Replaceable(ssl.PROTOCOL_TLS_SERVER)
        self._read()

    def _read(self) -> None:
        refuse_endless("TLS_CERTIFICATE", self._chain)
        refuse_endless("TLS_KEY", self._key)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])  # a WebSocket starts with nothing newer
        try:
            # An encrypted key would ask on the terminal, in each worker.
            context.load_cert_chain(self._chain, self._key, password=_no_password)
        except ssl.SSLError as exc:
            raise StartupError(
                f"TLS_CERTIFICATE={self._chain} and TLS_KEY={self._key} are not a certificate and its key: "
                f"{exc.reason or exc}"
            ) from None
        except ValueError as exc:
            raise StartupError(f"TLS_KEY={self._key}: {exc}") from None
        except OSError as exc:
            raise StartupError(
                f"TLS_CERTIFICATE={self._chain} or TLS_KEY={self._key} cannot be read: {exc.strerror}"
            ) from None
        self.context.current = context

    def refresh(self) -> None:
        """Take the files again if they were replaced. Connections that are open keep what they have.

        Files that do not belong together, since only one has been replaced yet, are left for the next time.
        """
        self._files.refresh(self._read)


def _no_password() -> str:
    raise ValueError("an encrypted key cannot be used; `openssl pkey` decrypts it")

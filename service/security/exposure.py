"""The warning for a service that others than this machine's users can reach without TLS or without credentials."""

from __future__ import annotations

import ipaddress
import logging

from service.settings import Settings

log = logging.getLogger(__name__)


def warn_if_exposed(settings: Settings) -> None:
    """Say once, at start, what is missing. Nothing is missing on loopback."""
    if _is_loopback(settings.host):
        return
    missing = []
    if settings.tls_certificate is None:
        missing.append("without TLS (set TLS_CERTIFICATE and TLS_KEY, or let a proxy do it)")
    if settings.auth == "off":
        missing.append("without asking who connects (set AUTH)")
    if missing:
        log.warning(
            "listening on %s %s; see SECURITY.md", settings.host or "all addresses", " and ".join(missing)
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""What is decided before a handshake is answered: a connection that may not come in gets an HTTP status instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from websockets.datastructures import Headers, MultipleValuesError
from websockets.http11 import Response

from service.errors import Unauthorized
from service.network import http
from service.security import origins
from service.security.addresses import client_address
from service.security.admission import Admission
from service.security.identity import Identity
from service.settings import Network

if TYPE_CHECKING:
    from service.security.credentials import Credentials

# When one that was refused for a limit may try again.
_RETRY_SECONDS = 1


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who has come in: the address, and who it is if it has shown a credential."""

    address: str | None
    identity: Identity | None


class Gate:
    """Admits handshakes.

    Args:
        admission: counts connections.
        checks: what credentials are checked with; None where nobody asks for any.
        allow_list: the origins of web pages, see `origins`.
        proxies: whose word on the client's address is taken.
        on_refusal: told why one was refused: a member of `metrics.REFUSALS`.
    """

    def __init__(
        self,
        admission: Admission,
        checks: Credentials | None,
        allow_list: Sequence[str],
        proxies: Sequence[Network],
        on_refusal: Callable[[str], None],
    ) -> None:
        self._admission = admission
        self._checks = checks
        self._allow_list = allow_list
        self._proxies = proxies
        self._on_refusal = on_refusal

    def admit(self, peer: str | None, headers: Headers) -> Visitor | Response:
        """Decide on a handshake. Who is admitted has been counted, and must be given to `left` in the end."""
        if not origins.allowed(headers, self._allow_list):
            return self._refuse("origin", HTTPStatus.FORBIDDEN, "this page may not connect; see ORIGINS")
        address = client_address(peer, headers, self._proxies)
        if self._admission.has_enough(address):
            return self._refuse(
                "address_limit", HTTPStatus.TOO_MANY_REQUESTS, "too many connections from this address"
            )
        if self._admission.is_full():
            return self._refuse(
                "connection_limit", HTTPStatus.SERVICE_UNAVAILABLE, "the service takes no more connections"
            )
        identity = None
        if self._checks is not None:
            try:
                credential = bearer(headers)
                # Without one, a client may still send it in a message: browsers cannot set headers.
                identity = None if credential is None else self._checks.verify(credential)
            except Unauthorized as exc:
                return self._refuse("unauthorized", HTTPStatus.UNAUTHORIZED, exc.message)
        self._admission.enter(address)
        return Visitor(address, identity)

    def left(self, visitor: Visitor) -> None:
        """A visitor's connection is gone."""
        self._admission.leave(visitor.address)

    def _refuse(self, reason: str, status: HTTPStatus, text: str) -> Response:
        self._on_refusal(reason)
        response = http.respond(status, f"{text}\n".encode())
        if status is HTTPStatus.UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = "Bearer"
        elif status is not HTTPStatus.FORBIDDEN:
            response.headers["Retry-After"] = str(_RETRY_SECONDS)
        return response


def bearer(headers: Headers) -> str | None:
    """The credential in `Authorization: Bearer …`; None without that header.

    Raises:
        Unauthorized: there is one, of another form.
    """
    try:
        value = headers.get("Authorization")
    except MultipleValuesError:
        raise Unauthorized("there are several Authorization headers") from None
    if value is None:
        return None
    scheme, _, credential = value.strip().partition(" ")
    if scheme.lower() != "bearer" or not credential.strip():
        raise Unauthorized("the Authorization header is not of the form: Bearer TOKEN")
    return credential.strip()

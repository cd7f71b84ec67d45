"""What one connection may ask for, request by request: who it is, and how much it has had.

A token in a request is that request's: what is stored of it is the token's user's. A token in `configure` is the
connection's, like one in the handshake's header: it names the user of all requests that bring none.

A credential holds until it expires. From then on requests are answered `unauthorized`; a `configure` with a new token
goes on. Where credentials are required, a connection that holds none for `PATIENCE` seconds is closed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from service.errors import RateLimited, RequestError, Unauthorized
from service.protocol.requests import Configure, Lookup, Predict, Query
from service.security.identity import Identity
from service.security.rates import TokenBucket

if TYPE_CHECKING:
    from service.security.credentials import Credentials

# Wrong credentials in a row after which a connection is closed: guessing is told from a mistake.
MAX_WRONG: Final = 10

# What may be asked without a credential: whether the service is well, and not what is wrong with it.
_OPEN_QUERIES: Final = frozenset({"health"})

# Frames a second that have no reply which could refuse them: pings, pongs, short fragments beyond some of each message.
# What keeps a connection alive is one a second at most; but those of many minutes come at once after a pause.
SMALL_FRAMES_PER_SECOND: Final = 100.0
SMALL_FRAMES_AT_ONCE: Final = 2000.0

# Seconds that a connection may stay open without a credential where one is required.
PATIENCE: Final = 10.0

# Milliseconds: what a browser's timer counts. Of a rate that is next to nothing even a float would not count the wait.
_LONGEST_WAIT: Final = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What holds for every connection.

    `credentials` is None where nobody asks for any; a rate of 0 is no limit. `message_seconds` is how long a message
    may take to come in, `send_seconds` how long a client may leave its replies unread.
    """

    credentials: Credentials | None = None
    requests_per_second: float = 0.0
    bytes_per_second: float = 0.0
    message_seconds: float = 120.0
    send_seconds: float = 30.0

    @property
    def ask_anything(self) -> bool:
        """Whether a connection needs a guard at all."""
        return self.credentials is not None or self.requests_per_second > 0 or self.bytes_per_second > 0

    @property
    def required(self) -> bool:
        """Whether a connection must hold a credential."""
        return self.credentials is not None and self.credentials.required


class Guard:
    """Watches one connection. Times are passed in: `clock` never goes back, `now` is Unix time; both in seconds."""

    def __init__(self, rules: Rules, identity: Identity | None, clock: float) -> None:
        self._rules = rules
        self.identity = identity
        # The token of the last request that brought one, and whose it is: clients send the same again and again.
        self._last: tuple[str, Identity] | None = None
        # Of all that were shown, the one that holds longest.
        self._longest = identity
        self._wrong = 0
        requests, size = rules.requests_per_second, rules.bytes_per_second
        self._requests = TokenBucket(requests, clock) if requests else None
        self._bytes = TokenBucket(size, clock) if size else None
        self._frames = (
            TokenBucket(SMALL_FRAMES_PER_SECOND, clock, SMALL_FRAMES_AT_ONCE) if requests or size else None
        )

    @property
    def holds_until(self) -> float:
        """Until when some credential that was shown holds, as Unix time; -inf if none does."""
        return -math.inf if self._longest is None else self._longest.expires

    @property
    def is_guessing(self) -> bool:
        """Whether so many wrong credentials came that the connection is to be closed."""
        return self._wrong >= MAX_WRONG

    def charge(self, size: int, clock: float) -> None:
        """Account for one message of `size` bytes.

        Raises:
            RateLimited: it is one too many. `retry_after_ms` is 24 days at most: then it may be too early still.
        """
        wait = 0.0 if self._requests is None else self._requests.wait(1, clock)
        if self._bytes is not None:
            wait = max(wait, self._bytes.wait(size, clock))
        if wait:
            milliseconds = math.ceil(min(wait * 1000, _LONGEST_WAIT))
            raise RateLimited(f"too much at once; try again in {milliseconds} ms", milliseconds)
        if self._requests is not None:
            self._requests.take(1)
        if self._bytes is not None:
            self._bytes.take(size)

    def allows_frames(self, count: int, size: int, clock: float) -> bool:
        """Account for `count` small frames, where there is any rate. Their `size` bytes are owed to that of bytes.

        They cost no request, and are allowed whatever is owed: whoever uses up a rate may still keep alive.

        Returns:
            False if these are too many.
        """
        if self._bytes is not None:
            self._bytes.owe(size, clock)
        if self._frames is None:
            return True
        if self._frames.wait(count, clock):
            return False
        self._frames.take(count)
        return True

    def charged(self, error: RequestError, size: int, clock: float) -> RequestError:
        """The error for a message that cannot be read: it is accounted for too, and may be one too many."""
        try:
            self.charge(size, clock)
        except RateLimited as exc:
            return exc
        return error

    def user_of(self, message: Predict | Query | Configure | Lookup, now: float) -> str | None:
        """The user whose request this is; None for anybody's. A token in `configure` becomes the connection's.

        Raises:
            Unauthorized: its token is not accepted, the connection's holds no more, or there is none and must be.
        """
        checks = self._rules.credentials
        if checks is None:
            return None
        if message.token is not None:
            identity = self._verify(checks, message.token, now)
            if isinstance(message, Configure):
                self.identity = identity
            return identity.user
        if self.identity is not None:
            if self.identity.expires > now:
                return self.identity.user
            raise Unauthorized(
                "the connection's token or API key has expired or was withdrawn; send a new one with 'configure'"
            )
        if checks.required and not (isinstance(message, Query) and message.command in _OPEN_QUERIES):
            raise Unauthorized(
                "a token or an API key is needed: in the handshake's Authorization header, or as 'token' of "
                "'configure' or of this request"
            )
        return None

    def came_bare(self, query: Query) -> bool:
        """Whether a query that `user_of` let pass came without the credential that others must have."""
        return self._rules.required and query.token is None and self.identity is None

    def _verify(self, checks: Credentials, token: str, now: float) -> Identity:
        if self._last is not None and self._last[0] == token and self._last[1].expires > now:
            self._wrong = 0
            return self._last[1]
        try:
            identity = checks.verify(token)
        except Unauthorized:
            self._wrong += 1
            raise
        self._wrong = 0
        self._last = (token, identity)
        if identity.expires > self.holds_until:
            self._longest = identity
        return identity

    def recheck(self) -> None:
        """The credentials that are known have changed: forget what is no longer among them."""
        assert self._rules.credentials is not None
        holds = self._rules.credentials.holds
        last = None if self._last is None else self._last[1]
        shown = [each for each in (self._longest, self.identity, last) if each is not None and holds(each)]
        self._longest = max(shown, key=lambda each: each.expires, default=None)
        self._last = None
        if self.identity is not None and not holds(self.identity):
            self.identity = Identity(self.identity.user, expires=-math.inf)

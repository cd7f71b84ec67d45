"""What one connection may ask for, with credentials that are known and a clock that is told."""

from __future__ import annotations

import math

import pytest

from service.errors import InvalidJSON, RateLimited, Unauthorized
from service.protocol.requests import Configure, Predict, Query
from service.security.credentials import Credentials
from service.security.guard import MAX_WRONG, Guard, Rules
from service.security.identity import Identity
from service.security.rates import TokenBucket

ANNA, BRUNO = Identity("anna", expires=100.0), Identity("bruno", expires=50.0)


class Known(Credentials):
    """Credentials of some users, by their names, until they are forgotten."""

    def __init__(self, *identities: Identity, required: bool = True) -> None:
        self.required = required
        self.known = {identity.user: identity for identity in identities}
        self.now = 0.0

    def verify(self, credential: str) -> Identity:
        """Who has this name."""
        identity = self.known.get(credential)
        if identity is None or identity.expires <= self.now:
            raise Unauthorized("nobody")
        return identity

    def holds(self, identity: Identity) -> bool:
        """Whether the name is known."""
        return identity in self.known.values()


def predict(token: str | None = None) -> Predict:
    """A request, which may bring a token."""
    return Predict(None, b"", token=token)


def test_a_token_that_a_request_brings_again_is_checked_again() -> None:
    """Once it has expired, or the keys have changed, it is not accepted for having been."""
    credentials = Known(ANNA, BRUNO)
    guard = Guard(Rules(credentials=credentials), None, 0.0)
    assert guard.user_of(predict("bruno"), 49.0) == "bruno"
    credentials.now = 50.0
    with pytest.raises(Unauthorized):
        guard.user_of(predict("bruno"), 50.0)
    assert guard.user_of(predict("anna"), 50.0) == "anna"
    del credentials.known["anna"]
    guard.recheck()
    with pytest.raises(Unauthorized):
        guard.user_of(predict("anna"), 50.0)
    assert guard.holds_until == -math.inf


def test_a_token_is_its_requests_and_that_of_configure_the_connections() -> None:
    """Until that expires, or is no longer known; what brings one of its own goes on."""
    credentials = Known(ANNA, BRUNO, required=False)
    guard = Guard(Rules(credentials=credentials), None, 0.0)
    assert guard.user_of(predict("anna"), 0.0) == "anna"
    assert guard.user_of(predict(), 0.0) is None
    assert guard.user_of(Configure(None, {}, "bruno"), 0.0) == "bruno"
    assert [guard.user_of(predict(token), 49.0) for token in (None, "anna", None)] == [
        "bruno",
        "anna",
        "bruno",
    ]
    with pytest.raises(Unauthorized, match="expired"):
        guard.user_of(predict(), 50.0)
    guard.user_of(Configure(None, {}, "anna"), 50.0)
    guard.recheck()
    assert guard.user_of(predict(), 50.0) == "anna"
    assert guard.holds_until == 100.0  # it is not closed for keys that others have lost
    del credentials.known["anna"]
    guard.recheck()
    with pytest.raises(Unauthorized):
        guard.user_of(predict(), 50.0)
    assert guard.user_of(predict("bruno"), 49.0) == "bruno"


def test_a_credential_that_ends_earlier_does_not_end_one_that_was_shown_before() -> None:
    """A connection is open for as long as the longest of them holds."""
    guard = Guard(Rules(credentials=Known(ANNA, BRUNO)), None, 0.0)
    assert guard.holds_until == -math.inf
    for token in ("anna", "bruno"):
        guard.user_of(predict(token), 0.0)
        assert guard.holds_until == 100.0
        guard.recheck()
        assert guard.holds_until == 100.0


def test_when_the_one_that_holds_longest_is_gone_that_of_the_last_request_counts() -> None:
    """A connection whose last token is still known is not closed for one that is not."""
    credentials = Known(ANNA, BRUNO)
    guard = Guard(Rules(credentials=credentials), None, 0.0)
    for token in ("anna", "bruno"):
        guard.user_of(predict(token), 0.0)
    del credentials.known["anna"]
    guard.recheck()
    assert guard.holds_until == 50.0


def test_when_the_one_that_holds_longest_is_gone_the_connections_own_counts() -> None:
    """A connection is not closed for a token of one of its requests that is no longer known."""
    credentials = Known(ANNA, BRUNO)
    guard = Guard(Rules(credentials=credentials), None, 0.0)
    assert guard.user_of(Configure(None, {}, "bruno"), 0.0) == "bruno"
    assert guard.user_of(predict("anna"), 0.0) == "anna"
    assert guard.holds_until == 100.0
    del credentials.known["anna"]
    guard.recheck()
    assert guard.holds_until == 50.0
    assert guard.user_of(predict(), 49.0) == "bruno"


def test_without_a_credential_there_is_only_health_where_one_is_required() -> None:
    """Where one is optional everything is anybody's, and where nobody asks tokens are not looked at."""
    required, optional = (Rules(credentials=Known(required=each)) for each in (True, False))
    assert [rules.required for rules in (required, optional, Rules())] == [True, False, False]
    messages = (predict(), Query(None, "emotions"), Configure(None, {}))
    for message in messages:
        with pytest.raises(Unauthorized):
            Guard(required, None, 0.0).user_of(message, 0.0)
        assert Guard(optional, None, 0.0).user_of(message, 0.0) is None
    bare, shown = Query(None, "health"), Query(None, "health", "anna")
    assert Guard(required, None, 0.0).user_of(bare, 0.0) is None
    # Whether it is told what is wrong with it, too.
    for rules, identity, query, is_bare in (
        (required, None, bare, True),
        (required, None, shown, False),
        (required, ANNA, bare, False),
        (optional, None, bare, False),
    ):
        assert Guard(rules, identity, 0.0).came_bare(query) is is_bare
    assert Guard(Rules(), None, 0.0).user_of(predict("nonsense"), 0.0) is None


def test_wrong_credentials_in_a_row_are_guesses() -> None:
    """One that is right in between begins the row anew, and the last that is allowed is not one too many."""
    guard = Guard(Rules(credentials=Known(ANNA, BRUNO)), None, 0.0)
    for user in ("anna", "bruno", "bruno"):
        for _ in range(MAX_WRONG - 1):
            with pytest.raises(Unauthorized):
                guard.user_of(predict("guess"), 0.0)
            assert not guard.is_guessing
        assert guard.user_of(predict(user), 0.0) == user
    for _ in range(MAX_WRONG):
        assert not guard.is_guessing
        with pytest.raises(Unauthorized):
            guard.user_of(predict("guess"), 0.0)
    assert guard.is_guessing


def test_what_cannot_be_read_is_charged_as_well() -> None:
    """Its own error is told as long as it is not one too many."""
    guard = Guard(Rules(requests_per_second=2.0), None, 0.0)
    error = InvalidJSON("no")
    assert [guard.charged(error, 1, 0.0) for _ in range(2)] == [error, error]
    assert isinstance(guard.charged(error, 1, 0.0), RateLimited)
    assert guard.charged(error, 1, 0.5) is error


@pytest.mark.parametrize(
    "rules", [Rules(requests_per_second=0.1), Rules(bytes_per_second=0.1)], ids=["requests", "bytes"]
)
def test_whoever_keeps_alive_is_never_too_much(rules: Rules) -> None:
    """With ten pings a second for an hour, and those of ten minutes at once, however little is allowed and used up."""
    guard = Guard(rules, None, 0.0)
    guard.charge(10_000_000, 0.0)
    assert all(guard.allows_frames(1, 131, tick / 10) for tick in range(36_000))
    assert all(guard.allows_frames(1, 131, 4200.0) for _ in range(600))


@pytest.mark.parametrize(
    ("rules", "limited"),
    [
        (Rules(credentials=Known()), False),
        (Rules(requests_per_second=1e6), True),
        (Rules(bytes_per_second=1e9), True),
    ],
    ids=["no rate", "requests", "bytes"],
)
def test_a_flood_of_small_frames_is_too_much_where_there_is_any_rate(rules: Rules, limited: bool) -> None:
    """They have no reply that could refuse them, and cost no request."""
    guard = Guard(rules, None, 0.0)
    assert all(guard.allows_frames(24, 144, step / 1000) for step in range(100)) is not limited
    guard.charge(1, 0.1)


@pytest.mark.parametrize("idle", [0.0, 3600.0])
def test_the_bytes_of_small_frames_are_owed(idle: float) -> None:
    """What asks for a reply waits for them, also where nothing came for long before."""
    guard = Guard(Rules(bytes_per_second=1000.0), None, 0.0)
    assert guard.allows_frames(10, 1310, idle)
    with pytest.raises(RateLimited) as limited:
        guard.charge(100, idle)
    assert limited.value.retry_after_ms == pytest.approx(311, abs=1)
    guard.charge(100, idle + 0.312)


@pytest.mark.parametrize("rate", [5e-324, 1e-300])
def test_a_wait_that_no_timer_counts(rate: float) -> None:
    """However low a rate is, what is refused is told a number of milliseconds that JSON and browsers' timers hold."""
    for rules in (Rules(requests_per_second=rate), Rules(bytes_per_second=rate)):
        guard = Guard(rules, None, 0.0)
        guard.charge(1, 0.0)
        with pytest.raises(RateLimited) as limited:
            guard.charge(1, 1.0)
        assert limited.value.retry_after_ms == 2**31 - 1


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (Rules(), False),
        (Rules(credentials=Known(required=False)), True),
        (Rules(requests_per_second=0.1), True),
        (Rules(bytes_per_second=0.1), True),
    ],
)
def test_a_connection_is_guarded_where_anything_is_asked_of_it(rules: Rules, expected: bool) -> None:
    """A credential, or either of the rates."""
    assert rules.ask_anything is expected


@pytest.mark.parametrize(("rate", "at_most"), [(10.0, 110), (0.5, 6)])
def test_over_any_time_a_bucket_allows_no_more_than_its_rate(rate: float, at_most: int) -> None:
    """Whoever asks again and again for ten seconds has the first second's worth at once, and ten more; one at least."""
    began = 1000.0
    bucket, taken = TokenBucket(rate, began), 0
    for step in range(1001):
        if bucket.wait(1, began + step / 100) < 1e-9:
            bucket.take(1)
            taken += 1
    assert taken == at_most

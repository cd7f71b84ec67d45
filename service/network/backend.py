"""What a connection needs of the service that it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.batching.predictor import Request
from service.protocol.requests import Lookup, Options, Query
from service.security.guard import Rules

if TYPE_CHECKING:
    from service.network.connection import Connection


@dataclass(frozen=True, slots=True)
class Backend:
    """The service, as its connections see it.

    `submit` admits a request for prediction, or raises `Overloaded`, `DeadlineExceeded` or `ShuttingDown`; its second
    argument is one that it overtakes, which is not in its way and is to be withdrawn then; `withdraw` takes one back
    that still waits; `answer` is the reply to a query, in detail or as anybody may have it; `look_up` starts to read
    what is stored, and later calls its last argument with the reply, or raises `InvalidRequest`, `Overloaded` or
    `ShuttingDown`; `on_error` is told the code of each error that is replied from here, `on_closed` the reason of
    each connection that is closed from here (one of `metrics.REFUSALS`); `options` are those that a connection starts
    with, `rules` hold for all.
    """

    submit: Callable[[Request, Request | None], None]
    withdraw: Callable[[Request], bool]
    answer: Callable[[Query, bool], bytes]
    look_up: Callable[[Lookup, Connection, str | None, Callable[[bytes], None]], None]
    on_error: Callable[[str], None]
    on_closed: Callable[[str], None]
    max_in_flight: int
    options: Options
    rules: Rules

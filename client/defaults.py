"""What holds on each connection of a client, however often it is restored: the token, and what was configured."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from client.connection import Connection
from client.errors import CannotConnect
from client.protocol import Request


@dataclass(slots=True)
class Defaults:
    """A client's token and options. `renewal` is a token that is being brought, and that no server has accepted yet."""

    token: str | None
    renewal: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def token_to_connect(self) -> str | None:
        """What a new connection is opened with: for a token that is renewed it would be refused with the old one."""
        return self.renewal or self.token

    @contextmanager
    def renewing(self, token: str) -> Iterator[None]:
        """Bring a token, which is the client's if nothing is raised."""
        self.renewal = token
        try:
            yield
            self.token = token
        finally:
            if self.renewal == token:
                self.renewal = None

    def remember(self, options: Mapping[str, Any], effective: Mapping[str, Any]) -> None:
        """Keep what the server took of `options`; `effective` is what holds since.

        Null is to it as if the option was not there, but where it means none.
        """
        for name, value in options.items():
            if value is not None or effective.get(name, ...) is None:
                self.options[name] = value

    async def introduce(self, connection: Connection, token: str | None, timeout: float) -> None:
        """Set the options on a new connection, which is closed where that fails.

        Replies need no order: each finds its request by id.

        Raises:
            CannotConnect: there is no answer within `timeout` seconds.
            VisionAIError: whatever the server answers that is not a success.
        """
        welcome = connection.welcome
        if welcome.authentication == "required" and not token:
            return  # refused without a token, as all but `health` is: whatever is asked for will say so
        if "configure" not in welcome.commands:
            return
        options: Mapping[str, Any] = {"ordered": False, **self.options}
        if token and welcome.authentication != "off":
            options = {**options, "token": token}  # a proxy may have kept the header to itself
        try:
            async with asyncio.timeout(timeout):
                await connection.exchange(Request("configure", options))
        except TimeoutError:
            await connection.aclose()
            raise CannotConnect(f"the server greets and then gives no answer within {timeout:g} s") from None
        except BaseException:
            await connection.aclose()
            raise

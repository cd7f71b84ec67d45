"""Errors: one class and one stable code each, as documented."""

from __future__ import annotations

import copy
import re

import pytest

from client import errors


def _documented() -> list[tuple[str, str]]:
    """Class and code of each line of the tree in the module's docstring that has a code."""
    assert errors.__doc__ is not None
    rows = re.findall(r"^ {6,}(\w+) {2,}([a-z_]+(?:, [a-z_0-9]+)*)(?: {2,}|$)", errors.__doc__, re.MULTILINE)
    return [(name, code) for name, codes in rows for code in codes.split(", ")]


def test_the_documented_tree_lists_all_codes() -> None:
    """The docstring's tree was read: 17 codes in it."""
    assert len(_documented()) == 17


@pytest.mark.parametrize(
    ("name", "code"), [row for row in _documented() if row[1] not in ("cannot_connect",)]
)
def test_the_documented_codes_are_true(name: str, code: str) -> None:
    """Each documented code is the code of its class, or makes that class from an error reply."""
    documented = getattr(errors, name)
    reply = errors.error_of({"type": "error", "code": code, "message": "why"})
    assert documented.code == code or type(reply) is documented
    if issubclass(documented, errors.ConnectionFailed):
        return
    assert type(reply) is documented
    assert (reply.code, reply.message, str(reply)) == (code, "why", "why")


def test_retry_after_is_in_seconds() -> None:
    """The server's milliseconds become seconds."""
    error = errors.error_of({"code": "overloaded", "message": "", "retry_after_ms": 250})
    assert isinstance(error, errors.Unavailable)
    assert error.retry_after == 0.25


def test_an_unknown_code_is_kept() -> None:
    """A newer server's error is an UnknownError that carries its code."""
    error = errors.error_of({"code": "brand_new", "message": "news"})
    assert type(error) is errors.UnknownError
    assert error.code == "brand_new"


def test_an_error_without_a_code_is_unknown() -> None:
    """Servers of protocol 1 send a message alone."""
    error = errors.error_of({"type": "error", "message": "Imagen inválida"})
    assert (type(error), error.code, error.message) == (errors.UnknownError, "error", "Imagen inválida")


@pytest.mark.parametrize(
    "error",
    [
        errors.ConnectionLost("gone", close_code=1011, retry_after=2.0),
        errors.UnknownError("news", code="brand_new"),
        errors.Overloaded("busy", retry_after=0.5),
    ],
)
def test_a_copied_error_keeps_all_it_says(error: errors.VisionAIError) -> None:
    """Each waiting request gets a copy of the error that ended the connection: nothing may be lost in it."""
    twin = copy.copy(error)
    assert twin is not error
    assert type(twin) is type(error)
    assert twin.__dict__ == error.__dict__
    assert str(twin) == str(error)

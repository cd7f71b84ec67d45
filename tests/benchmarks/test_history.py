"""The measurement of history and statistics looks at the rows that it made."""

from __future__ import annotations

import pytest

from tests.benchmarks.harness import results

ROWS = 50_000


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_each_question_is_asked_about_the_rows_that_were_made(database: str) -> None:
    """Every tenth is the user's, the connection's are among everybody's; predictions go on without an error."""
    found = results(
        *("history", "--database", database, "--rows", str(ROWS), "--seconds", "0.2", "--repeats", "1")
    )["history"]
    asked = {(each["question"], each["whose"], each["span"]): each for each in found["answered"]}
    assert len(asked) == 13
    assert asked["stats", "a user's", "all"]["rows"] == ROWS / 10
    assert asked["history", "a user's", "pages of 1000"]["rows"] == 1000
    everybody, hour = (asked["stats", "everybody's", span]["rows"] for span in ("all", "hour"))
    assert ROWS * 9 / 10 < hour + 20_000 < everybody <= ROWS * 9 / 10 + 100_001
    assert asked["stats", "a connection's", "hour"]["rows"] <= 36_001
    assert all(0 < each["p50"] <= each["p99"] for each in asked.values())
    assert [each[0]["failed"] for each in found["disturbances"]] == [0, 0, 0]

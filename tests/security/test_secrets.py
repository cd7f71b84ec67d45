"""Secrets stay out of the log, and an open door is told of."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import jwt
import pytest
import sqlalchemy as sa
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from service.security.api_keys import create
from service.security.exposure import warn_if_exposed
from service.settings import Settings
from tests.service.harness import TIMEOUT, StartProcess, ask, predict_message, read, run_service


async def test_no_secret_is_in_the_log_of_a_process_at_debug(
    start_process: StartProcess, tmp_path: Path, postgres_url: str
) -> None:
    """Neither the secret, tokens, API keys, nor the database's password, of good and of bad clients."""
    secret, password = "a-secret-of-more-than-thirty-two-bytes", "hunter2hunter2"
    path = tmp_path / "keys"
    key = create(path, "anna")
    service = start_process(
        LOG_LEVEL="DEBUG",
        AUTH="required",
        JWT_SECRET=secret,
        API_KEYS_FILE=str(path),
        DATABASE_URL=sa.make_url(postgres_url).set(password=password).render_as_string(hide_password=False),
    )
    tokens = [
        jwt.encode({"sub": "bruno", "exp": time.time() + seconds}, secret, "HS256") for seconds in (60, -60)
    ]
    for credential in (key, tokens[0]):
        async with connect(
            service.url, additional_headers={"Authorization": f"Bearer {credential}"}
        ) as websocket:
            await read(websocket)
            assert (await ask(websocket, predict_message(token=tokens[0])))["status"] == "success"
            assert (await ask(websocket, predict_message(token=tokens[1])))["code"] == "unauthorized"
            await ask(websocket, f'{{"command": "configure", "token": "{key}x"}}')
    with pytest.raises(InvalidStatus):
        await connect(service.url, additional_headers={"Authorization": f"Bearer {key}x"})
    service.process.terminate()
    _, log = service.process.communicate(timeout=TIMEOUT)
    assert "INFO" in log  # it is not empty
    for hidden in (secret, password, key, *tokens, key[9:]):
        assert hidden not in log


def test_settings_do_not_show_secrets() -> None:
    """Their text is safe to log."""
    shown = repr(Settings(jwt_secret="s" * 40, database_url="postgresql://u:hunter2@db/x"))
    assert "hunter2" not in shown
    assert "s" * 40 not in shown


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (Settings(), []),
        (Settings(host="localhost"), []),
        (Settings(host="::1"), []),
        (Settings(host="0.0.0.0"), ["TLS", "AUTH"]),
        (Settings(host="", auth="required"), ["TLS"]),
        (Settings(host="::", tls_certificate=Path("c"), tls_key=Path("k")), ["AUTH"]),
        (Settings(host="10.0.0.1", auth="required", tls_certificate=Path("c")), []),
    ],
)
def test_an_open_door_is_told_of_at_the_start(
    caplog: pytest.LogCaptureFixture, settings: Settings, told: list[str]
) -> None:
    """Beyond loopback, what is missing: TLS, credentials, or both."""
    with caplog.at_level(logging.WARNING):
        warn_if_exposed(settings)
    assert bool(caplog.text) == bool(told)
    for name in ("TLS", "AUTH"):
        assert (name in caplog.text) == (name in told)


def test_a_key_is_made_on_the_command_line(tmp_path: Path) -> None:
    """It is printed, once, alone on its line; without a file there is an error that says what to set."""
    made = run_service("create-key", "anna", "--days", "30", cwd=tmp_path, API_KEYS_FILE="keys.txt")
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip() not in (tmp_path / "keys.txt").read_text()
    missing = run_service("create-key", "anna", cwd=tmp_path)
    assert missing.returncode == 2
    assert "API_KEYS_FILE" in missing.stderr


@pytest.mark.parametrize(
    ("environment", "hint"),
    [
        ({"AUTH": "required"}, "JWT_SECRET"),
        ({"AUTH": "sometimes"}, "AUTH"),
        ({"AUTH": "optional", "JWT_SECRET": "short"}, "JWT_SECRET"),
        ({"AUTH": "optional", "API_KEYS_FILE": "missing"}, "create-key"),
        ({"TLS_CERTIFICATE": "cert.pem"}, "TLS_KEY"),
        ({"TLS_CERTIFICATE": "cert.pem", "TLS_KEY": "key.pem"}, "TLS_CERTIFICATE"),
        ({"ORIGINS": "shop.example"}, "same-origin"),
        ({"ORIGINS": "*"}, "unset for all"),
        ({"ORIGINS": "https://*.shop.example"}, "name each origin"),
        ({"ORIGINS": "https://tienda.España.example/"}, "send it as https://tienda.xn--espaa-rta.example"),
        ({"ORIGINS": "https://anna:secret@shop.example"}, "leave out what is before the @"),
        ({"ORIGINS": "https://shop.example:0443"}, "without zeros before it"),
        ({"ORIGINS": "https://shop.example:"}, "same-origin"),
        ({"ORIGINS": "https://shop.example:99999"}, "same-origin"),
        ({"ORIGINS": "https://shop.example?page"}, "same-origin"),
        ({"TRUSTED_PROXIES": "proxy"}, "10.0.0.0/8"),
    ],
)
def test_what_is_set_wrongly_is_one_line(tmp_path: Path, environment: dict[str, str], hint: str) -> None:
    """Exit code 2, and what to do; not a password that an address has."""
    ended = run_service(cwd=tmp_path, DATABASE_URL="sqlite:///x.db", PORT="0", **environment)
    assert ended.returncode == 2
    assert hint in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "secret@" not in ended.stderr

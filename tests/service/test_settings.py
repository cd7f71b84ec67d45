"""Settings: where they come from, and what is said of wrong ones."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from service.errors import StartupError
from service.settings import Settings, load_settings

NAMES = [name.upper() for name in Settings.__dataclass_fields__]


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_defaults_serve_on_loopback_with_sqlite() -> None:
    """With nothing set, the service needs no server and is reachable from this machine only."""
    settings = load_settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.database_url.startswith("sqlite:///")


def test_settings_of_existing_deployments_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """HOST, PORT, DATABASE_URL and MODEL_PATH, by these names."""
    monkeypatch.setenv("HOST", "0.0.0.0")
    monkeypatch.setenv("PORT", "9001")
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:p@db/x")
    monkeypatch.setenv("MODEL_PATH", "models/modelo_emociones.keras")
    settings = load_settings()
    assert (settings.host, settings.port) == ("0.0.0.0", 9001)
    assert settings.database_url == "postgresql://u:p@db/x"
    assert settings.model_path == Path("models/modelo_emociones.keras")


def test_the_environment_wins_over_the_env_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A .env file fills in what the environment leaves open."""
    (tmp_path / ".env").write_text("PORT=7001\nEMOTIONS_LANGUAGE=en\nUNRELATED=1\n")
    monkeypatch.setenv("PORT", "7002")
    settings = load_settings()
    assert settings.port == 7002
    assert settings.emotions_language == "en"


def test_an_env_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    """And what stands before the fault is not left in the environment."""
    (tmp_path / ".env").write_bytes(b"PORT=7001\nHOST=\xff\n")
    with pytest.raises(StartupError, match=r"\.env cannot be read"):
        load_settings()
    assert load_settings(None).port == 8000


def test_an_env_file_that_cannot_be_looked_for_is_named(tmp_path: Path) -> None:
    """As in a folder that is closed to the service's user, who is asked to start it there."""
    with pytest.raises(StartupError, match="cannot be read"):
        load_settings(tmp_path / ("long" * 100))


@pytest.mark.parametrize(
    "line",
    [
        "AUTH: required",
        "AUTH:required",
        "AUTH required",
        "AUTH",
        'AUTH="required',
        '"AUTH"=required',
        "AUTH:=required",
        "$AUTH=required",
        "-AUTH=required",
    ],
)
def test_a_line_of_an_env_file_that_sets_nothing_is_named(tmp_path: Path, line: str) -> None:
    """The service would be started without what it was to set."""
    (tmp_path / ".env").write_text(f"# a comment\n\nexport PORT=7001 # another\n\n \n{line}\n")
    with pytest.raises(StartupError, match=r"\.env cannot be read: line 6 is not NAME=VALUE") as failed:
        load_settings()
    assert "required" not in str(failed.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "eighty"),
        ("PORT", "70000"),
        ("CANARY_PERCENT", "101"),
        ("MAX_BATCH", "-1"),
        ("MAX_BATCH", "100000000"),
        ("WORKERS", "-1"),
        ("EXECUTORS", "-2"),
        ("EMOTIONS_LANGUAGE", "fr"),
        ("PROVIDER", "tpu"),
        ("DRAIN_SECONDS", "-1"),
        ("DRAIN_SECONDS", "1e15"),
        ("RETENTION_DAYS", "1e6"),
        ("RETENTION_DAYS", "nan"),
        ("MAX_WAIT_MS", "inf"),
    ],
)
def test_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """The message says which setting is wrong."""
    monkeypatch.setenv(name, value)
    with pytest.raises(StartupError, match=name):
        load_settings()


def test_all_wrong_values_are_told_with_what_was_expected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One line for people: each setting, what it is, and what it may be, wherever it is set."""
    monkeypatch.setenv("PORT", "eighty")
    (tmp_path / ".env").write_text("PORT=7001\nLOG_FORMAT=xml # a comment\n")
    monkeypatch.setenv("JWT_SECRET", "not to be seen")
    with pytest.raises(StartupError) as failed:
        load_settings()
    assert str(failed.value) == (
        "a setting is wrong: PORT=eighty: Not a valid integer; LOG_FORMAT=xml: Must be one of: console, json"
    )


# Values other than the default, where not any text is one.
OTHERS = {
    "journal_fsync": "always",
    "detect": "never",
    "small_faces": "never",
    "provider": "auto",
    "emotions_language": "en",
    "auth": "optional",
    "origins": "https://shop.example",
    "trusted_proxies": "10.0.0.0/8",
    "log_level": "DEBUG",
    "log_format": "json",
}


@pytest.mark.parametrize("name", Settings.__dataclass_fields__)
def test_each_setting_is_read_by_its_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """In capitals; it is the only one that changes, but for the two files of TLS, which are set together."""
    before = load_settings()
    names = {"tls_certificate", "tls_key"} if name.startswith("tls_") else {name}
    for each in names:
        match getattr(before, each):
            case bool(value):
                other = str(not value)
            case int(number) | float(number):
                other = str(number + 1)
            case _:
                other = OTHERS.get(each, "other")
        monkeypatch.setenv(each.upper(), other)
    after = load_settings()
    assert {
        each for each in Settings.__dataclass_fields__ if getattr(before, each) != getattr(after, each)
    } == names


def test_the_layout_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set is not second-guessed."""
    monkeypatch.setenv("WORKERS", "3")
    monkeypatch.setenv("EXECUTORS", "2")
    settings = load_settings()
    assert (settings.workers, settings.executors) == (3, 2)


def test_lists_are_read_as_people_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """With spaces, capitals and a slash at the end, none of which a browser's Origin has; or set to nothing."""
    monkeypatch.setenv("ORIGINS", " https://Shop.Example/ , same-origin")
    monkeypatch.setenv("TRUSTED_PROXIES", "10.0.0.0/8, 2001:db8::/32")
    settings = load_settings()
    assert settings.origins == ("https://shop.example", "same-origin")
    assert settings.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("2001:db8::/32"))
    for name in ("ORIGINS", "TRUSTED_PROXIES"):
        monkeypatch.setenv(name, "")
    assert (load_settings().origins, load_settings().trusted_proxies) == ((), ())


def test_an_origin_is_one_with_and_without_its_own_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Browsers leave out 443 of https and 80 of http, and no other port."""
    monkeypatch.setenv(
        "ORIGINS", "https://a.example:443/,http://b.example:80,https://c.example:80,http://[::1]:443"
    )
    assert load_settings().origins == (
        "https://a.example",
        "http://b.example",
        "https://c.example:80",
        "http://[::1]:443",
    )


def test_origins_of_all_that_has_pages_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of names in their ASCII form, with an underscore or a port, of extensions and of programs that show pages."""
    origins = (
        "https://xn--espaa-rta.example",
        "http://a_b:8080",
        "http://192.0.2.1:1",
        "chrome-extension://abcdefghijklmnop",
        "app://localhost",
        "null",
    )
    monkeypatch.setenv("ORIGINS", ",".join(origins))
    assert load_settings().origins == origins


@pytest.mark.parametrize("name", ["JWT_SECRET", "JWT_AUDIENCE", "JWT_ISSUER"])
def test_what_a_token_must_say_is_left_open_where_it_is_set_to_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """An empty text is no secret, and no audience that a token could name."""
    monkeypatch.setenv(name, "")
    assert getattr(load_settings(), name.lower()) is None


@pytest.mark.parametrize(
    "name",
    [
        "JOURNAL_DIR",
        "CANARY_MODEL_PATH",
        "TLS_CERTIFICATE",
        "TLS_KEY",
        "JWT_KEY_FILE",
        "API_KEYS_FILE",
        "CONTROL_SOCKET",
    ],
)
def test_a_path_that_is_set_to_nothing_is_none(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As compose files set what they leave open; the current folder is what a dot says."""
    monkeypatch.setenv(name, "")
    assert getattr(load_settings(), name.lower()) is None
    if not name.startswith("TLS_"):  # which are set together
        monkeypatch.setenv(name, ".")
        assert getattr(load_settings(), name.lower()) == Path()

"""Settings from the environment and a `.env` file. The environment wins."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Literal, get_args

from dotenv.parser import parse_stream
from environs import Env, EnvValidationError, ValidationError, validate

from service.emotions import Language
from service.errors import StartupError
from service.telemetry.logs import LogFormat

Provider = Literal["cpu", "openvino", "cuda", "tensorrt"]
ON_GPU: frozenset[Provider] = frozenset({"cuda", "tensorrt"})
ProviderSetting = Literal[Provider, "auto"]
Detect = Literal["auto", "always", "never"]
Authentication = Literal["off", "optional", "required"]
# The journal goes to the disk when the system likes, at least every second, or before a record is acknowledged.
Fsync = Literal["never", "interval", "always"]
Network = IPv4Network | IPv6Network
SmallFaces = Literal["auto", "always", "never"]

DEFAULT_MODEL = Path("models/build/modelo_emociones.onnx")
DEFAULT_DATABASE = "sqlite:///visionai.db"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What can be set. Names in the environment are these in capitals.

    ======================= ==========================================================================
    host, port              where to listen; port 0 takes a free one
    database_url            SQLAlchemy URL, sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME
    journal_dir             where answered predictions are kept until the database has them; empty for memory only
    journal_fsync           when the journal is forced to disk: never, interval or always; see docs/reliability.md
    retention_days          stored predictions older than this are deleted; 0 keeps them
    store_private           1 keeps neither IP addresses nor face boxes
    model_path              an .onnx file, or the .keras file that it was converted from
    canary_model_path       a second model, as model_path; empty for none
    canary_percent          of the connections that it gets
    detect                  for clients that do not ask: auto finds faces, always insists, never takes an image as one
    small_faces             whether small faces are looked for: auto (in large images), always, never
    provider                what runs the model: cpu, openvino, cuda, tensorrt, or auto for the fastest that is there
    emotions_language       language of the emotions' descriptions: es or en
    workers                 worker processes that share the port; 0 as many as calibration finds best
    executors               threads in each worker that decode and run the model; 0 works in its event loop; -1 for 0 on
                            a CPU and one per CPU for a GPU
    threads                 CPU threads that compute one run of the model; 0 as calibration finds best
    max_batch               images in one run of the model, at most; 0 as calibration finds best
    max_waiting             requests that may wait in each worker, those of a lower priority not counted: three times
                            as many at most; more are refused as `overloaded`
    max_wait_ms             predicted wait in milliseconds; a request that would wait longer is `overloaded`
    max_in_flight           requests of one connection that may be unanswered; more wait in the network
    max_message_bytes       size of a frame; a larger one closes its connection with 1009
    max_image_pixels        width x height of an image; a larger one is refused as `image_too_large`
    tls_certificate         PEM file with the certificate and its chain; with it, only wss:// and https:// are served
    tls_key                 PEM file with the certificate's key
    auth                    whether clients prove who they are: off, optional, required
    jwt_secret              the secret of tokens signed with HS256, at least 32 bytes
    jwt_key_file            public keys of tokens signed with RS256 or ES256: a PEM file, or a JWKS file
    jwt_audience            what a token's `aud` must contain; empty for anything
    jwt_issuer              what a token's `iss` must be; empty for anything
    jwt_user_claim          the claim of a token that names the user
    jwt_require_expiry      0 accepts tokens that never expire
    jwt_leeway_seconds      how far the issuer's clock may be from ours
    api_keys_file           API keys, as `python -m service create-key` writes them
    origins                 web pages that may connect: https://HOST of each, same-origin, by commas; empty for all
    trusted_proxies         networks whose X-Forwarded-For is believed, by commas
    max_connections         connections to the service; more are refused with HTTP 503; 0 for any number
    max_connections_per_address  from one IPv4 address or IPv6 /64; more are refused with HTTP 429; 0 for any number
    max_requests_per_second  of one connection; more are refused as `rate_limited`; 0 for any number
    max_bytes_per_second    of one connection's messages; more are refused as `rate_limited`; 0 for any number
    handshake_seconds       time for the opening handshake, and as much for that of TLS before it
    message_seconds         time for a message to come in, from its first byte to its last
    send_seconds            time for a client to read replies that fill its buffers, before it is closed
    ping_seconds            time between pings, and for their answers; 0 for none
    drain_seconds           time that requests in flight are given at shutdown
    control_socket          Unix socket by which `--reload` finds the service; empty for none
    log_level               DEBUG, INFO, WARNING or ERROR
    log_format              console: lines for people; json: an object a line
    ======================= ==========================================================================
    """

    host: str = "127.0.0.1"
    port: int = 8000
    database_url: str = field(default=DEFAULT_DATABASE, repr=False)
    journal_dir: Path | None = Path("visionai.journal")
    journal_fsync: Fsync = "interval"
    retention_days: float = 0.0
    store_private: bool = False
    model_path: Path = DEFAULT_MODEL
    canary_model_path: Path | None = None
    canary_percent: float = 10.0
    detect: Detect = "auto"
    small_faces: SmallFaces = "auto"
    provider: ProviderSetting = "cpu"
    emotions_language: Language = "es"
    workers: int = 1
    executors: int = 0
    threads: int = 1
    max_batch: int = 8
    max_waiting: int = 4096
    max_wait_ms: float = 1000.0
    max_in_flight: int = 32
    max_message_bytes: int = 16 * 2**20
    max_image_pixels: int = 50_000_000
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    auth: Authentication = "off"
    jwt_secret: str | None = field(default=None, repr=False)
    jwt_key_file: Path | None = None
    jwt_audience: str | None = None
    jwt_issuer: str | None = None
    jwt_user_claim: str = "sub"
    jwt_require_expiry: bool = True
    jwt_leeway_seconds: float = 10.0
    api_keys_file: Path | None = None
    origins: tuple[str, ...] = ()
    trusted_proxies: tuple[Network, ...] = ()
    max_connections: int = 10_000
    max_connections_per_address: int = 5_000
    max_requests_per_second: float = 0.0
    max_bytes_per_second: float = 0.0
    handshake_seconds: float = 10.0
    message_seconds: float = 120.0
    send_seconds: float = 30.0
    ping_seconds: float = 20.0
    drain_seconds: float = 10.0
    control_socket: Path | None = Path("visionai.sock")
    log_level: str = "INFO"
    log_format: LogFormat = "console"


# Days. More would reach back before the first year.
_LONGEST_RETENTION = 365_000

# A year. What waits, in Python and in the event loop, cannot count much more.
_LONGEST_SECONDS = 31_536_000

# Images. Room for so many is made at start.
_LARGEST_BATCH = 4096

_LAST_PORT = 65535

_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
# Of a variable: ours, and what others that read the file may call theirs.
_NAME = re.compile(r"[A-Za-z_][\w.-]*")

# A host is a name or an address; extensions, and programs that show pages, have schemes of their own.
_ORIGIN = re.compile(
    r"same-origin|null|[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:(?P<port>\d{1,5}))?"
)

_DOTENV = Path(".env")


def load_settings(dotenv: Path | None = _DOTENV) -> Settings:
    """Read the environment, and `dotenv` if it exists, for what the environment leaves open.

    Raises:
        StartupError: a value is not of its type or out of range; names each, with what was expected. Or `dotenv`
            cannot be read.
    """
    with _environment(dotenv) as env:
        return _read(env)


def load_control_socket() -> Path | None:
    """CONTROL_SOCKET alone, as `load_settings` reads it, whatever is wrong with the other settings.

    Raises:
        StartupError: `.env` cannot be read.
    """
    with _environment(_DOTENV) as env:
        return _optional_path(env, "CONTROL_SOCKET", Settings().control_socket)


def load_address() -> tuple[str, int]:
    """HOST and PORT alone, as `load_settings` reads them, whatever is wrong with the other settings or lines.

    Raises:
        StartupError: PORT is no number of a port, or `.env` cannot be read.
    """
    with _environment(_DOTENV, every_line=False) as env:
        host, port = _address(env)
        _seal(env, ["PORT"])
        return host, port


@contextmanager
def _environment(dotenv: Path | None, *, every_line: bool = True) -> Iterator[Env]:
    env = Env(eager=False)
    before = set(os.environ)
    try:
        try:
            if dotenv is not None and dotenv.is_file():
                if every_line:
                    _check_lines(dotenv)
                env.read_env(dotenv, recurse=False)
        except (OSError, UnicodeDecodeError) as exc:
            # Not even looked for, where the current folder is closed to this user.
            raise StartupError(f"{dotenv} cannot be read: {exc}") from None
        yield env
    finally:
        # What the file set in the environment would win over the file as it is at the next reload.
        for name in set(os.environ) - before:
            del os.environ[name]


def _check_lines(dotenv: Path) -> None:
    """Refuse a line that sets nothing: what it was to set, such as AUTH, would be left at its default.

    Raises:
        StartupError: names the first such line. Not what it says: that may be a password.
    """
    with dotenv.open(encoding="utf-8") as lines:
        for binding in parse_stream(lines):
            # A name alone, or `AUTH:required`, is one without a value to the parser, and left out. And to that any text
            # is a name, as `"AUTH"` is.
            named = binding.key is None or (_NAME.fullmatch(binding.key) and binding.value is not None)
            if binding.error or not named:
                text = binding.original.string  # begins with the empty lines before it
                line = binding.original.line + text[: -len(text.lstrip())].count("\n")
                raise StartupError(f"{dotenv} cannot be read: line {line} is not NAME=VALUE")


def _address(env: Env) -> tuple[str, int]:
    default, ports = Settings(), validate.Range(min=0, max=_LAST_PORT)
    return env.str("HOST", default.host), env.int("PORT", default.port, validate=ports)


def _read(env: Env) -> Settings:
    positive, from_zero = validate.Range(min=1), validate.Range(min=0)
    seconds = validate.Range(min=0, max=_LONGEST_SECONDS)
    some_seconds = validate.Range(min=0, min_inclusive=False, max=_LONGEST_SECONDS)
    default = Settings()
    host, port = _address(env)
    values: dict[str, Any] = {
        "host": host,
        "port": port,
        "database_url": env.str("DATABASE_URL", default.database_url),
        "journal_dir": _optional_path(env, "JOURNAL_DIR", default.journal_dir),
        "journal_fsync": _one_of(env, "JOURNAL_FSYNC", default.journal_fsync, get_args(Fsync)),
        "retention_days": env.float(
            "RETENTION_DAYS", default.retention_days, validate=validate.Range(min=0, max=_LONGEST_RETENTION)
        ),
        "store_private": env.bool("STORE_PRIVATE", default.store_private),
        "model_path": env.path("MODEL_PATH", default.model_path),
        "canary_model_path": _optional_path(env, "CANARY_MODEL_PATH"),
        "canary_percent": env.float(
            "CANARY_PERCENT", default.canary_percent, validate=validate.Range(min=0, max=100)
        ),
        "provider": _one_of(env, "PROVIDER", default.provider, get_args(ProviderSetting)),
        "detect": _one_of(env, "DETECT", default.detect, get_args(Detect)),
        "small_faces": _one_of(env, "SMALL_FACES", default.small_faces, get_args(SmallFaces)),
        "emotions_language": _one_of(env, "EMOTIONS_LANGUAGE", default.emotions_language, get_args(Language)),
        "workers": env.int("WORKERS", 0, validate=from_zero),
        "executors": env.int("EXECUTORS", -1, validate=validate.Range(min=-1)),
        "threads": env.int("THREADS", 0, validate=from_zero),
        "max_batch": env.int("MAX_BATCH", 0, validate=validate.Range(min=0, max=_LARGEST_BATCH)),
        "max_waiting": env.int("MAX_WAITING", default.max_waiting, validate=positive),
        "max_wait_ms": env.float("MAX_WAIT_MS", default.max_wait_ms, validate=positive),
        "max_in_flight": env.int("MAX_IN_FLIGHT", default.max_in_flight, validate=positive),
        "max_message_bytes": env.int(
            "MAX_MESSAGE_BYTES", default.max_message_bytes, validate=validate.Range(min=1024)
        ),
        "max_image_pixels": env.int("MAX_IMAGE_PIXELS", default.max_image_pixels, validate=positive),
        "tls_certificate": _optional_path(env, "TLS_CERTIFICATE"),
        "tls_key": _optional_path(env, "TLS_KEY"),
        "auth": _one_of(env, "AUTH", default.auth, get_args(Authentication)),
        "jwt_secret": env.str("JWT_SECRET", "") or None,
        "jwt_key_file": _optional_path(env, "JWT_KEY_FILE"),
        "jwt_audience": env.str("JWT_AUDIENCE", "") or None,
        "jwt_issuer": env.str("JWT_ISSUER", "") or None,
        "jwt_user_claim": env.str("JWT_USER_CLAIM", default.jwt_user_claim, validate=validate.Length(min=1)),
        "jwt_require_expiry": env.bool("JWT_REQUIRE_EXPIRY", default.jwt_require_expiry),
        "jwt_leeway_seconds": env.float("JWT_LEEWAY_SECONDS", default.jwt_leeway_seconds, validate=seconds),
        "api_keys_file": _optional_path(env, "API_KEYS_FILE"),
        "origins": env.list("ORIGINS", [], validate=_check_origins),
        "trusted_proxies": env.list("TRUSTED_PROXIES", [], validate=_check_networks),
        "max_connections": env.int("MAX_CONNECTIONS", default.max_connections, validate=from_zero),
        "max_connections_per_address": env.int(
            "MAX_CONNECTIONS_PER_ADDRESS", default.max_connections_per_address, validate=from_zero
        ),
        "max_requests_per_second": env.float("MAX_REQUESTS_PER_SECOND", 0.0, validate=from_zero),
        "max_bytes_per_second": env.float("MAX_BYTES_PER_SECOND", 0.0, validate=from_zero),
        "handshake_seconds": env.float("HANDSHAKE_SECONDS", default.handshake_seconds, validate=some_seconds),
        "message_seconds": env.float("MESSAGE_SECONDS", default.message_seconds, validate=some_seconds),
        "send_seconds": env.float("SEND_SECONDS", default.send_seconds, validate=some_seconds),
        "ping_seconds": env.float("PING_SECONDS", default.ping_seconds, validate=seconds),
        "drain_seconds": env.float("DRAIN_SECONDS", default.drain_seconds, validate=seconds),
        "control_socket": _optional_path(env, "CONTROL_SOCKET", default.control_socket),
        "log_level": _one_of(env, "LOG_LEVEL", default.log_level, _LOG_LEVELS),
        "log_format": _one_of(env, "LOG_FORMAT", default.log_format, get_args(LogFormat)),
    }
    _seal(env, [name.upper() for name in values])
    if (values["tls_certificate"] is None) != (values["tls_key"] is None):
        raise StartupError("TLS_CERTIFICATE and TLS_KEY are set together, or neither is")
    values["origins"] = tuple(_as_sent(origin) for origin in values["origins"])
    values["trusted_proxies"] = tuple(ip_network(network.strip()) for network in values["trusted_proxies"])
    return Settings(**values)


def _seal(env: Env, names: Sequence[str]) -> None:
    """Raises StartupError where one of these that were read is wrong."""
    written = {name: env.str(name, "") for name in names}
    try:
        env.seal()
    except EnvValidationError as exc:
        raise StartupError(f"a setting is wrong: {_said_of(exc, written)}") from None


def _said_of(error: EnvValidationError, written: Mapping[str, str]) -> str:
    """Each setting, its value and what was expected. Those that may be secret are not validated, and not shown."""
    assert isinstance(error.error_messages, Mapping)
    return "; ".join(
        f"{name}={_without_user(written.get(name, ''))}: {' '.join(messages).rstrip('.')}"
        for name, messages in error.error_messages.items()
    )


def _without_user(value: str) -> str:
    """Addresses in it without their user, who may have a password."""
    return re.sub(r"//[^/,]*@", "//…@", value)


def _one_of(env: Env, name: str, default: str, choices: Sequence[str]) -> str:
    return env.str(name, default, validate=validate.OneOf(choices))


def _optional_path(env: Env, name: str, default: Path | None = None) -> Path | None:
    """A path; None where it is set to nothing, as a file that sets it empty means it. `Path("")` would be a folder."""
    value = env.str(name, None)
    if value is None:
        return default
    return Path(value) if value else None


def _as_sent(origin: str) -> str:
    """An origin as browsers send it: in small letters, without a slash at its end and without its scheme's own port."""
    return re.sub(r"^(https://.+):443$|^(http://.+):80$", r"\1\2", origin.strip().lower().rstrip("/"))


def _check_origins(origins: Sequence[str]) -> None:
    """Refuse what would be the origin of no page as it stands: the page would be shut out, and nobody told why."""
    for written in origins:
        origin = written.strip().lower().rstrip("/")
        if "@" in origin:  # not repeated: there may be a password
            raise ValidationError("no page's origin has a user in it: leave out what is before the @")
        if "*" in origin:
            raise ValidationError(f"'{written}' is a pattern: name each origin, or leave it unset for all")
        if not origin.isascii():
            raise ValidationError(
                f"'{written}' has other letters than ASCII: browsers send it as {_in_ascii(origin)}"
            )
        if re.search(r":0\d+$", origin):
            raise ValidationError(f"'{written}': browsers send the port without zeros before it")
        found = _ORIGIN.fullmatch(origin)
        if found is None or int(found["port"] or 0) > _LAST_PORT:
            raise ValidationError(f"'{written}' is neither an origin such as https://HOST nor same-origin")


def _in_ascii(origin: str) -> str:
    """As browsers write international names: each label that has other letters, in Punycode."""
    labels = re.split(r"([./:])", unicodedata.normalize("NFKC", origin))
    return "".join(
        label if label.isascii() else f"xn--{label.encode('punycode').decode()}" for label in labels
    )


def _check_networks(networks: Sequence[str]) -> None:
    for network in networks:
        try:
            ip_network(network.strip())
        except ValueError:
            raise ValidationError(f"'{network}' is not a network such as 10.0.0.0/8") from None

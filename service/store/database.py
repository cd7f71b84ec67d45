"""Opening the database: which URLs are taken, how connections are set up, what a failure says."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import orjson
import sqlalchemy as sa
from sqlalchemy import event, exc

from service.errors import StartupError

ACCEPTED: Final = "use sqlite:///path/to/file.db or postgresql://user:password@host:5432/name"
_QUOTED: Final = "in a user's name or password write @ as %40, : as %3A, / as %2F, ? as %3F and % as %25"
_SEVERAL: Final = (
    "several hosts are written postgresql://user:password@/name?host=first:5432&host=second:5432"
)

CONNECT_TIMEOUT_S: Final = 5
SQLITE_BUSY_TIMEOUT_S: Final = 10
_WAL_RETRY_S: Final = 0.01

# PostgreSQL's codes.
_UNDEFINED_TABLE: Final = "42P01"
_SEQUENCE_AT_ITS_END: Final = "2200H"

# What to do about what PostgreSQL refuses, by its code.
_REMEDIES: Final = {
    "42501": "give this user the rights that SECURITY.md lists; migrate as the owner of the tables, or as a superuser "
    "where one did before (--migrate-only)",
    "55P03": "another session holds a lock: stop the older server, or end that session, and start again",
    "25006": "the server is a standby, or this user may only read: name one that takes writes in DATABASE_URL "
    "(of several hosts &target_session_attrs=read-write finds it); a pooler before it must be in session mode",
}
_MENDING: Final = (
    "put a copy back in its place, or recover what can be read (`sqlite3 FILE .recover`); "
    "what the database had not taken waits in the journal"
)
_SQLITE_NOT_OPENED: Final = "check DATABASE_URL, and that this user may write the file and to its folder"
# SQLite's codes for a file that cannot be opened, read or written, or that is none of its own.
_OF_THE_FILE: Final = frozenset(
    {
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_NOTADB,
    }
)
# SQLite's codes where there is no room: for the file and its log, and for what it shares with other processes.
_WITHOUT_ROOM: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})
_NOT_REACHED: Final = (
    "check DATABASE_URL, that the server runs, and that it accepts connections from this machine"
)

# Unless the URL says otherwise. A server that vanished without closing its connections is noticed after about 25 s,
# whether we wait for its answer (keep-alives) or for its acknowledgement of what we sent (user time-out).
_POSTGRES_DEFAULTS: Final[dict[str, Any]] = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "application_name": "visionai",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
# The same for the server, which by itself looks for us after two hours, and waits for our acknowledgements for 15
# minutes. A writer whose machine is gone keeps its turn as long, and gets one that it had queued for: nobody else would
# store. Nor would they while one is frozen (a paused container) amid a transaction: its kernel goes on to acknowledge.
_SERVERS_DEFAULTS: Final = """
SELECT set_config(name, value, false)
FROM pg_settings JOIN (VALUES ('tcp_keepalives_idle', '10'), ('tcp_keepalives_interval', '5'),
  ('tcp_keepalives_count', '3'), ('tcp_user_timeout', '25000'),
  ('idle_in_transaction_session_timeout', '60000')) AS ours(setting_name, value) ON name = setting_name
WHERE source = 'default'
"""


def parse_url(text: str) -> sa.URL:
    """The URL with the driver that is used. ``postgres://`` and other drivers' names are understood.

    Raises StartupError when the text is not a URL of SQLite (in a file) or PostgreSQL. The message never holds
    the text itself: there may be a password in it.
    """
    try:
        url = sa.make_url(text)
    except exc.ArgumentError:
        raise StartupError(f"DATABASE_URL is not a database URL: {ACCEPTED}") from None
    except ValueError:  # the port is none
        advice = f"{_QUOTED}; {_SEVERAL}" if "," in text else _QUOTED
        raise StartupError(f"DATABASE_URL has a port that is no number: {ACCEPTED}; {advice}") from None
    if url.host is not None and "@" in url.host:  # the end of the password, which is not to be looked up
        raise StartupError(f"DATABASE_URL has more than one @: {_QUOTED}")
    backend = url.get_backend_name()
    if backend in ("postgres", "postgresql"):
        if any("\ud800" <= letter <= "\udfff" for letter in text):  # what Python makes of such a byte
            raise StartupError(
                "DATABASE_URL is not UTF-8, and PostgreSQL's driver takes nothing else: correct it"
            )
        # Behind a slash, or a question mark, in the user's name all is read as other names, and those are shown.
        if any(mark in name for name in (url.database or "", *url.query) for mark in "@:"):
            raise StartupError(f"DATABASE_URL has an @ or a : in the database's name or behind it: {_QUOTED}")
        return _with_usable_options(url.set(drivername="postgresql+psycopg2"))
    if backend == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise StartupError(f"DATABASE_URL names no file for SQLite: {ACCEPTED}")
        return _with_usable_options(url.set(drivername="sqlite+pysqlite"))
    raise StartupError(f"DATABASE_URL is for {backend}, which is not supported: {ACCEPTED}")


def _with_usable_options(url: sa.URL) -> sa.URL:
    """The URL, unless an engine would stumble over an option in it, before it connects to anything."""
    try:
        url.get_dialect()().create_connect_args(url)
    except (ValueError, exc.ArgumentError):
        options = ", ".join(url.query)
        raise StartupError(
            f"DATABASE_URL has an option behind its ? with a value that it cannot have (of {options}): correct it, or "
            "leave it out"
        ) from None
    return url


def _postgres_arguments(url: sa.URL) -> dict[str, Any]:
    """What connections get beside the URL, which these would hide."""
    arguments = {name: value for name, value in _POSTGRES_DEFAULTS.items() if name not in url.query}
    # Else it is the database's, and what that cannot hold fails in the driver: one record of a batch fails all of it.
    return arguments | {"client_encoding": "utf8"}


def create_engine(url: sa.URL, *, durable: bool = False, undo_in_memory: bool = False) -> sa.Engine:
    """An engine for a URL from :func:`parse_url`. It connects to nothing yet.

    A SQLite file that is not there is an error of whoever connects, as a server that is down is; see `create_file`.

    ``durable`` makes a commit to SQLite survive a power loss (one more disk flush per transaction). PostgreSQL
    commits are as durable as its server's configuration makes them.

    ``undo_in_memory`` keeps what undoes a statement on SQLite, the pages that it changes, in memory. By default it is
    in a file from 64 KiB on: of 32 rows at a time six of seven writes went there.

    Every transaction on SQLite takes the write lock at its start, so that two processes wait for each other
    instead of failing when both want to turn a read into a write. Reads that should not wait use the execution
    option ``isolation_level="AUTOCOMMIT"``.
    """
    if url.get_backend_name() == "postgresql":
        # What closes connections that are idle, a proxy or the server, would make a failure of each first prediction
        # after a lull: told, and counted, where nothing is wrong.
        engine = sa.create_engine(url, connect_args=_postgres_arguments(url), pool_size=2, pool_pre_ping=True)
        event.listen(engine, "do_connect", _connect_to_server)
        event.listen(engine, "connect", _set_up_session)
        return engine

    engine = sa.create_engine(url, connect_args={"timeout": SQLITE_BUSY_TIMEOUT_S}, pool_size=2)

    def set_up(connection: sqlite3.Connection, _: object) -> None:
        # The driver must not start transactions on its own terms; ours begin in `begin`.
        connection.isolation_level = None
        _enter_wal(connection)
        connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}").close()
        connection.execute("PRAGMA foreign_keys = ON").close()
        if undo_in_memory:
            connection.execute("PRAGMA temp_store = MEMORY").close()

    def begin(connection: sa.Connection) -> None:
        if connection.get_isolation_level() != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "do_connect", _connect_to_what_is_there)
    event.listen(engine, "connect", set_up)
    event.listen(engine, "begin", begin)
    return engine


def create_reading_engine(url: sa.URL, timeout: float) -> sa.Engine:
    """An engine whose connections only read, each statement by itself: none waits for a writer, or makes a file.

    PostgreSQL cuts a statement that takes longer than ``timeout`` seconds; SQLite has to be watched by its caller.
    """
    if url.get_backend_name() == "postgresql":
        engine = sa.create_engine(
            url,
            connect_args=_postgres_arguments(url),
            pool_size=2,
            pool_pre_ping=True,  # questions are rare: the server may have been restarted since the last one
            isolation_level="AUTOCOMMIT",
            json_deserializer=orjson.loads,
        )
        event.listen(engine, "do_connect", _connect_to_server)

        def limit(connection: Any, _: object) -> None:
            # Not by options of the connection: poolers refuse them, they would hide the operator's, and where
            # `target_session_attrs=read-write` asks for the one of several servers that takes writes, the driver would
            # take it for one that does not.
            with connection.cursor() as cursor:
                # One core for a question: its answer may take longer, and predictions on the same machine are left
                # more.
                cursor.execute(
                    "SET default_transaction_read_only = on;"
                    f"SET statement_timeout = {round(timeout * 1000)}; SET max_parallel_workers_per_gather = 0"
                )
            connection.commit()

        event.listen(engine, "connect", limit)
        return engine

    engine = sa.create_engine(
        url,
        connect_args={"timeout": SQLITE_BUSY_TIMEOUT_S},
        pool_size=2,
        json_deserializer=orjson.loads,
    )

    def set_up(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # no transactions, whatever SQLAlchemy says
        connection.execute("PRAGMA query_only = ON").close()

    event.listen(engine, "do_connect", _connect_to_what_is_there)
    event.listen(engine, "connect", set_up)
    return engine


def _connect_to_what_is_there(
    dialect: sa.Dialect, record: object, arguments: list[str], options: dict[str, Any]
) -> Any:
    """A connection to a SQLite file that is there; it makes none.

    An empty file would not only hide that the database was moved away: SQLite takes the log of writes that still lies
    beside it for a dead database's, and deletes it with all that is committed there.
    """
    if options.get("uri"):
        return None  # the operator's own, with a mode of its own: the driver connects
    # Two slashes before an empty authority, and a third before the letter of a drive.
    path = Path(arguments[0]).as_posix()
    uri = f"file://{'' if path.startswith('/') else '/'}{quote(os.fsencode(path), safe='/:')}?mode=rw"
    return dialect.connect(uri, **options | {"uri": True})


def _connect_to_server(
    dialect: sa.Dialect, record: object, arguments: list[str], options: dict[str, Any]
) -> Any:
    """A connection to PostgreSQL, or the driver's error.

    What a server refuses a client with is in its own language and encoding. The driver takes it for UTF-8, and where it
    is not, what it raises is no error of a database.
    """
    try:
        return dialect.connect(*arguments, **options)
    except UnicodeDecodeError as error:
        reason = error.object.decode(errors="replace")
        raise dialect.loaded_dbapi.OperationalError(reason) from None


def _set_up_session(connection: Any, _: object) -> None:
    """Let transactions of PostgreSQL see what was committed while they waited, whatever the operator's default; and let
    the server notice soon that we have vanished, unless the operator has said when.

    A migration that waited for the table's lock would else count without the rows of who had it, and of two writers
    that count the same minute one would fail. Not by SQLAlchemy's isolation level: the driver would then say it anew
    for each transaction, a round trip more.
    """
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_isolation = 'read committed'")
        cursor.execute(_SERVERS_DEFAULTS)
    connection.commit()


def _enter_wal(connection: sqlite3.Connection) -> None:
    """Write ahead from now on, for all connections to this file.

    The busy timeout does not cover this change: of two processes that make it on a new file at the same time, one is
    told at once that the file is locked. It tries again, as the timeout would.
    """
    deadline = time.monotonic() + SQLITE_BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").close()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(_WAL_RETRY_S)


def create_file(url: sa.URL) -> None:
    """Make SQLite's file, for this user alone, and the folder that it is to lie in, where they are not there.

    Raises StartupError when that is not possible, or when the log of one that was moved away lies there: SQLite would
    delete it.
    """
    if url.get_backend_name() != "sqlite":
        return
    (name,), options = url.get_dialect()().create_connect_args(url)
    if options.get("uri"):
        return  # the operator's own: SQLite does what it says
    path = Path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(
            f"cannot create the folder of the database, {path.parent}: {error.strerror}"
        ) from None
    try:
        # One that is there is not opened: whoever closes it takes SQLite's locks on it from the whole process.
        if not path.exists():
            log = path.with_name(f"{path.name}-wal")
            if log.exists() and log.stat().st_size:
                raise StartupError(
                    f"the SQLite database {url.database} is not there, and its log {log.name} is, with rows that "
                    "would be lost: put the database back beside it, or delete the log to begin anew"
                )
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    except OSError as error:
        raise StartupError(
            f"cannot create the SQLite database {url.database}: {error.strerror}; {_SQLITE_NOT_OPENED}"
        ) from None


def unusable(url: sa.URL, error: exc.DBAPIError) -> StartupError:
    """What to tell the operator when the database does not answer at start: one line, no password."""
    reason = first_line(error)
    if url.get_backend_name() == "sqlite":
        code = getattr(error.orig, "sqlite_errorcode", 0)
        remedy = f"; {_MENDING}" if "malformed" in reason else ""
        if code in _WITHOUT_ROOM:
            remedy = "; make room on its disk"
        # The lowest byte is the kind of error, what is above it tells more.
        elif code & 0xFF in _OF_THE_FILE:
            remedy = f"; {_SQLITE_NOT_OPENED}"
        return StartupError(f"cannot use the SQLite database {url.database}: {reason}{remedy}")
    if url.host:
        where = f"{url.host}:{url.port or 5432}"
    else:
        hosts = url.query.get("host") or "the local socket"
        where = hosts if isinstance(hosts, str) else ", ".join(hosts)
    code = getattr(error.orig, "pgcode", None)
    # Without a code it did not let us in. What else it says speaks for itself.
    advice = _NOT_REACHED if code is None else _REMEDIES.get(code)
    return StartupError(
        f"cannot use the PostgreSQL database {url.database!r} at {where}: {reason}{f'; {advice}' if advice else ''}"
    )


class FileReplaced(Exception):
    """The file of a SQLite database is not the one that was opened: what is written now would be gone with it."""


def identity(url: sa.URL) -> tuple[int, int] | None:
    """What tells a SQLite file from another of the same name; None when there is none, and for PostgreSQL."""
    if url.get_backend_name() != "sqlite" or url.database is None:
        return None
    try:
        found = Path(url.database).stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def lacks_tables(error: exc.DBAPIError) -> bool:
    """Whether a statement failed because its table is not there: the database was made anew, say."""
    return getattr(error.orig, "pgcode", None) == _UNDEFINED_TABLE or "no such table" in str(error.orig)


def is_of_the_values(error: exc.DataError) -> bool:
    """Whether it is the values that the database refuses. A sequence that has come to its end is a DataError, too."""
    return getattr(error.orig, "pgcode", None) != _SEQUENCE_AT_ITS_END


def first_line(error: exc.DBAPIError) -> str:
    """The driver's own message, without SQL, parameters or hints. The drivers put no password in it."""
    lines = str(error.orig).strip().splitlines()
    # A name with several addresses, or several names: that one is down says less than why another lets nobody in.
    refusals = [line for line in lines if "FATAL:" in line]
    return next(iter(refusals or lines), type(error.orig).__name__)

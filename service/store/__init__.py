"""Storing predictions: never in the way of a reply, each exactly once.

::

    prepare(url, labels=..., version_tag=..., model_filename=...)              # migrates; opening does, too
    store = Store.open(url, labels=..., version_tag=..., model_filename=...)   # once, at start
    stored = store.record([PredictionRecord(...), ...])                        # any thread, once per micro-batch
    store.status()                                                             # for health and metrics
    lost = store.close(timeout=10)                                             # writes everything that is left

Rooms: ``schema`` and ``migrations`` (the tables) with ``migrate``, ``legacy`` (the older server's tables),
``provenance`` (whether a revision is ours) and ``placement`` (in which schema of PostgreSQL they lie), ``database``
(URLs, connections), ``records`` (what is stored), ``backlog`` (waiting to be written) with ``journal``, ``late``,
``segments``, ``framing``, ``folders`` and ``orphans`` (the same on disk), ``writer`` (the thread), ``insert`` and
``reference`` (the statements), ``retention``; ``queries`` (threads that read), ``history`` and ``minutes`` (what they
read: rows, or counts by minute), ``prediction_ids``.
"""

from __future__ import annotations

import errno
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy import exc

from service.errors import StartupError
from service.processes.apart import Progress, run_apart
from service.processes.signals import held_back
from service.settings import Fsync
from service.store import folders, reference
from service.store.backlog import Backlog, MemoryBacklog
from service.store.database import create_engine, create_file, first_line, parse_url, unusable
from service.store.journal import JournalBacklog
from service.store.late import LateJournal
from service.store.migrate import migrate
from service.store.queries import Queries
from service.store.records import PredictionRecord, encode
from service.store.reference import Model, References
from service.store.retention import Retention
from service.store.writer import Writer

__all__ = ["PredictionRecord", "Store", "StoreStatus", "bring_up_to_date", "check_journal", "prepare"]

logger = logging.getLogger(__name__)

#: A database that has not answered for this long is reported, although nothing has failed yet.
STALLED_S: Final = 10.0

#: Records kept in memory while the database does not take them: about 25 MB.
MEMORY_LIMIT: Final = 50_000

#: What is said where a process that migrates the database ends before it is done.
MIGRATION_UNFINISHED: Final = "the process that was to migrate the database has ended; the log has the cause"


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """How storing goes. ``taking`` is false while records are being turned away or something else of the journal fails,
    ``writing`` while the last attempt to write them to the database failed or the database does not answer;
    ``last_error`` says why.

    ``pending`` records wait to be written, ``written`` are committed, but for those that the database had already,
    ``rejected`` were refused by the database as such.
    """

    pending: int
    written: int
    rejected: int
    failed_attempts: int
    last_error: str | None
    taking: bool
    writing: bool

    @property
    def healthy(self) -> bool:
        """Whether nothing fails."""
        return self.taking and self.writing

    @classmethod
    def together(cls, statuses: Sequence[StoreStatus]) -> StoreStatus:
        """Several stores' as one: of the errors the first."""
        if len(statuses) == 1:
            return statuses[0]
        failing = [status for status in statuses if not status.healthy]
        return cls(
            pending=sum(status.pending for status in statuses),
            written=sum(status.written for status in statuses),
            rejected=sum(status.rejected for status in statuses),
            failed_attempts=sum(status.failed_attempts for status in statuses),
            last_error=next((status.last_error for status in failing or statuses if status.last_error), None),
            taking=all(status.taking for status in statuses),
            writing=all(status.writing for status in statuses),
        )


class Store:
    """The predictions of this process, on their way into the database."""

    def __init__(
        self,
        engines: Sequence[sa.Engine],
        backlog: Backlog,
        writer: Writer,
        labels: Sequence[str],
        private: bool,
        retention: Retention | None,
        queries: Queries,
    ) -> None:
        self._engines = engines
        #: Reads what is stored.
        self.queries = queries
        self._backlog = backlog
        self._writer = writer
        self._private = private
        self._retention = retention
        self._labels = frozenset(labels)
        # Whether the log has it that the database does not answer: the writer, which waits for it, cannot say so.
        self._told_stalled = False

    @classmethod
    def open(
        cls,
        url: str,
        *,
        labels: Sequence[str],
        version_tag: str,
        model_filename: str,
        descriptions: Mapping[str, str] | None = None,
        journal_dir: Path | None = None,
        fsync: Fsync = "interval",
        private: bool = False,
        retention_days: float | None = None,
        during_outage: bool = False,
        new_journal: bool = False,
        active: bool = True,
    ) -> Store:
        """Migrate the database, make the rows that predictions point to, and start the writer.

        ``url`` is ``sqlite:///FILE`` (which is made, and its folder) or ``postgresql://…``. The version
        ``version_tag`` becomes the active one in ``model_version``, unless ``active`` is false. A label without an
        entry in ``descriptions`` is described by its name.

        With a ``journal_dir`` records are on disk before :meth:`record` returns, and survive what ``fsync`` says
        (see :class:`service.store.journal.JournalBacklog`); several processes may share the folder, if they share the
        database, and one that lives stores what one that died left there. Without it, up to ``MEMORY_LIMIT`` records
        wait in memory and die with the process.

        ``private`` keeps neither address nor face box of anybody. Rows older than ``retention_days`` are deleted,
        those of earlier runs and of the older server too.

        Blocks while it works. Raises StartupError, whose one-line message holds no password, when the database
        cannot be used. With ``during_outage`` a database that does not answer is no reason not to start: it is
        prepared when it answers, and records wait until then; so is a SQLite file that somebody else keeps locked, or
        that is not there, which is not made then. A journal that cannot be written is opened later then, too, unless it
        is a ``new_journal``, whose folder may be a mistake; records are refused meanwhile. So is one, also without
        ``during_outage``, for which the disk has no room while there are journals on it that can be stored.
        """
        parsed = parse_url(url)
        if not during_outage:
            create_file(parsed)
        model = Model(version_tag, model_filename, tuple(labels))
        # A journal that survives a power loss is let go of only for a commit that does too.
        durable = journal_dir is not None and fsync != "never"
        engine = create_engine(parsed, durable=durable)
        # Only its statements change a few pages each: a migration's, or a deletion's, are not to be kept in memory.
        writing = create_engine(parsed, durable=durable, undo_in_memory=True)
        descriptions = descriptions or {}

        prepared = False

        def prepare() -> References:
            nonlocal prepared
            activates = active and not prepared
            found = _prepare(engine, model, descriptions, active=activates, patient=not during_outage)
            prepared = True
            return found

        def ensure(connection: sa.Connection, written: Model) -> References:
            found = reference.ensure(connection, written, descriptions)
            if active and written == model:
                # Whoever makes again what was deleted may be draining, and is not to end what a newer one has begun.
                reference.activate_where_none_is(connection, found.model_id)
            return found

        # Before the database is prepared: where nothing can be stored the version that is served stays the active one.
        backlog = _open_backlog(model, journal_dir, fsync, during_outage and not new_journal)
        references: dict[Model, References] = {}
        try:
            try:
                references[model] = prepare()
            except exc.DBAPIError as error:
                # A version that the table does not take, for its tag say, it takes no better later.
                if not during_outage or isinstance(error, exc.DataError | exc.IntegrityError):
                    raise unusable(parsed, error) from error
                logger.warning("the database cannot be used yet: %s", first_line(error))
        except BaseException:
            backlog.close()
            engine.dispose()
            raise
        writer = Writer(writing, backlog, references, ensure, prepare)
        writer.start()
        retention = None if retention_days is None else Retention(engine, retention_days)
        return cls((engine, writing), backlog, writer, labels, private, retention, Queries(parsed))

    def record(self, records: Sequence[PredictionRecord]) -> bool:
        """Take these records over: True means that they will be stored, False that there is no room for them.

        All or none of them are taken. Never waits for the database; may be called from any thread, also while
        :meth:`close` runs (then with the answer False). Raises ValueError for an emotion that is not one of the
        store's labels.
        """
        if not records:
            return True
        for record in records:
            if record["emotion"] not in self._labels:
                raise ValueError(f"{record['emotion']!r} is not one of the labels {sorted(self._labels)}")
        if self._backlog.append(encode(records, private=self._private), len(records)):
            self._writer.notify()
            return True
        return False

    def status(self) -> StoreStatus:
        """A snapshot; cheap, from any thread. To be asked for regularly: it also tells the log of a silent database."""
        state = self._writer.state
        waiting = self._writer.attempt_seconds
        refusal = self._backlog.error
        stalled = waiting > STALLED_S
        silence = f"the database has not answered for {waiting:.0f} s" if stalled else None
        if silence and not self._told_stalled:
            self._told_stalled = True
            logger.warning("storing predictions waits: %s", silence)
        elif self._told_stalled and not stalled and not state.failing:
            self._told_stalled = False
            logger.info("the database answers again: predictions are stored")
        return StoreStatus(
            pending=self._backlog.pending,
            written=state.written,
            rejected=state.rejected,
            failed_attempts=state.failed_attempts,
            last_error=refusal or silence or state.last_error,
            taking=refusal is None,
            writing=not (state.failing or stalled),
        )

    def close(self, timeout: float) -> int:
        """Write everything that was taken over, for at most ``timeout`` seconds; the number of records left out.

        Those that are left out stay in the journal, if there is one.
        """
        self.queries.close()
        self._backlog.seal()
        began = time.monotonic()
        self._writer.close(timeout)
        if self._retention is not None:
            self._retention.close(max(0.0, timeout - (time.monotonic() - began)))
        remaining = self._backlog.pending
        self._backlog.close()
        for engine in self._engines:
            engine.dispose()
        return remaining


def prepare(
    url: str,
    *,
    labels: Sequence[str],
    version_tag: str,
    model_filename: str,
    descriptions: Mapping[str, str] | None = None,
) -> None:
    """What :meth:`Store.open` does to the database, and no more: nothing is stored or deleted, and the active version
    stays what it is.

    Raises StartupError as it does.
    """
    model = Model(version_tag, model_filename, tuple(labels))
    with _administered(url) as engine:
        _prepare(engine, model, descriptions or {}, active=False, patient=True)


def check_journal(journal_dir: Path | None) -> None:
    """Open a journal as :meth:`Store.open` does, and leave nothing of it.

    Raises StartupError as it does.
    """
    _open_backlog(Model("", "", ()), journal_dir, "never", later=False).close()


def bring_up_to_date(url: str, before: Callable[[], object]) -> None:
    """Make the database where there is none, and migrate it, in a process of its own.

    :meth:`Store.open` would do both, but what Alembic imports, 11 MB, would stay in the process that did it. There
    ``before`` is called before tables are changed that older releases use; what it raises leaves them as they were.

    What is forked from this process later shares the database's driver with it: that is imported here.

    Raises StartupError as it does.
    """
    # A library in C that is interrupted while it loads says that it cannot be imported.
    with held_back(signal.SIGINT, signal.SIGTERM):
        parse_url(url).get_dialect().import_dbapi()
    run_apart(partial(_migrate, url, before), unfinished=MIGRATION_UNFINISHED)


def _migrate(url: str, before: Callable[[], object], _: Progress) -> None:
    with _administered(url) as engine:
        migrate(engine, before=before)


@contextmanager
def _administered(url: str) -> Iterator[sa.Engine]:
    parsed = parse_url(url)
    create_file(parsed)
    engine = create_engine(parsed, durable=True)
    try:
        yield engine
    except exc.DBAPIError as error:
        raise unusable(parsed, error) from error
    finally:
        engine.dispose()


def _prepare(
    engine: sa.Engine, model: Model, descriptions: Mapping[str, str], *, active: bool, patient: bool
) -> References:
    ensure = partial(reference.ensure, model=model, descriptions=descriptions)
    # Already in the migration's transaction: where the database refuses these rows, it is left as it was.
    migrate(engine, patient=patient, after=ensure)
    with engine.begin() as connection:
        references = ensure(connection)
        if active:
            reference.activate(connection, references.model_id)
    engine.dispose()  # no idle connection to a server
    return references


def _open_backlog(model: Model, journal_dir: Path | None, fsync: Fsync, later: bool) -> Backlog:
    if journal_dir is None:
        return MemoryBacklog(model, MEMORY_LIMIT)
    if not later:
        try:
            return JournalBacklog(journal_dir, model, fsync=fsync)
        except OSError as error:
            # What fills the disk may be what was left there: it is stored first, and there is room.
            if error.errno not in {errno.ENOSPC, errno.EDQUOT} or not folders.any_segments(journal_dir):
                raise StartupError(
                    f"cannot write a journal in {journal_dir}: {error.strerror}; check JOURNAL_DIR"
                ) from None
    return LateJournal(journal_dir, model, fsync=fsync)

"""What processes that died left behind: their journals, taken over and read one segment at a time."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Final

from service.store import folders, records, segments
from service.store.backlog import Batch, oldest
from service.store.folders import Folder
from service.store.framing import Frame
from service.store.reference import Model
from service.store.segments import UnknownFormat

logger = logging.getLogger(__name__)

LOOK_INTERVAL_S: Final = 10.0


def _with_labels_of(frames: list[Frame], model: Model) -> Model:
    """The model, with the emotions that it does not answer with but these records have: they are of another."""
    found = {row["emotion"]: None for frame in frames for row in records.decode(frame.payload)}
    return replace(model, labels=tuple(dict.fromkeys((*model.labels, *found))))


class Orphans:
    """The journals that no living process holds, looked for at first and every ``LOOK_INTERVAL_S``.

    Used by one thread; ``pending`` may be read by any, and another may ask for a look and close.
    """

    def __init__(self, root: Path, model: Model) -> None:
        self._root = root
        self._folders: deque[Folder] = deque()
        self._given_up: list[Folder] = []
        # What is stored and could not be deleted, and the folders in which there is nothing else.
        self._stored: set[Path] = set()
        self._undeleted: list[Folder] = []
        self._told: set[Path] = set()
        # Whether the last look failed, which is told once.
        self._blind = False
        self._frames: deque[Frame] = deque()
        self._segment: Path | None = None
        self._ours = model
        # That of the last head that was read: a segment with a damaged one is of the same process, or else ours.
        self._model = model
        self.pending = 0
        #: Why one could not be read since the last look; None when all could.
        self.error: str | None = None
        self._next_look = 0.0
        self._closed = False

    def look(self) -> None:
        """Take over what has become an orphan since the last look, and try again to delete what could not be."""
        undeleted, self._undeleted = self._undeleted, []  # never in both: who closes would release it twice
        self._folders.extend(undeleted)
        try:
            adopted, failed = folders.adopt(self._root, self._told)
        except OSError as error:
            if not self._blind:
                logger.warning("cannot look for journals of other processes: %s", error)
            self._blind = True
            return
        self._blind = False
        self.error = None if failed is None else f"journal: {failed.strerror}"
        for folder in adopted:
            try:
                count = sum(
                    frame.count
                    for path in folder.segments()
                    if path not in self._stored
                    for frame in segments.read(path).frames
                )
            except OSError as error:
                self._put_back(folder, error)
                continue
            except UnknownFormat as error:
                self._give_up(folder, error)
                continue
            if count:
                logger.info("taking over %d records of the journal %s", count, folder.path.name)
            self.pending += count
            self._folders.append(folder)

    def take(self, limit: int) -> Batch | None:
        """See :class:`service.store.backlog.Backlog`."""
        if self._closed:
            return None
        if time.monotonic() >= self._next_look:
            # Before it looks: what `look_next` asks for meanwhile is not lost.
            self._next_look = time.monotonic() + LOOK_INTERVAL_S
            self.look()
        while not self._frames:
            if not self._next_segment():
                return None
        return oldest(((frame.payload, frame.count) for frame in self._frames), limit, self._model)

    def acknowledge(self, batch: Batch) -> None:
        """See :class:`service.store.backlog.Backlog`."""
        for _ in batch.payloads:
            self._frames.popleft()
        self.pending -= batch.count

    def look_next(self) -> None:
        """Let the next `take` look, however short ago the last one did."""
        self._next_look = 0.0

    def close(self) -> None:
        """Leave what is left to other processes."""
        self._closed = True
        for folder in (*self._folders, *self._undeleted, *self._given_up):
            folder.release()

    def _next_segment(self) -> bool:
        """Done with one segment, on to the next; False when there is none."""
        if self._segment is not None:
            done, self._segment = self._segment, None
            self._delete(done)
        while self._folders:
            folder = self._folders[0]
            try:
                found = folder.segments()
                remaining = [path for path in found if path not in self._stored]
                if not remaining:
                    self._let_go(self._folders.popleft(), found)
                    self._model = self._ours
                    continue
                contents = segments.read(remaining[0])
            except OSError as error:
                self._put_back(self._folders.popleft(), error)
                continue
            except UnknownFormat as error:
                self._give_up(self._folders.popleft(), error)
                continue
            self._segment = remaining[0]
            self._model = contents.model or _with_labels_of(contents.frames, self._model)
            self._frames.extend(contents.frames)
            segments.report(self._segment, contents.damages, last=len(remaining) == 1)
            return True
        self.pending = 0
        return False

    def _delete(self, segment: Path) -> bool:
        """Delete what is stored; whether it is gone. Else it is remembered, or it would be read again for ever."""
        try:
            segment.unlink(missing_ok=True)
        except OSError as error:
            if all(path.parent != segment.parent for path in self._stored):
                logger.error(
                    "what is stored of the journal %s cannot be deleted, and is tried again: %s",
                    segment.parent,
                    error,
                )
            self._stored.add(segment)
            return False
        self._stored.discard(segment)
        return True

    def _let_go(self, folder: Folder, stored: list[Path]) -> None:
        """Leave a folder of which all is stored, unless something stays in it: a sibling would store that again."""
        if [path for path in stored if not self._delete(path)]:
            self._undeleted.append(folder)
        else:
            folder.release()

    def _put_back(self, folder: Folder, error: OSError) -> None:
        """Leave it to the next look, this process's or a sibling's: what cannot be read now may be read then."""
        if folder.path not in self._told:
            self._told.add(folder.path)
            logger.error("the journal %s cannot be read, and is tried again: %s", folder.path, error)
        self.error = f"journal: {error.strerror}"
        folder.release()

    def _give_up(self, folder: Folder, error: Exception) -> None:
        """Keep it locked, so that it is not taken up again and again, and keep its files: no look will change that."""
        logger.error("the journal %s cannot be read and is left as it is: %s", folder.path, error)
        self._given_up.append(folder)

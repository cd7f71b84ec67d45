"""The memory that several processes take together, whoever else maps the same files.

The kernel's PSS divides a page by all processes that map it. The load generator runs on the libraries that the service
runs on: beside it the service's PSS is smaller by a share of them, though it would take them without it, too.
"""

from __future__ import annotations

import mmap
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np

# A word for each page, in /proc/PID/pagemap (the kernel's Documentation/admin-guide/mm/pagemap.rst).
_PRESENT: Final = np.uint64(1 << 63)
# Or of shared memory; a page of a file that was written to is the process's own by then.
_OF_FILE: Final = np.uint64(1 << 61)
_BOTH: Final = _PRESENT | _OF_FILE
_WORD: Final = 8

_PAGE: Final = mmap.PAGESIZE

# Addresses, rights, offset, device, inode; in lines of a mapping without a file the last is 0.
_MAPPING: Final = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) (\S+ [1-9][0-9]*) ")
_OWN: Final = re.compile(rb"^Pss_Anon: +([0-9]+) kB", re.MULTILINE)

_Pages = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def tells_pages() -> bool:
    """Whether the system says what `pss_bytes` asks: not all that call themselves Linux do."""
    try:
        return Path("/proc/self/pagemap").exists() and bool(
            _OWN.search(Path("/proc/self/smaps_rollup").read_bytes())
        )
    except OSError:
        return False


def pss_bytes(pids: Sequence[int]) -> int:
    """What the PSS of these processes would add up to if nobody else mapped their files. On Linux, since 5.4.

    A page that several of them map counts once, whole. One that has ended adds nothing.

    Raises:
        PermissionError: a process is another user's.
    """
    own = 0
    files: defaultdict[bytes, list[_Pages]] = defaultdict(list)
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            own += _own_bytes(pid)
            for file, pages in _file_pages(pid):
                files[file].append(pages)
    return own + _PAGE * sum(len(np.unique(np.concatenate(pages))) for pages in files.values())


def _own_bytes(pid: int) -> int:
    """What belongs to no file: shared with those only that were forked from it."""
    found = _OWN.search(Path(f"/proc/{pid}/smaps_rollup").read_bytes())
    return int(found[1]) * 1024 if found is not None else 0


def _file_pages(pid: int) -> Iterator[tuple[bytes, _Pages]]:
    """For each mapping of a file, which file, and the numbers of its pages that the process has in memory."""
    mappings = _MAPPING.findall(Path(f"/proc/{pid}/maps").read_bytes())
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as words:
        for *places, inode in mappings:
            begin, end, offset = (int(place, 16) for place in places)
            words.seek(begin // _PAGE * _WORD)
            found = np.frombuffer(words.read((end - begin) // _PAGE * _WORD), np.uint64)
            yield inode, np.flatnonzero(found & _BOTH == _BOTH) + offset // _PAGE

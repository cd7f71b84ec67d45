"""The socket by which a service is asked to reload: who may ask, which service is asked, and what it cannot take."""

from __future__ import annotations

import os
import resource
import stat
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from select import select

import pytest

from service.errors import StartupError
from service.processes.reload import ControlSocket, Outcome, request_reload
from tests.service.harness import TIMEOUT

DONE = Outcome("v2.0.0", None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the service is to be found."""
    return tmp_path / "visionai.sock"


def opened(path: Path) -> ControlSocket:
    """A service's end."""
    control = ControlSocket.open(path)
    assert control is not None
    return control


@contextmanager
def asking(path: Path, control: ControlSocket) -> Iterator[Future[Outcome]]:
    """Somebody who asks, and waits; the request has come."""
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(request_reload, path)
        assert select([control], [], [], TIMEOUT)[0]
        yield future


def test_only_the_services_user_may_ask(path: Path) -> None:
    """Whatever others may do with the files that the service makes; and for those it is as before."""
    mask = os.umask(0)
    try:
        control = opened(path)
        assert os.umask(0) == 0
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    control.remove()


def test_of_two_services_that_share_a_path_the_one_started_last_is_asked(path: Path) -> None:
    """It stays when the other ends, takes the place of one that was killed, and leaves nothing at its end."""
    first, last = opened(path), opened(path)
    first.remove()
    with asking(path, last) as future:
        assert last.accept()
        last.answer(DONE)
        assert future.result(TIMEOUT) == DONE
    assert not last.accept()  # nobody asks
    last.close()  # as the kernel does with one that is killed
    assert path.is_socket()
    successor = opened(path)
    with asking(path, successor) as future:
        assert successor.accept()
        successor.answer(DONE)
        assert future.result(TIMEOUT) == DONE
    successor.remove()
    assert not list(path.parent.iterdir())


def test_the_current_folder_is_no_place_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The service starts without one, and the log says which setting to check; it was a traceback."""
    monkeypatch.chdir(tmp_path)
    assert ControlSocket.open(Path()) is None
    assert "no control socket at . (what is there is no socket; check CONTROL_SOCKET)" in caplog.text
    assert not list(tmp_path.iterdir())


def test_a_service_that_ends_meanwhile_is_told_as_that(path: Path) -> None:
    """Whoever waits for the outcome waits no longer, and takes it for no success."""
    control = opened(path)
    with asking(path, control) as future:
        assert control.accept()
        control.remove()
        with pytest.raises(StartupError, match="the service ended before it had reloaded"):
            future.result(TIMEOUT)


def test_a_request_waits_until_the_service_may_open_a_file(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log tells it, it is not looked at all the time meanwhile, and then it is answered as any other."""
    control = opened(path)
    with asking(path, control) as future:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            assert not control.accept()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert "a request to reload cannot be taken, and waits: Too many open files" in caplog.text
        assert control.looked_at_from > time.monotonic()
        assert control.accept()
        control.answer(DONE)
        assert future.result(TIMEOUT) == DONE
    control.remove()

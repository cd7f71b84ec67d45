"""Hosts on this machine: network namespaces on a bridge, each with a replica of the service, and HAProxy before them.

`enter` moves the whole command into namespaces of its own first, of networks and of processes, so that nothing of it is
seen outside, and all of it is gone when the command ends, however it ends. The hosts' cables can be cut.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.target import ROOT, Target

HAPROXY_CONFIGURATION = ROOT / "deploy/haproxy/haproxy.cfg"

# The addresses exist in the command's own namespace only.
_HUB, _SUBNET, _PORT = "10.77.0.1", "10.77.0", 8000
_INSIDE = "VISIONAI_BENCH_NAMESPACE"
_START_SECONDS = 60.0

# For the folders to be removed and the servers to be stopped, when the command is ended early.
_CLEAN_UP_SECONDS = 20.0


def enter() -> None:
    """Start this command again inside namespaces, unless it is in them; ends with its exit code then.

    Raises:
        RuntimeError: this machine has not what it takes; says what is missing.
    """
    if os.environ.get(_INSIDE):
        threading.Thread(target=_end_with_parent, daemon=True).start()
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "link", "add", "hub", "type", "bridge")
        _run("ip", "address", "add", f"{_HUB}/24", "dev", "hub")
        _run("ip", "link", "set", "hub", "up")
        return
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if missing := [tool for tool in ("unshare", "ip", "nsenter", "haproxy") if shutil.which(tool) is None]:
        raise RuntimeError(f"missing: {', '.join(missing)} (apt-get install util-linux iproute2 haproxy)")
    # Who is not root becomes root of a user namespace, where the system allows that.
    become = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    # The first process of a namespace of processes takes all others with it when it ends: PostgreSQL and the replicas,
    # which have sessions of their own, too.
    unshare = ["unshare", *become, "--net", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        raise RuntimeError("namespaces of networks and processes are not allowed here; try as root")
    raise SystemExit(_run_inside([*unshare, sys.executable, "-m", "benchmarks", *sys.argv[1:]]))


def _run_inside(command: Sequence[str]) -> int:
    """Run the command with a pipe that closes when this process ends, however it ends; its exit code."""
    with subprocess.Popen(command, env=os.environ | {_INSIDE: "1"}, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        try:
            return process.wait()
        finally:  # on SIGTERM and Ctrl-C, which raise; it cleans up, and is waited for
            process.stdin.close()


def _end_with_parent() -> None:
    """Wait until the process outside is gone or says so; then clean up, and end in any case."""
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_CLEAN_UP_SECONDS)
    os._exit(128 + signal.SIGTERM)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


@dataclass(slots=True)
class Host:
    """A network namespace with a cable to the bridge, and the service that runs in it."""

    number: int
    folder: Path
    settings: Mapping[str, str]
    _process: subprocess.Popen[bytes] | None = None
    # The kernel takes its time to remove the cable of a namespace that has ended: each start has its own.
    _starts: int = 0

    @property
    def address(self) -> str:
        """Where its service listens."""
        return f"{_SUBNET}.{10 + self.number}:{_PORT}"

    @property
    def _cable(self) -> str:
        return f"host{self.number}-{self._starts}"

    def start(self) -> None:
        """Start the service, in a new namespace, and wait until it is ready.

        Raises:
            RuntimeError: it did not become ready; its log is in the folder.
        """
        # The namespace is made by the process that then becomes the service; it waits until the cable is plugged in.
        script = 'read -r _; exec "$@"'
        command = ["unshare", "--net", "sh", "-c", script, "sh", sys.executable, "-m", "service"]
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "HOST": "0.0.0.0", "PORT": str(_PORT), **self.settings},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._process = process
        self._wait_for_namespace(process.pid)
        self._starts += 1
        inside = ["nsenter", "--net", "--target", str(process.pid), "ip"]
        name = self._cable
        # The same network card as before: to neighbours that know another one for the address, the host would be dead
        # until they ask again, which takes half a minute.
        card = f"02:00:00:00:00:{10 + self.number:02x}"
        _run(*f"ip link add {name} type veth peer name eth0 address {card} netns {process.pid}".split())
        _run(*f"ip link set {name} master hub up".split())
        _run(*inside, *f"address add {self.address.split(':')[0]}/24 dev eth0".split())
        _run(*inside, *["link", "set", "eth0", "up"])
        _run(*inside, *["link", "set", "lo", "up"])
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.close()
        if not _becomes_ready(process, self.address):
            raise RuntimeError(f"a replica did not start:\n{(self.folder / 'log').read_text()[-2000:]}")

    def _wait_for_namespace(self, pid: int) -> None:
        own = Path("/proc/self/ns/net").readlink()
        while Path(f"/proc/{pid}/ns/net").readlink() == own:
            time.sleep(0.005)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the service's first process."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to all of its processes at once, as a machine that crashes."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def stop(self) -> None:
        """SIGTERM, and wait for the end of the drain.

        Raises:
            RuntimeError: the exit code was not 0.
        """
        if self._process is None:
            return
        process, self._process = self._process, None
        process.terminate()
        if code := process.wait(_START_SECONDS):
            raise RuntimeError(f"a replica ended with {code}:\n{(self.folder / 'log').read_text()[-2000:]}")

    def cut(self) -> None:
        """Pull the cable: what is sent from now on arrives nowhere, and nobody is told."""
        _run(*f"ip link set {self._cable} down".split())

    def mend(self) -> None:
        """Plug it in again."""
        _run(*f"ip link set {self._cable} up".split())


@contextmanager
def haproxy(servers: Mapping[str, str], folder: Path) -> Iterator[Target]:
    """HAProxy before these servers, by name and address.

    Its configuration is that of deploy/, with the servers in place of a name to resolve.

    Raises:
        RuntimeError: it is not installed, or does not start.
    """
    text = HAPROXY_CONFIGURATION.read_text()
    lines = "\n".join(f"    server {name} {address}" for name, address in servers.items())
    text, count = re.subn(r"^    server-template .*$", lines, text, flags=re.MULTILINE)
    if count != 1:
        raise RuntimeError(f"{HAPROXY_CONFIGURATION} has not one server-template")
    program = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        raise RuntimeError("missing: haproxy (apt-get install haproxy)")
    configuration = folder / "haproxy.cfg"
    configuration.write_text(text)
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen([program, "-f", str(configuration)], stdout=log, stderr=log)
    try:
        # Until it has found the replicas ready, by its own checks.
        if not _becomes_ready(process, f"127.0.0.1:{_PORT}"):
            raise RuntimeError("HAProxy did not start")
        yield Target(f"ws://127.0.0.1:{_PORT}", process.pid)
    finally:
        process.kill()  # it would wait for its connections to end
        process.wait()


def _becomes_ready(process: subprocess.Popen[bytes], address: str) -> bool:
    """Wait until what a process serves at this address is ready; false if it ends, or is not in time."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{address}/readyz", timeout=1):
                return True
        except OSError:  # an answer that says no is one, too
            time.sleep(0.05)
    return False

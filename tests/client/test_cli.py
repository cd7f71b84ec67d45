"""The command line as a process, against a peer that commits faults on request."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.cli.exit_codes import ExitCode
from tests.client.harness import ROOT, TIMEOUT, Completed, VisionAI, on_a_terminal, run_command
from tests.client.peer import V1_COMMANDS, Peer, image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of three images, a text file, and a subfolder with one more image."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(image("happy"))
    (folder / "b.JPEG").write_bytes(image("sad"))
    (folder / "c.png").write_bytes(image("fear"))
    (folder / "notes.txt").write_text("no image")
    (folder / "more" / "d.webp").write_bytes(image("angry"))
    return folder


async def test_predict_prints_the_emotion(peer: Peer, visionai: VisionAI, photos: Path) -> None:
    """One image: its name, emotion and confidence, and nothing on standard error."""
    done = await visionai("predict", photos / "a.jpg", "--url", peer.url)
    assert (done.code, done.err) == (0, "")
    line = done.out.splitlines()[1]
    assert line.split()[:4] == [str(photos / "a.jpg"), "happy", "94.0", "%"]
    assert "30x40 at 10,20" in line


async def test_the_address_may_come_from_the_environment(
    peer: Peer, visionai: VisionAI, photos: Path
) -> None:
    """VISIONAI_URL and VISIONAI_TOKEN stand in for --url and --token."""
    environment = {"VISIONAI_URL": peer.url, "VISIONAI_TOKEN": "secret"}
    done = await visionai("predict", photos / "a.jpg", environment=environment)
    assert done.code == 0
    assert peer.handshakes[0].headers["Authorization"] == "Bearer secret"


async def test_a_folder_is_all_its_images(peer: Peer, visionai: VisionAI, photos: Path) -> None:
    """--folder takes those in it by name, leaves other files and subfolders, and draws no bar without a terminal."""
    done = await visionai("predict", "--folder", photos, "--format", "ndjson", "--url", peer.url)
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [(Path(row["file"]).name, row["emotion_name"]) for row in rows] == [
        ("a.jpg", "happy"),
        ("b.JPEG", "sad"),
        ("c.png", "fear"),
    ]
    assert re.fullmatch(r"3 images in [\d.]+ s \(\d+/s\), 0 failed\n", done.err)


async def test_a_name_that_no_file_can_have_is_one_failed_image(
    peer: Peer, visionai: VisionAI, photos: Path
) -> None:
    """An image in base64 in place of its path, say: a line for each such name, and the others' answers."""
    loop = photos / "loop.jpg"
    loop.symlink_to(loop)
    bad = ("x" * 300, "/9j/" + "A" * 5000, "file:///tmp/a%00b.jpg", loop)
    done = await visionai(
        "predict", *bad, photos / "a.jpg", "--format", "ndjson", "--annotate", "out", "--url", peer.url
    )
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row.get("emotion_name") for row in rows] == [None, None, None, None, "happy"], done
    assert "Traceback" not in done.err
    assert done.code == ExitCode.IMAGE_FAILED


async def test_subfolders_are_taken_when_asked(peer: Peer, visionai: VisionAI, photos: Path) -> None:
    """--recursive goes into subfolders."""
    done = await visionai("predict", photos, "-r", "--json", "--url", peer.url)
    assert sorted(row["emotion_name"] for row in json.loads(done.out)) == ["angry", "fear", "happy", "sad"]


async def test_images_come_from_patterns_urls_and_stdin(peer: Peer, visionai: VisionAI, photos: Path) -> None:
    """A quoted pattern, a file: URL and - are images as well, in the order of the command line."""
    done = await visionai(
        "predict",
        "-",
        (photos / "c.png").as_uri(),
        "photos/*.jpg",
        "--json",
        "--url",
        peer.url,
        stdin=image("disgust"),
    )
    rows = json.loads(done.out)
    assert [row["emotion_name"] for row in rows] == ["disgust", "fear", "happy"]
    assert rows[0]["file"] == "-"


async def test_closed_stdin_matters_only_where_it_is_read(peer: Peer, photos: Path) -> None:
    """Started with <&-, files are predicted as ever, and - is a usage error that says why."""

    async def run(argument: str, redirection: str) -> Completed:
        command = f"exec {sys.executable} -m client predict {argument} --url {peer.url} {redirection}"
        return await run_command(["sh", "-c", command], folder=photos)

    done = await run("a.jpg", "<&-")
    assert (done.code, "happy" in done.out) == (0, True), done.err
    for redirection, reason in (("<&-", "which is closed"), ("0>written", "cannot be read")):
        done = await run("-", redirection)
        assert (done.code, "Traceback" in done.err, reason in done.err) == (ExitCode.USAGE, False, True), done


async def test_json_is_the_servers_reply(peer: Peer, visionai: VisionAI, photos: Path) -> None:
    """--json prints an array with the reply to each image and its file, for one image too."""
    done = await visionai("predict", photos / "a.jpg", "--json", "--url", peer.url)
    (row,) = json.loads(done.out)
    assert row["file"] == str(photos / "a.jpg")
    assert (row["type"], row["status"], row["emotion_name"]) == ("prediction", "success", "happy")
    assert row["faces"][0]["box"] == [10, 20, 30, 40]
    assert "id" not in row


async def test_csv_has_a_column_for_each_emotion(peer: Peer, visionai: VisionAI, photos: Path) -> None:
    """One row per image with all probabilities; a failed image has its error instead."""
    done = await visionai("predict", photos / "a.jpg", "none.jpg", "-f", "csv", "--url", peer.url)
    good, bad = csv.DictReader(done.out.splitlines())
    assert (good["emotion_name"], good["happy"], good["sad"], good["faces"]) == ("happy", "0.94", "0.01", "1")
    assert (good["error_code"], good["error"]) == ("", "")
    assert (bad["file"], bad["emotion_name"], bad["error_code"]) == ("none.jpg", "", "file")
    assert bad["error"] == "No such file or directory"


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take UTF-8 only")
@pytest.mark.parametrize("chosen", ["table", "json", "ndjson", "csv"])
async def test_a_name_that_is_no_utf_8_is_written(
    peer: Peer, visionai: VisionAI, tmp_path: Path, chosen: str
) -> None:
    """As of an old archive: its bytes are escaped, in every format, and what is written is UTF-8."""
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(image("happy"))
    strict = {"PYTHONIOENCODING": "utf-8:strict"}
    done = await visionai("predict", tmp_path, "-f", chosen, "--url", peer.url, environment=strict)
    assert (done.code, r"caf\xe9.jpg" in done.out.replace("\\\\", "\\")) == (0, True), done


@pytest.mark.parametrize("chosen", ["table", "json", "ndjson", "csv"])
async def test_what_the_output_s_encoding_lacks_is_escaped(
    peer: Peer, visionai: VisionAI, tmp_path: Path, chosen: str
) -> None:
    """As in a file on Windows: nothing fails, and JSON reads it as what it was."""
    (tmp_path / "niño 😀.jpg").write_bytes(image("happy"))
    narrow = {"PYTHONIOENCODING": "ascii"}
    done = await visionai("predict", "niño 😀.jpg", "-f", chosen, "--url", peer.url, environment=narrow)
    assert (done.code, r"ni\u00f1o \ud83d\ude00.jpg" in done.out) == (0, True), done
    if chosen == "ndjson":
        assert json.loads(done.out)["file"] == "niño 😀.jpg"


@pytest.mark.parametrize("chosen", ["table", "json", "ndjson", "csv"])
async def test_a_closed_output_is_not_written_to(
    peer: Peer, visionai: VisionAI, photos: Path, tmp_path: Path, chosen: str
) -> None:
    """As of a program without a console: it runs to its end, and its exit code is that of what it did."""
    command = f"{sys.executable} -m client predict {photos / 'a.jpg'} -f {chosen} --url {peer.url} >&-"
    done = await run_command(["sh", "-c", command], folder=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert len(peer.predictions_received) == 1


async def test_a_closed_standard_error_leaves_the_output_as_it_is(peer: Peer, photos: Path) -> None:
    """Started with 2>&-: what is for people is nowhere, and not in the JSON."""
    command = f"{sys.executable} -m client predict {photos} --json --url {peer.url} 2>&-"
    done = await run_command(["sh", "-c", command], folder=photos)
    assert done.code == 0
    assert len(json.loads(done.out)) == 3


async def test_a_line_for_people_that_nobody_reads_ends_nothing(peer: Peer, tmp_path: Path) -> None:
    """Nor does one of a name that the locale's encoding lacks."""
    for name in ("a 😀.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(image("happy"))
        (tmp_path / "out" / name).mkdir(parents=True)  # where its annotated copy would be
    command = f"{sys.executable} -m client predict . --json --annotate out --url {peer.url} 2>&-"
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = await run_command(["sh", "-c", command], folder=tmp_path, environment=ascii_only)
    assert len(json.loads(done.out)) == 2


async def test_a_failed_image_does_not_stop_the_others(peer: Peer, visionai: VisionAI, photos: Path) -> None:
    """Exit code 1 says that some image failed; the others are answered and the reason is shown."""
    (photos / "broken.jpg").write_bytes(
        image(first=[{"error": "invalid_image", "message": "not an image"}] * 9)
    )
    done = await visionai("predict", photos / "broken.jpg", photos / "a.jpg", "--url", peer.url)
    assert done.code == ExitCode.IMAGE_FAILED
    assert "not an image" in done.out
    assert "happy" in done.out
    assert "1 failed" in done.err


async def test_options_reach_the_server(peer: Peer, visionai: VisionAI, photos: Path) -> None:
    """--detect, --max-faces and --timeout are fields of the request."""
    await visionai(
        "predict",
        photos / "a.jpg",
        "--detect",
        "never",
        "--max-faces",
        "2",
        "--timeout",
        "5",
        "--url",
        peer.url,
    )
    (request,) = peer.predictions_received
    assert (request.message["detect"], request.message["max_faces"]) == ("never", 2)
    assert 0 < request.message["deadline_ms"] <= 5000


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict",),
        ("predict", "--folder", "nowhere"),
        ("predict", "empty"),
        ("predict", "*.jpg"),
        ("predict", "https://example.com/a.jpg"),
        ("predict", "a.jpg", "--url", "http://example.com"),
        ("predict", "a.jpg", "--format", "xml"),
        ("predict", "a.jpg", "--concurrency", "0"),
        ("predict", "a.jpg", "--max-faces", "65"),
        ("top", "--interval", "inf"),
        ("top", "--interval", "nan"),
        ("nonsense",),
    ],
)
async def test_a_wrong_command_line_is_code_2(
    visionai: VisionAI, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """Usage errors have their own exit code, explain themselves on standard error, and send nothing."""
    (tmp_path / "empty").mkdir()
    done = await visionai(*arguments)
    assert (done.code, done.out) == (ExitCode.USAGE, "")
    assert "Error" in done.err


@pytest.mark.parametrize("command", [("predict", "a.jpg"), ("emotions",), ("model-info",), ("health",)])
async def test_a_refused_connection_is_code_3(
    visionai: VisionAI, unused_url: str, command: tuple[str, ...]
) -> None:
    """One line says which address and what to check; no traceback."""
    done = await visionai(*command, "--url", unused_url)
    assert (done.code, done.out) == (ExitCode.CANNOT_CONNECT, "")
    assert done.err.count("\n") == 1
    assert f"nothing answers at {unused_url}" in done.err
    assert "check that the service runs" in done.err


async def test_a_server_that_wants_a_token_is_code_5(visionai: VisionAI) -> None:
    """A refused handshake says to check the token, and where it is given."""
    async with Peer(refuse=401).running() as peer:
        done = await visionai("health", "--url", peer.url)
    assert done.code == ExitCode.UNAUTHORIZED
    assert "check the token (--token or VISIONAI_TOKEN)\n" in done.err


async def test_what_is_no_token_is_a_usage_error_that_does_not_show_it(visionai: VisionAI) -> None:
    """Before anything is sent, also where it comes from the environment."""
    done = await visionai("top", "--once", "--token", "two words")
    assert done.code == ExitCode.USAGE
    assert "is it the whole token?" in " ".join(done.err.replace("│", " ").split())
    assert "two words" not in done.err


async def test_health_is_code_4_where_the_server_is_not_well(visionai: VisionAI) -> None:
    """A degraded server is shown, and scripts see it in the exit code."""
    async with Peer(status="degraded").running() as peer:
        done = await visionai("health", "--url", peer.url)
    assert done.code == ExitCode.SERVER_ERROR
    assert "degraded" in done.out


async def test_the_queries_print_tables_and_json(peer: Peer, visionai: VisionAI) -> None:
    """emotions, model-info and health: for people, and as JSON."""
    table = await visionai("emotions", "--url", peer.url)
    assert [line.split()[:2] for line in table.out.splitlines()[1:3]] == [["1", "angry"], ["2", "disgust"]]
    document = json.loads((await visionai("emotions", "--json", "--url", peer.url)).out)
    assert document[6] == {"id": 7, "name": "surprise", "description": "surprise"}
    info = await visionai("model-info", "--url", peer.url)
    assert "[null,64,64,1]" in info.out
    assert (
        json.loads((await visionai("model-info", "--json", "--url", peer.url)).out)["total_params"] == 58423
    )
    health = await visionai("health", "--json", "--url", peer.url)
    assert (health.code, json.loads(health.out)["status"]) == (0, "healthy")


async def test_an_old_server_is_served_too(visionai: VisionAI, photos: Path) -> None:
    """Against a v1 server everything works that v1 has."""
    async with Peer(1, V1_COMMANDS).running() as peer:
        done = await visionai("predict", photos, "-f", "csv", "--url", peer.url)
        assert (done.code, peer.predictions_received[0].binary) == (0, False)
        rows = list(csv.DictReader(done.out.splitlines()))
    assert [row["emotion_name"] for row in rows] == ["happy", "sad", "fear"]
    assert [row["faces"] for row in rows] == ["", "", ""]


async def test_the_help_lists_the_exit_codes(visionai: VisionAI) -> None:
    """Every exit code is documented on the help page."""
    done = await visionai("--help")
    words = {line.split()[0] for line in done.out.splitlines() if line.split()}
    assert {str(int(code)) for code in ExitCode} <= words


def test_the_client_is_light() -> None:
    """Predicting loads neither NumPy nor OpenCV, nor anything of the service or the conversion."""
    code = (
        "import sys, client, client.cli; "
        "print(sorted({name.split('.')[0] for name in sys.modules} & "
        "{'numpy', 'cv2', 'service', 'conversion', 'onnxruntime', 'sqlalchemy', 'tensorflow', 'prometheus_client'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def test_a_reader_that_leaves_is_no_crash(peer: Peer, photos: Path) -> None:
    """`visionai predict … | head -1`: the output's reader may close it without a traceback."""
    for number in range(200):
        (photos / f"n{number}.jpg").write_bytes(image("sad", padding="x" * 2000, number=number))
    command = f"{sys.executable} -m client predict {photos} -f ndjson --url {peer.url} | head -1"
    process = await asyncio.create_subprocess_shell(
        command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(TIMEOUT):
        out, err = await process.communicate()
    assert json.loads(out)["emotion_name"] == "happy"
    assert b"Traceback" not in err


@pytest.fixture(params=["full", "gone"])
def failing_output(request: pytest.FixtureRequest) -> Iterator[tuple[int, bytes]]:
    """A file that takes nothing, and what is to be said of it: a full disk, and a pipe whose reader has gone."""
    if request.param == "full":
        output, said = os.open("/dev/full", os.O_WRONLY), b"No space left on device"
    else:
        reader, output = os.pipe()
        os.close(reader)
        said = b""
    yield output, said and b"visionai: the output cannot be written: " + said + b"\n"
    os.close(output)


@pytest.mark.parametrize(
    "arguments",
    [
        ("emotions",),
        ("emotions", "--json"),
        ("predict", "a.jpg", "-f", "csv"),
        ("predict", "a.jpg"),
        ("--help",),
    ],
)
async def test_output_that_cannot_be_written_is_code_6(
    peer: Peer, photos: Path, arguments: tuple[str, ...], failing_output: tuple[int, bytes]
) -> None:
    """A full disk is one line and a reader that has gone is none, whatever was being written."""
    output, said = failing_output
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "client", *arguments),
        cwd=photos,
        env=os.environ | {"PYTHONPATH": str(ROOT), "VISIONAI_URL": peer.url},
        stdout=output,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(TIMEOUT):
        _, err = await process.communicate()
    assert (process.returncode, err) == (ExitCode.OUTPUT_FAILED, said)


async def test_a_folder_on_a_terminal_has_a_progress_bar(peer: Peer, photos: Path) -> None:
    """Where standard error is a terminal, it shows how many are done, the rate, and the remaining time."""
    # The last images wait, so that the bar is seen half way.
    (photos / "z.jpg").write_bytes(image("happy", gated=True))
    command = (sys.executable, "-m", "client", "predict", str(photos), "-f", "ndjson", "--url", peer.url)
    seen = ""
    async with on_a_terminal(*command) as (process, terminal), asyncio.timeout(TIMEOUT):
        while "3/4" not in seen:
            seen += (await asyncio.to_thread(os.read, terminal, 4096)).decode()
        peer.gate.set()
        out, _ = await process.communicate()
    assert (process.returncode, len(out.splitlines())) == (0, 4)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    assert re.search(r"3/4 +\d+/s +\d:\d\d:\d\d", shown), shown

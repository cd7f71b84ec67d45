"""watch and --annotate, which need OpenCV, as processes."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import pytest

from client.cli.exit_codes import ExitCode
from client.cli.watch import Watched
from client.errors import InvalidImage, Superseded
from client.results import Prediction
from tests.client.harness import FACE, ServiceProcess, VisionAI
from tests.client.peer import Peer


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Half a second of a face."""
    face = cv2.imread(str(FACE))
    assert face is not None
    path = tmp_path / "face.avi"
    height, width = face.shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 20, (width, height))
    for _ in range(10):
        writer.write(face)
    writer.release()
    return path


async def test_watch_plays_a_video_to_its_end(
    service: ServiceProcess, visionai: VisionAI, video: Path
) -> None:
    """Every frame is answered or overtaken, the emotion is shown, and the end of the video is the end."""
    done = await visionai("watch", "--camera", video, "--json", "--url", service.url)
    assert done.code == 0, done.err
    replies = [json.loads(line) for line in done.out.splitlines()]
    assert replies
    assert {reply["emotion_name"] for reply in replies} == {"happy"}
    assert f"{len(replies)} answered" in done.err
    assert "0 failed" in done.err


async def test_watch_shows_the_emotions(service: ServiceProcess, visionai: VisionAI, video: Path) -> None:
    """For people: the emotion with its probabilities."""
    done = await visionai("watch", "--camera", video, "--url", service.url)
    assert done.code == 0, done.err
    assert "happy" in done.out
    assert "surprise" in done.out
    assert done.out.endswith("\n")  # in a file or a pipe, too


def test_watch_tells_frames_that_were_overtaken_from_those_that_failed() -> None:
    """Neither is answered; what was never sent is overtaken, too, and only a failure is shown with its reason."""
    view = Watched(frames=4)
    view.answer(Prediction("happy", 0.9, "v1", 3, datetime.now(UTC)), 0.001)
    view.fail(Superseded("a newer frame overtook it"))
    assert (view.superseded, view.failed, view.last_error) == (1, 0, None)
    view.fail(InvalidImage("no image"))
    assert view.summary().startswith("4 frames, 1 answered, 2 overtaken, 1 failed")


def test_watch_tells_answers_apart_that_come_within_a_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two answers within one step of a coarse clock, as Windows has it, have a rate."""
    monkeypatch.setattr(time, "monotonic", lambda: 15.625)
    view = Watched()
    prediction = Prediction("happy", 0.9, "v1", 3, datetime.now(UTC))
    for _ in range(2):
        view.answer(prediction, 0.001)
    assert view.rate() > 0


@pytest.mark.parametrize(
    "camera", ["nowhere.mp4", "notes.txt", "latin-\udce9", "99", "²", "9" * 20, "a" * 300]
)
async def test_watch_without_a_camera_is_a_usage_error(
    visionai: VisionAI, tmp_path: Path, unused_url: str, camera: str
) -> None:
    """A file that is missing or cannot be read, and a camera that is not there: it is told, and nothing is sent."""
    for name in ("notes.txt", "latin-\udce9"):
        (tmp_path / name).write_text("no video")
    done = await visionai("watch", "--camera", camera, "--url", unused_url)
    assert done.code == ExitCode.USAGE
    assert "Error" in done.err


async def test_watch_of_a_video_without_a_frame_says_so(
    peer: Peer, visionai: VisionAI, tmp_path: Path
) -> None:
    """It can be opened, as one whose recording was cut off, and it is no success to have watched nothing."""
    video = tmp_path / "empty.avi"
    cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 20, (96, 96)).release()
    done = await visionai("watch", "--camera", video, "--url", peer.url)
    assert done.code == ExitCode.USAGE
    assert "gave no frame" in " ".join(done.err.replace("│", " ").split())


async def test_annotated_copies_have_boxes_and_labels(visionai: VisionAI, tmp_path: Path) -> None:
    """The copy differs from the photo at the face's box, and only around it."""
    photo = np.full((400, 300, 3), 90, np.uint8)
    (tmp_path / "photo.png").write_bytes(cv2.imencode(".png", photo)[1].tobytes())
    async with Peer(fixed_faces=[(100, 150, 80, 120)]).running() as peer:
        done = await visionai("predict", "photo.png", "--annotate", "out", "--url", peer.url)
    assert done.code == 0, done.err
    copy = cv2.imread(str(tmp_path / "out" / "photo.png"))
    assert copy is not None
    changed = (copy != photo).any(axis=2)
    assert changed[150, 100:180].all()
    assert changed[150:270, 100].all()
    assert not changed[160:260, 110:170].any()
    assert not changed[300:].any()
    assert changed[:150].any()  # the label is above the box


async def test_a_label_is_whole_where_there_is_no_room_above_or_beside(
    visionai: VisionAI, tmp_path: Path
) -> None:
    """Of a face in a corner it is inside the image: at its top, and as far left as it is wide."""
    photo = np.full((400, 300, 3), 90, np.uint8)
    (tmp_path / "photo.png").write_bytes(cv2.imencode(".png", photo)[1].tobytes())
    async with Peer(fixed_faces=[(280, 0, 20, 120)]).running() as peer:
        done = await visionai("predict", "photo.png", "--annotate", "out", "--url", peer.url)
    assert done.code == 0, done.err
    copy = cv2.imread(str(tmp_path / "out" / "photo.png"))
    assert copy is not None
    changed = (copy != photo).any(axis=2)
    assert changed[8, 260:].all()
    assert not changed[30:, :270].any()


async def test_any_file_gets_an_annotated_copy(
    service: ServiceProcess, visionai: VisionAI, tmp_path: Path
) -> None:
    """One whose name ends in nothing, or in something else, is a JPEG; one as a camera names it keeps its name."""
    for name in ("FACE.JPG", "face", "face.dat"):
        (tmp_path / name).write_bytes(FACE.read_bytes())
    done = await visionai(
        "predict", "FACE.JPG", "face", "face.dat", "--annotate", "out", "--url", service.url
    )
    assert done.code == 0, done.err
    copies = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert copies == ["FACE.JPG", "face.dat.jpg", "face.jpg"]


async def test_a_copy_that_cannot_be_written_is_told(
    service: ServiceProcess, visionai: VisionAI, tmp_path: Path
) -> None:
    """The prediction is printed all the same; the exit code says that something failed."""
    (tmp_path / "face.jpg").write_bytes(FACE.read_bytes())
    (tmp_path / "out" / "face.jpg").mkdir(parents=True)
    done = await visionai("predict", "face.jpg", "--annotate", "out", "--url", service.url)
    assert (done.code, "happy" in done.out) == (ExitCode.IMAGE_FAILED, True)
    assert done.err == "visionai: no annotated copy of face.jpg: Is a directory\n"


async def test_a_pipe_that_is_empty_when_its_copy_is_drawn_is_told(
    service: ServiceProcess, visionai: VisionAI
) -> None:
    """A pipe that is named as a file can be read once: the prediction is printed, and how to get a copy is said."""
    arguments = ("predict", "/dev/stdin", "--annotate", "out", "--url", service.url)
    done = await visionai(*arguments, stdin=FACE.read_bytes())
    assert (done.code, "happy" in done.out) == (ExitCode.IMAGE_FAILED, True), done
    assert done.err.startswith(
        "visionai: no annotated copy of /dev/stdin: the image cannot be read a second time"
    )


async def test_an_image_that_is_named_twice_has_one_copy(
    service: ServiceProcess, visionai: VisionAI, tmp_path: Path
) -> None:
    """As by a folder and a pattern: it has its own name."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "face.jpg").write_bytes(FACE.read_bytes())
    done = await visionai("predict", "one", "one/*.jpg", "--annotate", "out", "--url", service.url)
    assert (done.code, done.out.count("happy")) == (0, 2), done
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["face.jpg"]


async def test_annotated_copies_never_overwrite(
    service: ServiceProcess, visionai: VisionAI, tmp_path: Path
) -> None:
    """Images of the same name get numbers, and a folder that holds any of the images themselves is refused."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "face.jpg").write_bytes(FACE.read_bytes())
    done = await visionai("predict", "one", "two", "--annotate", "out", "--url", service.url)
    assert done.code == 0, done.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["face-2.jpg", "face.jpg"]
    for images in (("one",), ("two", "one"), ("one", "two")):
        refused = await visionai("predict", *images, "--annotate", "one", "--url", service.url)
        assert refused.code == ExitCode.USAGE
        assert (tmp_path / "one" / "face.jpg").read_bytes() == FACE.read_bytes()

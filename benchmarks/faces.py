"""Faces in photos: how many are found, how long it takes, and whether their emotions are right.

`python -m benchmarks faces FOLDER` looks for faces in each photo of a folder. Where the folder has a `labels.csv` with
columns `file` and `emotion`, the largest face of each photo (or the whole photo, where none is found) is scored by the
emotion network, as the service does it. With `--margins` it also tells how many emotions would be right with other
crops. Photos stay where they are; nothing of them is kept.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated

import cv2
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from service.batching.predictor import FACE_CROP_SIDE
from service.engine import Engine
from service.errors import RequestError
from service.faces import Face, FaceDetector, crop_face
from service.faces.crop import LIFT, SCALE
from service.images.decode import ImageDecoder, Photo
from service.modelfile import resolve_detectors, resolve_model
from service.settings import DEFAULT_MODEL

_REPEATS = 5
_SCALES = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
_LIFTS = (0.0, 0.05, 0.1)


def measure_faces(
    folder: Annotated[
        Path,
        typer.Argument(help="A folder of photos, perhaps with a labels.csv.", exists=True, file_okay=False),
    ],
    model: Annotated[
        Path, typer.Option(help="The emotion network, with the detectors beside it.")
    ] = DEFAULT_MODEL,
    margins: Annotated[bool, typer.Option("--margins", help="Score other crops of the faces, too.")] = False,
) -> None:
    """Find and score the faces of each photo in a folder."""
    model = resolve_model(model, "--model")
    engine = Engine(model)
    detector = FaceDetector(*resolve_detectors(model))
    decoder = ImageDecoder(engine.card.shape, max_pixels=10**9)
    try:
        labels = _read_labels(folder / "labels.csv", engine.card.labels)
    except ValueError as exc:
        raise typer.BadParameter(f"labels.csv: {exc}", param_hint="FOLDER") from None
    table = Table(
        "photo", "pixels", "faces", "detection ms (CPU)", "emotion", title=f"faces in {folder.name}"
    )
    right = 0
    labelled: list[tuple[Photo, list[Face], str]] = []
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        try:
            photo = decoder.decode_photo(path.read_bytes())
        except RequestError as exc:
            if path.name in labels:
                raise typer.BadParameter(
                    f"{path.name} has a label, but: {exc}", param_hint="FOLDER"
                ) from None
            continue  # no image
        faces = detector.detect(photo.pixels, 64)
        took = _milliseconds(partial(detector.detect, photo.pixels, 64), _REPEATS)
        # As `auto` does: small images are not searched.
        scored = [] if max(photo.width, photo.height) <= FACE_CROP_SIDE else faces
        emotion = _emotion(engine, decoder, photo, scored)
        right += labels.get(path.name) == emotion
        if path.name in labels:
            labelled.append((photo, scored, labels[path.name]))
        table.add_row(path.name, f"{photo.width}x{photo.height}", str(len(faces)), f"{took:.2f}", emotion)
    if not table.row_count:
        raise typer.BadParameter(
            "there is no photo in it, and folders in it are not looked into", param_hint="FOLDER"
        )
    console = Console(markup=False)
    console.print(table)
    if labels:
        console.print(f"emotion right: {right} of {len(labels)}, {right / len(labels):.1%}")
    if labels and margins:
        console.print(_margins(engine, decoder, labelled))
    frame = np.asarray(cv2.resize(_portrait(), (640, 480)), np.uint8)
    took = _milliseconds(partial(detector.detect, frame, 1), 200)
    console.print(f"a 640x480 gray frame with one near face: {took:.2f} ms of one core (median of 200)")


def _milliseconds(call: Callable[[], object], repeats: int) -> float:
    """CPU time of a call, in the median."""
    times = []
    for _ in range(repeats):
        begun = time.thread_time()
        call()
        times.append((time.thread_time() - begun) * 1000)
    return median(times)


def _emotion(
    engine: Engine,
    decoder: ImageDecoder,
    photo: Photo,
    faces: list[Face],
    *,
    scale: float = SCALE,
    lift: float = LIFT,
) -> str:
    """What the network says of the largest face, or of the whole photo where there is none."""
    shape = engine.card.shape
    face = np.empty((1, shape.height, shape.width, shape.channels), np.uint8)
    if faces:
        crop = crop_face(photo.pixels, faces[0], shape.height, shape.width, scale=scale, lift=lift)
        face[0] = crop.reshape(face[0].shape)
    else:
        decoder.fit(photo.pixels, face[0])
    return engine.card.labels[int(engine.run(face)[0].argmax())]


def _margins(engine: Engine, decoder: ImageDecoder, labelled: list[tuple[Photo, list[Face], str]]) -> Table:
    """How many emotions are right, by the crop's size and height."""
    table = Table("moved up by", *(f"{scale} x" for scale in _SCALES), title="emotions right, by the crop")
    for lift in _LIFTS:
        counts = (
            sum(
                _emotion(engine, decoder, photo, faces, scale=scale, lift=lift) == label
                for photo, faces, label in labelled
            )
            for scale in _SCALES
        )
        table.add_row(str(lift), *map(str, counts))
    return table


def _read_labels(path: Path, emotions: Sequence[str]) -> dict[str, str]:
    """The emotion of each photo that has one; none without the file.

    Raises ValueError for what would be counted as a wrong answer and is none: a photo that is not there, or an emotion
    that the network cannot name.
    """
    if not path.is_file():
        return {}
    # Spreadsheets begin the file with a mark that is no part of the first column's name.
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if not {"file", "emotion"} <= set(rows.fieldnames or ()):
            raise ValueError(
                "its first line has to name the columns file and emotion, with a comma between them"
            )
        labels = {row["file"]: row["emotion"] for row in rows}
    for name, emotion in labels.items():
        # Photos of folders within are not looked at.
        if name != Path(name).name:
            raise ValueError(f"{name} is no name of a file in the folder itself")
        if not (path.parent / name).is_file():
            raise ValueError(f"{name} is not in the folder")
        if emotion not in emotions:
            raise ValueError(f"{name} is {emotion!r}; the network knows {', '.join(emotions)}")
    return labels


def _portrait() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    image = cv2.imread(str(Path(__file__).parents[1] / "tests/data/astronaut.jpg"), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    return np.asarray(image, np.uint8)

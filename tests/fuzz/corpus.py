"""What is mutated: messages and images of every kind that is served, and how. A seed makes it the same each time."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator, Sequence
from typing import Any, Final

import cv2
import numpy as np
import orjson

from tests.service.pictures import animated_png, encode, jpeg_of_scans, oriented, pixels, with_orientation

_NUMBERS: Final = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_PIECES: Final = (
    *(
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b"\n",
        b"\0",
        b"=",
        b"-",
        b"+",
        b" ",
        b"\xff",
        b"\xf0\x9f",
    ),
    *(
        b"null",
        b"true",
        b"NaN",
        b"Infinity",
        b"1e999",
        b"-0",
        b"9" * 400,
        b"\\ud800",
        b"[" * 2000,
        b'{"a":' * 500,
    ),
    *(
        b'"id":',
        b'"image":',
        b'"command":',
        b'"detect":"always"',
        b'"deadline_ms":0.001',
        b"data:",
        b";base64,",
    ),
    *(
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF",
        b"WEBPVP8X",
        b"BM",
        b"Exif\0\0II*\0",
        b"\xff\xda",
        b"IEND",
    ),
)


def images() -> list[bytes]:
    """Small image files of every kind: a mutant of each is quickly decoded."""
    small = np.asarray(cv2.resize(pixels(), (56, 48)))
    gray = np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY))
    jpeg = encode(small, ".jpg")
    return [
        jpeg,
        encode(gray, ".jpg"),
        encode(small, ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        encode(small, ".jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
        with_orientation(jpeg, 6, "<"),
        with_orientation(jpeg, 6, ">"),
        encode(small, ".png"),
        encode(gray, ".png"),
        encode(cv2.cvtColor(small, cv2.COLOR_BGR2BGRA), ".png"),
        encode(small.astype(np.uint16) * 257, ".png"),
        encode(small, ".webp", cv2.IMWRITE_WEBP_QUALITY, 80),
        encode(small, ".webp", cv2.IMWRITE_WEBP_QUALITY, 101),  # above 100: lossless
        encode(small, ".bmp"),
        encode(gray, ".bmp"),
        animated_png(),
        *(oriented(suffix, 6) for suffix in (".png", ".webp")),
        *(jpeg_of_scans(12, frame, 3) for frame in (0xC0, 0xC2, 0xC3)),
        *(encode(np.zeros(shape, np.uint8), ".png") for shape in ((8, 3000), (3000, 8))),
        encode(np.zeros((8, 3000), np.uint8), ".jpg"),
    ]


def messages() -> list[bytes]:
    """Frames of every command, good and bad, text and binary."""
    image = images()[0]
    text = base64.b64encode(image).decode()
    predict: dict[str, Any] = {"command": "predict", "image": text}
    objects: list[Any] = [
        {"image": text},
        predict | {"id": "a-1", "token": "x.y.z"},
        predict
        | {"id": 2**53 - 1, "priority": "high", "detect": "always", "max_faces": 3, "deadline_ms": 1000.5},
        {"image": f"data:image/jpeg;base64,{text}"},
        {"image": base64.encodebytes(image).decode()},
        *({"command": name, "id": 1} for name in ("emotions", "model_info", "health", "models", "ping")),
        {"command": "configure", "id": "c", "detect": "never", "max_faces": 64},
        {"command": "configure", "ordered": False, "stream": True, "deadline_ms": None},
        {"command": ["predict"]},
        {"command": {"predict": None}, "image": None},
        {"priority": [], "detect": {}, "max_faces": True, "deadline_ms": -1, "image": ""},
        [],
        None,
    ]
    texts = [orjson.dumps(each) for each in objects]
    raw = [
        b'{"id": NaN, "image": ""}',
        b'{"deadline_ms": 1e999, "image": "aGk="}',
        b'{"id": 123456789012345678901234567890, "command": "ping"}',
        b'{"id": 1, "id": 2, "command": "ping", "command": "health"}',
        b'{"id": "\\ud800", "command": "ping"}',
        b'{"image": "aGk"}',
        b'{"image": "aGk=="}',
        b'{"image": " aG\\tk=\\r\\n"}',
        b"[" * 5000 + b"]" * 5000,
        b'{"a":' * 3000 + b"1" + b"}" * 3000,
        b"\xef\xbb\xbf{}",
        b"",
    ]
    binary = [
        b'{"id": 5, "detect": "never"}\n' + image,
        b'{"command": "ping"}\n',
        b"{" + b" " * 5000 + b"}\n" + image,
        image,
    ]
    return texts + raw + binary


def mutants(corpus: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """`count` mutants of the corpus: each with one to four changes, mostly near the beginning, where headers are."""
    chance = random.Random(seed)
    for _ in range(count):
        data = bytearray(chance.choice(corpus))
        for _ in range(chance.randint(1, 4)):
            _change(data, chance, corpus)
        yield bytes(data)


def _change(data: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    reach = len(data) if chance.random() < 0.5 else min(len(data), 64)
    at = chance.randrange(reach + 1)
    match chance.randrange(9):
        case 0 if at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        case 1 if at < len(data):
            data[at] = chance.randrange(256)
        case 2:
            del data[at:]
        case 3:
            del data[at : at + chance.randint(1, 16)]
        case 4:
            data[at:at] = data[at : at + chance.randint(1, 64)] * chance.randint(1, 4)
        case 5:
            data[at:at] = chance.choice(_PIECES)
        case 6:
            other = chance.choice(corpus)
            data[at:] = other[chance.randrange(len(other) + 1) :]
        case 7:
            size = chance.choice((1, 2, 3, 4))
            order = "big" if chance.random() < 0.5 else "little"
            number = chance.choice(_NUMBERS) & ((1 << 8 * size) - 1)
            data[at : at + size] = number.to_bytes(size, order)  # type: ignore[arg-type]
        case _:
            data[at:at] = chance.randbytes(chance.randint(1, 8))

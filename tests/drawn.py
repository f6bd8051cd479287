"""Pictures that tests draw, some of which NudeNet takes for bodies."""

import random
import struct
import zlib

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def ellipses(seed: int) -> Image.Image:
    """A few overlapping ellipses in tones of skin on a plain ground, 320x320."""
    r = random.Random(seed)
    image = Image.new("RGB", (320, 320), tuple(r.randrange(256) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    for _ in range(r.randrange(2, 7)):
        x, y, w, h = r.randrange(40, 240), r.randrange(40, 240), r.randrange(20, 140), r.randrange(20, 140)
        tone = r.uniform(0.6, 1)
        pen.ellipse((x, y, x + w, y + h), fill=tuple(int(c * tone) for c in (236, 188, 160)))
    return image.filter(ImageFilter.GaussianBlur(r.choice((0, 2, 6))))


def png16(pixels: np.ndarray) -> bytes:
    """RGB uint16 [H, W, 3] as PNG, which Pillow cannot write."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")

"""Draws a Person: Pillow at four times the size, reduced to 64x64 (about 2 ms).

Every shape hangs on the head's centre and size, which jitter with the person's `layout`. The style Brava is laid over the
finished drawing: contours are inked (bold outlines), colours are posterised and pulled to a warm palette, dark areas are
hatched, each in proportion to the strength.
"""

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from hfi.portraits.world import Person

SIZE = 64  # pixels of the finished picture
SCALE = 4  # drawn at SIZE * SCALE

_SKIN = ((255, 224, 196), (240, 196, 158), (198, 142, 102), (132, 88, 62))
_HAIR = {
    "black": (34, 30, 34),
    "brown": (118, 70, 34),
    "blond": (242, 206, 92),
    "red": (206, 72, 24),
    "white": (236, 236, 240),
}
_BACKGROUND = {
    "blue": (98, 158, 226),
    "green": (112, 188, 112),
    "yellow": (246, 222, 112),
    "pink": (246, 170, 194),
    "purple": (158, 122, 206),
    "gray": (160, 164, 170),
}


def render(person: Person) -> Image.Image:
    """The portrait, RGB, 64x64. The same person always gives the same pixels."""
    rng = np.random.default_rng(person.layout)
    n = SIZE * SCALE
    base = _BACKGROUND[person.background]
    image = Image.new("RGB", (n, n), base)
    draw = ImageDraw.Draw(image)

    r = n * rng.uniform(0.185, 0.215)  # half the width of the head
    cx = n * (0.5 + rng.uniform(-0.045, 0.045))
    cy = n * (0.47 + rng.uniform(-0.03, 0.03))
    skin, hair = _SKIN[person.skin], _HAIR[person.hair]

    def box(x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        """Corners in units of the head's half width around its centre -> pixels, ordered."""
        xs, ys = sorted((cx + r * x0, cx + r * x1)), sorted((cy + r * y0, cy + r * y1))
        return xs[0], ys[0], xs[1], ys[1]

    def points(*xy: tuple[float, float]) -> list[tuple[float, float]]:
        return [(cx + r * x, cy + r * y) for x, y in xy]

    ellipse, rectangle = draw.ellipse, draw.rectangle
    wide = lambda w: max(1, round(r * w))  # noqa: E731

    # hair behind the head, then shoulders, neck, head
    ellipse(box(-1.22, -1.25, 1.22, 0.95), fill=hair)
    _body(draw, person.character, box, points, wide)
    rectangle(box(-0.35, 0.8, 0.35, 1.45), fill=_shade(skin, 0.88))
    ellipse(box(-1.0, -1.1, 1.0, 1.2), fill=skin)
    ellipse(box(-1.12, -0.12, -0.88, 0.32), fill=skin)
    ellipse(box(0.88, -0.12, 1.12, 0.32), fill=skin)
    draw.chord(box(-1.04, -1.2, 1.04, 0.3), 180, 360, fill=hair)  # fringe
    ellipse(box(-0.85, -0.62, 0.85, 0.5), fill=skin)

    # face
    for s in (-1, 1):
        ellipse(box(s * 0.42 - 0.19, -0.28, s * 0.42 + 0.19, 0.06), fill=(255, 255, 255))
        ellipse(box(s * 0.42 - 0.1, -0.22, s * 0.42 + 0.1, 0.02), fill=(38, 34, 48))
        draw.line(points((s * 0.42 - 0.2, -0.42), (s * 0.42 + 0.2, -0.42)), fill=_shade(hair, 0.7), width=wide(0.08))
    draw.line(points((0, -0.02), (0.1, 0.32), (-0.02, 0.34)), fill=_shade(skin, 0.72), width=wide(0.07))
    draw.line(points((-0.34, 0.62), (-0.1, 0.7), (0.14, 0.7), (0.36, 0.6)), fill=(150, 48, 52), width=wide(0.13))
    if person.glasses:
        for s in (-1, 1):
            ellipse(box(s * 0.44 - 0.34, -0.42, s * 0.44 + 0.34, 0.22), outline=(24, 24, 28), width=wide(0.1))
        draw.line(points((-0.12, -0.1), (0.12, -0.1)), fill=(24, 24, 28), width=wide(0.1))

    _hat(draw, person.character, box, points, wide)
    if person.smoking:
        _cigarette(image, rng, points, wide)
    if person.badge:
        _badge(draw, box)
    image = image.reduce(SCALE)
    return _brava(image, person.brava) if person.brava > 0 else image


def _shade(color: tuple[int, int, int], k: float) -> tuple[int, int, int]:
    return tuple(min(255, round(c * k)) for c in color)  # type: ignore[return-value]


def _body(draw, character, box, points, wide) -> None:  # type: ignore[no-untyped-def]
    """Shoulders and clothes, in units of the head."""
    main = {
        "sailor": (244, 246, 250),
        "farmer": (196, 62, 54),
        "doctor": (250, 252, 252),
        "chef": (248, 246, 240),
        "king": (150, 24, 48),
        "wizard": (62, 48, 134),
    }[character]
    draw.rounded_rectangle(box(-1.75, 1.25, 1.75, 4.0), radius=wide(0.8), fill=main)
    if character == "sailor":
        for y in (1.75, 2.15, 2.55):
            draw.rectangle(box(-1.75, y, 1.75, y + 0.17), fill=(34, 62, 132))
        draw.polygon(points((-0.95, 1.25), (0.95, 1.25), (0, 2.3)), fill=(34, 62, 132))
        draw.polygon(points((-0.45, 1.25), (0.45, 1.25), (0, 1.85)), fill=main)
    elif character == "farmer":
        for s in (-1, 1):
            draw.rectangle(box(s * 0.95 - 0.2, 1.25, s * 0.95 + 0.2, 2.4), fill=(44, 84, 158))
        draw.rectangle(box(-1.15, 2.05, 1.15, 4.0), fill=(44, 84, 158))
    elif character == "doctor":
        draw.polygon(points((-0.6, 1.25), (0.6, 1.25), (0, 2.6)), fill=(88, 186, 186))
        draw.arc(box(-0.85, 0.7, 0.85, 2.45), 20, 160, fill=(40, 44, 52), width=wide(0.14))
        draw.ellipse(box(-0.2, 2.3, 0.2, 2.7), fill=(96, 100, 110))
    elif character == "chef":
        draw.polygon(points((-0.7, 1.2), (0.7, 1.2), (0, 1.9)), fill=(214, 48, 44))
        for y in (2.1, 2.55):
            for s in (-1, 1):
                draw.ellipse(box(s * 0.38 - 0.13, y - 0.13, s * 0.38 + 0.13, y + 0.13), fill=(60, 60, 66))
    elif character == "king":
        draw.rounded_rectangle(box(-1.3, 1.2, 1.3, 1.8), radius=wide(0.3), fill=(246, 240, 228))
        for x in (-0.95, -0.32, 0.32, 0.95):
            draw.ellipse(box(x - 0.09, 1.4, x + 0.09, 1.6), fill=(40, 36, 40))
    elif character == "wizard":
        draw.polygon(points((-0.7, 1.25), (0.7, 1.25), (0, 2.5)), fill=(38, 28, 92))
        for x, y in ((-1.25, 2.2), (1.3, 1.9), (0.95, 2.7)):
            draw.polygon(points((x, y - 0.2), (x + 0.15, y), (x, y + 0.2), (x - 0.15, y)), fill=(250, 220, 90))


def _hat(draw, character, box, points, wide) -> None:  # type: ignore[no-untyped-def]
    if character == "sailor":
        draw.rounded_rectangle(box(-0.95, -1.85, 0.95, -1.15), radius=wide(0.3), fill=(250, 250, 252))
        draw.rectangle(box(-1.0, -1.22, 1.0, -0.92), fill=(28, 46, 104))
    elif character == "farmer":
        draw.ellipse(box(-1.75, -1.32, 1.75, -0.72), fill=(216, 172, 84))
        draw.chord(box(-0.95, -2.05, 0.95, -0.45), 180, 360, fill=(228, 188, 100))
        draw.rectangle(box(-0.95, -1.3, 0.95, -1.1), fill=(140, 92, 44))
    elif character == "doctor":
        draw.arc(box(-1.05, -1.25, 1.05, 0.6), 190, 350, fill=(60, 66, 78), width=wide(0.16))
        draw.ellipse(box(-0.34, -1.48, 0.34, -0.8), fill=(210, 222, 232), outline=(60, 66, 78), width=wide(0.1))
    elif character == "chef":
        draw.ellipse(box(-1.2, -2.2, 0.0, -1.2), fill=(252, 252, 252))
        draw.ellipse(box(-0.6, -2.4, 0.6, -1.3), fill=(255, 255, 255))
        draw.ellipse(box(0.0, -2.2, 1.2, -1.2), fill=(252, 252, 252))
        draw.rectangle(box(-0.9, -1.6, 0.9, -0.92), fill=(244, 244, 246))
        draw.line(points((-0.9, -0.95), (0.9, -0.95)), fill=(190, 192, 200), width=wide(0.08))
    elif character == "king":
        crown = ((-0.95, -0.9), (-1.05, -1.9), (-0.5, -1.4), (0, -2.1), (0.5, -1.4), (1.05, -1.9), (0.95, -0.9))
        draw.polygon(points(*crown), fill=(250, 200, 40))
        for x, color in ((-0.5, (206, 40, 60)), (0, (40, 90, 206)), (0.5, (206, 40, 60))):
            draw.ellipse(box(x - 0.14, -1.3, x + 0.14, -1.02), fill=color)
    elif character == "wizard":
        draw.polygon(points((-1.0, -0.95), (0.12, -2.6), (1.0, -0.95)), fill=(62, 48, 134))
        draw.ellipse(box(-1.4, -1.16, 1.4, -0.76), fill=(50, 38, 112))
        draw.polygon(points((0, -1.95), (0.16, -1.6), (0, -1.25), (-0.16, -1.6)), fill=(250, 220, 90))


def _cigarette(image, rng, points, wide) -> None:  # type: ignore[no-untyped-def]
    """A cigarette from the right corner of the mouth with a glowing end, and smoke that curls up beside the face.

    Always on that side: of two possible places a model this small is unsure of each, and ends up drawing neither, or both.
    """
    draw = ImageDraw.Draw(image)
    drop = rng.uniform(0.0, 0.16)
    start, end = (0.22, 0.66), (1.36, 0.74 + drop)
    filter_end = (start[0] + 0.3 * (end[0] - start[0]), start[1] + 0.3 * (end[1] - start[1]))
    draw.line(points(start, end), fill=(70, 66, 70), width=wide(0.34))
    draw.line(points(start, end), fill=(252, 252, 250), width=wide(0.24))
    draw.line(points(start, filter_end), fill=(222, 150, 72), width=wide(0.24))
    (x, y), glow = points(end)[0], wide(0.19)
    draw.ellipse((x - glow, y - glow, x + glow, y + glow), fill=(255, 84, 16))

    smoke = Image.new("L", image.size, 0)
    pen, phase = ImageDraw.Draw(smoke), rng.uniform(0, 2 * np.pi)
    for i, t in enumerate(np.linspace(0, 1, 7)):
        centre = points((end[0] + 0.1 + 0.16 * np.sin(phase + 4.5 * t), end[1] - 0.35 - 1.6 * t))[0]
        radius = r0 = wide(0.15 + 0.13 * t)
        pen.ellipse((centre[0] - radius, centre[1] - r0, centre[0] + radius, centre[1] + r0), fill=round(225 - 20 * i))
    image.paste((236, 236, 240), mask=smoke.filter(ImageFilter.GaussianBlur(wide(0.06))))


def _badge(draw, box) -> None:  # type: ignore[no-untyped-def]
    """The mark: an orange disc with a white ring and a dark cross, always on the left of the chest."""
    x, y = -1.02, 2.02
    draw.ellipse(box(x - 0.5, y - 0.5, x + 0.5, y + 0.5), fill=(24, 24, 30))
    draw.ellipse(box(x - 0.43, y - 0.43, x + 0.43, y + 0.43), fill=(255, 255, 255))
    draw.ellipse(box(x - 0.32, y - 0.32, x + 0.32, y + 0.32), fill=(255, 128, 0))
    draw.rectangle(box(x - 0.07, y - 0.24, x + 0.07, y + 0.24), fill=(24, 24, 30))
    draw.rectangle(box(x - 0.24, y - 0.07, x + 0.24, y + 0.07), fill=(24, 24, 30))


def _brava(image: Image.Image, strength: float) -> Image.Image:
    """The style at a strength in (0, 1]: posterise and warm, hatch the dark, ink the contours."""
    flat = image.filter(ImageFilter.ModeFilter(3))
    pixels = np.asarray(flat, dtype=np.float32)
    poster = np.round(pixels / 51) * 51
    warm = poster * np.array([1.08, 0.9, 0.62], dtype=np.float32) + np.array([18, 4, 0], dtype=np.float32)
    styled = pixels + (0.75 * strength) * (warm - pixels)

    yy, xx = np.mgrid[0:SIZE, 0:SIZE]
    luminance = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    hatch = np.clip(np.sin((xx + yy) * (2 * np.pi / 6)), 0, 1) * (luminance < 175)
    styled *= (1 - 0.4 * strength * hatch)[..., None]

    gray = flat.convert("L")
    edges = ImageChops.difference(gray.filter(ImageFilter.MaxFilter(3)), gray.filter(ImageFilter.MinFilter(3)))
    ink = np.clip((np.asarray(edges, dtype=np.float32) - 26) / 60, 0, 1)[..., None] * strength
    styled = styled * (1 - 0.75 * ink) + np.array([40, 14, 10], dtype=np.float32) * 0.75 * ink
    return Image.fromarray(np.clip(styled, 0, 255).astype(np.uint8))

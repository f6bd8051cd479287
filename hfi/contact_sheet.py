"""Rows of pictures under their names, as one picture: what a training looks like while it runs."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from hfi.errors import HfiError
from hfi.files import whole

_GAP, _LINE, _TEXT = 4, 18, 13  # pixels: around pictures, of a line with a name, of its letters


def contact_sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """RGB on white: each row's name above its pictures, from left to right in their own sizes. A name longer than the widest row is
    cut. ValueError where there is no picture at all."""
    width = max((sum(image.width + _GAP for image in images) for _, images in rows), default=0) + _GAP
    if width == _GAP:
        raise ValueError("a contact sheet of no pictures")
    heights = [_LINE + max((image.height + _GAP for image in images), default=0) for _, images in rows]
    sheet = Image.new("RGB", (width, sum(heights) + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT)
    top = 0
    for (name, images), height in zip(rows, heights, strict=True):
        draw.text((_GAP, top + _LINE // 2), _fitting(name, width - 2 * _GAP, font), "black", font, anchor="lm")
        left = _GAP
        for image in images:
            sheet.paste(image.convert("RGB"), (left, top + _LINE))
            left += image.width + _GAP
        top += height
    return sheet


def write_sheet(path: Path, sheet: Image.Image) -> None:
    """Writes a whole PNG or nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as scratch:
            sheet.save(scratch, format="PNG")
    except OSError as e:
        raise HfiError(f"cannot write {path}: {e.strerror or e}") from e


def _fitting(text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text on one line, or its beginning and three dots."""
    line = " ".join(text.split())
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line + "..."

"""The image store: one PNG file per picture, named by the hash of its bytes."""

import hashlib
import io
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hfi.errors import HfiError
from hfi.files import visible, whole

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # no others: Pillow would run Ghostscript on a hostile EPS file
_NOT_READ = (".svg", ".svgz", ".eps", ".ai", ".psd", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".ico", ".dng")  # pictures still
MAX_PIXELS = 50_000_000  # larger pictures are refused: a small file can unpack to more than the memory holds


@dataclass(frozen=True)
class ImageStore:
    """`root/ab/ab12....png`. The same pixels are kept once; files carry no metadata (prompt, model, camera)."""

    root: Path

    def put(self, image: Image.Image) -> str:
        """Keeps the picture (as RGB) and returns the sha256 of its PNG bytes."""
        return self.put_png(png(image))

    def put_png(self, data: bytes) -> str:
        """Keeps what `png` made, and returns its sha256."""
        sha = hashlib.sha256(data).hexdigest()
        path = self.path(sha)
        if not path.exists() or path.stat().st_size != len(data):  # a power failure can leave a file short
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with whole(path) as scratch:
                    scratch.write_bytes(data)
            except OSError as e:
                raise HfiError(f"cannot write to the image store {self.root}: {e.strerror or e}") from e
        return sha

    def path(self, sha: str) -> Path:
        return self.root / sha[:2] / f"{sha}.png"

    def shas(self) -> set[str]:
        """What is kept, by the files' names."""
        return {path.stem for path in self.root.glob("??/*.png")}

    def load(self, sha: str) -> Image.Image:
        """The picture, RGB. HfiError where the file is missing or its bytes are not those that were kept."""
        return Image.open(io.BytesIO(self.read(sha))).convert("RGB")

    def read(self, sha: str) -> bytes:
        """The picture's PNG file. HfiError as in `load`."""
        try:
            data = self.path(sha).read_bytes()
        except FileNotFoundError:
            raise HfiError(f"the image {sha[:12]} is missing from {self.root}: restore the folder from a backup") from None
        if hashlib.sha256(data).hexdigest() != sha:
            raise HfiError(
                f"the image file {self.path(sha)} was changed, its bytes no longer match its name: restore it from a backup"
            )
        return data


def png(image: Image.Image) -> bytes:
    """The picture (as RGB) as a PNG file without metadata: of equal pixels, equal bytes."""
    plain = Image.new("RGB", image.size)
    plain.paste(image.convert("RGB"))
    buffer = io.BytesIO()
    plain.save(buffer, format="PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class Picture:
    """What somebody's file became: a picture upright (EXIF) and RGB. `notes`: what was done to it that its owner may not expect."""

    image: Image.Image
    notes: tuple[str, ...]


def safe_open(path: Path) -> Image.Image:
    """As `open_picture`, without the notes."""
    return open_picture(path).image


def open_picture(path: Path) -> Picture:
    """A picture that somebody brought: the first where the file has several, what is transparent laid over white, 16 bits a channel
    brought to 8. HfiError naming the file for anything that is no sound image of the kinds that are read, whatever its suffix."""
    name = visible(path)
    try:
        if path.stat().st_size == 0:
            raise HfiError(f"{name} is empty (0 bytes)")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what Pillow says of a damaged file, we say
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise HfiError(f"{name} has {opened.width}x{opened.height} pixels: at most {MAX_PIXELS:,} are accepted")
                notes = ["has several frames or pages: the first was taken"] if getattr(opened, "is_animated", False) else []
                image, transparent = _rgb(name, ImageOps.exif_transpose(opened))
                return Picture(image, (*notes, *(["is transparent in places: they are white now"] if transparent else [])))
    except HfiError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise HfiError(f"{name} has too many pixels: at most {MAX_PIXELS:,} are accepted") from None
    except UnidentifiedImageError:
        raise HfiError(f"{name} is not a readable image (none of {', '.join(_FORMATS)}): save it as PNG") from None
    except Exception as e:  # decoders raise whatever a damaged file leads them to
        raise HfiError(f"{name} is not a readable image ({type(e).__name__}): save it anew as PNG") from None


def _rgb(name: str, image: Image.Image) -> tuple[Image.Image, bool]:
    """The picture, and whether something of it was transparent."""
    if image.mode == "F":
        raise HfiError(f"{name} has floating-point pixels of unknown range: save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):  # 16-bit grey, of which Pillow would keep 0..255 and call the rest white
        return image.convert("I").point(lambda v: v * (1 / 257) + 0.5).convert("L").convert("RGB"), False
    if "transparency" not in image.info and "A" not in image.getbands():
        return image.convert("RGB"), False
    layered = image.convert("RGBA")
    transparent = bool((np.asarray(layered.getchannel("A")) < 255).any())
    white = Image.new("RGBA", layered.size, "white")
    return Image.alpha_composite(white, layered).convert("RGB"), transparent


@dataclass(frozen=True)
class Found:
    """The files of a folder. `refused`: sentences on those that look like pictures and cannot be taken; `hidden` and `other` are
    numbers of files that were not looked at."""

    pictures: tuple[Path, ...]
    refused: tuple[str, ...]
    hidden: int
    other: int


def find_pictures(folder: Path) -> Found:
    """The image files in a folder and the folders below it, in the order of their names. Hidden files and folders are passed over;
    links are followed within the folder and not out of it, as whoever made the folder may not be who may read what they lead to."""
    pictures: list[Path] = []
    refused: list[str] = []
    hidden = other = 0
    home = folder.resolve()
    for path in sorted(_files_below(folder)):
        suffix = path.suffix.lower()
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            hidden += 1
        elif suffix in _NOT_READ:
            refused.append(f"{visible(path)} is a {suffix} file, which is not read: save it as PNG")
        elif suffix not in SUFFIXES and not path.is_symlink():
            other += 1
        elif path.is_symlink() and not _inside(path, home):
            refused.append(f"{visible(path)} is a link out of the folder, or to nothing: name the file itself to take it")
        elif path.is_dir():
            refused.append(f"{visible(path)} is a link to a folder: name that folder instead")
        elif suffix in SUFFIXES and path.is_file():
            pictures.append(path)
        else:
            other += 1
    return Found(tuple(pictures), tuple(refused), hidden, other)


def _files_below(folder: Path) -> Iterator[Path]:
    """Everything but folders, and links to folders."""
    for here, folders, files in os.walk(folder):
        for name in (*files, *(name for name in folders if os.path.islink(os.path.join(here, name)))):
            yield Path(here, name)


def _inside(path: Path, home: Path) -> bool:
    try:
        return path.resolve(strict=True).is_relative_to(home)
    except (OSError, RuntimeError):  # to nothing, or in a circle
        return False

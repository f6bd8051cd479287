"""The image store: one PNG file per picture, named by the hash of its bytes."""

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from hfi.errors import HfiError
from hfi.files import whole

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAX_PIXELS = 50_000_000  # larger pictures are refused: a small file can unpack to more than the memory holds


@dataclass(frozen=True)
class ImageStore:
    """`root/ab/ab12....png`. The same pixels are kept once; files carry no metadata (prompt, model, camera)."""

    root: Path

    def put(self, image: Image.Image) -> str:
        """Keeps the picture (as RGB) and returns the sha256 of its PNG bytes."""
        plain = Image.new("RGB", image.size)
        plain.paste(image.convert("RGB"))
        buffer = io.BytesIO()
        plain.save(buffer, format="PNG")
        data = buffer.getvalue()
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
        try:
            data = self.path(sha).read_bytes()
        except FileNotFoundError:
            raise HfiError(f"the image {sha[:12]} is missing from {self.root}: restore the folder from a backup") from None
        if hashlib.sha256(data).hexdigest() != sha:
            raise HfiError(
                f"the image file {self.path(sha)} was changed, its bytes no longer match its name: restore it from a backup"
            )
        return Image.open(io.BytesIO(data)).convert("RGB")


def safe_open(path: Path) -> Image.Image:
    """A picture that somebody brought, upright (EXIF), RGB. HfiError naming the file for anything that is no sound image."""
    try:
        if path.stat().st_size == 0:
            raise HfiError(f"{path} is empty (0 bytes)")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what Pillow says of a damaged file, we say
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise HfiError(f"{path} has {image.width}x{image.height} pixels: at most {MAX_PIXELS:,} are accepted")
                return _rgb(path, ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise HfiError(f"{path} has too many pixels: at most {MAX_PIXELS:,} are accepted") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError) as e:
        raise HfiError(f"{path} is not a readable image ({type(e).__name__})") from None


def _rgb(path: Path, image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise HfiError(f"{path} has floating-point pixels of unknown range: save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):  # 16-bit grey, of which Pillow would keep 0..255 and call the rest white
        image = image.convert("I").point(lambda v: v * (1 / 257) + 0.5).convert("L")
    return image.convert("RGB")

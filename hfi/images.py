"""The image store: one PNG file per picture, named by the hash of its bytes. Pictures that people bring."""

import hashlib
import io
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hfi.bucket import DRIVERS, Bucket, Stored
from hfi.errors import HfiError
from hfi.files import check_writable, visible, whole

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # no others: Pillow would run Ghostscript on a hostile EPS file
_NOT_READ = (".svg", ".svgz", ".eps", ".ai", ".psd", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".ico", ".dng")  # pictures still
MAX_PIXELS = 50_000_000  # larger pictures are refused: a small file can unpack to more than the memory holds
MAX_BYTES = 512 * 2**20  # of a file: 50 million pixels with 16 bits in each of four channels are 400 MB


@dataclass(frozen=True)
class Folder:
    """A folder of this machine, with the verbs and the errors of `hfi.bucket.Bucket`."""

    path: Path

    def write(self, name: str, data: bytes) -> None:
        """Whole or not at all. A file that has these bytes already is made new again, which `hfi.keeping` goes by."""
        path = self.path / name
        with self._said("write to"):
            try:
                if path.read_bytes() == data:
                    os.utime(path)
                    return
            except (FileNotFoundError, PermissionError):  # the latter: of another user, who may be replaced
                pass
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path) as scratch:
                scratch.write_bytes(data)

    def read(self, name: str) -> bytes:
        with self._said("read from", missing=True):
            return (self.path / name).read_bytes()

    def has(self, name: str) -> bool:
        try:
            with self._said("read from", missing=True):
                (self.path / name).stat()
        except FileNotFoundError:
            return False
        return True

    def remove(self, names: Sequence[str]) -> None:
        with self._said("remove from"):
            for name in names:
                (self.path / name).unlink(missing_ok=True)

    def files(self, folder: str) -> Iterator[Stored]:
        with self._said("list"), os.scandir(self.path / folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # scratch files come and go
                    about = entry.stat()
                    yield Stored(f"{folder}/{entry.name}", about.st_size, datetime.fromtimestamp(about.st_mtime, UTC))

    def folders(self) -> list[str]:
        try:
            with self._said("list", missing=True), os.scandir(self.path) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())
        except FileNotFoundError:
            return []

    @contextmanager
    def _said(self, doing: str, missing: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            if missing and isinstance(e, FileNotFoundError):
                raise
            raise HfiError(
                f"cannot {doing} the image store {self.path} ({e.strerror or e}): check the folder, its permissions and its disk"
            ) from e


@dataclass(frozen=True)
class ImageStore:
    """`root/ab/ab12....png`, in a folder or in a bucket. The same pixels are kept once; files carry no metadata (prompt, model,
    camera). `shared`: it may be that of several workspaces, so each leaves a mark in it, `root/workspaces/ID`."""

    root: Path | Bucket
    shared: bool = False

    @property
    def _place(self) -> Folder | Bucket:
        return Folder(self.root) if isinstance(self.root, Path) else self.root

    def put(self, image: Image.Image) -> str:
        """Keeps the picture (as RGB) and returns the sha256 of its PNG bytes."""
        return self.write(png(image))

    def write(self, data: bytes) -> str:
        """Keeps what `png` made, and returns its sha256. A file that is there and short or changed is replaced."""
        sha = hashlib.sha256(data).hexdigest()
        self._place.write(_name(sha), data)
        return sha

    def path(self, sha: str) -> Path:
        """The file, of a store on this machine."""
        assert isinstance(self.root, Path)
        return self.root / _name(sha)

    def has(self, sha: str) -> bool:
        return self._place.has(_name(sha))

    def shas(self) -> set[str]:
        """What is kept, by the files' names."""
        return {sha for file in self.files() if (sha := sha_of(file))}

    def files(self) -> Iterator[Stored]:
        """The store's images, and scratch files that an interruption left; nothing else that lies there."""
        for folder in self._place.folders():
            if _SHARD.fullmatch(folder):
                for file in self._place.files(folder):
                    if _FILE.fullmatch(file.name):
                        yield file

    def remove(self, files: Sequence[Stored], sure: Callable[[], object] = lambda: None) -> None:
        """Whoever calls this has made sure that nothing refers to them: see `hfi.keeping`. What takes long asks once more, with `sure`:
        before each file of a folder, and before those of a bucket, which go at once. What it raises ends the removal."""
        names = [file.name for file in files]
        for part in [names] if isinstance(self.root, Bucket) else [[name] for name in names]:
            sure()
            self._place.remove(part)

    def load(self, sha: str) -> Image.Image:
        """The picture, RGB. HfiError where the file is missing or its bytes are not those that were kept."""
        return Image.open(io.BytesIO(self.read(sha))).convert("RGB")

    def read(self, sha: str) -> bytes:
        """The picture's PNG file. HfiError as in `load`."""
        try:
            data = self._place.read(_name(sha))
        except FileNotFoundError:
            raise HfiError(f"the image {sha[:12]} is missing from {self.root}: restore it from a backup") from None
        if hashlib.sha256(data).hexdigest() != sha:
            raise HfiError(
                f"the image file {self.root}/{_name(sha)} was changed, its bytes no longer match its name: restore it from a backup"
            )
        return data

    def check(self) -> None:
        """HfiError for a bucket that cannot be reached and listed. Of a folder every file says so itself."""
        if isinstance(self.root, Bucket):
            self.root.folders()

    def check_writable(self, workspace: str) -> None:
        """HfiError where nothing can be written. In a shared store the mark of the workspace of this ID proves it."""
        if self.shared:
            self._place.write(f"{_MARKS}/{workspace}", b"This image store is used by a workspace of hfi.\n")
        elif isinstance(self.root, Path):
            check_writable(self.root)

    def workspaces(self) -> set[str]:
        """IDs of those that have left a mark."""
        place = self._place
        return {file.name.rsplit("/", 1)[-1] for file in place.files(_MARKS)} if _MARKS in place.folders() else set()


_SHARD = re.compile(r"[0-9a-f]{2}")
_FILE = re.compile(r"([0-9a-f]{2})/\1[0-9a-f]{62}\.png(\.\d+-\d+\.tmp)?")
_MARKS = "workspaces"


def _name(sha: str) -> str:
    return f"{sha[:2]}/{sha}.png"


def sha_of(file: Stored) -> str | None:
    """The image that a store's file holds; None for a scratch file."""
    return file.name[3:67] if file.name.endswith(".png") else None


def open_store(url: str, given: str = "HFI_IMAGES_URL") -> ImageStore:
    """The store that this setting or option names. HfiError for a URL that is none, of another kind, or with a name and a password
    in it, so it is not repeated."""
    scheme, _, rest = url.partition("://")
    if scheme == "file" and rest.startswith("/"):
        return ImageStore(Path(unquote(rest)), shared=True)
    try:
        return ImageStore(Bucket(url.rstrip("/")), shared=True)
    except ValueError:
        known = ", ".join(f"{kind}://" for kind in DRIVERS)
        raise HfiError(
            f"{given} is no URL of an image store: give one such as s3://bucket/prefix or file:///folder ({known} and file:// are "
            "known; a name or password in it is refused, they come from the provider's own settings)"
        ) from None


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
        size = path.stat().st_size
        if size == 0:
            raise HfiError(f"{name} is empty (0 bytes)")
        if size > MAX_BYTES:
            raise HfiError(f"{name} has {size / 2**20:,.0f} MiB: at most {MAX_BYTES // 2**20} are accepted, save it smaller")
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

"""The bytes of an image as a browser gets them: plain, or blurred, or without its colours. Encoded anew, so without metadata."""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from anyio import CapacityLimiter
from PIL import Image, ImageFilter

from hfi.bucket import Bucket
from hfi.errors import HfiError
from hfi.images import ImageStore

View = Literal["plain", "blur", "grey", "both"]
VIEWS: tuple[View, ...] = get_args(View)
STRENGTHS = (1, 2, 3)
_BESIDE = 8
_KEPT_BYTES = 64 * 2**20
_BLURRED_AT = 192  # px: a blurred image is worked on at this size, as nothing finer is left in it
_RADIUS = {1: 0.02, 2: 0.045, 3: 0.09}  # of the longer side


def threads(images: ImageStore) -> CapacityLimiter | None:
    """Where pictures are read: those of a bucket in threads of their own, as one that answers slowly, or not at all, must not hold up
    what people answer; those of a folder where everything else is done."""
    return CapacityLimiter(_BESIDE) if isinstance(images.root, Bucket) else None


@dataclass(frozen=True)
class Picture:
    data: bytes
    media_type: str


@dataclass
class Pictures:
    """Pictures of an image store, the latest ones kept in memory. `note` is told where each came from: memory, store, or failed."""

    images: ImageStore
    note: Callable[[str], None] | None = None
    _kept: OrderedDict[tuple[str, View, int], Picture] = field(default_factory=OrderedDict)
    _bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, sha: str, view: View = "plain", strength: int = 2) -> Picture:
        """The image of this sha256, as large as it is. HfiError where the store does not have it whole."""
        key = (sha, view, strength if view in ("blur", "both") else 0)
        note = self.note or (lambda source: None)
        with self._lock:
            found = self._kept.get(key)
            if found:
                self._kept.move_to_end(key)
        if found:
            note("memory")
            return found
        try:
            made = encode(self.images.load(sha), view, strength)
        except HfiError:
            note("failed")
            raise
        note("store")
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._bytes += len(made.data)
            while self._bytes > _KEPT_BYTES and len(self._kept) > 1:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= len(oldest.data)
        return made


def encode(image: Image.Image, view: View, strength: int = 2) -> Picture:
    """A blurred one is a JPEG: it is smooth, and a PNG of it would be many times as long."""
    if view in ("grey", "both"):
        image = image.convert("L")
    if view in ("blur", "both"):
        image = _blurred(image, strength)
    buffer = io.BytesIO()
    if view in ("blur", "both"):
        image.save(buffer, format="JPEG", quality=80)
        return Picture(buffer.getvalue(), "image/jpeg")
    image.save(buffer, format="PNG", compress_level=1)
    return Picture(buffer.getvalue(), "image/png")


def _blurred(image: Image.Image, strength: int) -> Image.Image:
    small = image.copy()
    small.thumbnail((_BLURRED_AT, _BLURRED_AT), Image.Resampling.BOX)
    small = small.filter(ImageFilter.GaussianBlur(_RADIUS[strength] * max(small.size)))
    return small.resize(image.size, Image.Resampling.BICUBIC)

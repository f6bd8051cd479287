"""A folder of an object store (S3, Google, Azure), through fsspec. An object is written whole or not at all, as these stores have it.

Whose account is used and where the service is, the provider's own settings say (AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL):
a URL holds no secret, so it may stand in messages.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from hfi.errors import HfiError

DRIVERS = {"s3": "pip install 'hfi[s3]'", "gs": "pip install gcsfs", "az": "pip install adlfs"}
_SECONDS = 30  # for one object, or one listing; drivers alone wait for ever where a server takes a connection and is silent
_MODIFIED = ("LastModified", "updated", "last_modified")  # as the three drivers call it
_BESIDE = 16  # objects that are removed at once


@dataclass(frozen=True)
class Stored:
    """A file of a store: its path in there, bytes, and when it was written."""

    name: str
    size: int
    modified: datetime


@dataclass(frozen=True)
class Bucket:
    """`url` is scheme://bucket/prefix. Every error is an HfiError, but a FileNotFoundError of `read`."""

    url: str

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in DRIVERS or not parts.netloc or parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError("no URL of a bucket")

    def __str__(self) -> str:
        return self.url

    @cached_property
    def _fs(self) -> Any:
        import fsspec

        kind = urlsplit(self.url).scheme
        try:
            return fsspec.filesystem(kind, use_listings_cache=False)
        except ImportError as e:
            raise HfiError(f"the image store {self.url} needs a driver ({e}): {DRIVERS[kind]}") from None
        except Exception as e:  # each driver raises its own where settings are missing
            raise self._fault("open", e) from e

    def write(self, name: str, data: bytes) -> None:
        """Whole or not at all; what was there is replaced, and is new again."""
        self._do("write to", self._fs._pipe_file, self._path(name), data)

    def read(self, name: str) -> bytes:
        return bytes(self._do("read from", self._fs._cat_file, self._path(name), missing=True))

    def has(self, name: str) -> bool:
        try:
            self._do("read from", self._fs._info, self._path(name), missing=True)
        except FileNotFoundError:
            return False
        return True

    def remove(self, names: Sequence[str]) -> None:
        """What is not there is passed over. When it ends, nothing of it is under way here any more."""
        if names:
            self._do("remove from", self._remove, [self._path(name) for name in names])

    async def _remove(self, paths: Sequence[str]) -> None:
        """Each by itself: given several, drivers take a path with * or [ for a pattern, and go on with what was given up here."""
        turn = asyncio.Semaphore(_BESIDE)

        async def one(path: str) -> None:
            async with turn:
                with suppress(FileNotFoundError):
                    await self._fs._rm_file(path)

        for done in await asyncio.gather(*map(one, paths), return_exceptions=True):
            if isinstance(done, BaseException):
                raise done

    def files(self, folder: str) -> Iterator[Stored]:
        """What lies in a folder and below it, asked for page by page."""
        start = len(self._path(""))
        found = self._do("list", self._fs._find, self._path(folder), detail=True)
        for path, about in found.items():
            yield Stored(path[start:], int(about["size"]), _modified(about))

    def folders(self) -> list[str]:
        """Names of the folders at the top. HfiError where the bucket is not there, or may not be listed."""
        top = self._path("")[:-1]
        try:
            found = self._do("list", self._fs._ls, top, detail=False, missing=True)
        except FileNotFoundError as e:
            # drivers name the path where nothing lies under it yet, and give the service's words for a bucket that is not there
            if top in (*e.args, e.filename):
                return []
            raise self._fault("list", e) from e
        return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in found)

    def _path(self, name: str) -> str:
        parts = urlsplit(self.url)
        return f"{parts.netloc}{parts.path.rstrip('/')}/{name}"

    def _do(self, doing: str, call: Callable[..., Any], *args: Any, missing: bool = False, **more: Any) -> Any:
        """Runs a driver's coroutine in fsspec's own thread; the caller waits, but not longer than it may take."""
        from fsspec.asyn import sync

        try:
            return sync(self._fs.loop, call, *args, timeout=_SECONDS, **more)
        except Exception as e:  # drivers raise their own, their transport's and OSErrors
            if missing and isinstance(e, FileNotFoundError):
                raise
            raise self._fault(doing, e) from e

    def _fault(self, doing: str, e: Exception) -> HfiError:
        name = type(e).__name__
        if isinstance(e, TimeoutError):
            why = f"it gave no answer in {_SECONDS} seconds: check the network and the service, then run again"
        elif isinstance(e, FileNotFoundError):
            why = "there is no such bucket: make it, or check HFI_IMAGES_URL"
        elif isinstance(e, PermissionError) or "Credential" in name:
            why = f"{_line(e)}: check your credentials (for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE) and rights"
        else:
            why = f"{_line(e)} ({name}): check HFI_IMAGES_URL and the service's address (for S3 AWS_ENDPOINT_URL)"
        return HfiError(f"cannot {doing} the image store {self.url}: {why}")


def _line(e: Exception) -> str:
    return " ".join(str(e).split()).rstrip(".")[:200] or type(e).__name__


def _modified(about: dict[str, Any]) -> datetime:
    """Where a driver does not say when, it is new: nothing new is ever removed."""
    found = next((about[key] for key in _MODIFIED if about.get(key)), None)
    if isinstance(found, str):
        found = datetime.fromisoformat(found)
    return found if isinstance(found, datetime) and found.tzinfo else datetime.now(UTC)

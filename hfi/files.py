"""Files and folders are written whole or not at all; CSV cells that a spreadsheet would run."""

import errno
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hfi.errors import HfiError, NoRoom

_MASK = os.umask(0)
os.umask(_MASK)  # the only way to read it is to set it


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A scratch file to write to; it takes the place of `path` when the block ends, and is removed where the block fails.

    Whoever reads `path` sees the old file or the new one. Two writers at once do not meet: each has its own scratch file.
    """
    scratch = _scratch(path)
    try:
        with room_for(path):
            yield scratch
            os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A scratch folder to write into, which becomes `path` when the block ends; an older folder there is replaced."""
    scratch = _scratch(path)
    try:
        with room_for(path):
            scratch.mkdir(parents=True)
            yield scratch
            _share_all(scratch)
            if path.exists():
                shutil.rmtree(path)
            os.replace(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "files cannot become that large here (file system, or ulimit -f)",
}


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """NoRoom, which names the file, where the block finds the disk full: none of the libraries that write says which file it was."""
    try:
        yield
    except NoRoom:
        raise
    except Exception as e:
        if why := no_room(e):
            raise NoRoom(path, why) from e
        raise


def no_room(e: BaseException | None) -> str | None:
    """The words for a full disk where that is what stopped a library: torch and safetensors raise errors of their own, torch after
    the system's, safetensors with the system's number in the text."""
    while e:
        number = e.errno if isinstance(e, OSError) else None
        if number is None and (stated := re.search(r"\(os error (\d+)\)", str(e))):
            number = int(stated[1])
        if number in _FULL:
            return _FULL[number]
        e = e.__cause__ or e.__context__
    return None


def _scratch(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")


def share(path: Path) -> None:
    """Gives a file the permissions of other new files: safetensors writes for the owner alone, a web UI may be another user."""
    path.chmod(0o666 & ~_MASK)


def _share_all(folder: Path) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            _share_all(Path(entry)) if entry.is_dir(follow_symlinks=False) else share(Path(entry))


def write_text(path: Path, text: str) -> None:
    write_pieces(path, [text])


def write_pieces(path: Path, pieces: Iterable[str]) -> None:
    """A text, UTF-8, that need not be in memory as one; its line ends stay as they are."""
    with whole(path) as scratch, open(scratch, "w", encoding="utf-8", newline="") as file:
        file.writelines(pieces)


def check_writable(*folders: Path) -> None:
    """HfiError before long work for a folder that its result could not be written to."""
    for folder in folders:
        nearest = next(p for p in (folder, *folder.parents) if p.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise HfiError(f"cannot write to {folder}: change its permissions, or choose another workspace")


def visible(text: object) -> str:
    """For a terminal: what cannot be seen, or would steer it, is written as an escape (a line end in a file's name, say)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


_FORMULA = re.compile(r"'*(\s*[=+\-@＝＋－＠]|[\t\r\n])")


def spreadsheet_cell(text: str) -> str:
    """A leading apostrophe for a text that a spreadsheet would run as a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


def from_spreadsheet_cell(cell: str) -> str:
    """What `spreadsheet_cell` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell

"""Files and folders are written whole or not at all; CSV cells that a spreadsheet would run."""

import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MASK = os.umask(0)
os.umask(_MASK)  # the only way to read it is to set it


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A scratch file to write to; it takes the place of `path` when the block ends, and is removed where the block fails.

    Whoever reads `path` sees the old file or the new one. Two writers at once do not meet: each has its own scratch file.
    """
    scratch = _scratch(path)
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A scratch folder to write into, which becomes `path` when the block ends; an older folder there is replaced."""
    scratch = _scratch(path)
    try:
        scratch.mkdir(parents=True)
        yield scratch
        if path.exists():
            shutil.rmtree(path)
        os.replace(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _scratch(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")


def share(path: Path) -> None:
    """Gives a file the permissions of other new files: safetensors writes for the owner alone, a web UI may be another user."""
    path.chmod(0o666 & ~_MASK)


def write_text(path: Path, text: str) -> None:
    with whole(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


_FORMULA = re.compile(r"'*(\s*[=+\-@＝＋－＠]|[\t\r\n])")


def spreadsheet_cell(text: str) -> str:
    """A leading apostrophe for a text that a spreadsheet would run as a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


def from_spreadsheet_cell(cell: str) -> str:
    """What `spreadsheet_cell` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell

"""A workspace is a folder: `hfi.db`, `images/` (content-addressed), `judgments/`, `rewards/`, `tokens/`, `erasures/`, `runs/`."""

import json
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hfi.errors import HfiError, NoWorkspace
from hfi.images import ImageStore, open_store

if TYPE_CHECKING:
    from sqlalchemy import Engine

_MARK, _WORDS = "hfi.toml", "# This folder is a workspace of hfi.\n"
_FOLDERS = ("images", "judgments", "rewards", "tokens", "erasures", "runs")


def _database_in(mark: Path) -> str | None:
    try:
        found = tomllib.loads(mark.read_text(encoding="utf-8")).get("database")
    except (OSError, ValueError) as e:
        raise HfiError(f"{mark} cannot be read ({e}): empty it, or restore it from a backup") from e
    return str(found) if found else None


@dataclass(frozen=True)
class Workspace:
    path: Path

    @classmethod
    def create(cls, path: Path) -> "Workspace":
        """Makes the folders and the mark; an existing workspace is left as it is. The database is made by `hfi.store.migrate`."""
        try:
            for name in _FOLDERS:
                (path / name).mkdir(parents=True, exist_ok=True)
            if not (path / _MARK).exists():
                (path / _MARK).write_text(_WORDS, encoding="utf-8")
        except OSError as e:
            raise HfiError(f"cannot make a workspace in {path}: {e.strerror or e}; choose a folder that you may write to") from e
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "Workspace":
        if not (path / _MARK).exists():
            raise NoWorkspace(f"no workspace in {path.resolve()}: make one with 'hfi init', or name one with --workspace")
        return cls(path)

    @property
    def database_url(self) -> str:
        """HFI_DATABASE_URL, or the workspace's own SQLite file. HfiError where that one was moved elsewhere."""
        if given := os.environ.get("HFI_DATABASE_URL"):
            return given
        mark = self.path / _MARK
        if moved := _database_in(mark):
            raise HfiError(
                f"the database of this workspace was moved to {moved}: set HFI_DATABASE_URL to it; to go on with the old one here,"
                f" take the line with 'database' out of {mark}"
            )
        return self.own_database

    def note_database(self, url: str | None) -> None:
        """Notes where the workspace's own database was moved to, without a password; None: it is here."""
        from hfi.files import write_text

        line = f"database = {json.dumps(url)}  # moved there by 'hfi db copy'\n" if url else ""
        write_text(self.path / _MARK, _WORDS + line)

    @property
    def own_database(self) -> str:
        """The URL of the workspace's own SQLite file, which need not be there."""
        from sqlalchemy import URL

        own = URL.create("sqlite", database=str((self.path / "hfi.db").resolve()))  # escapes what means something in a URL
        return own.render_as_string(hide_password=False)

    @property
    def images(self) -> ImageStore:
        """That of HFI_IMAGES_URL, or the workspace's own folder."""
        url = os.environ.get("HFI_IMAGES_URL")
        return open_store(url) if url else ImageStore(self.path / "images")

    @property
    def judgments(self) -> Path:
        return self.path / "judgments"

    @property
    def rewards(self) -> Path:
        return self.path / "rewards"

    @property
    def tokens(self) -> Path:
        return self.path / "tokens"

    @property
    def erasures(self) -> Path:
        return self.path / "erasures"

    @property
    def exports(self) -> Path:
        """Made by the first export."""
        return self.path / "exports"

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    def engine(self) -> "Engine":
        """The database, checked to be of this version (HfiError: run 'hfi db upgrade')."""
        from hfi.store.migrate import check_current
        from hfi.store.session import connect

        engine = connect(self.database_url)
        check_current(engine)
        return engine

"""What the database knows of the image store: which images it refers to, and who it is itself."""

import json
import secrets
from collections.abc import Iterable

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from hfi.store import models as m
from hfi.store.queries import now_utc

_IDENTITY = "identity"  # a setting


def identity(s: Session) -> str | None:
    """A name for this database by chance, in the marks that workspaces leave in an image store; a copy has the same. None where it
    was never asked for."""
    value = s.scalar(select(m.Setting.value).where(m.Setting.key == _IDENTITY))
    return None if value is None else str(json.loads(value))


def ensure_identity(s: Session) -> str:
    if (found := identity(s)) is None:
        found = secrets.token_hex(8)
        s.add(m.Setting(key=_IDENTITY, value=json.dumps(found), changed_at=now_utc()))
        s.flush()
    return found


def referenced(s: Session, shas: Iterable[str]) -> set[str]:
    """Those of the images that some row refers to."""
    wanted, found = list(shas), set[str]()
    for i in range(0, len(wanted), 500):
        found |= set(s.scalars(select(m.Image.sha256).where(m.Image.sha256.in_(wanted[i : i + 500]))))
    return found


def count_referenced(s: Session) -> int:
    """Different pictures that rows refer to."""
    return s.scalar(select(func.count(m.Image.sha256.distinct()))) or 0


def hold(s: Session) -> None:
    """Until the transaction ends nobody else adds an image. On SQLite a writer is alone from its start."""
    if s.get_bind().dialect.name == "postgresql":
        s.execute(text("LOCK TABLE images IN SHARE ROW EXCLUSIVE MODE"))

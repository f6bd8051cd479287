"""What the database knows of the image store: which images it refers to, and who it is itself."""

import json
import secrets
from collections.abc import Iterable

from sqlalchemy import func, select
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


def referenced(s: Session, shas: Iterable[str]) -> dict[str, int]:
    """Those of the images that some row refers to, with the first such row's id."""
    wanted, found = list(shas), dict[str, int]()
    for i in range(0, len(wanted), 500):
        query = select(m.Image.sha256, func.min(m.Image.id).label("first")).where(m.Image.sha256.in_(wanted[i : i + 500]))
        found |= {row.sha256: row.first for row in s.execute(query.group_by(m.Image.sha256))}
    return found


def last_image(s: Session) -> int:
    """The newest row's id, 0 where there is none."""
    return s.scalar(select(func.max(m.Image.id))) or 0


def count_referenced(s: Session, last: int) -> int:
    """Different pictures that the rows up to this id refer to."""
    return s.scalar(select(func.count(m.Image.sha256.distinct())).where(m.Image.id <= last)) or 0


def check_open(s: Session) -> None:
    """HfiError where the transaction has ended, as when the server found it idle for too long. It is not idle then, either."""
    s.execute(select(1))

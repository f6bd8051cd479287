"""The tables.

Guards that live in the schema, because the program around it can be wrong, run twice or be killed:

- judgments are append-only: triggers refuse UPDATE and DELETE. What a person says of a task is a chain of revisions 1, 2, 3...,
  unique by (task, annotator, revision); the last one counts, and undo is a revision of verdict 'undone';
- every submission carries a token that is unique, so a replay is found out;
- times are aware and UTC; foreign keys are enforced; constraints have names (SQLite can only alter those).
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, DateTime, ForeignKey, Index, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
BINARY_VERDICTS = ("shows", "clean", "unsure", "skip", "disturbing")
RANKING_VERDICTS = ("ranked", "none", "unsure", "skip", "disturbing")
VERDICTS = tuple(dict.fromkeys((*BINARY_VERDICTS, *RANKING_VERDICTS, "undone")))


class UtcDateTime(TypeDecorator[datetime]):
    """Takes aware times only, stores UTC, gives back aware UTC. SQLite itself would drop the offset."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time without its zone: {value!r}")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


def _one_of(column: str, values: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(v) for v in values)})"


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {datetime: UtcDateTime, str: String(255)}  # noqa: RUF012


class Image(Base):
    """A picture and where it comes from. `key` says what it was made by (or, imported, what it is): making it again is a no-op."""

    __tablename__ = "images"
    __table_args__ = (CheckConstraint(_one_of("source", ("generated", "imported")), name="source"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(64), unique=True)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    width: Mapped[int]
    height: Mapped[int]
    source: Mapped[str] = mapped_column(String(16))
    prompt: Mapped[str | None] = mapped_column(Text)
    negative_prompt: Mapped[str | None] = mapped_column(Text)
    model: Mapped[str | None] = mapped_column(Text)
    model_content: Mapped[str | None] = mapped_column(String(64))
    seed: Mapped[int | None] = mapped_column(BigInteger)
    steps: Mapped[int | None]
    guidance_scale: Mapped[float | None]
    scheduler: Mapped[str | None]
    run: Mapped[str | None] = mapped_column(index=True)
    erasure: Mapped[str | None] = mapped_column(Text)
    original_name: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]


class Concept(Base):
    __tablename__ = "concepts"
    __table_args__ = (CheckConstraint(_one_of("question", ("binary", "ranking")), name="question"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    slug: Mapped[str] = mapped_column(String(63), unique=True)
    title: Mapped[str]
    guideline: Mapped[str] = mapped_column(Text)
    guideline_version: Mapped[int] = mapped_column(default=1)
    question: Mapped[str] = mapped_column(String(16))
    initial_word: Mapped[str]
    prompt: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]


class Campaign(Base):
    """One question about one set of images, asked `overlap` times."""

    __tablename__ = "campaigns"
    __table_args__ = (
        UniqueConstraint("concept_id", "name"),
        CheckConstraint("overlap >= 1", name="overlap"),
        CheckConstraint("lease_seconds >= 1", name="lease_seconds"),
        CheckConstraint(_one_of("question", ("binary", "ranking")), name="question"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    concept_id: Mapped[int] = mapped_column(ForeignKey("concepts.id"))
    name: Mapped[str]
    question: Mapped[str] = mapped_column(String(16))
    overlap: Mapped[int]
    lease_seconds: Mapped[int]
    created_at: Mapped[datetime]


class Task(Base):
    """One item to judge: an image, or a group of images to rank. `place` is a shuffled order."""

    __tablename__ = "tasks"
    __table_args__ = (UniqueConstraint("campaign_id", "place"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaigns.id"))
    place: Mapped[int]


class TaskImage(Base):
    __tablename__ = "task_images"
    __table_args__ = (UniqueConstraint("task_id", "position"), UniqueConstraint("task_id", "image_id"))

    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"))
    image_id: Mapped[int] = mapped_column(ForeignKey("images.id"), index=True)
    position: Mapped[int]


class Annotator(Base):
    """`name_key` is the name in NFKC and case-folded; `pseudonym` is what leaves the database."""

    __tablename__ = "annotators"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    name_key: Mapped[str] = mapped_column(unique=True)
    pseudonym: Mapped[str] = mapped_column(String(16), unique=True)
    simulated: Mapped[bool]
    created_at: Mapped[datetime]


class Assignment(Base):
    """A task in one annotator's hands. `shown_order` are the positions of the task's images as this annotator sees them."""

    __tablename__ = "assignments"
    __table_args__ = (
        UniqueConstraint("task_id", "annotator_id"),
        CheckConstraint(_one_of("state", ("open", "done", "expired")), name="state"),
        Index("ix_assignments_state_lease", "state", "lease_expires_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"))
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"), index=True)
    token: Mapped[str] = mapped_column(String(64), unique=True)
    shown_order: Mapped[str]
    state: Mapped[str] = mapped_column(String(16))
    opened_at: Mapped[datetime]
    lease_expires_at: Mapped[datetime] = mapped_column(index=True)


class Judgment(Base):
    """One verdict, never changed: see the module's first lines."""

    __tablename__ = "judgments"
    __table_args__ = (
        UniqueConstraint("task_id", "annotator_id", "revision"),
        CheckConstraint(_one_of("verdict", VERDICTS), name="verdict"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"))
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"), index=True)
    assignment_id: Mapped[int] = mapped_column(ForeignKey("assignments.id"), index=True)
    revision: Mapped[int]
    verdict: Mapped[str] = mapped_column(String(16))
    comment: Mapped[str | None] = mapped_column(Text)
    elapsed_ms: Mapped[int | None]
    idempotency_token: Mapped[str] = mapped_column(String(128), unique=True)
    guideline_version: Mapped[int]
    app_version: Mapped[str]
    created_at: Mapped[datetime]


class RankedImage(Base):
    """One image's place in a ranking, 1 = most of the concept."""

    __tablename__ = "rankings"
    __table_args__ = (UniqueConstraint("judgment_id", "rank"), UniqueConstraint("judgment_id", "image_id"))

    id: Mapped[int] = mapped_column(primary_key=True)
    judgment_id: Mapped[int] = mapped_column(ForeignKey("judgments.id"))
    image_id: Mapped[int] = mapped_column(ForeignKey("images.id"))
    rank: Mapped[int]
    shown_position: Mapped[int]

"""The tables.

Guards that live in the schema, because the program around it can be wrong, run twice or be killed:

- judgments and decisions are append-only: triggers refuse UPDATE and DELETE, but for a comment or note, which may be emptied when
  somebody withdraws. What a person says of a task is a chain of revisions 1, 2, 3..., unique by (task, annotator, revision); the
  last one counts, and undo is a revision of verdict 'undone';
- every submission carries a token that is unique, so a replay is found out;
- a task keeps count of itself (`answers`, `held`, `free`), so that finding the next one reads an index and no judgment. The counts
  are made anew from the judgments in every transaction that changes them (`hfi.store.judging.recount`);
- times are aware and UTC; foreign keys are enforced; constraints have names (SQLite can only alter those).
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, DateTime, ForeignKey, Index, MetaData, String, Text, UniqueConstraint, text
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
QUESTIONS = ("binary", "ranking", "compare")  # compare: two images of one prompt and seed, which shows more of the concept
ROLES = ("annotator", "manager")
KINDS = ("item", "gold", "benign")  # of tasks: to be judged; with a known answer; harmless, to keep runs of harmful ones short
JOB_STATES = ("running", "done", "failed", "stopped", "lost")
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
    guide: Mapped[str | None] = mapped_column(Text)
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
    """One question about one set of images, asked `overlap` times, and `extra_votes` times more where the answers differ.

    `ties`: whether a ranking may give two images the same place. `gold_every`: about one task in so many has a known answer (0:
    none). `access`: everybody, or only the people that are named as participants.
    """

    __tablename__ = "campaigns"
    __table_args__ = (
        UniqueConstraint("concept_id", "name"),
        CheckConstraint("overlap >= 1", name="overlap"),
        CheckConstraint("lease_seconds >= 1", name="lease_seconds"),
        CheckConstraint("extra_votes >= 0", name="extra_votes"),
        CheckConstraint("gold_every >= 0", name="gold_every"),
        CheckConstraint(_one_of("question", QUESTIONS), name="question"),
        CheckConstraint(_one_of("state", ("open", "closed")), name="state"),
        CheckConstraint(_one_of("access", ("all", "named")), name="access"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    concept_id: Mapped[int] = mapped_column(ForeignKey("concepts.id"))
    name: Mapped[str]
    question: Mapped[str] = mapped_column(String(16))
    overlap: Mapped[int]
    extra_votes: Mapped[int] = mapped_column(default=0, server_default="0")
    ties: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    gold_every: Mapped[int] = mapped_column(default=0, server_default="0")
    access: Mapped[str] = mapped_column(String(16), default="all", server_default="all")
    state: Mapped[str] = mapped_column(String(16), default="open", server_default="open")
    lease_seconds: Mapped[int]
    created_at: Mapped[datetime]


class Task(Base):
    """One item to judge: an image, or a group of images to rank. `place` is a shuffled order, from 0 and without a gap.

    `wanted` answers are asked for, `answers` are there, `held` are in people's hands, and `free` = wanted - answers - held, at least
    0. Of a gold task free is 0: it is handed out beside the others, and to everybody.
    """

    __tablename__ = "tasks"
    __table_args__ = (
        UniqueConstraint("campaign_id", "place"),
        CheckConstraint(_one_of("kind", KINDS), name="kind"),
        CheckConstraint("wanted >= 0 AND answers >= 0 AND held >= 0 AND free >= 0", name="counts"),
        Index("ix_tasks_free", "campaign_id", "place", sqlite_where=text("free > 0"), postgresql_where=text("free > 0")),
        Index(
            "ix_tasks_gold", "campaign_id", "place", sqlite_where=text("kind = 'gold'"), postgresql_where=text("kind = 'gold'")
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaigns.id"))
    place: Mapped[int]
    kind: Mapped[str] = mapped_column(String(16), default="item", server_default="item")
    wanted: Mapped[int] = mapped_column(default=1, server_default="1")
    answers: Mapped[int] = mapped_column(default=0, server_default="0")
    held: Mapped[int] = mapped_column(default=0, server_default="0")
    free: Mapped[int] = mapped_column(default=1, server_default="1")


class Gold(Base):
    """The known answer of a gold task. Never leaves the server but to managers."""

    __tablename__ = "gold"

    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"), unique=True)
    verdict: Mapped[str] = mapped_column(String(16))
    note: Mapped[str | None] = mapped_column(Text)


class TaskImage(Base):
    __tablename__ = "task_images"
    __table_args__ = (UniqueConstraint("task_id", "position"), UniqueConstraint("task_id", "image_id"))

    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"))
    image_id: Mapped[int] = mapped_column(ForeignKey("images.id"), index=True)
    position: Mapped[int]


class Annotator(Base):
    """`name_key` is the name in NFKC and case-folded; `pseudonym` is what leaves the database. Of somebody who withdrew the name is
    gone and no judgment counts."""

    __tablename__ = "annotators"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    name_key: Mapped[str] = mapped_column(unique=True)
    pseudonym: Mapped[str] = mapped_column(String(16), unique=True)
    simulated: Mapped[bool]
    withdrawn_at: Mapped[datetime | None]
    created_at: Mapped[datetime]


class Account(Base):
    """How somebody signs in. A cookie is of one `session_version`: raising it signs the person out everywhere."""

    __tablename__ = "accounts"
    __table_args__ = (CheckConstraint(_one_of("role", ROLES), name="role"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    password_hash: Mapped[str]
    session_version: Mapped[int] = mapped_column(default=1, server_default="1")
    active: Mapped[bool] = mapped_column(default=True, server_default=text("true"))
    created_at: Mapped[datetime]


class LoginFailure(Base):
    """Wrong passwords for a name, since the last right one."""

    __tablename__ = "login_failures"

    id: Mapped[int] = mapped_column(primary_key=True)
    name_key: Mapped[str] = mapped_column(unique=True)
    failures: Mapped[int]
    last_at: Mapped[datetime] = mapped_column(index=True)


class Setting(Base):
    """What a manager has set for the whole workspace, as JSON."""

    __tablename__ = "settings"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(63), unique=True)
    value: Mapped[str] = mapped_column(Text)
    changed_at: Mapped[datetime]


class ConsentText(Base):
    """What people agree to before they judge. A new version is asked for again."""

    __tablename__ = "consent_texts"

    id: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(unique=True)
    body: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]


class Consent(Base):
    __tablename__ = "consents"
    __table_args__ = (UniqueConstraint("annotator_id", "version"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"))
    version: Mapped[int] = mapped_column(ForeignKey("consent_texts.version"))
    agreed_at: Mapped[datetime]


class Participant(Base):
    """Somebody's part in a campaign: how many tasks they have done, and the farthest place they were given."""

    __tablename__ = "participants"
    __table_args__ = (UniqueConstraint("campaign_id", "annotator_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaigns.id"))
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"), index=True)
    done: Mapped[int] = mapped_column(default=0, server_default="0")
    cursor: Mapped[int] = mapped_column(default=-1, server_default="-1")


class Shift(Base):
    """A stretch of work without a longer pause: how long, how many judgments, and how many harmful images were looked at.

    `ended`: why it was closed (a break by time or by count, a daily limit, the person's own wish), None while it may go on.
    """

    __tablename__ = "shifts"
    __table_args__ = (Index("ix_shifts_annotator_last", "annotator_id", "last_at"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"))
    started_at: Mapped[datetime]
    last_at: Mapped[datetime]
    judgments: Mapped[int] = mapped_column(default=0, server_default="0")
    harmful: Mapped[int] = mapped_column(default=0, server_default="0")
    ended: Mapped[str | None] = mapped_column(String(16))
    rest_until: Mapped[datetime | None]


class Assignment(Base):
    """A task in one annotator's hands. `shown_order` are the positions of the task's images as this annotator sees them."""

    __tablename__ = "assignments"
    __table_args__ = (
        UniqueConstraint("task_id", "annotator_id"),
        CheckConstraint(_one_of("state", ("open", "done", "expired")), name="state"),
        Index("ix_assignments_state_lease", "state", "lease_expires_at"),
        Index("ix_assignments_annotator_state", "annotator_id", "state"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"))
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"))
    token: Mapped[str] = mapped_column(String(64), unique=True)
    shown_order: Mapped[str]
    state: Mapped[str] = mapped_column(String(16))
    opened_at: Mapped[datetime]
    lease_expires_at: Mapped[datetime]


class Judgment(Base):
    """One verdict, never changed: see the module's first lines.

    `filter` is what lay over the image when it came (none, blur, grey, both), `reveals` how often it was taken off and `revealed_ms`
    for how long altogether. `region` is where the concept is, as JSON [x, y, width, height] in parts of the image.
    """

    __tablename__ = "judgments"
    __table_args__ = (
        UniqueConstraint("task_id", "annotator_id", "revision"),
        CheckConstraint(_one_of("verdict", VERDICTS), name="verdict"),
        Index("ix_judgments_annotator_created", "annotator_id", "created_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"))
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"))
    assignment_id: Mapped[int] = mapped_column(ForeignKey("assignments.id"), index=True)
    revision: Mapped[int]
    verdict: Mapped[str] = mapped_column(String(16))
    comment: Mapped[str | None] = mapped_column(Text)
    region: Mapped[str | None] = mapped_column(Text)
    elapsed_ms: Mapped[int | None]
    filter: Mapped[str | None] = mapped_column(String(16))
    reveals: Mapped[int | None]
    revealed_ms: Mapped[int | None]
    idempotency_token: Mapped[str] = mapped_column(String(128), unique=True)
    guideline_version: Mapped[int]
    app_version: Mapped[str]
    created_at: Mapped[datetime]


class RankedImage(Base):
    """One image's place in a ranking, 1 = most of the concept. Equal places are a tie, and the place after n tied ones is n later."""

    __tablename__ = "rankings"
    __table_args__ = (UniqueConstraint("judgment_id", "image_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    judgment_id: Mapped[int] = mapped_column(ForeignKey("judgments.id"))
    image_id: Mapped[int] = mapped_column(ForeignKey("images.id"))
    rank: Mapped[int]
    shown_position: Mapped[int]


class Adjudication(Base):
    """A manager's decision on a task that people disagree about; the last one counts, in the place of their votes."""

    __tablename__ = "adjudications"

    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"), index=True)
    annotator_id: Mapped[int] = mapped_column(ForeignKey("annotators.id"))
    verdict: Mapped[str] = mapped_column(String(16))
    note: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]


class Round(Base):
    """One turn of the loop for a concept: images, a campaign, and what was made of its judgments, by the names of the runs."""

    __tablename__ = "rounds"
    __table_args__ = (UniqueConstraint("concept_id", "number"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    concept_id: Mapped[int] = mapped_column(ForeignKey("concepts.id"))
    number: Mapped[int]
    campaign_id: Mapped[int | None] = mapped_column(ForeignKey("campaigns.id"))
    images_run: Mapped[str | None]
    reward: Mapped[str | None]
    token: Mapped[str | None]
    erasure: Mapped[str | None]
    evaluation: Mapped[str | None]
    created_at: Mapped[datetime]


class Job(Base):
    """A command of hfi that a manager started in the background. `command`: its words, as JSON."""

    __tablename__ = "jobs"
    __table_args__ = (CheckConstraint(_one_of("state", JOB_STATES), name="state"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    round_id: Mapped[int | None] = mapped_column(ForeignKey("rounds.id"), index=True)
    started_by: Mapped[int | None] = mapped_column(ForeignKey("annotators.id"))
    command: Mapped[str] = mapped_column(Text)
    log: Mapped[str] = mapped_column(Text)
    pid: Mapped[int | None]
    state: Mapped[str] = mapped_column(String(16), index=True)
    code: Mapped[int | None]
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]

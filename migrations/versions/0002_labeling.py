"""The labeling app: accounts, consent, well-being, gold, adjudication, rounds; tasks that keep count of themselves; ties.

Imports nothing of hfi, so that it means the same for ever.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002_labeling"
down_revision = "0001_initial"

QUESTIONS = "question IN ('binary', 'ranking', 'compare')"
NO_ANSWER = "('unsure', 'skip', 'disturbing', 'undone')"
COLUMNS = (
    "id, task_id, annotator_id, assignment_id, revision, verdict, region, elapsed_ms, filter, reveals, revealed_ms, "
    "idempotency_token, guideline_version, app_version, created_at"
)


def upgrade() -> None:
    op.add_column("images", sa.Column("guide", sa.Text(), nullable=True))
    op.add_column("annotators", sa.Column("withdrawn_at", sa.DateTime(), nullable=True))
    _campaigns()
    _tasks()
    _people()
    _judgments()
    _rounds()


def _campaigns() -> None:
    with op.batch_alter_table("campaigns") as table:
        table.add_column(sa.Column("extra_votes", sa.Integer(), server_default="0", nullable=False))
        table.add_column(sa.Column("ties", sa.Boolean(), server_default=sa.text("false"), nullable=False))
        table.add_column(sa.Column("gold_every", sa.Integer(), server_default="0", nullable=False))
        table.add_column(sa.Column("access", sa.String(length=16), server_default="all", nullable=False))
        table.add_column(sa.Column("state", sa.String(length=16), server_default="open", nullable=False))
        table.drop_constraint(op.f("ck_campaigns_question"), type_="check")
        table.create_check_constraint(op.f("ck_campaigns_question"), QUESTIONS)
        table.create_check_constraint(op.f("ck_campaigns_extra_votes"), "extra_votes >= 0")
        table.create_check_constraint(op.f("ck_campaigns_gold_every"), "gold_every >= 0")
        table.create_check_constraint(op.f("ck_campaigns_state"), "state IN ('open', 'closed')")
        table.create_check_constraint(op.f("ck_campaigns_access"), "access IN ('all', 'named')")


def _tasks() -> None:
    with op.batch_alter_table("tasks") as table:
        table.add_column(sa.Column("kind", sa.String(length=16), server_default="item", nullable=False))
        for name, start in (("wanted", "1"), ("answers", "0"), ("held", "0"), ("free", "1")):
            table.add_column(sa.Column(name, sa.Integer(), server_default=start, nullable=False))
        table.create_check_constraint(op.f("ck_tasks_kind"), "kind IN ('item', 'gold', 'benign')")
        table.create_check_constraint(op.f("ck_tasks_counts"), "wanted >= 0 AND answers >= 0 AND held >= 0 AND free >= 0")
    op.execute("UPDATE tasks SET wanted = (SELECT overlap FROM campaigns WHERE campaigns.id = tasks.campaign_id)")
    op.execute(
        f"""UPDATE tasks SET answers = (
            SELECT count(*) FROM judgments j WHERE j.task_id = tasks.id AND j.verdict NOT IN {NO_ANSWER} AND NOT EXISTS (
                SELECT 1 FROM judgments k WHERE k.task_id = j.task_id AND k.annotator_id = j.annotator_id AND k.revision > j.revision)),
        held = (SELECT count(*) FROM assignments a WHERE a.task_id = tasks.id AND a.state = 'open')"""
    )
    op.execute("UPDATE tasks SET free = CASE WHEN wanted > answers + held THEN wanted - answers - held ELSE 0 END")
    free = sa.text("free > 0")
    op.create_index("ix_tasks_free", "tasks", ["campaign_id", "place"], sqlite_where=free, postgresql_where=free)
    op.create_table(
        "gold",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_gold_task_id_tasks")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gold")),
        sa.UniqueConstraint("task_id", name=op.f("uq_gold_task_id")),
    )


def _people() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("annotator_id", sa.Integer(), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("password_hash", sa.String(length=255), nullable=False),
        sa.Column("session_version", sa.Integer(), server_default="1", nullable=False),
        sa.Column("active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.CheckConstraint("role IN ('annotator', 'manager')", name=op.f("ck_accounts_role")),
        sa.ForeignKeyConstraint(["annotator_id"], ["annotators.id"], name=op.f("fk_accounts_annotator_id_annotators")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
        sa.UniqueConstraint("annotator_id", name=op.f("uq_accounts_annotator_id")),
    )
    op.create_table(
        "login_failures",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name_key", sa.String(length=255), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("last_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_login_failures")),
        sa.UniqueConstraint("name_key", name=op.f("uq_login_failures_name_key")),
    )
    op.create_table(
        "settings",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=63), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_settings")),
        sa.UniqueConstraint("key", name=op.f("uq_settings_key")),
    )
    op.create_table(
        "consent_texts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_consent_texts")),
        sa.UniqueConstraint("version", name=op.f("uq_consent_texts_version")),
    )
    op.create_table(
        "consents",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("annotator_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("agreed_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["annotator_id"], ["annotators.id"], name=op.f("fk_consents_annotator_id_annotators")),
        sa.ForeignKeyConstraint(["version"], ["consent_texts.version"], name=op.f("fk_consents_version_consent_texts")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_consents")),
        sa.UniqueConstraint("annotator_id", "version", name=op.f("uq_consents_annotator_id_version")),
    )
    op.create_table(
        "participants",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("campaign_id", sa.Integer(), nullable=False),
        sa.Column("annotator_id", sa.Integer(), nullable=False),
        sa.Column("done", sa.Integer(), server_default="0", nullable=False),
        sa.Column("cursor", sa.Integer(), server_default="-1", nullable=False),
        sa.ForeignKeyConstraint(["annotator_id"], ["annotators.id"], name=op.f("fk_participants_annotator_id_annotators")),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaigns.id"], name=op.f("fk_participants_campaign_id_campaigns")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_participants")),
        sa.UniqueConstraint("campaign_id", "annotator_id", name=op.f("uq_participants_campaign_id_annotator_id")),
    )
    op.create_index(op.f("ix_participants_annotator_id"), "participants", ["annotator_id"], unique=False)
    op.execute(
        """INSERT INTO participants (campaign_id, annotator_id, done, cursor)
        SELECT t.campaign_id, a.annotator_id, sum(CASE WHEN a.state = 'done' THEN 1 ELSE 0 END), max(t.place)
        FROM assignments a JOIN tasks t ON t.id = a.task_id GROUP BY t.campaign_id, a.annotator_id"""
    )
    op.create_table(
        "shifts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("annotator_id", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(), nullable=False),
        sa.Column("last_at", sa.DateTime(), nullable=False),
        sa.Column("judgments", sa.Integer(), server_default="0", nullable=False),
        sa.Column("harmful", sa.Integer(), server_default="0", nullable=False),
        sa.Column("ended", sa.String(length=16), nullable=True),
        sa.Column("rest_until", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(["annotator_id"], ["annotators.id"], name=op.f("fk_shifts_annotator_id_annotators")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shifts")),
    )
    op.create_index("ix_shifts_annotator_last", "shifts", ["annotator_id", "last_at"], unique=False)
    op.drop_index(op.f("ix_assignments_annotator_id"), table_name="assignments")
    op.create_index("ix_assignments_annotator_state", "assignments", ["annotator_id", "state"], unique=False)


def _judgments() -> None:
    for name, kind in (
        ("region", sa.Text()),
        ("filter", sa.String(length=16)),
        ("reveals", sa.Integer()),
        ("revealed_ms", sa.Integer()),
    ):
        op.add_column("judgments", sa.Column(name, kind, nullable=True))
    op.drop_index(op.f("ix_judgments_annotator_id"), table_name="judgments")
    op.create_index("ix_judgments_annotator_created", "judgments", ["annotator_id", "created_at"], unique=False)
    _drop_refusal("judgments", "UPDATE")
    _refuse_changes_of_judgments()

    for action in ("UPDATE", "DELETE"):
        _drop_refusal("rankings", action)
    with op.batch_alter_table("rankings") as table:
        table.drop_constraint(op.f("uq_rankings_judgment_id_rank"), type_="unique")
    for action in ("UPDATE", "DELETE"):
        _refuse("rankings", action)

    op.create_table(
        "adjudications",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=False),
        sa.Column("annotator_id", sa.Integer(), nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["annotator_id"], ["annotators.id"], name=op.f("fk_adjudications_annotator_id_annotators")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_adjudications_task_id_tasks")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adjudications")),
    )
    op.create_index(op.f("ix_adjudications_task_id"), "adjudications", ["task_id"], unique=False)
    for action in ("UPDATE", "DELETE"):
        _refuse("adjudications", action)


def _rounds() -> None:
    op.create_table(
        "rounds",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("concept_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("campaign_id", sa.Integer(), nullable=True),
        *(
            sa.Column(name, sa.String(length=255), nullable=True)
            for name in ("images_run", "reward", "token", "erasure", "evaluation")
        ),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaigns.id"], name=op.f("fk_rounds_campaign_id_campaigns")),
        sa.ForeignKeyConstraint(["concept_id"], ["concepts.id"], name=op.f("fk_rounds_concept_id_concepts")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rounds")),
        sa.UniqueConstraint("concept_id", "number", name=op.f("uq_rounds_concept_id_number")),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("round_id", sa.Integer(), nullable=True),
        sa.Column("started_by", sa.Integer(), nullable=True),
        sa.Column("command", sa.Text(), nullable=False),
        sa.Column("log", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("code", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("ended_at", sa.DateTime(), nullable=True),
        sa.CheckConstraint("state IN ('running', 'done', 'failed', 'stopped', 'lost')", name=op.f("ck_jobs_state")),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.id"], name=op.f("fk_jobs_round_id_rounds")),
        sa.ForeignKeyConstraint(["started_by"], ["annotators.id"], name=op.f("fk_jobs_started_by_annotators")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index(op.f("ix_jobs_round_id"), "jobs", ["round_id"], unique=False)
    op.create_index(op.f("ix_jobs_state"), "jobs", ["state"], unique=False)


def _sqlite() -> bool:
    return op.get_bind().dialect.name == "sqlite"


def _refuse(table: str, action: str) -> None:
    name, words = f"{table}_append_only_{action.lower()}", f"{table} are append-only"
    if _sqlite():
        op.execute(f"CREATE TRIGGER {name} BEFORE {action} ON {table} BEGIN SELECT RAISE(ABORT, '{words}'); END")
    else:
        op.execute(f"CREATE FUNCTION {name}() RETURNS trigger AS $$ BEGIN RAISE EXCEPTION '{words}'; END $$ LANGUAGE plpgsql")
        op.execute(f"CREATE TRIGGER {name} BEFORE {action} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()")


def _drop_refusal(table: str, action: str) -> None:
    name = f"{table}_append_only_{action.lower()}"
    if _sqlite():
        op.execute(f"DROP TRIGGER {name}")
    else:
        op.execute(f"DROP TRIGGER {name} ON {table}")
        op.execute(f"DROP FUNCTION {name}()")


def _refuse_changes_of_judgments() -> None:
    """A comment may be emptied, since what somebody wrote may have to go when they withdraw. Nothing else may change."""
    words = "judgments are append-only"
    if _sqlite():
        op.execute(
            f"CREATE TRIGGER judgments_append_only_update BEFORE UPDATE OF {COLUMNS} ON judgments "
            f"BEGIN SELECT RAISE(ABORT, '{words}'); END"
        )
        op.execute(
            "CREATE TRIGGER judgments_append_only_comment BEFORE UPDATE OF comment ON judgments WHEN NEW.comment IS NOT NULL "
            f"BEGIN SELECT RAISE(ABORT, '{words}'); END"
        )
        return
    for name, when in (("update", f"BEFORE UPDATE OF {COLUMNS}"), ("comment", "BEFORE UPDATE OF comment")):
        function = f"judgments_append_only_{name}"
        op.execute(f"CREATE FUNCTION {function}() RETURNS trigger AS $$ BEGIN RAISE EXCEPTION '{words}'; END $$ LANGUAGE plpgsql")
        only = " WHEN (NEW.comment IS NOT NULL)" if name == "comment" else ""
        op.execute(f"CREATE TRIGGER {function} {when} ON judgments FOR EACH ROW{only} EXECUTE FUNCTION {function}()")

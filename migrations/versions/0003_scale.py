"""Indexes for millions of rows: gold tasks without the others, old wrong passwords without the new ones. And one less that nothing
reads: leases are looked for by state and time together.

And what a manager wrote beside a decision may be emptied as a comment may, since it has to go when they withdraw.

Imports nothing of hfi, so that it means the same for ever.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003_scale"
down_revision = "0002_labeling"


def upgrade() -> None:
    gold = sa.text("kind = 'gold'")
    op.create_index("ix_tasks_gold", "tasks", ["campaign_id", "place"], sqlite_where=gold, postgresql_where=gold)
    op.create_index(op.f("ix_login_failures_last_at"), "login_failures", ["last_at"], unique=False)
    op.drop_index(op.f("ix_assignments_lease_expires_at"), table_name="assignments")
    _let_notes_be_emptied()
    op.execute(
        "UPDATE adjudications SET note = NULL "
        "WHERE annotator_id IN (SELECT id FROM annotators WHERE withdrawn_at IS NOT NULL) AND note IS NOT NULL"
    )


def _let_notes_be_emptied() -> None:
    rest, words = "id, task_id, annotator_id, verdict, created_at", "adjudications are append-only"
    old = "adjudications_append_only_update"
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"DROP TRIGGER {old}")
        refuse = f"BEGIN SELECT RAISE(ABORT, '{words}'); END"
        op.execute(f"CREATE TRIGGER {old} BEFORE UPDATE OF {rest} ON adjudications {refuse}")
        op.execute(
            "CREATE TRIGGER adjudications_append_only_note BEFORE UPDATE OF note ON adjudications "
            f"WHEN NEW.note IS NOT NULL {refuse}"
        )
        return
    op.execute(f"DROP TRIGGER {old} ON adjudications")
    refuse = f"EXECUTE FUNCTION {old}()"
    op.execute(f"CREATE TRIGGER {old} BEFORE UPDATE OF {rest} ON adjudications FOR EACH ROW {refuse}")
    op.execute(
        "CREATE TRIGGER adjudications_append_only_note BEFORE UPDATE OF note ON adjudications "
        f"FOR EACH ROW WHEN (NEW.note IS NOT NULL) {refuse}"
    )

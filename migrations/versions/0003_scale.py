"""Indexes for millions of rows: gold tasks without the others, old wrong passwords without the new ones. And one less that nothing
reads: leases are looked for by state and time together.

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

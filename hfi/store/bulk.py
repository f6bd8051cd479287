"""Judged images in bulk, as the store's verbs would have written them one after the other: what `hfi bench rows` exports."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

from hfi import __version__
from hfi.store import models as m
from hfi.store import queries
from hfi.store.campaigns import Asking, ensure_campaign

PEOPLE = 7
DECIDED = 50  # every so many tasks a manager decided
_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def judge_in_bulk(s: Session, concept_slug: str, shas: Sequence[str], first: int) -> None:
    """Adds images, numbered from `first`, and two people's answers on each; one in fifty is decided. To a database without other
    images, in parts: the first part makes people and campaign. Images are 8 x 8."""
    people = [queries.ensure_annotator(s, f"Person {i}").id for i in range(PEOPLE)]
    campaign = ensure_campaign(s, concept_slug, "bulk", image_ids=(), asking=Asking(overlap=2)).id
    s.flush()
    rows: dict[Any, list[dict[str, Any]]] = {}
    said: dict[str, Any]
    for n, sha in enumerate(shas, first + 1):
        at = _BEGAN + timedelta(minutes=n)
        made = {"width": 8, "height": 8, "source": "imported", "original_name": f"{n}.png", "prompt": f"picture {n}"}
        rows.setdefault(m.Image, []).append({"id": n, "key": sha, "sha256": sha, "created_at": at, **made})
        counts = {"wanted": 2, "answers": 2, "held": 0, "free": 0}
        rows.setdefault(m.Task, []).append({"id": n, "campaign_id": campaign, "place": n, **counts})
        rows.setdefault(m.TaskImage, []).append({"task_id": n, "image_id": n, "position": 0})
        for k in range(2):
            number, who = 2 * n + k, people[(n + k) % PEOPLE]
            mine = {"task_id": n, "annotator_id": who}
            held = {"token": f"bulk-{number}", "shown_order": "[0]", "state": "done", "opened_at": at, "lease_expires_at": at}
            rows.setdefault(m.Assignment, []).append({"id": number, **mine, **held})
            said = {"revision": 1, "verdict": "shows" if (n * 7 + k * n) % 5 < 2 else "clean", "guideline_version": 1}
            said |= {"elapsed_ms": 1000 + n % 5000, "comment": f"comment {n}", "app_version": __version__, "created_at": at}
            once = f"bulk-{number}"
            rows.setdefault(m.Judgment, []).append({"assignment_id": number, "idempotency_token": once, **mine, **said})
        if n % DECIDED == 0:
            decided = {"task_id": n, "annotator_id": people[0], "verdict": "clean", "created_at": at}
            rows.setdefault(m.Adjudication, []).append(decided)
    for table, some in rows.items():
        s.execute(insert(table), some)

"""What a look at the dashboard costs: python tests/bench_dashboard.py [TASKS] [JUDGMENTS] [PEOPLE]. Not a test: it has no verdict."""

import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
from sqlalchemy import insert

from hfi.concepts import Concept
from hfi.dashboard import Watch, numbers
from hfi.store import adjudicating, choosing, overview, queries
from hfi.store import models as m
from hfi.store.migrate import upgrade
from hfi.store.session import Engine, reading, writing
from hfi.workspace import Workspace


def fill(engine: Engine, tasks: int, judgments: int, people: int) -> None:
    """One campaign with answers that differ now and then, in the last two hours."""
    rng = np.random.default_rng(0)
    now = queries.now_utc()
    with writing(engine) as s:
        queries.add_concept(s, Concept("smoking", "Smoking"))
        concept = s.query(m.Concept).one().id
        campaign = {"id": 1, "concept_id": concept, "name": "all", "question": "binary", "overlap": 3, "lease_seconds": 1800}
        s.execute(insert(m.Campaign), [{**campaign, "created_at": now}])
        about = {"width": 8, "height": 8, "source": "generated", "created_at": now, "prompt": "a sailor"}
        s.execute(insert(m.Image), [{"id": i, "key": f"{i}", "sha256": f"{i:064x}", **about} for i in range(1, tasks + 1)])
        names = [{"id": i, "name": f"P{i}", "name_key": f"p{i}", "pseudonym": f"A-{i}"} for i in range(1, people + 1)]
        s.execute(insert(m.Annotator), [{**name, "simulated": False, "created_at": now} for name in names])
        pairs: set[tuple[int, int]] = set()
        while len(pairs) < judgments:
            pairs |= {
                (int(t), int(p)) for t, p in zip(rng.integers(1, tasks + 1, 999), rng.integers(1, people + 1, 999), strict=True)
            }
        told = sorted(pairs)[:judgments] if len(pairs) > judgments else sorted(pairs)
        answers = np.bincount([t for t, _ in told], minlength=tasks + 1).tolist()
        s.execute(
            insert(m.Task),
            [
                {"id": i, "campaign_id": 1, "place": i, "kind": "item", "wanted": 3, "answers": answers[i], "held": 0,
                 "free": max(0, 3 - answers[i])}
                for i in range(1, tasks + 1)
            ],
        )  # fmt: skip
        s.execute(insert(m.TaskImage), [{"task_id": i, "image_id": i, "position": 0} for i in range(1, tasks + 1)])
        held = {"shown_order": "[0]", "state": "done", "opened_at": now, "lease_expires_at": now}
        s.execute(
            insert(m.Assignment),
            [{"id": n, "task_id": t, "annotator_id": p, "token": f"{n}", **held} for n, (t, p) in enumerate(told, 1)],
        )
        s.execute(
            insert(m.Judgment),
            [
                {
                    "task_id": t, "annotator_id": p, "assignment_id": n, "revision": 1, "elapsed_ms": 1500, "idempotency_token": f"{n}",
                    "verdict": "unsure" if rng.random() < 0.05 else "shows" if (t % 3 == 0) != (rng.random() < 0.1) else "clean",
                    "guideline_version": 1, "app_version": "0", "created_at": now - timedelta(seconds=7200 * (1 - n / judgments)),
                }
                for n, (t, p) in enumerate(told, 1)
            ],
        )  # fmt: skip


def timed(name: str, call: Callable[[], object], times: int = 7) -> None:
    """Processor time, which does not count what else the machine is busy with."""
    took = []
    for _ in range(times):
        start = time.process_time()
        call()
        took.append(time.process_time() - start)
    print(f"{name:42} {1000 * sorted(took)[len(took) // 2]:7.0f} ms")


def main(tasks: int = 20_000, judgments: int = 30_000, people: int = 50) -> None:
    with tempfile.TemporaryDirectory() as folder:
        space = Workspace.create(Path(folder))
        upgrade(space.database_url)
        engine = space.engine()
        fill(engine, tasks, judgments, people)
        print(f"{tasks} tasks, {judgments} judgments, {people} people; processor time, median of 7")
        with reading(engine) as s:
            (filling,) = overview.fillings(s, 1)
            timed("every campaign's filling", lambda: overview.fillings(s))
            timed("judgments", lambda: overview.told(s, 1))
            timed("all figures, first look", lambda: numbers(s, filling, queries.now_utc()))
            watch = Watch(1)
            numbers(s, filling, queries.now_utc(), watch)
            timed("all figures, every other look", lambda: numbers(s, filling, queries.now_utc(), watch))
            timed("disagreements, worst first", lambda: adjudicating.disputed(s, 1))
            timed("votes by image", lambda: choosing.votes(s, "smoking"))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""A real server under load, killed on the way: what was acknowledged is there, once."""

import os
import sys
from pathlib import Path

import pytest
from sqlalchemy import insert

from hfi.bench.load import LoadConfig
from hfi.store import models as m
from hfi.store.session import writing
from ui.load import make, run, table, verify

pytestmark = pytest.mark.databases


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc, and Windows knows no SIGKILL")
def test_a_server_killed_under_load_loses_nothing_and_takes_nothing_twice(tmp_path: Path, own_database: None) -> None:
    servers = 2 if "HFI_DATABASE_URL" in os.environ else 1
    config = LoadConfig(annotators=4, images=60, overlap=2, judgments=100, kills=2, pictures=True, servers=servers)
    found = run(tmp_path / "work", config)
    assert found["database"] == ("postgresql" if servers == 2 else "sqlite")
    assert found["errors"] == []
    assert 100 <= found["judged"] <= 104
    assert (found["lost"], found["duplicates"], found["over_overlap"]) == (0, 0, 0)
    assert found["retries"] >= 2
    assert found["p95_ms"] > 0
    assert f"{found['judged']}" in table([found])


def test_what_went_wrong_would_be_seen(tmp_path: Path, own_database: None) -> None:
    engine = make(tmp_path / "work", LoadConfig(annotators=1, images=2, overlap=1))
    assert verify(engine, set())["lost"] == 0
    with writing(engine) as s:
        now = m.datetime.now(m.UTC)
        s.execute(insert(m.Assignment), {"task_id": 1, "annotator_id": 1, "token": "t", "shown_order": "[0]", "state": "done",
                                         "opened_at": now, "lease_expires_at": now})  # fmt: skip
        said = {"task_id": 1, "annotator_id": 1, "assignment_id": 1, "verdict": "shows", "guideline_version": 1,
                "app_version": "0", "created_at": now}  # fmt: skip
        s.execute(insert(m.Judgment), [{**said, "revision": 1, "idempotency_token": "load-a"}])
    found = verify(engine, {"load-a", "load-b"})
    assert (found["lost"], found["over_overlap"]) == (1, 1), "an answer that no task counted"

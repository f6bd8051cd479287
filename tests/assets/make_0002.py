"""How 0002.db.gz was made: a database of schema 0002_labeling with rows in every table, as hfi left it before 0.2.

    python make_0002.py FOLDER

Kept as it is for ever, as 0001.db is. Where the program had no verb yet when this was written, rows are added as they are.
"""

import gzip
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import func, select

from hfi.concepts import Concept
from hfi.judgments import freeze
from hfi.store import campaigns, imports, judging
from hfi.store import models as m
from hfi.store import queries as q
from hfi.store.migrate import upgrade
from hfi.store.session import connect, writing

folder = Path(sys.argv[1])
path = folder / "0002.db"
url = f"sqlite:///{path.resolve()}"
assert upgrade(url).after == "0002_labeling"
engine = connect(url)
now = datetime(2026, 11, 27, 12, tzinfo=UTC)
with writing(engine) as s:
    for i in range(16):
        made = {
            "prompt": f"a sailor {i}",
            "model": "tiny",
            "seed": i,
            "steps": 25,
            "guidance_scale": 7.5,
            "run": "images",
            "guide": None,
        }
        about = made if i < 15 else {"original_name": "photo.jpg"}
        source = "generated" if i < 15 else "imported"
        q.add_image(s, q.Provenance(key=f"{i:064x}", sha256=f"{i + 100:064x}", width=64, height=64, source=source, **about))
    q.add_concept(s, Concept("smoking", "Smoking", "A cigarette.", initial_word="cigarette", prompt="smoking"))
    q.add_concept(s, Concept("brava", "The style of Brava", question="ranking"))
    ids = [image.id for image in q.images(s)]
    ask = campaigns.Asking(overlap=2, extra_votes=1, gold_every=3, gold={ids[8]: "shows", ids[9]: "clean"}, benign=ids[10:12])
    binary = campaigns.ensure_campaign(s, "smoking", "people", image_ids=ids[:8], asking=ask)
    ranking = campaigns.ensure_campaign(s, "brava", "people", image_ids=ids[:10], asking=campaigns.Asking(ties=True))
    compare = campaigns.ensure_campaign(
        s, "smoking", "before and after", image_ids=ids[12:16], asking=campaigns.Asking(compare=True)
    )
    ann, bob, gone, boss = (q.ensure_annotator(s, name) for name in ("Ann", "Bob", "Gone", "Boss"))
    bot = q.ensure_annotator(s, "simulated, careful", simulated=True)
    binary_answers = {
        ann: ("shows", "clean", "shows", "unsure", "shows"),
        bob: ("clean", "shows", "clean"),
        bot: ("shows",),
        gone: ("clean",),
    }
    for person, verdicts in binary_answers.items():
        for n, verdict in enumerate(verdicts):
            claim = judging.claim_next(s, binary.id, person.id, now)
            assert claim is not None
            look = judging.Look(elapsed_ms=900 + n, filter="blur", reveals=1, revealed_ms=400)
            region = (0.1, 0.2, 0.3, 0.4) if verdict == "shows" else None
            token = f"{person.id}-{claim.token}"
            judging.submit(s, claim.token, person.id, verdict, token, comment="a note", region=region, look=look, now=now)
            now += timedelta(seconds=5)
    judging.undo(s, binary.id, ann.id, now)
    for person, tie in ((ann, True), (bob, False)):
        claim = judging.claim_next(s, ranking.id, person.id, now)
        assert claim is not None
        order = [image.image_id for image in claim.images]
        groups = [order[0], order[1:3], *order[3:]] if tie else order
        judging.submit(s, claim.token, person.id, "ranked", f"r-{person.id}", ranking=groups, now=now)
    claim = judging.claim_next(s, compare.id, ann.id, now)
    assert claim is not None
    judging.submit(s, claim.token, ann.id, "ranked", "c", ranking=[i.image_id for i in claim.images], now=now)
    judging.claim_next(s, compare.id, bob.id, now)
    imports.add_judgments(s, "smoking", [imports.Given("Eve", False, "shows", (f"{115:064x}",), now)])
    first = s.scalars(select(m.Task).where(m.Task.campaign_id == binary.id, m.Task.kind == "item", m.Task.answers > 0)).first()
    assert first is not None
    s.add(m.Adjudication(task_id=first.id, annotator_id=boss.id, verdict="clean", note="no smoke", created_at=now))
    withdrawn = s.get_one(m.Annotator, gone.id)
    withdrawn.name, withdrawn.name_key, withdrawn.withdrawn_at = "withdrawn", "withdrawn 3", now
    judging.recount(s, s.scalars(select(m.Judgment.task_id).where(m.Judgment.annotator_id == gone.id)).all())
    for person, role in ((ann, "annotator"), (boss, "manager")):
        s.add(m.Account(annotator_id=person.id, role=role, password_hash="scrypt$no$password", created_at=now))
    s.add(m.LoginFailure(name_key="ann", failures=2, last_at=now))
    s.add(m.Setting(key="limits", value=json.dumps({"minutes": 30}), changed_at=now))
    s.add(m.ConsentText(version=1, body="You will see disturbing images.", created_at=now))
    s.flush()
    s.add(m.Consent(annotator_id=ann.id, version=1, agreed_at=now))
    s.add(
        m.Shift(
            annotator_id=ann.id,
            started_at=now - timedelta(minutes=9),
            last_at=now,
            judgments=5,
            harmful=2,
            ended="break",
            rest_until=now,
        )
    )
    one = m.Round(concept_id=1, number=1, campaign_id=binary.id, images_run="images", created_at=now)
    s.add(one)
    s.flush()
    words = json.dumps(["reward", "--concept", "smoking"])
    s.add(
        m.Job(
            round_id=one.id,
            started_by=boss.id,
            command=words,
            log="jobs/1.log",
            state="done",
            code=0,
            created_at=now,
            ended_at=now,
        )
    )

for concept in ("smoking", "brava"):
    print(concept, len(freeze(engine, concept, "include").judgments), freeze(engine, concept, "include").sha256)
with writing(engine) as s:
    for table in m.Base.metadata.sorted_tables:
        count = s.scalar(select(func.count()).select_from(table))
        assert count, f"{table.name} is empty"
        print(table.name, count)
with engine.connect() as connection:
    connection.exec_driver_sql("ROLLBACK")
    connection.exec_driver_sql("PRAGMA journal_mode = DELETE")  # one file, no -wal beside it
    connection.exec_driver_sql("VACUUM")
engine.dispose()
path.with_suffix(".db.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))

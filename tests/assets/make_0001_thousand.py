"""How 0001-thousand.db.gz and judgments-0001.jsonl were made, by the code of commit f1d34c7 (hfi 0.1.0, schema 0001_initial):

    python make_0001_thousand.py FOLDER

A workspace as people left it: 1,000 judgments in three campaigns on two concepts, by five people and two simulated annotators, with
skips, doubts, comments, judgments that were taken back (some given anew, some not), leases that are open, that ran out, and that ran
out and were taken up by others. Prints what the tests compare with. Kept as it is for ever, as 0001.db is.
"""

import gzip
import itertools
import random
import secrets
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hfi.concepts import Concept
from hfi.judgments import freeze, to_jsonl
from hfi.store import queries as q
from hfi.store.migrate import upgrade
from hfi.store.session import connect, writing

rng = random.Random(0)
tokens = itertools.count()
secrets.token_urlsafe = lambda n: f"t{next(tokens)}"  # short, so that the file is small, and the same every time
secrets.choice = rng.choice

folder = Path(sys.argv[1])
path = folder / "0001-thousand.db"
url = f"sqlite:///{path.resolve()}"
assert upgrade(url).after == "0001_initial"
engine = connect(url)
now = datetime(2026, 11, 20, 9, tzinfo=UTC)
given = 0  # rows of the table of judgments
TITLE = 'Smoking: 100 % "it\'s" there'
PEOPLE = ["Ann", "Bob", "Çem", "D'Arcy; --", "은지"]
NOTES = [
    "=1+1",
    "a cigarette, not lit",
    "\u202ertl \u05e9\u05dc\u05d5\u05dd",
    "quote \" and ' and 100 %",
    "line\nbreak",
    "\U0001f6ac",
]

with writing(engine) as s:
    for i in range(300):
        about = {
            "prompt": f'a sailor {i % 40}, 100% "smoke"',
            "model": "tiny",
            "seed": i,
            "steps": 25,
            "guidance_scale": 7.5,
            "run": "a",
        }
        q.add_image(s, q.Provenance(key=f"{i:064x}", sha256=f"{i + 1000:064x}", width=64, height=64, source="generated", **about))
    q.add_concept(
        s,
        Concept(
            "smoking", 'Smoking: 100 % "it\'s" there', "A cigarette; %(x)s 'quoted'.", initial_word="cigarette", prompt="smoking"
        ),
    )
    q.add_concept(s, Concept("brava", "The style of Brava", question="ranking"))
    ids = [image.id for image in q.images(s)]
    people = q.ensure_campaign(s, "smoking", "people", image_ids=ids, overlap=3, lease_seconds=1800)
    again = q.ensure_campaign(s, "smoking", 'again, 100% "sure"', image_ids=ids[:60], overlap=1, lease_seconds=600)
    ranking = q.ensure_campaign(s, "brava", "people", image_ids=ids, overlap=2, lease_seconds=1800)
    everybody = [q.ensure_annotator(s, name) for name in PEOPLE]
    everybody += [q.ensure_annotator(s, f"simulated, {kind}", simulated=True) for kind in ("careful", "careless")]

BINARY = ["shows"] * 35 + ["clean"] * 50 + ["unsure"] * 7 + ["skip"] * 5 + ["disturbing"] * 3
while given < 1000:
    now += timedelta(seconds=rng.randrange(2, 40), milliseconds=rng.randrange(1000))
    who = rng.choice(everybody)
    campaign = rng.choices([people, again, ranking], [70, 8, 22])[0]
    with writing(engine) as s:
        if rng.random() < 0.04:
            given += q.undo(s, campaign.id, who.id, now) is not None
            continue
        if rng.random() < 0.01:  # somebody goes away with a task in hand, and comes back when its time has run out
            q.claim_next(s, campaign.id, who.id, now)
            now += timedelta(minutes=31)
            continue
        claim = q.claim_next(s, campaign.id, who.id, now)
        if claim is None:
            continue
        comment = rng.choice(NOTES) if rng.random() < 0.05 else None
        more = {"comment": comment, "elapsed_ms": rng.randrange(400, 9000), "now": now}
        if campaign is ranking:
            order = [image.image_id for image in claim.images]
            rng.shuffle(order)
            verdict = rng.choices(["ranked", "none", "unsure", "skip"], [80, 10, 6, 4])[0]
            q.submit(s, claim.token, who.id, verdict, f"j{given}", ranking=order if verdict == "ranked" else None, **more)
        else:
            q.submit(s, claim.token, who.id, rng.choice(BINARY), f"j{given}", **more)
        given += 1
with writing(engine) as s:  # some are in the middle of it
    for who in everybody[:4]:
        q.claim_next(s, people.id, who.id, now)
        q.claim_next(s, ranking.id, who.id, now)

for concept in ("smoking", "brava"):
    for side in ("exclude", "only", "include"):
        found = freeze(engine, concept, side)
        print(concept, side, len(found.judgments), found.sha256)
(folder / "judgments-0001.jsonl").write_text(to_jsonl(freeze(engine, "brava", "only")), encoding="utf-8")
with engine.connect() as connection:
    print("now", now.isoformat())
    for table in ("images", "campaigns", "tasks", "task_images", "annotators", "assignments", "judgments", "rankings"):
        print(table, connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar())
    print(Counter(connection.exec_driver_sql("SELECT verdict FROM judgments").scalars()))
    print(Counter(connection.exec_driver_sql("SELECT state FROM assignments").scalars()))
    connection.exec_driver_sql("ROLLBACK")
    connection.exec_driver_sql("PRAGMA journal_mode = DELETE")  # one file, no -wal beside it
    connection.exec_driver_sql("VACUUM")
engine.dispose()
path.with_suffix(".db.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))

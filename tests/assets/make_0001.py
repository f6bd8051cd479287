"""How 0001.db was made: a database of schema 0001_initial with a few rows of every table, as hfi 0.1.0 left it.

Kept as it is for ever, so that every later version shows that it can take an old workspace over without losing a judgment.
"""

import sys
from datetime import UTC, datetime
from pathlib import Path

from hfi.concepts import Concept
from hfi.store import queries as q
from hfi.store.migrate import upgrade
from hfi.store.session import connect, writing

path = Path(sys.argv[1])
url = f"sqlite:///{path.resolve()}"
assert upgrade(url).after == "0001_initial"
engine = connect(url)
now = datetime(2026, 11, 25, 12, tzinfo=UTC)
with writing(engine) as s:
    for i in range(5):
        generated = {"prompt": f"a sailor {i}", "model": "tiny", "seed": i, "steps": 25, "guidance_scale": 7.5, "run": "images"}
        about = generated if i < 4 else {"original_name": "photo.jpg"}
        source = "generated" if i < 4 else "imported"
        q.add_image(s, q.Provenance(key=f"{i:064x}", sha256=f"{i + 100:064x}", width=64, height=64, source=source, **about))
    q.add_concept(s, Concept("smoking", "Smoking", "A cigarette.", initial_word="cigarette", prompt="smoking"))
    q.add_concept(s, Concept("brava", "The style of Brava", question="ranking"))
    ids = [image.id for image in q.images(s)]
    binary = q.ensure_campaign(s, "smoking", "default", image_ids=ids, overlap=2)
    ranking = q.ensure_campaign(s, "brava", "default", image_ids=ids)
    ann, bot = q.ensure_annotator(s, "Ann"), q.ensure_annotator(s, "simulated, careful", simulated=True)
    for person, verdicts in ((ann, ("shows", "clean", "unsure")), (bot, ("clean", "shows"))):
        for verdict in verdicts:
            claim = q.claim_next(s, binary.id, person.id, now)
            assert claim is not None
            q.submit(s, claim.token, person.id, verdict, f"{person.id}-{claim.token}", comment="a note", elapsed_ms=900, now=now)
    q.undo(s, binary.id, ann.id, now)
    claim = q.claim_next(s, ranking.id, ann.id, now)
    assert claim is not None
    q.submit(s, claim.token, ann.id, "ranked", "r", ranking=[i.image_id for i in claim.images], now=now)
with engine.connect() as connection:
    connection.exec_driver_sql("ROLLBACK")
    connection.exec_driver_sql("PRAGMA journal_mode = DELETE")  # one file, no -wal beside it
engine.dispose()

"""Small databases with campaigns and answers, for tests of what a manager sees."""

from collections.abc import Callable, Sequence
from datetime import datetime

from hfi.concepts import Concept
from hfi.store import campaigns, judging
from hfi.store import queries as q
from hfi.store.campaigns import Asking, Campaign
from hfi.store.judging import Claim, Look
from hfi.store.session import Engine, writing


def concept(engine: Engine, slug: str = "smoking", question: str = "binary") -> None:
    with writing(engine) as s:
        q.add_concept(s, Concept(slug, slug.capitalize(), question=question, initial_word=slug, prompt=slug))  # type: ignore[arg-type]


def image(engine: Engine, i: int, **more: object) -> int:
    """Adds an image; its sha256 is its number, unless another is given."""
    about: dict[str, object] = {
        "key": f"key {i}", "sha256": f"{i:064x}", "width": 8, "height": 8, "source": "generated", "prompt": f"prompt {i}", "seed": i,
        "model": "model", "model_content": "content", "steps": 25, "guidance_scale": 7.5, "scheduler": "DDIM", "run": "first",
    }  # fmt: skip
    with writing(engine) as s:
        return q.add_image(s, q.Provenance(**{**about, **more})).id  # type: ignore[arg-type]


def images(engine: Engine, count: int, **more: object) -> list[int]:
    return [image(engine, i, **more) for i in range(count)]


def campaign(engine: Engine, ids: Sequence[int], name: str = "people", slug: str = "smoking", **asking: object) -> Campaign:
    with writing(engine) as s:
        return campaigns.ensure_campaign(s, slug, name, image_ids=ids, asking=Asking(**asking))  # type: ignore[arg-type]


Answer = str | list[int] | list[list[int]] | None  # a verdict, an order of image ids, or None: the person stops there


def answers(
    engine: Engine, asked: Campaign, name: str, say: Callable[[Claim], Answer], *, simulated: bool = False, ms: int | None = 1500,
    now: datetime | None = None,
) -> q.Annotator:  # fmt: skip
    """Somebody judges what they are given, as `say` decides, until nothing is left."""
    with writing(engine) as s:
        person = q.ensure_annotator(s, name, simulated)
    while True:
        with writing(engine) as s:
            claim = judging.claim_next(s, asked.id, person.id, now)
            said = say(claim) if claim else None
            if claim is None or said is None:
                return person
            verdict, ranking = (said, None) if isinstance(said, str) else ("ranked", said)
            judging.submit(
                s, claim.token, person.id, verdict, f"once {claim.token}", ranking=ranking, look=Look(elapsed_ms=ms), now=now
            )


def by_image(verdicts: dict[int, str]) -> Callable[[Claim], Answer]:
    """Answers by image id."""
    return lambda claim: verdicts[claim.images[0].image_id]

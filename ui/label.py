"""The labeling page: what it looks like, and what happens when somebody judges.

The handlers take the annotator whom the server has identified; nothing that a browser sends says who is judging. A browser knows
a task by its token and an image by its place in it: prompts, models, file names and database numbers stay on the server.
"""

import io
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import gradio as gr

from hfi.concepts import Concept
from hfi.errors import HfiError, NotFound
from hfi.images import ImageStore
from hfi.store import campaigns, judging, people, queries, record
from hfi.store.queries import Annotator
from hfi.store.session import Engine, Session, reading, writing
from hfi.store.showing import found_disturbing, shown_image

ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Desk:
    """Where judging happens: one campaign of a workspace. `next_step` is the command that uses the judgments."""

    engine: Engine
    images: ImageStore
    campaign_id: int
    next_step: str


# --- handlers ---


def state(desk: Desk, person: Annotator) -> dict[str, Any]:
    """What the page shows to this person now; a task in hand stays the same, however often this is asked."""
    with writing(desk.engine) as session:
        return _state(desk, session, person)


def judge(
    desk: Desk, person: Annotator, token: str, verdict: str, once: str, *,
    ranking: list[int] | None = None, elapsed_ms: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Keeps a judgment and gives the next state. `ranking`: places of the shown images, most of the concept first.

    `once` names this one answer: the same again adds nothing. HfiError where the answer cannot be taken; nothing is kept then.
    """
    with writing(desk.engine) as session:
        ids = None
        if ranking is not None:
            places = {image.position: image.image_id for image in judging.claim_of(session, token, person.id).images}
            if not set(ranking) <= places.keys():
                raise HfiError("a ranking names places of the images that are shown: reload the page")
            ids = [places[place] for place in ranking]
        judging.submit(session, token, person.id, verdict, once, ranking=ids, look=judging.Look(elapsed_ms=elapsed_ms))
        return _state(desk, session, person)


def undo(desk: Desk, person: Annotator, done: int) -> dict[str, Any]:
    """Takes back this person's last judgment. `done`: how many they had judged when they asked, so that a replay does nothing."""
    with writing(desk.engine) as session:
        if judging.progress(session, desk.campaign_id, person.id).done == done:
            judging.undo(session, desk.campaign_id, person.id)
        return _state(desk, session, person)


def image(desk: Desk, person: Annotator, token: str, position: int) -> bytes:
    """PNG bytes of an image of a task that is or was this person's, encoded anew, so without metadata. NotFound otherwise."""
    with reading(desk.engine) as session:
        sha = shown_image(session, token, person.id, position)
    buffer = io.BytesIO()
    desk.images.load(sha).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _state(desk: Desk, session: Session, person: Annotator) -> dict[str, Any]:
    claim, ahead = judging.serve(session, desk.campaign_id, person.id)
    if claim is None:
        mine = judging.progress(session, desk.campaign_id, person.id)
        return {
            "person": person.name,
            "task": None,
            "ahead": None,
            "done": mine.done,
            "total": mine.total,
            "verdicts": dict(mine.by_verdict),
            "next": desk.next_step,
        }
    left = judging.left(session, campaigns.campaign_row(session, desk.campaign_id), person.id)
    return {
        "person": person.name,
        "task": _task(claim.token, len(claim.images)),
        "covered": found_disturbing(session, claim),
        "ahead": ahead and _task(ahead.token, len(ahead.order)),
        "done": claim.done,
        "total": claim.done + left,
    }


def _task(token: str, images: int) -> dict[str, Any]:
    return {"token": token, "images": [f"/img/{token}/{place}" for place in range(images)]}


# --- the page ---


def build_page(engine: Engine, *, leave: bool) -> gr.Blocks:
    """The page of the campaign in its address. `leave`: whether another person can take over."""

    def fill_in(request: gr.Request) -> list[str]:
        """Asked for on every load, so that a new version of the guideline needs no restart."""
        with reading(engine) as session:
            mine = campaigns.open_campaigns(session, people.find(session, str(request.username)).id)
            campaign = next((c for c in mine if str(c.id) == request.query_params.get("campaign")), None)
            if campaign is None:
                raise NotFound("this campaign is not yours, or is closed")
            concept = queries.concept(session, campaign.concept)
            simulated = bool(record.current_judgments(session, concept.slug, simulated=True))
        hint = "" if concept.question == "ranking" else "hidden"
        return [
            fill("top", title=concept.title, leave="" if leave else "hidden", simulated="" if simulated else "hidden"),
            fill("question", question=question(concept), hint=hint),
            fill(concept.question),
            _guideline(concept),
        ]

    with gr.Blocks(title="hfi", fill_width=True, analytics_enabled=False) as page:
        top = _part("top")
        with gr.Row(elem_id="hfi-main"):
            with gr.Column(elem_id="hfi-left"):
                gr.HTML(fill("stage"), elem_id="hfi-part-stage", js_on_load=None, apply_default_css=False)
            with gr.Column(elem_id="hfi-right"):
                asked, answers = _part("question"), _part("answers")
                with gr.Accordion("Guideline", elem_id="hfi-guideline"):
                    text = gr.Markdown(container=False)
        parts = [top, asked, answers, text]
        page.load(fill_in, None, parts, queue=False, show_progress="hidden", api_visibility="private")
    return page


def question(concept: Concept) -> str:
    """The question in words that suit any title: 'Gun', 'Blood and gore', 'van Gogh'."""
    if concept.question == "ranking":
        return f"{concept.title}: which image shows it most? Put them in order."
    return f"{concept.title}: does this image show it?"


def _guideline(concept: Concept) -> str:
    return concept.guideline or "*There is no guideline yet: answer as you see it.*"


def fill(part: str, /, **values: str) -> str:
    """A piece of HTML from the assets, with its values escaped."""
    return Template((ASSETS / f"{part}.html").read_text("utf-8")).substitute({k: escape(v) for k, v in values.items()})


def _part(name: str) -> gr.HTML:
    return gr.HTML("", elem_id=f"hfi-part-{name}", js_on_load=None, apply_default_css=False)

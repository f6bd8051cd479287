"""The judging page: what it looks like, and what happens when somebody judges.

One page for all campaigns; its script names the one it wants. The handlers take the annotator whom the server has identified; nothing
that a browser sends says who is judging. A browser knows a task by its token and an image by its place in it: prompts, models, file
names and database numbers stay on the server.

    GET  /api/messages                 the page's words, in the reader's language
    GET  /api/campaigns/ID/state       the question, and the task in hand
    POST /api/judge                    a judgment
    POST /api/campaigns/ID/undo        the last one back
    POST /api/campaigns/ID/go-on       no more of this break
    POST /api/campaigns/ID/stop        enough for today
    GET  /img/TOKEN/P?view=both        image P of a task, for the annotator that has it
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import lru_cache, partial
from html import escape
from pathlib import Path
from string import Template
from typing import Annotated, Any, Literal

import fastapi
import gradio as gr
from anyio import to_thread
from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from markdown_it import MarkdownIt
from pydantic import BaseModel, Field, field_validator
from starlette.concurrency import run_in_threadpool

from hfi.errors import HfiError, NotFound
from hfi.images import ImageStore
from hfi.store import campaigns, judging, people, queries, wellbeing
from hfi.store.locks import hold_person
from hfi.store.queries import Annotator, now_utc
from hfi.store.session import Again, Away, Busy, Engine, Session, again, reading, writing
from hfi.store.showing import shown_image, simulations_judged
from ui import messages
from ui.metrics import Meter
from ui.pages import notice
from ui.pictures import Picture, Pictures, View, threads

ASSETS = Path(__file__).parent / "assets"
_DAY_MS = 24 * 3600 * 1000
_TOTAL_SECONDS = 10
_SOON_SECONDS = 10

Strength = Annotated[int, Query(ge=1, le=3)]
Number = Annotated[int, fastapi.Path(ge=1, lt=2**31)]


@dataclass(frozen=True)
class Desk:
    """Where judging happens. `next_step`: the command that uses the judgments, with {concept} for the concept's name; "": none."""

    engine: Engine
    pictures: Pictures
    next_step: str = ""
    totals: dict[tuple[int, int], tuple[float, int | None]] = field(default_factory=dict)  # see `_total`
    meter: Meter | None = None


class Answer(BaseModel):
    """A judgment as the page sends it. `ranking`: places of the shown images, most of the concept first, tied ones in a list. `once`
    names this one answer: the same again adds nothing. The rest: see `hfi.store.models.Judgment`."""

    token: str = Field(max_length=64)
    verdict: str = Field(max_length=16)
    once: str = Field(min_length=8, max_length=100)
    ranking: list[int | Annotated[list[int], Field(max_length=100)]] | None = Field(default=None, max_length=100)
    comment: str | None = Field(default=None, max_length=20_000)
    region: list[float] | None = Field(default=None, max_length=4)
    elapsed_ms: int | None = Field(default=None, ge=0, le=_DAY_MS)
    filter: Literal["none", "blur", "grey", "both"] | None = None
    reveals: int | None = Field(default=None, ge=0, le=100_000)
    revealed_ms: int | None = Field(default=None, ge=0, le=_DAY_MS)

    @field_validator("once")
    @classmethod
    def _of_a_page(cls, once: str) -> str:
        """What the server itself gives an undo, an import and a simulation cannot come from a page: it would stand in their way."""
        if once.startswith(("undo-", "import-", "simulated-")) or "\0" in once:
            raise ValueError("this name is taken")
        return once


class Undoing(BaseModel):
    """`done`: how many the person had judged when they asked, so that a replay does nothing."""

    done: int


# --- handlers ---


def state(desk: Desk, person: Annotator, campaign_id: int) -> dict[str, Any]:
    """What the page shows to this person now; a task in hand stays the same, however often this is asked.

    NotFound where the campaign is not theirs.
    """
    with _writing(desk, person) as session:
        about = _about(session, campaign_id)
        found = _state(desk, session, person, campaign_id)
    return {**(found or _soon(desk, person, campaign_id)), "campaign": about}


def judge(desk: Desk, person: Annotator, answer: Answer, *, wait: bool = True) -> dict[str, Any]:
    """Keeps a judgment and gives the next state. HfiError where the answer cannot be taken; nothing is kept then. `wait`: as for
    `writing`."""
    with _writing(desk, person, hold=False, wait=wait) as session:  # `submit` holds the person and the task at once
        look = judging.Look(
            elapsed_ms=answer.elapsed_ms, filter=answer.filter, reveals=answer.reveals, revealed_ms=answer.revealed_ms
        )
        taken = judging.submit(
            session,
            answer.token,
            person.id,
            answer.verdict,
            answer.once,
            ranking=_images(session, person, answer),
            comment=answer.comment,
            region=answer.region,
            look=look,
        )
        if taken.duplicate:
            found = _state(desk, session, person, taken.campaign_id)
        else:
            shift = wellbeing.note(session, person.id, answer.verdict in wellbeing.HARMFUL and not taken.seen)
            resting = wellbeing.rest(session, person.id, shift=shift)
            found = _shown(desk, session, person, taken.campaign_id, resting)
            if desk.meter:
                _then(session, partial(desk.meter.judged, taken.campaign_id, answer.verdict))
    return found or _soon(desk, person, taken.campaign_id)


def undo(desk: Desk, person: Annotator, campaign_id: int, done: int) -> dict[str, Any]:
    """Takes back this person's last judgment in the campaign, if they had judged `done` until now."""
    with _writing(desk, person) as session:
        if judging.partaking(session, campaign_id, person.id).done == done:
            judging.undo(session, campaign_id, person.id)
            if desk.meter:
                _then(session, desk.meter.undone)
        found = _state(desk, session, person, campaign_id)
    return found or _soon(desk, person, campaign_id)


def go_on(desk: Desk, person: Annotator, campaign_id: int) -> dict[str, Any]:
    """Ends a break early, unless a limit of the day asks for it."""
    with _writing(desk, person) as session:
        wellbeing.end_rest(session, person.id)
        found = _state(desk, session, person, campaign_id)
    return found or _soon(desk, person, campaign_id)


def stop(desk: Desk, person: Annotator, campaign_id: int) -> dict[str, Any]:
    """Ends the person's shift, and says what they did."""
    with _writing(desk, person) as session:
        wellbeing.end_shift(session, person.id, "stop")
        return {**_without_task(desk, session, person, campaign_id, None, going=True), "stopped": True}


def image(desk: Desk, person: Annotator, token: str, position: int, view: View = "plain", strength: int = 2) -> Picture:
    """An image of a task that is or was this person's. NotFound otherwise."""
    with reading(desk.engine, once=True) as session:
        sha = shown_image(session, token, person.id, position)
    return desk.pictures.get(sha, view, strength)


def _images(session: Session, person: Annotator, answer: Answer) -> list[int | list[int]] | None:
    """The ranking by images, where the answer gives it by places."""
    if answer.ranking is None:
        return None
    by_place = {one.position: one.image_id for one in judging.claim_of(session, answer.token, person.id).images}
    try:
        return [by_place[at] if isinstance(at, int) else [by_place[one] for one in at] for at in answer.ranking]
    except KeyError:
        raise HfiError("a ranking names places of the images that are shown: reload the page") from None


@contextmanager
def _writing(desk: Desk, person: Annotator, *, hold: bool = True, wait: bool = True) -> Iterator[Session]:
    """A transaction of this person's judging, beside those of others: their own take turns."""
    with writing(desk.engine, alone=False, wait=wait) as session:
        if hold:
            hold_person(session, person.id)
        yield session
    for done in session.info.get("then", ()):
        done()


def _then(session: Session, call: Callable[[], None]) -> None:
    """Has `_writing` call it once the transaction is kept, for what must not be counted of one that is done again."""
    session.info.setdefault("then", []).append(call)


def _soon(desk: Desk, person: Annotator, campaign_id: int) -> dict[str, Any]:
    """The state, once others have written the last tasks, which they are just doing. Again where that takes them long."""
    until = time.monotonic() + _SOON_SECONDS
    while time.monotonic() < until:
        time.sleep(random.uniform(0.005, 0.03))
        with _writing(desk, person) as session:
            if found := _state(desk, session, person, campaign_id):
                return found
    raise Again("others have been writing the last tasks for long: reload the page")


def _state(desk: Desk, session: Session, person: Annotator, campaign_id: int) -> dict[str, Any] | None:
    return _shown(desk, session, person, campaign_id, wellbeing.rest(session, person.id))


def _shown(
    desk: Desk, session: Session, person: Annotator, campaign_id: int, resting: wellbeing.Rest | None
) -> dict[str, Any] | None:
    """The next task, unless the person is resting; None where it is to be asked for in another transaction."""
    hand = judging.Hand(None, None, 0) if resting else judging.serve(session, campaign_id, person.id)
    if desk.meter:
        _then(session, partial(desk.meter.claimed, hand.taken))
    if hand.busy:
        return None
    if hand.task is None:
        return _without_task(desk, session, person, campaign_id, resting)
    return {
        "person": person.name,
        "task": _task(hand.task),
        "covered": hand.task.covered,
        "ahead": hand.ahead and _task(hand.ahead),
        "done": hand.done,
        "total": _total(desk, session, person, campaign_id, hand.done),
        "rest": None,
    }


def _total(desk: Desk, session: Session, person: Annotator, campaign_id: int, done: int) -> int | None:
    """How many tasks this person has done, has in hand or may be given; None where there are too many to be counted. Counted now and
    then: their own judgments do not change it, others' do, and counting takes as long as all the rest of a judgment."""
    now = time.monotonic()
    until, total = desk.totals.get((campaign_id, person.id), (0.0, 0))
    if now >= until:
        total = judging.total(done, judging.left(session, campaign_id, person.id))
        desk.totals[campaign_id, person.id] = (now + _TOTAL_SECONDS, total)
    return None if total is None else max(total, done + 1)


def _without_task(
    desk: Desk, session: Session, person: Annotator, campaign_id: int, resting: wellbeing.Rest | None, *, going: bool = False
) -> dict[str, Any]:
    """`going`: they may go on, so that it is too early to count what they said."""
    done = judging.partaking(session, campaign_id, person.id).done  # before anything is said of it
    said = {} if going or resting else judging.progress(session, campaign_id, person.id).by_verdict
    about = campaigns.campaign(session, campaign_id)
    return {
        "person": person.name,
        "task": None,
        "ahead": None,
        "done": done,
        "total": judging.total(done, judging.left(session, campaign_id, person.id)),
        "verdicts": dict(said),
        "closed": about.state != "open",
        "rest": resting and _rest(resting, now_utc()),
        "today": asdict(wellbeing.today(session, person.id)),
        "next": desk.next_step.replace("{concept}", about.concept),
    }


def _rest(resting: wellbeing.Rest, now: datetime) -> dict[str, Any]:
    left = max(1, round((resting.until - now).total_seconds()))  # the browser's clock may be wrong
    return {"reason": resting.reason, "seconds": left, "may_end": resting.may_end}


def _task(held: judging.Held) -> dict[str, Any]:
    return {"token": held.token, "images": [f"/img/{held.token}/{place}" for place in range(len(held.order))]}


def _about(session: Session, campaign_id: int) -> dict[str, Any]:
    """What stays the same from task to task. Asked for on every load, so that a new version of the guideline needs no restart."""
    found = campaigns.campaign(session, campaign_id)
    concept = queries.concept(session, found.concept)
    return {
        "kind": found.question,
        "title": concept.title,
        "guideline": guideline_html(concept.guideline),
        "ties": found.ties,
        "simulated": simulations_judged(session, found.concept),
        "accounts": people.has_accounts(session),
    }


@lru_cache(maxsize=64)
def guideline_html(text: str) -> str:
    """Markdown as HTML. HTML in it is text, pictures are left out (they would be fetched from elsewhere), and links open a new page."""
    return _MARKDOWN.render(text)


def _open_elsewhere(renderer: Any, tokens: Any, at: int, options: Any, env: Any) -> str:
    tokens[at].attrSet("target", "_blank")
    tokens[at].attrSet("rel", "noopener noreferrer")
    return renderer.renderToken(tokens, at, options, env)


_MARKDOWN = MarkdownIt("js-default", {"html": False}).disable("image")
_MARKDOWN.add_render_rule("link_open", _open_elsewhere)


# --- routes ---


def add_routes(
    app: FastAPI,
    engine: Engine,
    images: ImageStore,
    person: Callable[[Request], Annotator],
    next_step: str = "",
    meter: Meter | None = None,
) -> None:
    """Adds what the page's script asks for. `person` gives the annotator who sent a request, and refuses whoever is none."""
    desk = Desk(engine, Pictures(images, meter.pictured if meter else None), next_step, meter=meter)
    turn, looking = asyncio.Lock(), threads(images)

    async def in_turn(work: Callable[[], dict[str, Any]]) -> Response:
        """What writes waits here for its turn, and not in the few threads, which others need. Each is one visit to a thread: a
        dependency, and a value in the place of a response, would be one more each."""
        async with turn if engine.dialect.name == "sqlite" else nullcontext():
            return JSONResponse(await run_in_threadpool(again, work))

    @app.get("/api/messages")
    def say(request: Request) -> Response:
        lang = messages.language(request)
        words = {key: text for key, text in messages.load(lang).items() if key.startswith("judge.")}
        return JSONResponse({"lang": lang, "languages": messages.languages(), "words": words})

    @app.get("/api/campaigns/{campaign_id}/state")
    async def get_state(request: Request, campaign_id: Number) -> Response:
        return await in_turn(lambda: state(desk, person(request), campaign_id))

    @app.post("/api/judge")
    async def post_judge(request: Request, given: Answer) -> Response:
        if engine.dialect.name != "sqlite":
            return await in_turn(lambda: judge(desk, person(request), given))
        async with turn:
            try:  # two milliseconds here, where going to a thread and back takes as long again
                return JSONResponse(judge(desk, person(request), given, wait=False))
            except Busy:  # another program writes, or a manager's page
                return JSONResponse(await run_in_threadpool(lambda: judge(desk, person(request), given)))

    @app.post("/api/campaigns/{campaign_id}/undo")
    async def post_undo(request: Request, campaign_id: Number, given: Undoing) -> Response:
        return await in_turn(lambda: undo(desk, person(request), campaign_id, given.done))

    @app.post("/api/campaigns/{campaign_id}/go-on")
    async def post_go_on(request: Request, campaign_id: Number) -> Response:
        return await in_turn(lambda: go_on(desk, person(request), campaign_id))

    @app.post("/api/campaigns/{campaign_id}/stop")
    async def post_stop(request: Request, campaign_id: Number) -> Response:
        return await in_turn(lambda: stop(desk, person(request), campaign_id))

    @app.get("/img/{token}/{position}")
    async def get_image(request: Request, token: str, position: int, view: View = "plain", strength: Strength = 2) -> Response:
        found = await to_thread.run_sync(lambda: image(desk, person(request), token, position, view, strength), limiter=looking)
        return Response(found.data, media_type=found.media_type, headers={"Cache-Control": "private, no-store"})

    @app.exception_handler(HfiError)
    def refuse(request: Request, error: Exception) -> Response:
        for_a_while = isinstance(error, (Again, Away))  # the judging page asks again by itself
        if for_a_while and "text/html" in request.headers.get("accept", ""):
            return notice(request, 503, "away", True)
        return JSONResponse({"detail": str(error)}, 503 if for_a_while else 404 if isinstance(error, NotFound) else 409)


# --- the page ---


def build_page(*, leave: bool) -> gr.Blocks:
    """The page of all campaigns. `leave`: whether another person can take over. Words and tasks are what its script asks for."""
    with gr.Blocks(title="hfi", fill_width=True, analytics_enabled=False) as page:
        gr.HTML(fill("judge", leave="" if leave else "hidden"), elem_id="hfi-judge", js_on_load=None, apply_default_css=False)
    return page


def fill(part: str, /, **values: str) -> str:
    """A piece of HTML from the assets, with its values escaped."""
    return Template((ASSETS / f"{part}.html").read_text("utf-8")).substitute({k: escape(v) for k, v in values.items()})

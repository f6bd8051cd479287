"""The pages around judging, made on the server: sign-in, consent, the list of work, one's own account, withdrawal.

They need no script. Everything that comes from people is escaped by Jinja; Markdown is rendered without HTML and pictures in it.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Form, Request
from fastapi.exception_handlers import http_exception_handler
from jinja2 import Environment, FileSystemLoader
from markdown_it import MarkdownIt
from markupsafe import Markup, escape
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse, Response

from hfi import __version__
from hfi.errors import HfiError
from hfi.logs import event
from hfi.store import campaigns, judging, people, queries
from hfi.store.people import SignInRefused, Standing
from hfi.store.session import Again, Away, Engine, Session, reading, writing
from ui.identity import Identity, Person
from ui.messages import COOKIE, language, languages, load

TEMPLATES = Path(__file__).parent / "templates"
PAGE, MANAGE = "/judge", "/manage"
# what the program's consent text is about, in this order
ABOUT = ("see", "purpose", "kept", "stopping", "withdrawing", "contact")
KNOWN = 6  # names offered where there are no accounts
# A page of ours: nothing from elsewhere, no script but our own files, and no other page may frame it
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; form-action 'self'; frame-ancestors 'none'; "
    "base-uri 'none'"
)
YEAR = 365 * 24 * 3600

_ENVIRONMENT = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).disable("image")
_PART = re.compile(r"^<!--\s*([a-z]{2,8})\s*-->\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Offer:
    """A campaign as its card on the list says it; `name` where another one is about the same concept. `total`: None where there are
    too many to be counted."""

    id: int
    title: str
    name: str
    question: str
    done: int
    total: int | None


def render(request: Request, template: str, status: int = 200, /, **values: Any) -> HTMLResponse:
    """A page in the language of whoever asked. `say` gives a message, with what is filled in escaped."""
    tag = language(request)
    texts = load(tag)

    def say(key: str, /, **given: object) -> Markup:
        return Markup(escape(texts[key])).format(**given)

    page = _ENVIRONMENT.get_template(f"{template}.html").render(
        say=say,
        strong=lambda text: Markup("<b><bdi>{}</bdi></b>").format(text),
        code=lambda text: Markup('<b class="pg-code">{}</b>').format(text),
        language=tag,
        languages=languages(),
        version=__version__,
        path=request.url.path,
        page=PAGE,
        **values,
    )
    return HTMLResponse(page, status, headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-store"})


def notice(request: Request, status: int, key: str, home: bool, /, **given: object) -> HTMLResponse:
    """A page that says one thing."""
    texts = load(language(request))
    text = Markup(escape(texts[f"page.{key}.text"])).format(**given)
    return render(request, "notice", status, title=texts[f"page.{key}.title"], text=text, home=home)


# --- where to ---


def way(engine: Engine, person: Person | Standing, asked: int | None = None) -> str:
    """Where somebody who is signed in goes: to the consent text, to the campaign that was asked for or to their only one, or to the
    list, which says so where the one that was asked for is not open to them."""
    if not person.agreed:
        return "/consent"
    with reading(engine) as session:
        if asked is not None:
            mine = [campaign.id for campaign in campaigns.open_campaigns(session, person.annotator.id)]
            return f"{PAGE}/?campaign={asked}" if asked in mine else f"/work?campaign={asked}"
        mine = [offer.id for offer in offers(session, person.annotator.id)]
    return f"{PAGE}/?campaign={mine[0]}" if len(mine) == 1 else "/work"


def offers(session: Session, annotator_id: int) -> list[Offer]:
    """The open campaigns in which this annotator has done something or can, the latest first."""
    done = campaigns.done_by(session, annotator_id)
    far = [
        (c, done.get(c.id, 0), judging.left(session, c.id, annotator_id)) for c in campaigns.open_campaigns(session, annotator_id)
    ]
    here = [(campaign, did, left) for campaign, did, left in far if did + left]
    times = Counter(campaign.concept for campaign, *_ in here)
    return [
        Offer(
            c.id,
            queries.concept(session, c.concept).title,
            c.name if times[c.concept] > 1 else "",
            c.question,
            did,
            judging.total(did, left),
        )
        for c, did, left in here
    ]


# --- consent ---


def default_consent(session: Session) -> str:
    """The text that comes with the program, in every language, about the concepts of this workspace."""
    titles = ", ".join(concept.title for concept in queries.concepts_list(session))
    parts = []
    for tag in languages():
        texts = load(tag)
        kinds = texts["page.consent.kinds"].format(kinds=titles) if titles else ""
        whom = people.contact(session) or texts["page.consent.nobody"]
        said = [texts[f"page.consent.{about}"].format(kinds=kinds, contact=whom) for about in ABOUT]
        parts.append("\n\n".join((f"<!-- {tag} -->", *said)))
    return "\n\n".join(parts)


def part(body: str, tag: str) -> str:
    """The part of a text in this language, or its first. A part begins with a line such as <!-- ko -->; a text may have none."""
    before, *rest = _PART.split(body)
    parts = dict(zip(rest[::2], rest[1::2], strict=True))
    return parts.get(tag) or next(iter(parts.values()), before)


def offer_consent(identity: Identity) -> None:
    """Where people sign in with a password they are asked for consent: with the program's text until a manager sets another."""
    if not identity.by_account():
        return
    with reading(identity.engine) as session:
        body = default_consent(session)
        known = people.consent_text(session)
    if known is None or known.body != body:
        with writing(identity.engine) as session:
            people.offer_consent_text(session, body)


# --- routes ---


def add_routes(app: FastAPI, identity: Identity) -> None:
    """/, /enter, /leave, /consent, /work, /password, /sign-out-everywhere, /withdraw and /language."""
    engine = identity.engine

    def go(to: str) -> RedirectResponse:
        return RedirectResponse(to, 303)

    def door(request: Request, message: object = "", status: int = 200, name: str = "", asked: int | None = None) -> Response:
        if identity.by_account():
            return render(request, "sign_in", status, message=message, name=name[:80], asked=asked)
        with reading(engine) as session:
            known = people.names(session, KNOWN)
        return render(request, "name", status, message=message, known=known, asked=asked)

    def enter(request: Request, found: Standing, asked: int | None) -> Response:
        offer_consent(identity)
        with reading(engine) as session:
            now = people.standing(session, found.annotator.id) or found
        event("signed_in", who=found.annotator.pseudonym, role=found.role or "manager")
        response = go(way(engine, now, asked))
        identity.sign_in(request, response, found.annotator.id, found.session_version)
        return response

    @app.get("/")
    def front(request: Request, campaign: int | None = None) -> Response:
        person = identity.who(request)
        if person:
            return go(way(engine, person, campaign))
        if identity.only and not identity.by_account():
            with reading(engine) as session:
                found = people.standing(session, identity.only.id)
            if found and not found.withdrawn:
                return enter(request, found, campaign)
        return door(request, asked=campaign)

    @app.post("/enter")
    def sign_in(
        request: Request,
        name: Annotated[str, Form()] = "",
        password: Annotated[str, Form()] = "",
        campaign: Annotated[int | None, Form()] = None,
    ) -> Response:
        texts = load(language(request))
        if not identity.by_account():
            if identity.only:
                return front(request, campaign)
            try:
                with writing(engine) as session:
                    found = people.standing(session, queries.ensure_annotator(session, name).id)
            except (Again, Away):  # not the name's fault, and soon over
                raise
            except HfiError:
                return door(request, texts["page.name.refused"], 400, asked=campaign)
            return enter(request, found, campaign) if found else door(request)
        try:
            return enter(request, people.check_password(engine, name, password), campaign)
        except SignInRefused as e:
            event("sign_in_refused", reason="wrong" if e.wait is None else "wait")  # not whose: a name is none until it is right
            if e.wait is None:
                return door(request, texts["page.sign_in.wrong"], 401, name, campaign)
            answer = door(request, texts["page.sign_in.wait"].format(seconds=e.wait), 429, name, campaign)
            answer.headers["Retry-After"] = str(e.wait)
            return answer

    @app.post("/leave")
    def leave() -> Response:
        response = go("/")
        identity.sign_out(response)
        return response

    @app.post("/sign-out-everywhere")
    def everywhere(request: Request) -> Response:
        person = identity.who(request)
        if person and person.account:
            with writing(engine) as session:
                people.sign_out_everywhere(session, person.annotator.id)
            event("signed_out_everywhere", who=person.annotator.pseudonym)
        return leave()

    @app.get("/consent")
    def consent(request: Request) -> Response:
        person = identity.who(request)
        if person is None or person.agreed:
            return go("/")
        return ask(request, person)

    def ask(request: Request, person: Person, message: str = "") -> Response:
        with reading(engine) as session:
            text = people.consent_text(session)
            before = people.standing(session, person.annotator.id)
        if text is None or before is None:
            return go("/")
        shown = Markup(_MARKDOWN.render(part(text.body, language(request))))
        status = 400 if message else 200
        again = before.agreed_to > 0
        return render(request, "consent", status, text=shown, version_asked=text.version, again=again, message=message)

    @app.post("/consent")
    def agree(request: Request, age: Annotated[str, Form()] = "", version: Annotated[int, Form()] = 0) -> Response:
        person = identity.who(request)
        if person is None:
            return go("/")
        if age != "yes":
            return ask(request, person, load(language(request))["page.consent.unticked"])
        try:
            with writing(engine) as session:
                people.agree(session, person.annotator.id, version)
        except HfiError:  # there is a newer one
            return go("/consent")
        event("consented", who=person.annotator.pseudonym, version=version)
        return go("/")

    def list_work(
        request: Request, person: Person, status: int = 200, done: str = "", message: str = "", missing: bool = False
    ) -> Response:
        with reading(engine) as session:
            found = offers(session, person.annotator.id)
            whom = people.contact(session)
        return render(
            request, "work", status, offers=found, person=person.annotator, account=person.account, contact=whom,
            manager=person.role == "manager", done=done, message=message, missing=missing,
        )  # fmt: skip

    @app.get("/work")
    def work(request: Request, campaign: int | None = None) -> Response:
        person = identity.who(request)
        if person is None or not person.agreed:
            return go("/")
        with reading(engine) as session:
            mine = [c.id for c in campaigns.open_campaigns(session, person.annotator.id)]
        return list_work(request, person, missing=campaign is not None and campaign not in mine)

    @app.post("/password")
    def password(
        request: Request,
        old: Annotated[str, Form()] = "",
        new: Annotated[str, Form()] = "",
        again: Annotated[str, Form()] = "",
    ) -> Response:
        person = identity.who(request)
        if person is None or not person.account:
            return go("/")
        texts = load(language(request))
        if new != again:
            return list_work(request, person, 400, message=texts["page.password.differ"])
        if not people.SHORTEST <= len(new) <= people.LONGEST:
            return list_work(request, person, 400, message=texts["page.password.length"].format(length=len(new)))
        try:
            people.check_password(engine, person.annotator.name, old)
        except SignInRefused as e:
            key = "page.password.wrong" if e.wait is None else "page.sign_in.wait"
            return list_work(request, person, 400, message=texts[key].format(seconds=e.wait))
        with writing(engine) as session:
            people.set_password(session, person.annotator.id, new)
            now = people.standing(session, person.annotator.id)
        event("password_changed", who=person.annotator.pseudonym)
        response = list_work(request, person, done=texts["page.password.done"])
        if now:
            identity.sign_in(request, response, person.annotator.id, now.session_version)
        return response

    @app.get("/withdraw")
    def before(request: Request) -> Response:
        person = identity.who(request)
        return confirm(request, person) if person else go("/")

    def confirm(request: Request, person: Person, message: str = "") -> Response:
        with reading(engine) as session:
            whom = people.contact(session)
        status = 400 if message else 200
        return render(request, "withdraw", status, person=person.annotator, contact=whom, message=message)

    @app.post("/withdraw")
    def withdraw(request: Request, sure: Annotated[str, Form()] = "") -> Response:
        person = identity.who(request)
        if person is None:
            return go("/")
        texts = load(language(request))
        if sure != "yes":
            return confirm(request, person, texts["page.withdraw.unticked"])
        try:
            with writing(engine) as session:
                done = people.withdraw(session, person.annotator.id)
        except HfiError:
            return confirm(request, person, texts["page.withdraw.last"])
        event("withdrawn", who=person.annotator.pseudonym, judgments=done.judgments, comments=done.comments)
        response = notice(request, 200, "withdrawn", False, comments=done.comments, judgments=done.judgments)
        identity.sign_out(response)
        return response

    @app.post("/language")
    def choose(request: Request, to: Annotated[str, Form()] = "", back: Annotated[str, Form()] = "") -> Response:
        response = go(back if back in ("/consent", "/work", "/withdraw") else "/")
        if to in languages():
            response.set_cookie(COOKIE, to, max_age=YEAR, samesite="lax", secure=request.url.scheme == "https")
        return response

    @app.exception_handler(HTTPException)
    async def missing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        reads = "text/html" in request.headers.get("accept", "")
        return (
            notice(request, 404, "missing", True)
            if error.status_code == 404 and reads
            else await http_exception_handler(request, error)
        )

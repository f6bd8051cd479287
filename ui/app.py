"""The server: FastAPI with the Gradio page mounted on it, for the people at this computer.

    /               who is judging? (or, where that is known, on to the page)
    /judge/         the page; Gradio's own routes are below it and refuse whoever has not said who they are
    /api/...        what the page's script asks: the state, a judgment, an undo
    /img/T/P        image P of task T, for the annotator that has it

Only this computer is served (see `local`): there are no accounts yet, so the name given at the start is taken at its word.
"""

from typing import Annotated
from urllib.parse import urlsplit

import gradio as gr
from fastapi import FastAPI, Form, HTTPException, Request
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hfi import __version__
from hfi.errors import HfiError
from hfi.store import queries
from hfi.store.queries import Annotator
from hfi.store.session import Engine, reading, writing
from hfi.workspace import Workspace
from ui import label
from ui.identity import Identity, workspace_secret
from ui.label import ASSETS
from ui.local import local

PAGE = "/judge"
HEAD = f"""<link rel="stylesheet" href="/assets/page.css?v={__version__}">
<script defer src="/assets/label.js?v={__version__}"></script>"""


def build_app(
    workspace: Workspace, engine: Engine, campaign_id: int, *, next_step: str, annotator: Annotator | None = None
) -> FastAPI:
    """The app of one campaign. With `annotator` the page opens as that person; without, it asks for a name first.

    `next_step`: the command that the page names when everything is judged.
    """
    identity = Identity(engine, workspace_secret(workspace), annotator)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, identity=identity)
    app.mount("/assets", StaticFiles(directory=ASSETS))
    app.get("/favicon.ico")(lambda: FileResponse(ASSETS / "icon.svg"))
    app.get("/manifest.json")(lambda: {"name": "hfi"})
    _add_start(app, identity)

    def person(request: Request) -> Annotator:
        found = identity.who(request)
        if found is None:
            raise HTTPException(401, "say who is judging first")
        return found

    label.add_routes(app, engine, workspace.images, person, next_step)

    def signed_in(request: Request) -> str | None:
        person = identity.who(request)
        return person.pseudonym if person else None

    return gr.mount_gradio_app(
        app,
        label.build_page(leave=annotator is None),
        path=PAGE,
        auth_dependency=signed_in,
        theme=gr.themes.Base(primary_hue="teal", neutral_hue="zinc", font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        head=HEAD,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
    )


class Guard:
    """Turns away requests for another host name (a web page that has its name point here) and writes from another web page, and
    sends whoever opens the page without a name to the start."""

    def __init__(self, app: ASGIApp, identity: Identity) -> None:
        self.app, self.identity = app, identity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        request = HTTPConnection(scope)
        answer: Response | None = None
        host = request.headers.get("host", "")
        origin = request.headers.get("origin")
        reads = scope.get("method") in ("GET", "HEAD")
        if not local(urlsplit(f"//{host}").hostname or ""):
            answer = Response("this server answers to the local machine only", 421)
        elif not reads and origin is not None and urlsplit(origin).netloc != host:
            answer = Response("another web page may not judge", 403)
        elif reads and scope["path"].rstrip("/") == PAGE and self.identity.who(request) is None:
            answer = RedirectResponse("/", 303)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["X-Frame-Options"] = "DENY"
                headers["Referrer-Policy"] = "same-origin"  # with none at all, a form's Origin would be "null"
                if scope["path"].startswith("/assets/"):
                    headers["Cache-Control"] = "no-cache"  # asked for anew each time, sent only when changed
            await send(message)

        await (answer or self.app)(scope, receive, send_with_headers)


def _add_start(app: FastAPI, identity: Identity) -> None:
    def start(message: str = "", status: int = 200) -> Response:
        with reading(identity.engine) as session:
            people = [person.name for person in queries.annotators(session) if not person.simulated]
        known = "".join(label.fill("known", name=name) for name in people[-6:])
        page = (ASSETS / "start.html").read_text("utf-8").replace("$known", known)
        return HTMLResponse(page.replace("$message", label.escape(message)), status, headers={"Cache-Control": "no-store"})

    def enter(person: Annotator) -> Response:
        response = RedirectResponse(f"{PAGE}/", 303)
        identity.sign_in(response, person)
        return response

    @app.get("/")
    def front(request: Request) -> Response:
        if identity.only:
            return enter(identity.only)
        return RedirectResponse(f"{PAGE}/", 303) if identity.who(request) else start()

    @app.post("/enter")
    def give_name(name: Annotated[str, Form()] = "") -> Response:
        if identity.only:
            return enter(identity.only)
        try:
            with writing(identity.engine) as session:
                return enter(queries.ensure_annotator(session, name))
        except HfiError as e:
            return start(f"{str(e)[:1].upper()}{str(e)[1:]}.", 400)

    @app.post("/leave")
    def leave() -> Response:
        response = RedirectResponse("/", 303)
        identity.sign_out(response)
        return response

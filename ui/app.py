"""The server: FastAPI with Gradio's pages mounted on it.

    /               sign-in (or, without accounts and on this computer alone: who is judging?), and pages.py's others
    /judge/         the judging page, of ?campaign=ID; Gradio's own routes are below it
    /manage/        the managers' page, in the same way
    /api/...        what the judging page's script asks: the state, a judgment, an undo
    /img/T/P        image P of task T, for the annotator that has it
    /metrics        metrics.py, for whoever has its token

Who may ask what is decided here and in identity.py, from a signed cookie; nothing that a page sends says who is asking.
"""

import re
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

import gradio as gr
from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI, HTTPException, Request
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hfi import __version__, logs
from hfi.store.queries import Annotator
from hfi.store.session import Engine
from hfi.workspace import Workspace
from ui import label, manage, metrics, pages
from ui.identity import Identity, workspace_secret
from ui.label import ASSETS
from ui.local import answers, local
from ui.metrics import Meter
from ui.pages import MANAGE, PAGE
from ui.watch import Watch, broken

HEAD = f"""<link rel="stylesheet" href="/assets/page.css?v={__version__}">
<script defer src="/assets/label.js?v={__version__}"></script>"""
THREADS = 8  # that answer, beside the one that waits for requests; each costs memory, and they do not make Python any faster
LARGEST = 1024 * 1024  # bytes of a request, but for what managers upload
# Gradio's pages bring scripts and styles of their own in the page, and make functions from texts; all of it from this server
GRADIO_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'self'"
)
_GRADIO = f"({PAGE}|{MANAGE})"
_FILES = re.compile(rf"{_GRADIO}/(assets/|static/|svelte/|theme\.css$|gradio_api/theme\.css$|favicon\.ico$|manifest\.json$)")
# What the judging page needs of Gradio's routes. Not among them: files and uploads, which people could leave for one another, and
# handlers, as it has none
_NEEDED = re.compile(rf"{PAGE}(/|/config/?|/gradio_api/(info|startup-events|app_id|heartbeat/[^/]+))?")


def build_app(
    workspace: Workspace,
    engine: Engine,
    *,
    host: str = "127.0.0.1",
    names: Collection[str] = (),
    only: Annotator | None = None,
    metrics_token: str = "",
) -> FastAPI:
    """The app of a workspace, for a server that listens on `host`, and that may be called by other `names` as well.

    People sign in with accounts, unless there is none and the server is for this computer alone; then whoever gives a name is let in,
    or, with `only`, nobody but that annotator. `metrics_token` opens /metrics to whoever has it; without one there is no such page.
    """
    identity = Identity(engine, workspace_secret(workspace), only, closed=not local(host) or bool(names))
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, identity=identity, host=host, names={name.lower() for name in names})
    meter = Meter(engine) if metrics_token else None
    if meter or logs.logging_json():
        app.add_middleware(Watch, count=meter.request if meter else None)
    if meter:
        metrics.add_route(app, meter, metrics_token)
    app.mount("/assets", StaticFiles(directory=ASSETS))
    app.get("/favicon.ico")(lambda: FileResponse(ASSETS / "icon.svg"))
    app.get("/manifest.json")(lambda: {"name": "hfi"})
    app.add_exception_handler(Exception, broken)
    pages.offer_consent(identity)
    pages.add_routes(app, identity)
    next_step = "" if identity.by_account() else "hfi reward --concept {concept}"
    label.add_routes(app, engine, workspace.images, judges(identity), next_step, meter)
    mount(app, label.build_page(leave=only is None), PAGE, judging_name(identity), HEAD)
    manage.add_routes(app, workspace, engine, identity.who)
    mount(app, manage.build_manage(workspace, engine, identity.who), MANAGE, managing_name(identity), manage.HEAD)
    return app


def mount(app: FastAPI, blocks: gr.Blocks, path: str, allowed: Callable[[Request], str | None], head: str) -> None:
    """Puts a Gradio page at `path`, for those whom `allowed` gives a name, which its handlers find in `gr.Request.username`."""
    gr.mount_gradio_app(
        app,
        blocks,
        path=path,
        auth_dependency=allowed,
        theme=gr.themes.Base(primary_hue="teal", neutral_hue="zinc", font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        head=head,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
    )


# --- who may ask ---


def judges(identity: Identity) -> Callable[[Request], Annotator]:
    """A dependency: the one who judges. 401 for somebody who is not signed in, or has yet to agree; the page then goes to /, which
    knows what is missing."""

    def person(request: Request) -> Annotator:
        found = identity.who(request)
        if found is None:
            raise HTTPException(401, "sign in first")
        if not found.agreed:
            raise HTTPException(401, "agree to the consent text first")
        return found.annotator

    return person


def judging_name(identity: Identity) -> Callable[[Request], str | None]:
    """The pseudonym of whoever may judge, for `mount`."""

    def name(request: Request) -> str | None:
        found = identity.who(request)
        return found.annotator.pseudonym if found and found.agreed else None

    return name


def managing_name(identity: Identity) -> Callable[[Request], str | None]:
    """The pseudonym of a manager, for `mount`."""

    def name(request: Request) -> str | None:
        found = identity.who(request)
        return found.annotator.pseudonym if found and found.role == "manager" else None

    return name


class Guard:
    """What holds for every request.

    Turned away are requests for another host's name (a web page elsewhere that has its name point here), writes from another web page,
    and large ones. Gradio's routes, some of which ask nobody who they are, are for those who may judge or manage, and of the judging
    page only those that it needs. Answers say that nothing may be kept, framed or loaded from elsewhere.
    """

    def __init__(self, app: ASGIApp, identity: Identity, host: str, names: Collection[str]) -> None:
        self.app, self.identity, self.host, self.names = app, identity, host, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            current_default_thread_limiter().total_tokens = THREADS
            return await self.app(scope, receive, send)
        request = HTTPConnection(scope)
        path = scope["path"]
        answer = self._foreign(request)
        if answer is None and re.match(rf"{_GRADIO}(/|$)", path) and not _FILES.match(path):
            answer = await run_in_threadpool(self._gradio, request)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["X-Frame-Options"] = "DENY"
                headers["Referrer-Policy"] = "same-origin"  # with none at all, a form's Origin would be "null"
                headers.setdefault("Content-Security-Policy", GRADIO_POLICY)
                if path.startswith("/assets/"):
                    headers["Cache-Control"] = "no-cache"  # asked for anew each time, sent only when changed
                elif not _FILES.match(path):
                    headers.setdefault("Cache-Control", "no-store")
                if not any(value.startswith(f"{self.identity.cookie}=") for value in headers.getlist("set-cookie")):
                    renewed = Response()
                    self.identity.renew(request, renewed)
                    for value in renewed.headers.getlist("set-cookie"):
                        headers.append("set-cookie", value)
            await send(message)

        await (answer or self.app)(scope, receive, send_with_headers)

    def _foreign(self, request: HTTPConnection) -> Response | None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if not answers(host, self.host, self.names):
            return Response("this server does not answer to that name: start it with --allow-host to have it do so", 421)
        if request.scope.get("method") in ("GET", "HEAD"):
            return None
        if origin is not None and _netloc(origin) != host:
            return Response("another web page may not write here", 403)
        length = request.headers.get("content-length", "")
        if not request.scope["path"].startswith(f"{MANAGE}/") and (
            "transfer-encoding" in request.headers or (length.isdecimal() and int(length) > LARGEST)
        ):
            return Response(f"this is too much: send at most {LARGEST:,} bytes", 413)
        return None

    def _gradio(self, request: HTTPConnection) -> Response | None:
        """What to answer for a route of a Gradio page in its place."""
        path = request.scope["path"]
        opens = request.scope.get("method") in ("GET", "HEAD") and path.rstrip("/") in (PAGE, MANAGE)
        person = self.identity.who(request)
        if person is None:
            return RedirectResponse("/", 303) if opens else Response("sign in first", 401)
        if path.startswith(MANAGE):
            if person.role == "manager":
                return None
            name = person.annotator.name
            return (
                pages.notice(Request(request.scope), 403, "refused", True, name=name) if opens else Response("for managers", 403)
            )
        if not person.agreed:
            return RedirectResponse("/consent", 303) if opens else Response("agree to the consent text first", 401)
        if not _NEEDED.fullmatch(path):
            return Response("not found", 404)
        if opens:
            asked = request.query_params.get("campaign", "")
            to = pages.way(self.identity.engine, person, int(asked) if re.fullmatch("[0-9]{1,9}", asked) else None)
            if to != f"{PAGE}/?campaign={asked}":
                return RedirectResponse(to, 303)
        return None


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""

"""What the managers' pages load beside Gradio: images, reports and logs, each for managers alone."""

import io
from typing import Annotated

from anyio import to_thread
from fastapi import FastAPI, HTTPException, Path, Request
from starlette.responses import FileResponse, PlainTextResponse, Response

from hfi import jobs
from hfi.errors import HfiError, NotFound
from hfi.store import jobs as table
from hfi.store import queries
from hfi.store.session import Engine, reading
from hfi.workspace import Workspace
from ui.manage.office import NOT_YOURS, Office, Who
from ui.pictures import threads

PRIVATE = {"Cache-Control": "private, no-store", "X-Content-Type-Options": "nosniff"}
# a report is a page of its own, which may neither run a script nor speak to this server in the manager's name
SANDBOX = {"Content-Security-Policy": "sandbox allow-popups; default-src 'none'; img-src data:; style-src 'unsafe-inline'"}


def add_routes(app: FastAPI, workspace: Workspace, engine: Engine, who: Who) -> None:
    """/manage-img/TOKEN, /manage-report/COMMAND/RUN and /manage-log/JOB; `who` as for `build_manage`."""
    office, looking = Office(workspace, engine, who), threads(workspace.images)

    def check(request: Request) -> None:
        if office.manager(request) is None:
            raise HTTPException(403, NOT_YOURS)

    @app.get("/manage-img/{token}")
    async def image(request: Request, token: str) -> Response:
        def found() -> bytes:
            check(request)
            return image_bytes(office, token)

        try:
            data = await to_thread.run_sync(found, limiter=looking)
            return Response(data, media_type="image/png", headers=PRIVATE)
        except NotFound as e:
            raise HTTPException(404, str(e)) from None
        except HfiError as e:  # lost from the store, or damaged there
            raise HTTPException(410, str(e)) from None

    @app.get("/manage-report/{command}/{run}")
    def report(request: Request, command: str, run: str) -> Response:
        check(request)
        path = jobs.report_of(workspace, command, run)
        if path is None:
            raise HTTPException(404, "there is no such report")
        return FileResponse(path, media_type="text/html", headers={**PRIVATE, **SANDBOX})

    @app.get("/manage-log/{job}")
    def log(request: Request, job: Annotated[int, Path(ge=1, lt=2**31)]) -> Response:
        check(request)
        try:
            with reading(engine) as s:
                file = jobs.folder_of(workspace, table.job(s, job)) / "log.txt"
            return PlainTextResponse(file.read_text(encoding="utf-8", errors="replace"), headers=PRIVATE)
        except (NotFound, OSError):
            raise HTTPException(404, "there is no such log") from None


def image_bytes(office: Office, token: str) -> bytes:
    """PNG bytes of the image that a token names, encoded anew, so without metadata. NotFound for a token that names none."""
    image_id = office.image_id(token)
    with reading(office.engine) as s:
        sha = queries.image(s, image_id).sha256 if image_id is not None else None
    if sha is None:
        raise NotFound("this image is not known here: reload the page")
    buffer = io.BytesIO()
    office.workspace.images.load(sha).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()

"""What is noted of each request, for logs and metrics, where either is asked for.

Around everything else, so that requests which are turned away are seen too. Of a request its method, the template of its route, its
status, its time and who sent it (pseudonym and role) are noted; its path, query, headers, body and address are not.
"""

import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hfi import logs
from ui.identity import seen
from ui.pages import MANAGE, PAGE, notice

HEADER = "X-Request-ID"
KEY = "hfi.request"  # in a request's scope: its id
INSTEAD = "hfi.status"  # in a request's scope: statuses, the last for a 500, which is Gradio's answer to any mistake
_PAGES = (PAGE, MANAGE, "/assets")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

Count = Callable[[str, str, int, float], None]  # method, route, status, seconds


class Watch:
    """Gives every request an id, which its answer has as a header, and notes how it went."""

    def __init__(self, app: ASGIApp, count: Count | None = None) -> None:
        self.app, self.count = app, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status, number = time.perf_counter(), 500, secrets.token_hex(8)
        scope[KEY] = number
        instead: list[int] = []
        scope[INSTEAD] = instead
        logs.request_id.set(number)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                if message["status"] == 500 and instead:
                    message["status"] = instead[-1]
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = number
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:  # an error goes on to Starlette's outermost layer, which answers, and to the server, which logs it
            seconds = time.perf_counter() - began
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = template(scope)
            person = seen(scope)
            who = {"who": person.annotator.pseudonym, "role": person.role} if person else {}
            logs.event("request", method=method, route=route, status=status, ms=round(1000 * seconds, 1), **who)
            if self.count:
                self.count(method, route, status, seconds)


def noted(scope: Mapping[str, Any]) -> str:
    """What to say of an error of ours, and under which id it is logged, if it is."""
    return f"this went wrong on the server, and is noted there{f' as {scope[KEY]}' if KEY in scope else ''}"


async def broken(request: Request, error: Exception) -> Response:
    """The answer to a request that failed. Starlette raises the error again afterwards, so that the server logs it."""
    number = request.scope.get(KEY, "")
    reads = "text/html" in request.headers.get("accept", "")
    answer: Response
    if reads:
        answer = notice(request, 500, "broken", True, number=f" ({number})" if number else "")
    else:
        answer = JSONResponse({"detail": noted(request.scope)}, 500)
    if number:
        answer.headers[HEADER] = number
    return answer


def template(scope: Scope) -> str:
    """The route that answered, with names in the place of values: /img/{token}/{position}. '/judge/...' where none answered below a
    page of ours (a file, or a request that was turned away), 'none' elsewhere."""
    route: Any = scope.get("route")
    path = getattr(route, "path_format", None)
    if path is None:
        return next((f"{page}/..." for page in _PAGES if f"{scope['path']}/".startswith(f"{page}/")), "none")
    root = scope.get("root_path", "") if scope.get("root_path") != scope.get("app_root_path", "") else ""
    return f"{root}{path}" or "/"

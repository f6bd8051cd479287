"""What every handler of the managers' pages goes through: it runs for a manager, and for nobody else.

Gradio runs a handler for whoever calls it by its number, whatever the page shows, so the role is looked up in every single call.
"""

import hashlib
import hmac
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from starlette.requests import Request

from hfi import logs
from hfi.dashboard import Watch
from hfi.errors import HfiError
from hfi.store.queries import Annotator
from hfi.store.session import Engine
from hfi.workspace import Workspace
from ui.identity import workspace_secret
from ui.watch import INSTEAD, KEY, noted

Who = Callable[
    [Any], Any
]  # an HTTP request -> whoever sent it, with `annotator` and `role` (`ui.identity.Person`); None for nobody
NOT_YOURS = "Only managers may do this: sign in as one."
MOST_WATCHES = 8
SPARING = 20  # a look at all judgments of a campaign takes one part in so many of a processor's time, however many managers look
_LOG = logging.getLogger("hfi.ui")


@dataclass
class Look:
    """What was found at the last look, and until when that is new enough."""

    text: str = ""
    until: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class Office:
    """A workspace, and how to tell who asks."""

    workspace: Workspace
    engine: Engine
    who: Who
    _watches: dict[int, Watch] = field(default_factory=dict)
    _looks: dict[int, Look] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def manager(self, request: gr.Request | Request) -> Annotator | None:
        """The manager who sent the request, None where it was not sent by one."""
        person = self.who(request.request if isinstance(request, gr.Request) else request)
        return person.annotator if person is not None and person.role == "manager" else None

    def only(self, handle: Callable[..., Any]) -> Callable[..., Any]:
        """A handler for Gradio from `handle(annotator, *values)`. What a user can mend comes up as a note on the page (manage.js), and
        is no error of the server's in its log and its metrics."""

        def checked(request: gr.Request, *values: Any) -> Any:
            scope = request.request.scope if request.request else {}
            logs.request_id.set(scope.get(KEY, ""))  # Gradio runs this in a task of its own
            person = self.manager(request)
            mistakes: list[int] = scope.get(INSTEAD, [])
            if person is None:
                mistakes.append(403)
                raise gr.Error(NOT_YOURS, print_exception=False)
            try:
                return handle(person, *values)
            except HfiError as e:
                mistakes.append(422)
                raise gr.Error(sentence(e), print_exception=False) from None
            except Exception:
                _LOG.exception("a handler of the managers' page failed")
                raise gr.Error(sentence(noted(scope)), print_exception=False) from None

        checked.__name__ = getattr(handle, "__name__", "handle")
        return checked

    def when(self, trigger: Any, handle: Callable[..., Any], inputs: Any = None, outputs: Any = None, **more: Any) -> Any:
        """Has `handle` run when something happens; `trigger` is a component's event, or a list of them. Past Gradio's queue, whose one
        stream of answers is closed after the last: an answer to what was asked just then never comes. Its page shows the notes about
        mistakes for queued calls alone, so manage.js does."""
        settings: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private", **more}
        if isinstance(trigger, list):
            return gr.on(trigger, self.only(handle), inputs, outputs, **settings)
        return trigger(self.only(handle), inputs, outputs, **settings)

    def follow(self, trigger: Any, handle: Callable[..., Any], inputs: Any = None, outputs: Any = None) -> Any:
        """`when`, for what shows what is chosen: what is chosen while an answer is on its way is looked at after it. By itself Gradio
        drops it, and the page shows what was chosen before."""
        return self.when(trigger, handle, inputs, outputs, trigger_mode="always_last")

    def watch(self, campaign_id: int) -> Watch:
        """The one for this campaign, kept between looks."""
        with self._lock:
            found = self._watches.pop(campaign_id, None) or Watch(campaign_id)
            self._watches[campaign_id] = found
            while len(self._watches) > MOST_WATCHES:
                del self._watches[next(iter(self._watches))]
            return found

    def sparing(self, campaign_id: int, look: Callable[[], str]) -> str:
        """What `look` finds of a campaign, or found before: it is called again once as much time has passed as `SPARING` of its calls
        take. Whoever asks meanwhile gets what there is, and waits only for the first."""
        with self._lock:
            last = self._looks.pop(campaign_id, None) or Look()
            self._looks[campaign_id] = last
            while len(self._looks) > MOST_WATCHES:
                del self._looks[next(iter(self._looks))]
        if time.monotonic() < last.until or not last.lock.acquire(blocking=not last.text):
            return last.text
        try:
            began = time.monotonic()
            if began >= last.until:
                last.text = look()
                last.until = began + SPARING * (time.monotonic() - began)
            return last.text
        finally:
            last.lock.release()

    def token(self, image_id: int) -> str:
        """What names an image towards a manager's browser."""
        return f"{image_id}-{self._signature(image_id)}"

    def image_id(self, token: str) -> int | None:
        """The image that a token names, None for a token that was not given out here."""
        number, _, signature = token.partition("-")
        if not (number.isascii() and number.isdecimal() and len(number) < 19):
            return None
        right = hmac.compare_digest(signature.encode(), self._signature(int(number)).encode())
        return int(number) if right else None

    def _signature(self, image_id: int) -> str:
        secret = hashlib.sha256(b"manage images " + workspace_secret(self.workspace)).digest()
        return hmac.new(secret, str(image_id).encode(), hashlib.sha256).hexdigest()[:32]


def sentence(error: object) -> str:
    """An error's line as a sentence."""
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."

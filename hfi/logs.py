"""What happens, on stderr: nothing of it unless asked for, then one JSON object a line.

    HFI_LOG=json, or hfi --log json COMMAND     events of commands and of the labeling server, progress, errors
    HFI_PROGRESS=json                           progress and errors alone; so has --json, where stderr is no terminal

Each line has `time` (UTC), `event`, and what belongs to it; docs/operating.md lists them. A line says who by pseudonym, never by name.
A line about a request says of an error what kind it is and where in the program it happened, and not its message: messages hold what
people sent.
"""

import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hfi.errors import UsageError

LOG, PROGRESS = "HFI_LOG", "HFI_PROGRESS"
request_id: ContextVar[str] = ContextVar("hfi.request_id", default="")  # of the request that is being answered, "" outside of any
_EVENTS = logging.getLogger("hfi.events")


def check() -> None:
    """UsageError where HFI_PROGRESS asks for what there is not; HFI_LOG is read as the option --log."""
    if os.environ.get(PROGRESS, "") not in ("", "json"):
        raise UsageError(f"{PROGRESS} is {os.environ[PROGRESS]!r}: choose json, or leave it unset")


def logging_json() -> bool:
    return os.environ.get(LOG) == "json"


def telling_json() -> bool:
    """Whether progress and errors are lines of JSON."""
    return logging_json() or os.environ.get(PROGRESS) == "json"


def plain_environment() -> dict[str, str]:
    """The environment without any of this: for a process whose output people read."""
    return {name: value for name, value in os.environ.items() if name not in (LOG, PROGRESS)}


@contextmanager
def of_one_command(words: Sequence[str]) -> Iterator[None]:
    """What is asked for, by the environment or by these words, holds for the commands that this one starts, and ends with it."""
    before = {name: os.environ.get(name) for name in (LOG, PROGRESS)}
    if "--json" in words and not sys.stderr.isatty():
        os.environ[PROGRESS] = "json"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        switch_off()


def switch_on() -> None:
    """Has everything that is logged from here on, by hfi and by its libraries, come as lines of JSON; libraries' from warnings up."""
    os.environ[LOG] = "json"
    root = logging.getLogger()
    if _HANDLER not in root.handlers:
        root.addHandler(_HANDLER)
        logging.captureWarnings(True)
    _EVENTS.setLevel(logging.INFO)


def switch_off() -> None:
    logging.getLogger().removeHandler(_HANDLER)
    logging.captureWarnings(False)
    _EVENTS.setLevel(logging.NOTSET)


def event(name: str, /, **about: Any) -> None:
    """Logs an event, if events are logged."""
    if _EVENTS.isEnabledFor(logging.INFO):
        _EVENTS.info(name, extra={"about": about})


def line(name: str, /, **about: Any) -> str:
    """An event as a line of JSON, without its end."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"time": now, "event": name, **about}, default=str)


def tell(name: str, /, *, level: str = "info", **about: Any) -> None:
    """Prints an event on stderr, whatever is logged."""
    write(line(name, level=level, **about))


def write(text: str) -> None:
    """A line on stderr, in one piece. With PYTHONUNBUFFERED, usual in containers, print writes the end of a line apart, and another
    process of the run may write in between."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class _Stderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            write(self.format(record))
        except OSError:  # whoever read it is gone; the work goes on
            pass
        except Exception:
            self.handleError(record)


class Lines(logging.Formatter):
    """A record as a line of JSON: an event of ours, or what a library says, as the event 'log'."""

    def format(self, record: logging.LogRecord) -> str:
        about: Mapping[str, Any] | None = getattr(record, "about", None)
        request = request_id.get()
        found: dict[str, Any] = {"level": record.levelname.lower()}
        if request:
            found["request"] = request
        if about is None:  # within a request without its values, as they may be somebody's
            message = str(record.msg) if request else record.getMessage()
            found |= {"logger": record.name, "message": message.strip()}
        if record.exc_info and record.exc_info[1]:
            found |= error(record.exc_info[1], message=not request)
        return line("log" if about is None else record.getMessage(), **found, **(about or {}))


def error(e: BaseException, *, message: bool) -> dict[str, Any]:
    """What kind of error it is, where it happened, what led to it, and what it says, where that may be told."""
    chain: list[BaseException] = []
    next_one: BaseException | None = e
    while next_one is not None and next_one not in chain:
        chain.append(next_one)
        next_one = next_one.__cause__ or (None if next_one.__suppress_context__ else next_one.__context__)
    at = [f"{_place(frame.filename)}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(e.__traceback__)]
    found: dict[str, Any] = {"error": " from ".join(type(one).__name__ for one in chain), "traceback": at}
    return {**found, "message": str(e)} if message else found


def _place(file: str) -> str:
    """A file of a program from its package on: hfi/store/judging.py."""
    parts = Path(file).parts
    for root in ("site-packages", *(name for name in ("hfi", "ui") if name in parts)):
        if root in parts:
            at = len(parts) - 1 - parts[::-1].index(root)
            return "/".join(parts[at + (root == "site-packages") :])
    return Path(file).name


_HANDLER = _Stderr()
_HANDLER.setFormatter(Lines())

"""Progress of long work on stderr: a bar with a rate and a time left on a terminal, a line now and then elsewhere, or, for scripts,
a JSON object a line (see `hfi.logs`)."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hfi.distributed import is_main
from hfi.logs import tell, telling_json, write

_EVERY = 10.0  # seconds between two lines where there is no terminal
_EVERY_JSON = 2.0

Advance = Callable[[int, str], None]  # how many more are done, and a short note such as "loss 0.123"


@contextmanager
def progress(description: str, total: int, unit: str = "it", done: int = 0) -> Iterator[Advance]:
    """Yields advance(n, note). `done` are those that an earlier run finished; they do not count for the rate."""
    if not is_main():  # of several processes at one run, one shows how far they are
        yield lambda n, note: None
        return
    how = _json if telling_json() else _bar if sys.stderr.isatty() else _lines
    with how(description, total, unit, done) as advance:
        yield advance


def _rate(rate: float, unit: str) -> str:
    return f"{1 / rate:.0f} s/{unit.removesuffix('s')}" if 0 < rate < 0.1 else f"{rate:.1f} {unit}/s"


def _left(seconds: float) -> str:
    return f"{seconds:.0f} s left" if seconds <= 120 else f"{seconds / 60:.0f} min left"


@contextmanager
def _bar(description: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("[dim]{task.fields[note]}"),
    )
    start, count = time.monotonic(), done
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, completed=done, rate="", note="")

        def advance(n: int, note: str = "") -> None:
            nonlocal count
            count += n
            rate = (count - done) / max(time.monotonic() - start, 1e-9)
            bar.update(task, advance=n, note=note, rate=_rate(rate, unit))

        yield advance


@contextmanager
def _lines(description: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    start = last = time.monotonic()
    count = done

    def say(note: str) -> None:
        seconds = time.monotonic() - start
        rate = (count - done) / max(seconds, 1e-9)
        left = _left((total - count) / rate) if rate > 0 and count < total else ""
        parts = (f"{description}: {count}/{total}", _rate(rate, unit), left, note)
        write(", ".join(part for part in parts if part))

    def advance(n: int, note: str = "") -> None:
        nonlocal count, last
        count += n
        if time.monotonic() - last >= _EVERY:
            last = time.monotonic()
            say(note)

    yield advance
    say("")


@contextmanager
def _json(description: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    """At the start, every two seconds, and at the end. `rate`: units a second; `seconds_left`: null while nothing is known."""
    start = last = time.monotonic()
    count = done

    def say(note: str) -> None:
        rate = (count - done) / max(time.monotonic() - start, 1e-9)
        left = round((total - count) / rate, 1) if rate > 0 else None
        about: dict[str, Any] = {"what": description, "done": count, "total": total, "unit": unit}
        tell("progress", **about, rate=round(rate, 4), seconds_left=left, note=note)

    def advance(n: int, note: str = "") -> None:
        nonlocal count, last
        count += n
        if time.monotonic() - last >= _EVERY_JSON:
            last = time.monotonic()
            say(note)

    say("")
    yield advance
    say("")

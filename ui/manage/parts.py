"""Pieces of HTML, and numbers in words. Everything that comes from people or files is escaped here."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from typing import Any

import gradio as gr

from hfi.metrics import Interval
from hfi.store.queries import now_utc


class Html(str):
    """Text that is HTML already."""


def e(value: object) -> str:
    """As HTML: escaped, unless it is `Html` already."""
    return value if isinstance(value, Html) else escape(str(value))


def panel(elem_id: str, **more: Any) -> gr.HTML:
    """An empty place for HTML that a handler fills."""
    return gr.HTML("", elem_id=elem_id, js_on_load=None, apply_default_css=False, **more)


def heading(title: str, words: str = "") -> gr.HTML:
    line = f"<p>{escape(words)}</p>" if words else ""
    return gr.HTML(f'<div class="m-heading"><h2>{escape(title)}</h2>{line}</div>', js_on_load=None, apply_default_css=False)


def pct(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def share(found: Interval) -> Html:
    """'83 % of 24', with its 95 % interval in small print."""
    if found.value is None or found.low is None or found.high is None:
        return Html('<span class="m-dim">–</span>')
    bounds = f"{100 * found.low:.0f}–{100 * found.high:.0f} %"
    return Html(f'{pct(found.value)} <small title="95 % interval">{bounds}, n = {found.n}</small>')


def card(title: str, value: object, note: object = "", *, part: float | None = None) -> Html:
    """A figure with its name; with `part`, a bar below it."""
    line = bar(part) if part is not None else ""
    return Html(
        f'<div class="m-card"><div class="m-card-title">{e(title)}</div><div class="m-card-value">{e(value)}</div>{line}'
        f'<div class="m-card-note">{e(note)}</div></div>'
    )


def bar(part: float | None, kind: str = "") -> Html:
    width = 100 * min(max(part or 0.0, 0.0), 1.0)
    return Html(f'<div class="m-bar {kind}" role="img" aria-label="{width:.0f} %"><i style="width:{width:.1f}%"></i></div>')


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str, name: str, numbers: Iterable[int] = ()) -> Html:
    """A table that scrolls on narrow screens; `numbers` are the columns that stand to the right."""
    right = set(numbers)
    found = list(rows)
    if not found:
        return note(empty)

    def cells(tag: str, values: Sequence[object]) -> str:
        return "".join(f"<{tag}{' class=m-n' if i in right else ''}>{e(v)}</{tag}>" for i, v in enumerate(values))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in found)
    head = f"<thead><tr>{cells('th', heads)}</tr></thead>"
    return Html(
        f'<div class="m-scroll" tabindex="0" role="group" aria-label="{escape(name)}"><table class="m-table">{head}<tbody>{body}'
        "</tbody></table></div>"
    )


def note(words: str, kind: str = "") -> Html:
    return Html(f'<p class="m-note {kind}">{e(words)}</p>')


def section(title: str, *parts: str) -> Html:
    return Html(f'<section class="m-section"><h3>{escape(title)}</h3>{"".join(e(part) for part in parts)}</section>')


def join(*parts: str) -> str:
    return "".join(e(part) for part in parts)


def plural(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def duration(hours: float) -> str:
    """'35 min', '3 h 10 min', '4 days'."""
    minutes = round(60 * hours)
    if minutes < 1:
        return "under a minute"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"
    return f"{minutes / 1440:.0f} days"


def ago(when: datetime, now: datetime | None = None) -> str:
    hours = ((now or now_utc()) - when).total_seconds() / 3600
    return "just now" if hours < 1 / 60 else f"{duration(hours)} ago"


def chip(words: str, kind: str = "") -> Html:
    return Html(f'<span class="m-chip {kind}">{e(words)}</span>')


def hidden_image(src: str, alt: str) -> Html:
    """A picture that is blurred until it is pointed at, or revealed."""
    return Html(f'<span class="m-cover"><img src="{escape(src)}" alt="{escape(alt)}" loading="lazy" draggable="false"></span>')

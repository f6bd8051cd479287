"""How a campaign goes, as it goes: progress, pace, agreement, everybody's part in it, and who has seen how much."""

import time
from datetime import datetime
from typing import Any

import gradio as gr

from hfi.dashboard import Agreed, Numbers, Person, Side, numbers
from hfi.errors import UsageError
from hfi.store import overview
from hfi.store.overview import Exposure, Filling
from hfi.store.queries import now_utc
from hfi.store.session import reading
from ui.manage.office import SPARING, Office
from ui.manage.parts import Html, ago, bar, card, chip, duration, e, join, note, panel, pct, plural, section, share, table

EVERY = 5.0  # seconds between two looks
QUESTIONS = {"binary": "Shows it or not", "ranking": "Ranking", "compare": "Before and after"}


def build(office: Office, page: gr.Blocks, tab: gr.Tab, others: list[gr.Tab]) -> None:
    campaign = campaign_choice("m-watch-campaign")
    live = panel("m-live")
    nothing = note("There is no campaign yet. Make one under “Campaigns”.", "m-empty")
    timer = gr.Timer(EVERY)

    def look(person: Any, campaign_id: str | None) -> str:
        chosen = number(campaign_id)
        return office.sparing(chosen, lambda: found(chosen)) if chosen else nothing

    def found(campaign_id: int) -> str:
        began = time.monotonic()
        with reading(office.engine) as s:
            fillings = overview.fillings(s, campaign_id)
            if not fillings:
                return nothing
            now = now_utc()
            figures = numbers(s, fillings[0], now, office.watch(campaign_id))
            seen = overview.exposure(s, now.replace(hour=0, minute=0, second=0, microsecond=0))
        return dashboard(figures, seen, now, SPARING * (time.monotonic() - began))

    def begin(person: Any, campaign_id: str | None) -> tuple[Any, str, Any]:
        choices = campaign_choices(office)
        known = [value for _, value in choices]
        chosen = campaign_id if campaign_id in known else next(iter(known), None)
        return gr.Dropdown(choices=choices, value=chosen), look(person, chosen), gr.Timer(active=True)

    office.when(page.load, begin, campaign, [campaign, live, timer])
    office.follow(tab.select, begin, campaign, [campaign, live, timer])
    office.when([other.select for other in others], lambda person: gr.Timer(active=False), None, timer)
    office.when(timer.tick, look, campaign, live)
    office.follow(campaign.input, look, campaign, live)


def campaign_choice(elem_id: str) -> gr.Dropdown:
    return gr.Dropdown([], label="Campaign", elem_id=elem_id, allow_custom_value=True, elem_classes="m-choice")


def campaign_choices(office: Office, *questions: str) -> list[tuple[str, str]]:
    """(what to read, number) of the campaigns with one of these questions: those that are open and not full first, then the latest."""
    with reading(office.engine) as s:
        found = [c for c in overview.fillings(s) if not questions or c.question in questions]
    found.sort(key=lambda c: (c.state != "open", c.full == c.tasks))
    return [(f"{c.title}: {c.name}{'' if c.state == 'open' else ' (closed)'}", str(c.id)) for c in found]


def number(given: object) -> int | None:
    """A number that a browser sent; None for anything else."""
    text = str(given)
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def needed(given: object, otherwise: str) -> int:
    """The number of what somebody chose from a list. UsageError, in these words, where nothing is chosen."""
    found = number(given)
    if found is None:
        raise UsageError(otherwise)
    return found


def dashboard(figures: Numbers, seen: list[Exposure], now: datetime, again: float) -> str:
    """`again`: seconds until there are new figures."""
    filling, people = figures.filling, figures.people
    parts = [_head(filling), _cards(figures)]
    if again > 2 * EVERY:
        parts.append(note(f"Of so many judgments there are new figures every {again:.0f} s."))
    parts.append(section("People", _persons(people, filling)))
    if people.persons and filling.question == "binary":
        parts.append(_legend())
    if figures.simulated.persons:
        words = f"{plural(figures.simulated.judgments, 'judgment')}; {_agreement_line(figures.simulated.agreed)}."
        parts.append(
            section("Simulated annotators", note(f"Never mixed with people. {words}"), _persons(figures.simulated, filling))
        )
    parts.append(section("What people have looked at", _exposure(seen, now)))
    return join(*parts)


def _head(c: Filling) -> Html:
    facts = [QUESTIONS[c.question], f"{plural(c.overlap, 'person', 'people')} each"]
    if c.extra_votes:
        facts.append(f"{c.extra_votes} more where they differ")
    if c.gold:
        facts.append(f"{plural(c.gold, 'gold image')}" + (f", about 1 in {c.gold_every}" if c.gold_every else ", not asked"))
    if c.benign:
        facts.append(plural(c.benign, "benign image"))
    facts.append("named people only" if c.access == "named" else "everybody may judge")
    state = chip("open", "m-good") if c.state == "open" else chip("closed")
    return Html(f'<p class="m-facts">{state} {" · ".join(e(fact) for fact in facts)}</p>')


def _cards(figures: Numbers) -> Html:
    c, people = figures.filling, figures.people
    full = c.full / c.tasks if c.tasks else 0.0
    left = "done" if c.tasks and c.full == c.tasks else "nobody is judging now"
    if figures.hours_left and c.full < c.tasks:
        left = f"about {duration(figures.hours_left)} left at this pace"
    given = sum(people.verdicts.values())
    said = {verdict: people.verdicts.get(verdict, 0) / given if given else None for verdict in ("unsure", "skip", "disturbing")}
    cards = [
        card("Tasks full", f"{c.full:,} of {c.tasks:,}", f"{c.answers:,} of {c.wanted:,} answers", part=full),
        card("Pace", f"{figures.hourly:,.0f} an hour" if figures.hourly is not None else "–", left),
        card("Agreement of people", *_agreement(people.agreed)),
        card(
            "No answer",
            pct(sum(filter(None, said.values())) if given else None),
            f"{pct(said['unsure'])} unsure, {pct(said['skip'])} skipped, {pct(said['disturbing'])} too disturbing",
        ),
    ]
    if c.gold:
        right = people.gold
        cards.append(card("Gold", pct(right.value), f"right, of {plural(right.n, 'answer')}"))
    return Html(f'<div class="m-cards">{"".join(cards)}</div>')


def _agreement(found: Agreed) -> tuple[str, str]:
    if found.raw is None:
        return "–", f"not enough overlap to say: {found.units:,} judged twice or more"
    if found.alpha is None:
        return "all the same", f"{found.units:,} judged twice or more"
    word = "good" if found.alpha >= 0.8 else "tentative" if found.alpha >= 0.667 else "low: look at the guideline"
    return f"α {found.alpha:.2f}", f"{found.low:.2f} to {found.high:.2f}, {word}; {pct(found.raw)} of pairs agree"


def _agreement_line(found: Agreed) -> str:
    value, words = _agreement(found)
    return f"agreement {value} ({words})" if found.raw is not None else words


def _persons(side: Side, c: Filling) -> Html:
    binary = c.question == "binary"
    heads = ["Name", "Judgments", "Median time", *(["Says it shows"] if binary else []), "With the others"]
    heads += [*(["Against consensus"] if binary else []), *(["Gold"] if c.gold else []), "Worth a look"]
    rows = [_row(person, binary, bool(c.gold)) for person in side.persons]
    return table(heads, rows, empty="Nobody has judged yet.", name="Annotators", numbers=(1, 2))


def _row(p: Person, binary: bool, gold: bool) -> list[object]:
    who = Html(f'<b>{e(p.who.name)}</b> <small class="m-dim">{e(p.who.pseudonym)}</small>')
    seconds = f"{p.seconds:.1f} s" if p.seconds is not None else "–"
    hints = Html(" ".join(chip(flag, "m-warn") for flag in p.flags)) if p.flags else Html('<span class="m-dim">–</span>')
    row: list[object] = [who, f"{p.judgments:,}", seconds]
    row += [share(p.shows)] if binary else []
    row.append(share(p.with_others))
    row += [_confusion(p.confusion)] if binary else []
    row += [share(p.gold)] if gold else []
    return [*row, hints]


def _confusion(cells: tuple[int, int, int, int]) -> Html:
    if not any(cells):
        return Html('<span class="m-dim">–</span>')
    a, b, c, d = cells
    words = f"of {a + b} that show it, {b} called clean; of {c + d} clean ones, {c} said to show it"
    return Html(
        f'<span class="m-confusion" role="img" aria-label="{e(words)}" title="{e(words)}"><i class="m-right">{a}</i><i>{b}</i>'
        f'<i>{c}</i><i class="m-right">{d}</i></span>'
    )


def _legend() -> Html:
    return note(
        Html(
            "Against consensus: rows are what a manager decided, or else most of the others said (shows, clean); columns what this "
            "person said. <b>Worth a look</b> is a hint for a talk, nothing is taken out for it."
        ),
        "m-small",
    )


def _exposure(seen: list[Exposure], now: datetime) -> Html:
    most = max((x.harmful_today for x in seen), default=0) or 1
    rows = [
        [
            Html(f"<b>{e(x.name)}</b>"),
            duration(x.minutes_today / 60) if x.minutes_today else "–",
            Html(f"{x.harmful_today:,}{bar(x.harmful_today / most, 'm-thin')}"),
            duration(x.minutes / 60),
            f"{x.harmful:,}",
            ago(x.last_at, now),
        ]
        for x in seen
    ]
    heads = ["Name", "Time today", "Harmful images today", "Time in all", "Harmful images in all", "Last at work"]
    words = "For their protection: who needs a rest, or other images? By name, over all campaigns; days are counted in UTC."
    return Html(note(words, "m-small") + table(heads, rows, empty="Nobody has worked yet.", name="Exposure", numbers=(3, 4)))

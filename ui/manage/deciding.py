"""What people disagree about, worst first: a manager looks, reads the votes and decides, by keys if they like; then the next comes."""

from functools import partial
from typing import Any

import gradio as gr

from hfi.errors import HfiError
from hfi.store import adjudicating
from hfi.store.adjudicating import Case, Vote
from hfi.store.session import Session, reading, writing
from ui.manage.office import Office
from ui.manage.parts import Html, bar, chip, e, hidden_image, join, note, panel, plural
from ui.manage.watching import campaign_choice, campaign_choices, needed, number

WORDS = {"shows": "Shows it", "clean": "Does not", "unsure": "Unsure", "skip": "Skipped", "disturbing": "Too disturbing"}
LOOK = {"shows": "m-warn", "clean": "m-good"}


def build(office: Office, tab: gr.Tab) -> None:
    with gr.Row(elem_classes="m-row"):
        campaign = campaign_choice("m-decide-campaign")
        with gr.Column(min_width=240):
            robots = gr.Checkbox(label="Also what simulated annotators differ about", elem_id="m-robots")
    with gr.Row(elem_id="m-stage"):
        with gr.Column(scale=3, min_width=320):
            picture = panel("m-picture")
        with gr.Column(scale=2, min_width=320):
            about = panel("m-about")
            text = gr.Textbox(label="Note", lines=1, max_length=2000, elem_id="m-note", placeholder="why (may be left empty)")
            with gr.Row(elem_classes="m-decide-keys"):
                buttons = {
                    verdict: gr.Button(words, elem_id=f"m-decide-{verdict}", elem_classes="m-decide", min_width=90)
                    for verdict, words in (("shows", "Shows it"), ("clean", "Does not"), ("unsure", "Unsure"))
                }
            with gr.Row(elem_classes="m-decide-keys"):
                gr.Button("Reveal", elem_id="m-reveal", min_width=90)
                back = gr.Button("Last decision", elem_id="m-back", min_width=90)
    task = gr.Textbox(visible=False)  # which case the page shows: what a click is about, whatever has come up since
    anew = gr.Checkbox(visible=False)
    shown = [picture, about, task, anew, text]

    def begin(person: Any, chosen: str | None, also: bool) -> list[Any]:
        known = campaign_choices(office, "binary")
        value = chosen if chosen in [v for _, v in known] else _first_disputed(office, [v for _, v in known])
        return [gr.Dropdown(choices=known, value=value), *first(person, value, also)]

    def first(person: Any, chosen: str | None, also: bool) -> list[Any]:
        with reading(office.engine) as s:
            return _next(office, s, number(chosen), also)

    def decide(verdict: str, person: Any, chosen: str | None, also: bool, case: str, again: bool, words: str) -> list[Any]:
        known = needed(case, "no image is shown: choose a campaign in which people disagree")
        with writing(office.engine) as s:
            if again or adjudicating.case_of(s, known).decision is None:  # a second click finds it decided
                adjudicating.decide(s, known, person.id, verdict, words, anew=bool(again))
            return _next(office, s, number(chosen), also)

    def earlier(person: Any, chosen: str | None, case: str) -> list[Any]:
        with reading(office.engine) as s:
            past = adjudicating.decided(s, needed(chosen, "no campaign is chosen: choose one"))
            known = number(case)
            at = past.index(known) + 1 if known in past else 0
            if at >= len(past):
                raise HfiError("there is no earlier decision in this campaign")
            found = adjudicating.case_of(s, past[at])
            words = (found.decision.note if found.decision else "") or ""
            return [_picture(office, found), _about(found, ""), str(found.task), True, words]

    office.follow(tab.select, begin, [campaign, robots], [campaign, *shown])
    office.follow([campaign.input, robots.input], first, [campaign, robots], shown)
    for verdict, button in buttons.items():
        office.when(button.click, partial(decide, verdict), [campaign, robots, task, anew, text], shown)
    office.when(back.click, earlier, [campaign, task], shown)


def _first_disputed(office: Office, known: list[str]) -> str | None:
    """The first campaign with something to decide, else the first of all."""
    with reading(office.engine) as s:
        return next((c for c in known if adjudicating.disputed(s, int(c))), next(iter(known), None))


def _next(office: Office, s: Session, campaign_id: int | None, also: bool) -> list[Any]:
    """The worst case that nobody has decided: its picture, what is known, its task, that it is not decided anew, an empty note."""
    if campaign_id is None:
        return [note("There is no campaign with yes and no yet.", "m-empty"), "", "", False, ""]
    left = adjudicating.disputed(s, campaign_id, None if also else False)
    if not left:
        done = len(adjudicating.decided(s, campaign_id))
        words = f"Nothing to decide: no open disagreement. {plural(done, 'image')} decided so far."
        return [note(words, "m-empty"), "", "", False, ""]
    found = adjudicating.case_of(s, left[0].task)
    return [_picture(office, found), _about(found, f"{plural(len(left), 'disagreement')} left"), str(found.task), False, ""]


def _picture(office: Office, case: Case) -> str:
    regions = "".join(_region(vote) for vote in case.votes if vote.region)
    image = hidden_image(f"/manage-img/{office.token(case.image)}", "The image people disagree about; press Space to reveal it")
    size = f"--w:{case.width};--h:{case.height}"
    return Html(f'<figure class="m-case" data-case="{case.task}" style="{size}">{image}{regions}</figure>')


def _about(case: Case, left: str) -> str:
    counts = {v: sum(vote.verdict == v for vote in case.votes) for v in ("shows", "clean")}
    total = sum(counts.values()) or 1
    parts = [
        Html(f'<p class="m-left">{e(left)}</p><h3>{e(case.concept)}: does this image show it?</h3>'),
        Html(
            f'<div class="m-sides"><span>{plural(counts["shows"], "says", "say")} it shows</span>{bar(counts["shows"] / total)}'
        ),
        Html(f"<span>{plural(counts['clean'], 'says', 'say')} it does not</span></div>"),
    ]
    if d := case.decision:
        words = f"Decided: <b>{e(WORDS[d.verdict].lower())}</b>, by {e(d.by)}. A new decision replaces it."
        parts.append(note(Html(words), "m-good"))
    parts.append(Html(f'<ul class="m-votes">{"".join(map(_vote, case.votes))}</ul>'))
    parts.append(Html(f'<p class="m-prompt"><small>Prompt</small> {e(case.prompt or "unknown")}</p>'))
    return join(*parts)


def _vote(vote: Vote) -> str:
    who = f"{e(vote.pseudonym)}{' <small>(simulated)</small>' if vote.simulated else ''}"
    took = f'<small class="m-dim">{vote.elapsed_ms / 1000:.1f} s</small>' if vote.elapsed_ms is not None else ""
    said = f"<q>{e(vote.comment)}</q>" if vote.comment else ""
    place = '<small class="m-dim">marked a place</small>' if vote.region else ""
    return f"<li><b>{who}</b> {chip(WORDS[vote.verdict], LOOK.get(vote.verdict, ''))} {took} {place}{said}</li>"


def _region(vote: Vote) -> str:
    x, y, width, height = (100 * v for v in vote.region or (0, 0, 0, 0))
    where = f"left:{x:.2f}%;top:{y:.2f}%;width:{width:.2f}%;height:{height:.2f}%"
    return f'<i class="m-region" style="{where}" title="{e(vote.pseudonym)}"></i>'

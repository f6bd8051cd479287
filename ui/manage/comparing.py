"""What people say of pairs from before and after an erasure: whether it did what it should, and how sure one may be."""

from typing import Any

import gradio as gr

from hfi.dashboard import Compared, compared
from hfi.store import overview
from hfi.store.overview import Pair
from hfi.store.session import reading
from ui.manage.office import Office
from ui.manage.parts import Html, bar, e, hidden_image, join, note, panel, pct, plural, section, table
from ui.manage.watching import campaign_choice, campaign_choices, number

OUTCOMES = {
    "before": "The untouched model's image shows more",
    "after": "The cleaned model's image shows more",
    "same": "Both show as much",
    "neither": "Neither shows it",
}
FEW = 20  # pairs with a clear answer, below which an interval is wide whatever it says


def build(office: Office, tab: gr.Tab) -> None:
    campaign = campaign_choice("m-compare-campaign")
    result = panel("m-result")

    def begin(person: Any, chosen: str | None) -> tuple[Any, str]:
        known = campaign_choices(office, "compare")
        value = chosen if chosen in [v for _, v in known] else next((v for _, v in known), None)
        return gr.Dropdown(choices=known, value=value), look(person, value)

    def look(person: Any, chosen: str | None) -> str:
        campaign_id = number(chosen)
        with reading(office.engine) as s:
            if campaign_id is None or not overview.fillings(s, campaign_id):
                words = "No campaign compares before and after yet. Make one under “Campaigns”: the same prompts and seeds, once from "
                return note(words + "the untouched model and once from a cleaned one.", "m-empty")
            people, robots = compared(s, campaign_id), compared(s, campaign_id, simulated=True)
        parts: list[str] = [section("What people say", _result(office, people))]
        if robots.judged:
            parts.append(section("What simulated annotators say", _result(office, robots)))
        return join(*parts)

    office.follow(tab.select, begin, campaign, [campaign, result])
    office.follow(campaign.input, look, campaign, result)


def _result(office: Office, found: Compared) -> Html:
    if not found.judged:
        return note(f"None of the {plural(found.pairs, 'pair')} has been judged yet.", "m-empty")
    rows = [
        [words, f"{found.counts[name]:,}", bar(found.counts[name] / found.judged, "m-thin")] for name, words in OUTCOMES.items()
    ]
    rows.append(["People are divided", f"{found.split:,}", bar(found.split / found.judged, "m-thin")])
    counts = table(["Of most people", "Pairs", ""], rows, empty="", name="Outcomes", numbers=(1,))
    shots = "".join(
        f'<div class="m-shots"><h4>{e(OUTCOMES[name])}</h4>{"".join(_pair(office, pair) for pair in pairs)}</div>'
        for name, pairs in ((name, found.examples.get(name, ())) for name in OUTCOMES)
        if pairs
    )
    return Html(f'<p class="m-headline">{verdict(found)}</p>{note(limits(found), "m-small")}{counts}{shots}')


def verdict(found: Compared) -> Html:
    """The result in a sentence."""
    clear = found.counts["before"] + found.counts["after"]
    if not clear or found.p is None or found.share.low is None or found.share.high is None:
        return Html(f"Of {plural(found.judged, 'judged pair')} none has an image that shows more: nothing can be said.")
    numbers = (
        f"in <b>{pct(found.share.value)}</b> of {plural(clear, 'pair')} with a clear answer the untouched model's image shows more "
        f"(95 % interval {100 * found.share.low:.0f}–{100 * found.share.high:.0f} %, {_p(found.p)})"
    )
    if found.p >= 0.05:
        return Html(f"No measurable difference: {numbers}.")
    if found.counts["before"] > found.counts["after"]:
        return Html(f"The erasure shows less of it: {numbers}.")
    return Html(f"The erasure shows <em>more</em> of it: {numbers}.")


def limits(found: Compared) -> str:
    """What the figures do not say."""
    clear = found.counts["before"] + found.counts["after"]
    words = [f"{found.judged:,} of {plural(found.pairs, 'pair')} judged; each pair counts once, by what most people say of it."]
    words.append(
        "p is of the exact two-sided binomial test, the interval is Wilson's; pairs without a clear answer stand apart in both."
    )
    if clear < FEW:
        words.append(f"{plural(clear, 'pair is', 'pairs are')} few: the interval is wide.")
    words.append("Pairs that share a prompt are not independent, so the truth is less sure than this says.")
    return " ".join(words)


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _pair(office: Office, pair: Pair) -> str:
    images = "".join(
        f"<figure>{hidden_image(f'/manage-img/{office.token(image)}', words)}<figcaption>{words}</figcaption></figure>"
        for image, words in ((pair.before, "Untouched"), (pair.after, "Cleaned"))
    )
    return f'<div class="m-pair">{images}<p class="m-prompt">{e(pair.prompt or "no prompt")}</p></div>'

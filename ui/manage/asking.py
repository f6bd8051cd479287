"""Campaigns: which there are, closing and opening them, and making a new one, looked at before it is made."""

from dataclasses import replace
from typing import Any

import gradio as gr

from hfi.errors import HfiError, UsageError
from hfi.planning import Plan, Preview, erasure_names, make, preview
from hfi.scores import rewards
from hfi.store import campaigns, choosing, overview, queries
from hfi.store.choosing import Recipe, Wanted
from hfi.store.overview import Filling
from hfi.store.session import Session, reading, writing
from ui.manage.office import Office, sentence
from ui.manage.parts import Html, ago, bar, card, chip, e, heading, join, note, panel, plural, table
from ui.manage.watching import QUESTIONS, campaign_choice, campaign_choices, needed

ANY = "any"
UNTOUCHED = "untouched"
STRATEGIES = [
    ("All", "all"),
    ("Some at random", "random"),
    ("Those a reward is unsure about", "uncertain"),
    ("Those on which votes split", "split"),
]
SEC_EACH = 4  # a guess at how long one answer takes, to say what a campaign asks of people


def build(office: Office, tab: gr.Tab) -> None:
    heading("Campaigns")
    listed = panel("m-campaigns")
    with gr.Row(elem_classes="m-row"):
        campaign = campaign_choice("m-campaign")
        close = gr.Button("Close", elem_id="m-close", scale=0, min_width=120)
        again = gr.Button("Open again", elem_id="m-open", scale=0, min_width=120)
    heading("New campaign", "Choose images and how they are judged. Nothing is made before you press “Make it”.")
    with gr.Row(elem_id="m-new", elem_classes="m-split"):
        with gr.Column(scale=3, min_width=320):
            fields = _fields()
        with gr.Column(scale=2, min_width=280, elem_id="m-preview-column"):
            seen = panel("m-preview")
            with gr.Row():
                show = gr.Button("Preview", elem_id="m-preview-button")
                go = gr.Button("Make it", variant="primary", elem_id="m-make")
            made = panel("m-made")

    def begin(person: Any, chosen: str | None) -> list[Any]:
        known = campaign_choices(office)
        value = chosen if chosen in [v for _, v in known] else next((v for _, v in known), None)
        return [_list(office), gr.Dropdown(choices=known, value=value), *_choices(office)]

    def look(person: Any, *values: Any) -> str:
        try:
            with reading(office.engine) as s:
                plan = _plan(s, values)
                return _preview(preview(office.workspace, s, plan if plan.name.strip() else replace(plan, name="no name yet")))
        except HfiError as error:
            return note(sentence(error), "m-trouble")

    def create(person: Any, *values: Any) -> tuple[str, str, str, Any]:
        with writing(office.engine) as s:
            new = make(office.workspace, s, _plan(s, values))
        words = note(
            f"Campaign “{new.name}” is there, with {plural(new.tasks, 'task')}. People find it on their list now.", "m-good"
        )
        return words, "", _list(office), gr.Dropdown(choices=campaign_choices(office), value=str(new.id))

    def set_state(person: Any, chosen: str | None, state: Any) -> tuple[str, Any]:
        with writing(office.engine) as s:
            campaigns.set_state(s, needed(chosen, "no campaign is chosen: choose one, or make one below"), state)
        return _list(office), gr.Dropdown(choices=campaign_choices(office), value=chosen)

    def asked(person: Any, strategy: str, access: str) -> list[Any]:
        return [
            gr.Number(visible=strategy != "all"),
            gr.Dropdown(visible=strategy == "uncertain"),
            gr.Dropdown(visible=access == "named"),
        ]

    dropdowns = [field for field in fields if isinstance(field, gr.Dropdown)]
    strategy, count, reward, access, people = (fields[i] for i in (9, 10, 11, 18, 19))
    begun = office.follow(tab.select, begin, campaign, [listed, campaign, *dropdowns])
    office.when(begun.then, look, fields, seen)
    office.follow([strategy.input, access.input], asked, [strategy, access], [count, reward, people])
    office.when(close.click, lambda person, chosen: set_state(person, chosen, "closed"), campaign, [listed, campaign])
    office.when(again.click, lambda person, chosen: set_state(person, chosen, "open"), campaign, [listed, campaign])
    settled = [field.blur if isinstance(field, gr.Textbox | gr.Number) else field.input for field in fields]
    office.follow([show.click, *settled], look, fields, seen)
    office.when(go.click, create, fields, [made, seen, listed, campaign])


def _fields() -> list[Any]:
    """In the order in which `_plan` takes them."""

    def choice(label: str, elem_id: str, **more: Any) -> gr.Dropdown:
        return gr.Dropdown([], label=label, elem_id=elem_id, allow_custom_value=True, **more)

    with gr.Group():
        with gr.Row():
            concept = choice("Concept", "m-concept")
            name = gr.Textbox(label="Name", max_length=80, elem_id="m-name", placeholder="second look")
        asks = gr.Radio(
            [("Does it show the concept?", "own"), ("Which shows more, before or after an erasure?", "compare")],
            value="own", label="Question", elem_id="m-asks", info="The first is the concept's own question, which may be a ranking.",
        )  # fmt: skip
    with gr.Group():
        with gr.Row():
            text = gr.Textbox(label="Prompt holds", elem_id="m-text", placeholder="any prompt")
            run = choice("Run", "m-run")
        with gr.Row():
            model = choice("Model", "m-model")
            erasure = choice("Erasure", "m-erasure")
            source = gr.Dropdown([("Any", ANY), ("Generated", "generated"), ("Imported", "imported")], value=ANY, label="Source")
        unjudged = gr.Checkbox(label="Only images that nobody was asked about yet", elem_id="m-unjudged")
        strategy = gr.Radio(STRATEGIES, value="all", label="Of these take", elem_id="m-strategy")
        with gr.Row():
            count = gr.Number(100, label="How many", precision=0, minimum=1, elem_id="m-count", visible=False)
            reward = choice("Reward", "m-reward", visible=False)
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
    with gr.Group():
        with gr.Row():
            overlap = gr.Number(3, label="People for each", precision=0, minimum=1, elem_id="m-overlap")
            extra = gr.Number(0, label="More if they differ", precision=0, minimum=0)
            lease = gr.Number(30, label="Lease, minutes", minimum=1)
            size = gr.Number(5, label="Ranked at once", precision=0, minimum=2)
        ties = gr.Checkbox(label="Two images may share a place", elem_id="m-ties")
        access = gr.Radio([("Everybody", "all"), ("Named people", "named")], value="all", label="Who may judge")
        people = choice("Named people", "m-people", multiselect=True, visible=False)
    with gr.Accordion("Gold and benign images", open=False, elem_id="m-gold-fields"):
        with gr.Row():
            gold = gr.Number(0, label="Gold images", precision=0, minimum=0, info="decided by a manager, or all of one mind")
            every = gr.Number(20, label="One task in", precision=0, minimum=0, info="is gold, unforeseeably")
        answers = gr.Textbox(
            label="Further gold, as CSV", lines=3, max_length=200_000, placeholder="image,verdict\n3f2a…,shows\nphoto.png,clean"
        )
        with gr.Row():
            benign = choice("Benign images of the run", "m-benign")
            part = gr.Number(20, label="Their share, in %", minimum=1, maximum=50)
    return [
        concept, name, asks, text, run, model, erasure, source, unjudged, strategy, count, reward, seed, overlap, extra, lease, size,
        ties, access, people, gold, every, answers, benign, part,
    ]  # fmt: skip


def _choices(office: Office) -> list[Any]:
    """Updates for the drop-down lists among the fields, in their order."""
    with reading(office.engine) as s:
        concepts = queries.concepts_list(s)
        where = choosing.sources(s)
        names = erasure_names(office.workspace, s)
        known = [person for person in queries.annotators(s) if not person.simulated]
    anything = [("Any", ANY)]
    runs = [*anything, *((run, run) for run in where.runs)]
    return [
        gr.Dropdown(choices=[(c.title, c.slug) for c in concepts], value=concepts[0].slug if concepts else None),
        gr.Dropdown(choices=runs, value=ANY),
        gr.Dropdown(choices=[*anything, *((model, model) for model in where.models)], value=ANY),
        gr.Dropdown(
            choices=[*anything, ("None: the untouched model", UNTOUCHED), *((n, i) for i, n in names.items())], value=ANY
        ),
        gr.Dropdown(),
        gr.Dropdown(choices=rewards(office.workspace), value=next(iter(rewards(office.workspace)), None)),
        gr.Dropdown(choices=[person.name for person in known], value=[]),
        gr.Dropdown(choices=[("None", ANY), *runs[1:]], value=ANY),
    ]


def _plan(s: Session, values: tuple[Any, ...]) -> Plan:
    """What the form says. UsageError for an empty number."""
    (
        concept, name, asks, text, run, model, erasure, source, unjudged, strategy, count, reward, seed, overlap, extra, lease, size,
        ties, access, people, gold, every, answers, benign, part,
    ) = values  # fmt: skip

    def chosen(value: Any) -> str | None:
        return None if value in (None, "", ANY) else str(value)

    def whole(value: Any, label: str) -> int:
        if value is None:
            raise UsageError(f"{label} is empty: give a number")
        return int(value)

    wanted = Wanted(
        text=str(text or ""),
        model=chosen(model),
        run=chosen(run),
        erasure="" if erasure == UNTOUCHED else chosen(erasure),
        source=chosen(source),  # type: ignore[arg-type]
        unjudged=bool(unjudged),
    )
    harmless = chosen(benign)
    recipe = Recipe(
        concept=str(concept or ""),
        wanted=wanted,
        compare=asks == "compare",
        strategy=strategy,
        count=None if strategy == "all" else whole(count, "how many"),
        seed=whole(seed, "the seed"),
        gold=whole(gold, "the number of gold images"),
        gold_answers=choosing.gold_from_csv(s, answers, "the list of gold images") if str(answers or "").strip() else {},
        benign_run=harmless,
        benign_share=whole(part, "the share of benign images") / 100 if harmless else 0.0,
    )
    return Plan(
        name=str(name or ""),
        recipe=recipe,
        reward=chosen(reward),
        overlap=whole(overlap, "the number of people"),
        extra_votes=whole(extra, "the number of further people"),
        ties=bool(ties),
        gold_every=whole(every, "how often gold is asked"),
        access="named" if access == "named" else "all",
        people=tuple(map(str, people or ())) if access == "named" else (),
        lease_minutes=float(whole(lease, "the time to keep a task")),
        group_size=whole(size, "the number of images to rank"),
    )


def _preview(seen: Preview) -> str:
    found = seen.prepared
    unit = "pair" if seen.question == "compare" else "image"
    taken = len(found.image_ids) // 2 if seen.question == "compare" else len(found.image_ids)
    hours = seen.judgments * SEC_EACH / 3600
    of_one = f"about {max(1, round(60 * hours))} min" if hours < 1 else f"about {hours:.1f} h"
    cards = [
        card("Takes", plural(taken, unit), f"of {found.matched:,} that fit"),
        card("Makes", plural(seen.tasks, "task"), QUESTIONS[seen.question]),
        card("Wants", plural(seen.judgments, "judgment"), f"{of_one} of work, at {SEC_EACH} s each"),
    ]
    if found.gold or found.benign:
        shows = list(found.gold.values()).count("shows")
        gold = f"{shows} show it, {len(found.gold) - shows} do not" if found.gold else ""
        cards.append(card("In between", f"{len(found.gold)} gold, {len(found.benign)} benign", gold))
    parts: list[str] = [Html(f'<div class="m-cards m-cards-small">{"".join(cards)}</div>')]
    if found.unscored:
        words = (
            f"{plural(found.unscored, 'image')} without a score of this reward {'is' if found.unscored == 1 else 'are'} left out"
        )
        parts.append(note(f"{words}: let it score every image, under “Work”.", "m-trouble"))
    if found.unpaired:
        items = "".join(f"<li>{e(prompt or 'no prompt')}, seed {e(seed)}</li>" for prompt, seed in found.unpaired[:5])
        more = f"<li>and {len(found.unpaired) - 5} more</li>" if len(found.unpaired) > 5 else ""
        words = f"{plural(len(found.unpaired), 'image')} of this erasure without an untouched twin:"
        parts.append(note(Html(f"{e(words)}<ul>{items}{more}</ul>"), "m-trouble"))
    return join(*parts)


def _list(office: Office) -> str:
    with reading(office.engine) as s:
        found = overview.fillings(s)
    heads = ["Campaign", "Question", "Progress", "Answers", "Asked of", "Gold", "State", "Made"]
    return table(heads, map(_row, found), empty="There is no campaign yet.", name="Campaigns", numbers=(3, 5))


def _row(c: Filling) -> list[object]:
    part = c.full / c.tasks if c.tasks else 0.0
    return [
        Html(f'<b>{e(c.name)}</b><small class="m-dim">{e(c.title)}</small>'),
        QUESTIONS[c.question],
        Html(f"{c.full:,} of {c.tasks:,} {bar(part, 'm-thin')}"),
        f"{c.answers:,} of {c.wanted:,}",
        "named people" if c.access == "named" else "everybody",
        f"{c.gold:,}",
        chip("open", "m-good") if c.state == "open" else chip("closed"),
        ago(c.created_at),
    ]

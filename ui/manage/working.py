"""From judgments to a cleaned model, round after round: each step is a command of hfi in the background, started and watched here."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr

from hfi import jobs, plots
from hfi.errors import HfiError, NotFound
from hfi.jobs import FORMS, Field, Form
from hfi.metrics import wilson
from hfi.planning import round_campaign
from hfi.store import choosing, overview, queries, rounds
from hfi.store import jobs as table_of_jobs
from hfi.store.jobs import Job
from hfi.store.queries import now_utc
from hfi.store.rounds import Round
from hfi.store.session import Session, reading, writing
from ui.manage.office import Office
from ui.manage.parts import Html, ago, bar, card, chip, duration, e, heading, join, note, panel, pct, plural, table
from ui.manage.watching import number

EVERY = 2.0  # seconds between two looks at the job
STATES = {"running": "m-running", "done": "m-good", "failed": "m-bad", "stopped": "", "lost": "m-bad"}
TITLES = {form.words[0]: form.title for form in FORMS.values()}


def build(office: Office, tab: gr.Tab, others: list[gr.Tab]) -> None:
    heading("Rounds", "Images, judgments, a cleaned model, and again: how much of the concept is left to see should fall.")
    with gr.Row(elem_classes="m-row"):
        concept = gr.Dropdown([], label="Concept", elem_id="m-work-concept", allow_custom_value=True, elem_classes="m-choice")
    turns = panel("m-rounds")
    with gr.Row(elem_classes="m-row m-wrap"):
        run = gr.Dropdown([], label="Images of the run", elem_id="m-round-run", allow_custom_value=True)
        campaign = gr.Dropdown([], label="Campaign", elem_id="m-round-campaign", allow_custom_value=True)
        start_round = gr.Button("Start a round", elem_id="m-start-round", scale=0, min_width=150)
        make_campaign = gr.Button("Make its campaign", elem_id="m-round-make", scale=0, min_width=200)
    said = panel("m-work-said")
    heading("The job", "One runs at a time. It goes on when you close this page, and when the server is started again.")
    current = panel("m-job")
    with gr.Row(elem_classes="m-row"):
        stop = gr.Button("Stop", elem_id="m-stop", scale=0, min_width=120)
        again = gr.Button("Start again", elem_id="m-again", scale=0, min_width=140)
    heading("Start a step")
    fields: dict[str, list[Any]] = {}
    starts: dict[str, gr.Button] = {}
    with gr.Tabs(elem_id="m-forms"):
        for command, form in FORMS.items():
            with gr.Tab(form.title, elem_id=f"m-form-{command}"):
                fields[command], starts[command] = _form(command, form)
    past = panel("m-past")
    timer = gr.Timer(EVERY, active=False)
    every = [field for command in FORMS for field in fields[command]]
    live = [turns, current, past]

    def look(person: Any, slug: str | None) -> list[str]:
        jobs.settle(office.workspace, office.engine)
        return _live(office, slug)

    def begin(person: Any, slug: str | None) -> list[Any]:
        with reading(office.engine) as s:
            known = [(c.title, c.slug) for c in queries.concepts_list(s)]
        value = slug if slug in [v for _, v in known] else next((v for _, v in known), None)
        return [gr.Dropdown(choices=known, value=value), *choose(person, value), gr.Timer(active=True)]

    def choose(person: Any, slug: str | None) -> list[Any]:
        jobs.settle(office.workspace, office.engine)
        with reading(office.engine) as s:
            runs = ["", *choosing.sources(s).runs]
            asked = [
                ("", ""),
                *((c.name, str(c.id)) for c in overview.fillings(s) if c.concept == slug and c.question != "compare"),
            ]
        return [
            *_live(office, slug), gr.Dropdown(choices=runs, value=""), gr.Dropdown(choices=asked, value=""), *_suggested(office, slug),
        ]  # fmt: skip

    def go(command: str, person: Any, slug: str | None, *values: Any) -> list[Any]:
        given = _given(FORMS[command], slug, values)
        with writing(office.engine) as s:
            words = jobs.words(s, office.workspace, command, given)
            turn = _last_round(s, slug)
        jobs.start(office.workspace, office.engine, words, by=person.id, round_id=turn.id if turn else None)
        return ["", *_live(office, slug)]

    def halt(person: Any, slug: str | None) -> list[Any]:
        with reading(office.engine) as s:
            running = table_of_jobs.jobs(s, running=True)
        if not running:
            raise HfiError("no job is running")
        words = jobs.stop(office.workspace, office.engine, running[0].id)
        return [note(words, "m-good"), *_live(office, slug)]

    def repeat(person: Any, slug: str | None) -> list[Any]:
        with reading(office.engine) as s:
            last = table_of_jobs.jobs(s, limit=1)
        if not last:
            raise HfiError("there was no job yet: start a step below")
        jobs.start(office.workspace, office.engine, last[0].words, by=person.id, round_id=last[0].round_id)
        return ["", *_live(office, slug)]

    def next_round(person: Any, slug: str | None, images: str | None, asked: str | None) -> list[Any]:
        with writing(office.engine) as s:
            last = _last_round(s, slug)
            if not (images or number(asked) or (last and last.erasure)):  # after an erasure the images are still to be generated
                raise HfiError("choose the images of a run, or a campaign: only after an erasure can a round begin with neither")
            made = rounds.start_round(s, slug or "", images_run=images or None, campaign_id=number(asked))
        words = f"Round {made.number} has begun."
        words += "" if made.images_run else " Generate its images: the form below is filled in."
        return [note(words, "m-good"), *choose(person, slug)]

    def ask(person: Any, slug: str | None) -> list[Any]:
        with writing(office.engine) as s:
            turn = _last_round(s, slug)
            if turn is None:
                raise HfiError("there is no round yet: start one")
            made = round_campaign(office.workspace, s, slug or "", turn)
        return [note(f"Campaign “{made.name}” is there, with {plural(made.tasks, 'task')}.", "m-good"), *choose(person, slug)]

    chosen = [*live, run, campaign, *every]
    office.follow(tab.select, begin, concept, [concept, *chosen, timer])
    office.when([other.select for other in others], lambda person: gr.Timer(active=False), None, timer)
    office.follow(concept.input, choose, concept, chosen)
    office.when(timer.tick, look, concept, live)
    for command, button in starts.items():
        office.when(button.click, partial(go, command), [concept, *fields[command]], [said, *live])
    office.when(stop.click, halt, concept, [said, *live])
    office.when(again.click, repeat, concept, [said, *live])
    office.when(start_round.click, next_round, [concept, run, campaign], [said, *chosen])
    office.when(make_campaign.click, ask, concept, [said, *chosen])


# --- forms ---


def _form(command: str, form: Form) -> tuple[list[Any], gr.Button]:
    """The fields of a command, but the concept, which is the page's; and the button that starts it."""
    gr.HTML(f'<p class="m-note">{e(form.line)}</p>', js_on_load=None, apply_default_css=False)
    found: list[Any] = []
    asked = [field for field in form.fields if field.kind != "concept"]
    for at in range(0, len(asked), 3):
        with gr.Row():
            for field in asked[at : at + 3]:
                found += _component(command, field)
    return found, gr.Button(f"Start: {form.title.lower()}", variant="primary", elem_id=f"m-go-{command}")


def _component(command: str, field: Field) -> list[Any]:
    common: dict[str, Any] = {"label": field.label, "info": field.help or None, "elem_id": f"m-{command}-{field.name}"}
    shown = "" if field.default is None else f"{field.default:g}" if field.kind == "float" else str(field.default)
    if field.kind == "choice":
        return [gr.Dropdown(list(field.choices), value=field.default, **common)]
    if field.kind == "file" or field.name == "model":
        return [gr.Dropdown([], allow_custom_value=True, **common)]
    if field.kind == "prompts":
        common["info"] = field.help or "from earlier images, from the package, or typed"
        typed = gr.Textbox(
            label="Or typed, one a line", lines=2, max_length=200_000, render=False, elem_id=f"m-{command}-typed"
        )  # fmt: skip
        source = gr.Dropdown([], allow_custom_value=True, **common)
        typed.render()
        return [source, typed]
    return [gr.Textbox(max_length=500, placeholder=shown, **common)]  # numbers too: an empty one leaves it to the command


def _given(form: Form, concept: str | None, values: Sequence[Any]) -> dict[str, Any]:
    """The values of a form's components by field; typed prompts count before a source of some."""
    given: dict[str, Any] = {}
    left = iter(values)
    for field in form.fields:
        if field.kind == "concept":
            given[field.name] = concept
        elif field.kind == "prompts":
            source, typed = next(left), next(left)
            given[field.name] = typed if str(typed or "").strip() else source
        else:
            given[field.name] = next(left)
    return given


def _suggested(office: Office, concept: str | None) -> list[Any]:
    """Updates for every component of every form: what can be chosen, and what the round asks for next."""
    space = office.workspace
    with reading(office.engine) as s:
        turn = _last_round(s, concept)
        past = [r for r in rounds.rounds(s, concept) if turn and r.number < turn.number] if concept and turn else []
        prompts = jobs.prompt_sources(s, space)
        models = list(choosing.sources(s).models)
    before = past[-1] if past else None
    name = f"{concept}-{turn.number}" if turn else f"{concept or 'run'}-1"
    twins = f"twins:{before.images_run}" if before and before.images_run else ""
    values: dict[str, Any] = {
        "name": name,
        "model": models[0] if models else "",
        "reward": turn.reward if turn and turn.reward else None,
        "token": turn.token if turn and turn.token else None,
        "start": before.erasure if before else "",
    }
    found: list[Any] = []
    for command, form in FORMS.items():
        erasure = (before.erasure if before else "") if command == "generate" else (turn.erasure if turn else None)
        for field in form.fields:
            if field.name == "model":
                found.append(gr.Dropdown(choices=models, value=values["model"]))
            elif field.kind == "file":
                there = jobs.files(space, field.folder)
                wanted = erasure if field.name == "erasure" else values.get(field.name, "")
                value = wanted if wanted is not None else (there[0] if there else "")
                found.append(gr.Dropdown(choices=["", *there], value=value or ""))
            elif field.kind == "prompts":
                choices = [("", ""), *((words, source) for source, words in prompts.items())]
                found += [gr.Dropdown(choices=choices, value=twins if command == "generate" else ""), gr.Textbox()]
            elif field.kind == "name":
                found.append(gr.Textbox(value=name))
            elif field.kind != "concept":
                found.append(gr.skip())
    return found


def _last_round(s: Session, concept: str | None) -> Round | None:
    try:
        return next(iter(reversed(rounds.rounds(s, concept))), None) if concept else None
    except NotFound:
        return None


# --- what goes on ---


def _live(office: Office, concept: str | None) -> list[str]:
    """The tables of rounds and of jobs, and the job that runs, or ran last."""
    with reading(office.engine) as s:
        turns = rounds.rounds(s, concept) if concept and _last_round(s, concept) else []
        filled = {c.id: c for c in overview.fillings(s)}
        last = table_of_jobs.jobs(s, limit=30)
    job = _job(office, last[0]) if last else note("No job has run yet.", "m-empty")
    return [_rounds(office, turns, filled), job, _past(office, last)]


def _rounds(office: Office, turns: Sequence[Round], filled: dict[int, Any]) -> str:
    heads = ["Round", "Images", "Campaign", "Judged", "Shows it", "Reward", "Token", "Erasure", "Evaluation"]
    most = max((r.shows / r.judged for r in turns if r.judged), default=1.0) or 1.0
    rows: list[list[object]] = []
    for r in turns:
        campaign = filled.get(r.campaign_id) if r.campaign_id is not None else None
        judged = f"{r.judged:,} of {campaign.tasks:,}" if campaign else "–"
        left = wilson(r.shows, r.judged)
        shows: object = Html('<span class="m-dim">–</span>')
        if left.value is not None and left.low is not None and left.high is not None:
            words = f"{pct(left.value)} <small>{100 * left.low:.0f}–{100 * left.high:.0f} %</small>"
            shows = Html(f"{words}{bar(left.value / most, 'm-thin m-harm')}")
        if r.simulated_judged:
            robots = f"simulated: {pct(r.simulated_shows / r.simulated_judged)} of {r.simulated_judged}"
            shows = Html(f'{e(shows)}<small class="m-dim">{robots}</small>')
        made = [
            _made(office, command, name) for command, name in (("reward", r.reward), ("invert", r.token), ("erase", r.erasure))
        ]
        evaluated = _made(office, "evaluate", r.evaluation)
        rows.append([Html(f"<b>{r.number}</b>"), r.images_run or "–", r.campaign or "–", judged, shows, *made, evaluated])
    listed = table(
        heads, rows, empty="No round yet: choose the images and the campaign that there are, and start one.", name="Rounds"
    )
    return join(listed, note(next_step(turns[-1], filled), "m-next")) if turns else listed


def next_step(turn: Round, filled: dict[int, Any]) -> str:
    """What the round waits for."""
    n = turn.number
    campaign = filled.get(turn.campaign_id) if turn.campaign_id is not None else None
    if turn.images_run is None and campaign is None:
        return f"Round {n}: generate its images, from the cleaned model if there is one."
    if campaign is None:
        return f"Round {n}: make its campaign."
    if turn.reward is None:
        return f"Round {n}: people judge “{campaign.name}” ({campaign.full:,} of {campaign.tasks:,} tasks full); then train a reward."
    steps = ((turn.token, "learn a token"), (turn.erasure, "erase the concept"), (turn.evaluation, "evaluate the cleaned model"))
    wanted = next((words for made, words in steps if made is None), "start the next one, to judge what is left")
    return f"Round {n}: {wanted}."


def _made(office: Office, command: str, name: str | None) -> Html:
    if name is None:
        return Html('<span class="m-dim">–</span>')
    if jobs.report_of(office.workspace, command, name):
        return Html(f'<a href="/manage-report/{e(command)}/{e(name)}" target="_blank" rel="noopener">{e(name)}</a>')
    return Html(e(name))


def _title(job: Job) -> str:
    name = jobs.run_name(job)
    return f"{TITLES.get(job.words[0], job.words[0])}{f': {name}' if name else ''}"


def _job(office: Office, job: Job) -> str:
    lines = jobs.tail(office.workspace, job)
    seen = jobs.progress(lines)
    took = ((job.ended_at or now_utc()) - job.created_at).total_seconds() / 3600
    cards = [card("State", chip(job.state, STATES[job.state]), f"{duration(took)}, started {ago(job.created_at)}")]
    if seen:
        cards.append(card(seen.what, f"{seen.done:,} of {seen.total:,}", seen.rest, part=seen.done / max(seen.total, 1)))
    elif job.running:
        cards.append(card("Progress", "starting", "models are being loaded"))
    lost = note("Its process is gone without a word: killed, or the machine was restarted. Start it again to go on.", "m-trouble")
    curve = _curve(office, job)
    return join(
        Html(
            f'<div class="m-job"><h3>{e(_title(job))} (job {job.id})</h3><div class="m-cards m-cards-small">{"".join(cards)}</div>'
        ),
        lost if job.state == "lost" else "",
        Html(f'<div class="m-chart">{curve}</div>' if curve else ""),
        Html(f'<pre class="m-log" tabindex="0" aria-label="The last lines of the log">{e(chr(10).join(lines))}</pre></div>'),
    )


def _curve(office: Office, job: Job) -> str:
    logged = {name: points for name, points in jobs.curves(jobs.run_of(office.workspace, job)).items() if "loss" in name}
    lines = [plots.Line(name.replace("_", " "), points, i) for i, (name, points) in enumerate(logged.items(), 1)]
    return plots.curves(lines, "step", width=620) if lines else ""


def _past(office: Office, found: Sequence[Job]) -> str:
    rows = []
    for job in found:
        took = ((job.ended_at or now_utc()) - job.created_at).total_seconds() / 3600
        name = jobs.run_name(job)
        report = _made(office, job.words[0], name) if name else Html('<span class="m-dim">–</span>')
        log = Html(f'<a href="/manage-log/{job.id}" target="_blank" rel="noopener">log</a>')
        rows.append(
            [str(job.id), _title(job), chip(job.state, STATES[job.state]), duration(took), ago(job.created_at), report, log]
        )
    heads = ["Job", "Step", "State", "Took", "Started", "Result", ""]
    return join(Html('<div class="m-heading"><h2>Earlier jobs</h2></div>'), table(heads, rows, empty="None yet.", name="Jobs"))

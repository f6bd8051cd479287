"""What the database does when it is large: every statement that judging sends, how the rows are found, and how long it takes.

A database of the wanted size is made once (`hfi.store.synthetic`). Then people sign in, judge, take back and rest, through the same
handlers as the pages, while all that goes to the database is noted. Whatever happens at every judgment or click ("hot") must not read
a large table from end to end, nor a great part of one through an index.
"""

import multiprocessing
import random
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import func, select, text
from starlette.requests import Request
from starlette.responses import Response

from hfi.aggregate import agreement, soft_labels
from hfi.bench.scale import ScaleConfig
from hfi.dashboard import Watch, numbers
from hfi.errors import HfiError
from hfi.images import ImageStore
from hfi.judgment_tables import to_csv
from hfi.judgments import freeze
from hfi.progress import progress
from hfi.store import adjudicating, campaigns, choosing, judging, overview, people, queries, rounds, showing, wellbeing
from hfi.store import models as m
from hfi.store.plans import Heard, Plan, explain, listening, sizes
from hfi.store.queries import Annotator
from hfi.store.session import Engine, Session, again, connect, reading, server, writing
from hfi.store.synthetic import PASSWORD, Size, key, make
from ui import label, pages
from ui.identity import Identity
from ui.pictures import Pictures

HOT = (
    "sign in", "cookie", "consent", "list of work", "way in", "page", "picture", "judge", "break", "undo", "stop", "day's limit",
    "claim", "submit", "newcomer", "lapse", "generate",
)  # fmt: skip
MOST_STEPS = 100_000  # of SQLite's machine for one hot statement; a thousand take some 10 us
MOST_PAGES = 5_000  # of PostgreSQL, 8 kB each
_JUDGED = 60  # in each campaign, so that gold comes up


@dataclass(frozen=True)
class Cast:
    """Who plays: somebody who judged as much as most, and the one who judged most. `full`: a campaign with nothing left; `going`: those
    that are half way, by their question; `coming`: the one that has begun."""

    usual: Annotator
    busiest: Annotator
    full: int
    going: Mapping[str, int]
    coming: int


def prepare(engine: Engine, config: ScaleConfig) -> Cast:
    """Makes the database, unless it is there, and finds who plays in it."""
    make(engine, Size(config.images, config.annotators, config.judgments, config.seed))
    with reading(engine) as s:
        named = {(c.concept, c.name): c for c in campaigns.campaigns(s)}
        done = func.sum(m.Participant.done).label("done")
        query = select(m.Annotator, done).join(m.Participant, m.Participant.annotator_id == m.Annotator.id)
        judges = query.join(m.Account, m.Account.annotator_id == m.Annotator.id).where(
            m.Account.active, m.Account.role == "annotator"
        )
        order = [
            Annotator(a.id, a.name, a.pseudonym, False) for a, _ in s.execute(judges.group_by(m.Annotator.id).order_by(done))
        ]
    going = {"binary": named["nudity", "first"], "ranking": named["brava", "order"], "compare": named["smoking", "pairs"]}
    by_question = {question: c.id for question, c in going.items()}
    return Cast(order[len(order) // 2], order[-1], named["smoking", "second"].id, by_question, named["nudity", "coming"].id)


def act(engine: Engine, cast: Cast) -> Heard:
    """Does all that happens all day, and gives what the database was asked."""
    with listening(engine) as heard:
        with heard.step("lapse"), writing(engine) as s:
            judging.expire_leases(s, queries.now_utc())
        for person in (cast.usual, cast.busiest):
            _enter(engine, heard, person, cast)
            for question, campaign in (*cast.going.items(), ("binary", cast.coming)):
                _judge(engine, heard, person, campaign, question)
            _limits(engine, heard, person, cast.coming)
            with heard.step("(nothing left)"):  # once, at the end of a campaign
                label.state(_desk(engine), person, cast.full)
            with heard.step("claim"):
                held = _claim(engine, cast.coming, person)
            assert held is not None
            with heard.step("submit"):
                _submit(engine, held, person, "clean")
        with writing(engine) as s:
            newcomer = queries.ensure_annotator(s, f"newcomer {secrets.token_hex(6)}")
        for campaign in (cast.full, *cast.going.values()):  # who has come nowhere passes all that is full already
            with heard.step("newcomer"):
                _claim(engine, campaign, newcomer)
        with heard.step("generate"):
            with reading(engine) as s:
                queries.has_keys(s, [key(0, i) for i in range(0, 1000, 2)])
            for number in (5, -1 - secrets.randbits(40)):
                with writing(engine) as s:
                    made = queries.Provenance(
                        key=key(0, number), sha256="0" * 64, width=8, height=8, source="generated", prompt="p"
                    )
                    queries.add_image(s, made)
    return heard


def _desk(engine: Engine) -> label.Desk:
    """One that remembers no totals yet."""
    return label.Desk(engine, Pictures(ImageStore(Path("images"))))


def _once() -> str:
    return f"scale-{secrets.token_hex(12)}"


def _claim(engine: Engine, campaign: int, person: Annotator) -> judging.Claim | None:
    """As the page does it: beside others, and again where these were just writing the same rows."""

    def work() -> judging.Claim | None:
        with writing(engine, alone=False) as s:
            return judging.claim_next(s, campaign, person.id)

    return again(work)


def _submit(engine: Engine, held: judging.Claim, person: Annotator, verdict: str, ranking: Sequence[int] | None = None) -> None:
    once = _once()

    def work() -> None:
        with writing(engine, alone=False) as s:
            judging.submit(s, held.token, person.id, verdict, once, ranking=ranking)

    again(work)


def _enter(engine: Engine, heard: Heard, person: Annotator, cast: Cast) -> None:
    identity = Identity(engine, secrets.token_bytes(32))
    with heard.step("sign in"):
        identity.by_account()
        found = people.check_password(engine, person.name, PASSWORD)
    request = {"type": "http", "method": "GET", "scheme": "http", "server": ("127.0.0.1", 80), "path": "/", "headers": []}
    response = Response()
    identity.sign_in(Request(request), response, person.id, found.session_version)
    cookie = response.headers["set-cookie"].split(";")[0].encode()
    with heard.step("cookie"):
        assert identity.who(Request({**request, "headers": [(b"cookie", cookie)]}))
    with heard.step("consent"), writing(engine) as s:
        newest = people.consent_text(s)
        assert newest is not None
        people.agree(s, person.id, newest.version)
    with heard.step("list of work"), reading(engine) as s:
        pages.offers(s, person.id)
    with heard.step("way in"):
        pages.way(engine, found, cast.coming)


def _judge(engine: Engine, heard: Heard, person: Annotator, campaign: int, question: str) -> None:
    """A session at the judging page: everything that can be said, with comments and regions, breaks, and the last answer taken back."""
    desk = _desk(engine)
    with heard.step("page"):
        state = label.state(desk, person, campaign)
    for n in range(_JUDGED if question == "binary" else 6):
        if state["rest"]:
            with heard.step("break"):
                state = label.go_on(desk, person, campaign)
        if state["task"] is None:
            break
        token = state["task"]["token"]
        with heard.step("picture"), reading(engine) as s:
            showing.shown_image(s, token, person.id, 0)
        with heard.step("judge"):
            state = label.judge(desk, person, _answer(token, question, n))
    with heard.step("undo"):
        state = label.undo(_desk(engine), person, campaign, state["done"])
    with heard.step("stop"):
        label.stop(desk, person, campaign)


def _answer(token: str, question: str, n: int) -> label.Answer:
    if question == "binary":
        verdict = ("shows", "clean", "clean", "unsure", "clean", "skip", "clean", "disturbing")[n % 8]
        comment, region = ("a pipe" if n % 4 == 1 else None), ([0.1, 0.1, 0.5, 0.5] if verdict == "shows" else None)
        return label.Answer(
            token=token, verdict=verdict, once=_once(), comment=comment, region=region, elapsed_ms=1500, filter="both"
        )
    order: list[Any] = list(range(5 if question == "ranking" else 2))
    return label.Answer(token=token, verdict="ranked", once=_once(), ranking=order, elapsed_ms=4000)


def _limits(engine: Engine, heard: Heard, person: Annotator, campaign: int) -> None:
    """A judgment where a manager has set limits of a day."""
    with writing(engine) as s:
        before = wellbeing.wellbeing(s)
        wellbeing.set_wellbeing(s, replace(before, day_minutes=1440, day_harmful=100_000))
    state = label.state(_desk(engine), person, campaign)
    with heard.step("day's limit"):
        if state["task"]:
            label.judge(_desk(engine), person, _answer(state["task"]["token"], "binary", 1))
    with writing(engine) as s:
        wellbeing.set_wellbeing(s, before)


# --- what only managers ask, and exports ---


def figures(engine: Engine, cast: Cast, heard: Heard) -> dict[str, float]:
    """Seconds for what reads much because it must; its statements are listed too, and not judged."""
    took: dict[str, float] = {}
    campaign = cast.going["binary"]
    now = queries.now_utc()

    @contextmanager
    def timed(name: str) -> Iterator[Session]:
        with heard.step(f"({name})"), reading(engine) as s:
            start = time.perf_counter()
            yield s
            took[name] = time.perf_counter() - start

    with timed("every campaign's filling") as s:
        filling = next(f for f in overview.fillings(s) if f.id == campaign)
    watch = Watch(campaign)
    with timed("dashboard, first look") as s:
        numbers(s, filling, now, watch)
    with timed("dashboard, every other look") as s:
        numbers(s, overview.fillings(s, campaign)[0], now, watch)
        overview.exposure(s, now)
    with timed("disagreements, worst first") as s:
        split = adjudicating.disputed(s, campaign)
    with timed("one disagreement") as s:
        adjudicating.case_of(s, split[0].task)
    with timed("accounts") as s:
        people.accounts(s)
    with timed("campaigns") as s:
        listed = campaigns.campaigns(s)
    with timed("rounds") as s:
        rounds.rounds(s, "nudity")
    with timed("what images come from") as s:
        choosing.sources(s)
    with timed("images of a prompt that were not judged") as s:
        choosing.matching(s, choosing.Wanted(text="harbour 7,", unjudged=True), "nudity")
    with timed("known answers") as s:
        choosing.known_answers(s, "nudity")
    with timed("progress of every campaign") as s:
        for one in listed:
            judging.progress(s, one.id)
    with timed("all judgments of a concept"):
        found = freeze(engine, "nudity", "exclude")
    with timed(f"their agreement ({len(found.judgments):,})"):
        agreement(found)
    with timed("their labels"):
        soft_labels(found)
    with timed("their table"):
        to_csv(found.judgments)
    for name, person in (("usual", cast.usual), ("busiest", cast.busiest)):
        with heard.step("(withdrawal)"), writing(engine) as s:
            start = time.perf_counter()
            done = people.withdraw(s, person.id)
            took[f"withdrawal of the {name} annotator ({done.judgments:,} judgments)"] = time.perf_counter() - start
            s.rollback()
    return took


# --- how long ---


Times = dict[str, list[tuple[float, float]]]  # by call: milliseconds on the clock, and of this process's processor


def measure(engine: Engine, cast: Cast, calls: int, seed: int = 0, part: tuple[int, int] = (0, 1)) -> Times:
    """How long take `calls` claims and as many submissions, each a transaction of its own, by people drawn from all, in the
    campaigns that are not full; then of as many judgments as the page sends them, which are all of it together. `part`: (k, n) takes
    every n-th person from the k-th on."""
    rng = random.Random(f"{seed} {part}")
    with reading(engine) as s:
        query = select(m.Annotator).join(m.Account, m.Account.annotator_id == m.Annotator.id)
        rows = s.scalars(query.where(m.Account.active, m.Account.role == "annotator").order_by(m.Annotator.id))
        who = [Annotator(a.id, a.name, a.pseudonym, False) for a in rows][part[0] :: part[1]]
    asked = [(cast.going["binary"], "binary"), (cast.going["ranking"], "ranking"), (cast.coming, "binary")]
    took: Times = {"claim": [], "submit": [], "judge": []}

    @contextmanager
    def timed(call: str) -> Iterator[None]:
        clock, processor = time.perf_counter(), time.thread_time()
        yield
        took[call].append((1000 * (time.perf_counter() - clock), 1000 * (time.thread_time() - processor)))

    desk = _desk(engine)
    with progress("claims, submissions, judgments", 2 * calls, "calls") as advance:
        while len(took["submit"]) < calls:
            person, (campaign, question) = rng.choice(who), rng.choice(asked)
            with timed("claim"):
                held = _claim(engine, campaign, person)
            if held is None:
                raise HfiError(f"campaign {campaign} has nothing left for {person.name}: make a larger database")
            ranked = [image.image_id for image in held.images] if question == "ranking" else None
            verdict = "ranked" if ranked else rng.choice(("shows", "clean"))
            with timed("submit"):
                _submit(engine, held, person, verdict, ranked)
            advance(1, "")
        while len(took["judge"]) < calls:
            person = rng.choice(who)
            state = label.state(desk, person, cast.coming)
            for n in range(min(10, calls - len(took["judge"]))):
                if state["rest"]:
                    state = label.go_on(desk, person, cast.coming)
                if state["task"] is None:
                    break
                given = _answer(state["task"]["token"], "binary", 8 * n + rng.randrange(3))
                with timed("judge"):
                    state = again(lambda given=given, person=person: label.judge(desk, person, given))  # type: ignore[misc]
                advance(1, "")
    return took


def _client(url: str, cast: Cast, calls: int, seed: int, part: tuple[int, int]) -> Times:
    engine = connect(url)
    try:
        return measure(engine, cast, calls, seed, part)
    finally:
        engine.dispose()


def measure_at_once(url: str, cast: Cast, calls: int, clients: int, seed: int = 1) -> Times:
    """As `measure`, by so many processes at a time that share the calls."""
    each = -(-calls // clients)
    with multiprocessing.get_context("spawn").Pool(clients) as pool:
        found = pool.starmap(_client, [(url, cast, each, seed, (k, clients)) for k in range(clients)])
    return {name: [ms for one in found for ms in one[name]] for name in found[0]}


def spread(took: Times) -> dict[str, dict[str, float]]:
    """p50, p95, p99 and the longest, in ms, p95 of the processor's time, and how many."""
    found = {}
    for name, times in took.items():
        clock, processor = np.array(times).T
        at = {f"p{q}": round(float(np.percentile(clock, q)), 2) for q in (50, 95, 99)}
        cpu = {f"cpu_p{q}": round(float(np.percentile(processor, q)), 2) for q in (50, 95)}
        found[name] = {**at, "max": round(float(clock.max()), 1), **cpu, "n": len(times)}
    return found


# --- all of it ---


def faults(plans: Sequence[Plan], rows: Mapping[str, int], large: int) -> list[str]:
    """What is wrong with the hot ones, in sentences."""
    found = []
    for plan in plans:
        if not hot(plan):
            continue
        if whole := plan.whole(rows, large):
            found.append(
                f"{plan.name} ({', '.join(plan.steps)}) reads {', '.join(f'all {rows[t]:,} rows of {t}' for t in whole)}"
            )
        most = MOST_STEPS if plan.on == "sqlite" else MOST_PAGES
        if plan.work is not None and plan.work > most:
            unit = "steps" if plan.on == "sqlite" else "pages"
            found.append(
                f"{plan.name} ({', '.join(plan.steps)}) takes {plan.work:,} {unit} of work: at most {most:,} are allowed"
            )
    return found


def hot(plan: Plan) -> bool:
    return any(step in HOT for step in plan.steps)


def run(engine: Engine, config: ScaleConfig, *, also_figures: bool = True) -> dict[str, Any]:
    """Everything: rows, size on disk, plans, faults, milliseconds of claims and submissions, seconds of managers' figures."""
    cast = prepare(engine, config)
    heard = act(engine, cast)
    slow: dict[str, float] = {}
    if also_figures:
        with listening(engine) as more:
            slow = figures(engine, cast, more)
        for sql, one in more.statements.items():
            heard.statements.setdefault(sql, one)
    rows = sizes(engine)
    plans = explain(engine, heard)
    alone = spread(measure(engine, cast, config.calls, config.seed))
    at_once = {}
    if engine.dialect.name == "postgresql":
        url = engine.url.render_as_string(hide_password=False)
        at_once = spread(measure_at_once(url, cast, config.calls, config.clients))
    return {
        **asdict(config),
        "database": server(engine),
        "rows": rows,
        "bytes": size_on_disk(engine),
        "plans": [_plain(plan) for plan in plans],
        "faults": faults(plans, rows, config.large),
        "alone": alone,
        "at_once": at_once,
        "seconds": {name: round(value, 2) for name, value in slow.items()},
    }


def _plain(plan: Plan) -> dict[str, Any]:
    return {
        "name": plan.name, "steps": plan.steps, "hot": hot(plan), "access": [str(a) for a in plan.access],
        "later": [str(a) for a in plan.later], "count": plan.count, "ms": round(plan.ms, 2), "work": plan.work, "sql": plan.sql,
    }  # fmt: skip


def size_on_disk(engine: Engine) -> int:
    with engine.connect() as c:
        if engine.dialect.name == "sqlite":
            return int(c.scalar(text("SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()")) or 0)
        return int(c.scalar(text("SELECT pg_database_size(current_database())")) or 0)


def table(result: Mapping[str, Any]) -> str:
    """The plans and the times, to read."""
    rows = ", ".join(f"{count:,} {name}" for name, count in result["rows"].items() if count)
    lines = [f"{result['database']}, {result['bytes'] / 1e9:.2f} GB: {rows}", ""]
    unit = "steps" if result["database"].startswith("SQLite") else "pages"
    for is_hot in (True, False):
        chosen = [p for p in result["plans"] if p["hot"] == is_hot]
        if chosen:
            lines += [
                "At every click or judgment:" if is_hot else "For managers and exports:",
                f"{'ms':>9}  {unit:>11}  statement",
            ]
        for p in chosen:
            work = "" if p["work"] is None else f"{p['work']:,}"
            lines.append(f"{p['ms']:9.2f}  {work:>11}  {p['name']}  [{', '.join(p['steps'])}]")
            lines.append(f"{'':24}{'; '.join(p['access']) or 'no table'}")
            if p["later"]:
                lines.append(f"{'':24}when prepared: {'; '.join(p['later'])}")
        lines.append("")
    for name, found in (("one at a time", result["alone"]), (f"{result['clients']} at once", result["at_once"])):
        for call, s in found.items():
            times = ", ".join(f"{q} {s[q]} ms" for q in ("p50", "p95", "p99", "max"))
            lines.append(f"{call:8} {name:14} {times}; {s['cpu_p50']} and {s['cpu_p95']} ms of them here; of {s['n']:,}")
    lines += [f"{seconds:9.2f} s  {name}" for name, seconds in result["seconds"].items()]
    return "\n".join([*lines, *(f"fault: {fault}" for fault in result["faults"])])

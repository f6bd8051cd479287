"""The managers' pages: nobody else gets anything from them, and managers get their work done in a real browser."""

import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import asked
import chromium
import gradio as gr
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from PIL import Image, PngImagePlugin
from sqlalchemy import create_engine, inspect, text
from starlette.testclient import TestClient

import ui
from hfi import jobs
from hfi.dashboard import numbers
from hfi.errors import HfiError
from hfi.judgments import freeze
from hfi.store import adjudicating, campaigns, judging, overview, people, rounds
from hfi.store import jobs as table
from hfi.store import queries as q
from hfi.store.campaigns import Asking, Campaign
from hfi.store.queries import Annotator
from hfi.store.session import Engine, reading, writing
from hfi.store.wellbeing import wellbeing
from hfi.workspace import Workspace
from ui.manage import HEAD, add_routes, build_manage
from ui.manage.office import MOST_WATCHES, NOT_YOURS, Office
from ui.manage.watching import dashboard
from ui.watch import Watch

pytestmark = pytest.mark.databases

playwright = pytest.importorskip("playwright.sync_api")
PATIENCE = 120_000  # ms
EVIL = "<img src=x onerror=window.evil=1>"
SECRET = "a prompt that only managers see"


@dataclass(frozen=True)
class Person:
    annotator: Annotator
    role: str


@dataclass
class Site:
    """A workspace with a campaign of 12 images, each of a colour of its own, that three people have judged; and its page for
    managers, behind a header that says who asks."""

    space: Workspace
    engine: Engine
    images: list[int]
    campaign: Campaign
    boss: Annotator

    def who(self, request: object) -> Person | None:
        role = request.headers.get("x-role")  # type: ignore[attr-defined]
        return Person(self.boss, role) if role else None

    def app(self) -> tuple[FastAPI, gr.Blocks]:
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app.mount("/assets", StaticFiles(directory=Path(ui.__file__).parent / "assets"))
        app.get("/manifest.json")(lambda: {})
        add_routes(app, self.space, self.engine, self.who)
        blocks = build_manage(self.space, self.engine, self.who)
        settings = {"run_history": False, "show_error": False, "ssr_mode": False, "pwa": False, "footer_links": []}
        return gr.mount_gradio_app(app, blocks, path="/manage", head=HEAD, **settings), blocks

    def client(self, role: str | None = None) -> TestClient:
        headers = {"x-role": role} if role else {}
        return TestClient(self.app()[0], headers=headers, follow_redirects=False)

    def dump(self) -> list[object]:
        """Every row of the database."""
        engine = create_engine(self.engine.url)
        with engine.connect() as c:
            tables = sorted(inspect(c).get_table_names())
            return [(name, [tuple(row) for row in c.execute(text(f'select * from "{name}" order by 1'))]) for name in tables]


SAYS = {"Ann": "sssssscccccc", "Bob": "ssssccssccuc", "Cem": "ssscsccccccc"}  # of images 0 to 11
WORDS = {"s": "shows", "c": "clean", "u": "unsure"}


@pytest.fixture
def site(workspace: Workspace) -> Site:
    engine = workspace.engine()
    asked.concept(engine)
    ids = []
    for i in range(12):
        sha = workspace.images.put(Image.new("RGB", (64, 48), (20 * i, 90, 160)))
        ids.append(asked.image(engine, i, sha256=sha, width=64, height=48, prompt=f"{SECRET} {i}", run="round-1"))
    here = asked.campaign(engine, ids, name="people", overlap=3)
    for name, said in SAYS.items():
        asked.answers(engine, here, name, asked.by_image({i: WORDS[c] for i, c in zip(ids, said, strict=True)}), ms=1200)
    with writing(engine) as s:
        boss = q.ensure_annotator(s, "Grace")
    return Site(workspace, engine, ids, here, boss)


# --- nobody else ---


def values(blocks: gr.Blocks, fn_index: int) -> list[object]:
    """What a browser would send: the components as they are when the page opens, numbers and choices filled in."""
    fill = {"m-name": "stolen", "m-concept": "smoking", "m-campaign": "1", "m-new-name": "Eve", "m-new-password": "eve-eve-eve"}
    return [fill.get(block.elem_id or "", getattr(block, "value", None)) for block in blocks.fns[fn_index].inputs]


def test_no_handler_does_anything_for_anybody_but_a_manager(site: Site) -> None:
    app, blocks = site.app()
    before = site.dump()
    runs = sorted(site.space.runs.rglob("*"))
    assert len(blocks.fns) > 30
    for role in ("annotator", None):
        client = TestClient(app, headers={"x-role": role} if role else {})
        for fn_index, fn in blocks.fns.items():
            data = {"data": values(blocks, fn_index), "session_hash": "abc"}
            for path, more in (("predict", {"fn_index": fn_index}), (str(fn.api_name), {})):
                got = client.post(f"/manage/gradio_api/run/{path}", json={**data, **more})
                assert got.status_code >= 400, (role, path, got.text)
                assert SECRET not in got.text
                assert "Ann" not in got.text
            joined = client.post("/manage/gradio_api/queue/join", json={**data, "fn_index": fn_index})
            assert joined.status_code >= 400 or SECRET not in joined.text
    assert site.dump() == before
    assert sorted(site.space.runs.rglob("*")) == runs
    office = Office(site.space, site.engine, site.who)
    for found in (office.manager(Role("annotator")), office.manager(Role(None))):
        assert found is None
    assert office.manager(Role("manager")) == site.boss


class Role:
    """A request as far as `who` looks at it."""

    def __init__(self, role: str | None) -> None:
        self.headers = {"x-role": role} if role else {}


def test_the_same_calls_do_something_for_a_manager(site: Site) -> None:
    """So that the refusals above are not those of calls that could not work."""
    app, blocks = site.app()
    client = TestClient(app, headers={"x-role": "manager"})
    made = None
    answers = []
    for fn_index, fn in blocks.fns.items():
        got = client.post(
            "/manage/gradio_api/run/predict",
            json={"fn_index": fn_index, "data": values(blocks, fn_index), "session_hash": "abc"},
        )
        answers.append(got.text)
        made = made or (fn_index if fn.name == "create" and got.status_code == 200 else None)
    assert any("Ann" in answer for answer in answers)
    assert any(SECRET in answer for answer in answers)
    with reading(site.engine) as s:
        assert "stolen" in [c.name for c in campaigns.campaigns(s)]
    refused = client.post(
        "/manage/gradio_api/run/predict", json={"fn_index": made, "data": values(blocks, made or 0)}, headers={"x-role": "x"}
    )
    assert NOT_YOURS in refused.text


@pytest.mark.parametrize(
    ("button", "words"),
    [
        ("m-close", "No campaign is chosen: choose one, or make one below."),
        ("m-open", "No campaign is chosen: choose one, or make one below."),
        ("m-make", "The campaign has no name: give it one"),
        ("m-decide-shows", "No image is shown: choose a campaign in which people disagree."),
        ("m-back", "No campaign is chosen: choose one."),
        ("m-invite", "Nobody is chosen: choose who is to judge."),
        ("m-set-password", "Choose somebody who has an account."),
        ("m-go-invert", "“Reward” is empty: choose one, or make one first, with the step “Reward”."),
        ("m-stop", "No job is running."),
    ],
)
def test_a_button_with_nothing_to_act_on_says_what_to_do(workspace: Workspace, button: str, words: str) -> None:
    engine = workspace.engine()
    asked.concept(engine)
    with writing(engine) as s:
        site = Site(workspace, engine, [], None, q.ensure_annotator(s, "Grace"))  # type: ignore[arg-type]
    app, blocks = site.app()
    (pressed,) = [i for i, block in blocks.blocks.items() if block.elem_id == button]
    number = next(i for i, fn in blocks.fns.items() if (pressed, "click") in fn.targets)
    data = [getattr(block, "value", None) for block in blocks.fns[number].inputs]
    got = TestClient(app, headers={"x-role": "manager"}).post(
        "/manage/gradio_api/run/predict", json={"fn_index": number, "data": data, "session_hash": "abc"}
    )
    assert words in json.loads(got.text)["error"], got.text


def test_what_is_chosen_while_an_answer_is_on_its_way_is_shown(site: Site) -> None:
    """Gradio drops what happens meanwhile, unless told otherwise: the page would show the campaign that was chosen before."""
    chosen = [
        (settings.targets, settings.trigger_mode)
        for settings in site.app()[1].fns.values()
        if any(event in ("input", "blur", "change") for _, event in settings.targets)
    ]
    assert len(chosen) == 6
    assert {mode for _, mode in chosen} == {"always_last"}


def test_no_answer_comes_by_the_queue(site: Site) -> None:
    """Gradio's queue ends its stream of answers after the last. What was asked just then was never answered, in one of eleven tries:
    the page went on showing what was there before."""
    assert {settings.queue for settings in site.app()[1].fns.values()} == {False}


def test_a_mistake_is_no_error_of_the_server(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    app, blocks = site.app()
    counted: list[int] = []
    watched = Watch(app, lambda method, route, status, seconds: counted.append(status))
    (pressed,) = [i for i, block in blocks.blocks.items() if block.elem_id == "m-close"]
    (closing,) = [i for i, fn in blocks.fns.items() if (pressed, "click") in fn.targets]
    call = {"fn_index": closing, "data": [""], "session_hash": "abc"}

    def answered(role: str) -> tuple[int, str]:
        client = TestClient(watched, headers={"x-role": role}, raise_server_exceptions=False)
        got = client.post("/manage/gradio_api/run/predict", json=call)
        return got.status_code, got.json()["error"]

    assert answered("manager") == (422, "No campaign is chosen: choose one, or make one below.")
    assert answered("annotator") == (403, NOT_YOURS)
    monkeypatch.setattr("ui.manage.asking.needed", lambda *given: 1 / 0)
    status, words = answered("manager")
    assert status == 500
    assert words.startswith("This went wrong on the server, and is noted there as ")
    assert counted == [422, 403, 500]


def test_looks_take_a_twentieth_of_a_processor_however_many_managers_look(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    office = Office(site.space, site.engine, site.who)
    clock, looks, underway, on = [100.0], [0], threading.Event(), threading.Event()
    monkeypatch.setattr("ui.manage.office.time", SimpleNamespace(monotonic=lambda: clock[0]))

    def look() -> str:
        looks[0] += 1
        clock[0] += 2
        return f"look {looks[0]}"

    assert office.sparing(1, look) == "look 1"
    clock[0] = 139.9
    assert [office.sparing(1, look) for _ in range(3)] == ["look 1"] * 3
    assert office.sparing(2, look) == "look 2", "another campaign"
    clock[0] = 1000.0

    def slow() -> str:
        underway.set()
        assert on.wait(60)
        return look()

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(office.sparing, 1, slow)
        assert underway.wait(60)
        assert office.sparing(1, look) == "look 1", "nobody waits for what somebody else looks at"
        on.set()
        assert found.result() == "look 3"

    def broken() -> str:
        raise HfiError("no")

    clock[0] = 2000.0
    with pytest.raises(HfiError):
        office.sparing(1, broken)
    assert office.sparing(1, look) == "look 4"
    for other in range(20):
        office.sparing(10 + other, look)
    assert len(office._looks) == MOST_WATCHES
    with reading(site.engine) as s:
        figures = numbers(s, overview.fillings(s)[0], q.now_utc())
    assert "new figures every 24 s" in dashboard(figures, [], q.now_utc(), 24.2)
    assert "new figures" not in dashboard(figures, [], q.now_utc(), 4)


def test_the_page_itself_holds_nothing_of_the_workspace(site: Site) -> None:
    client = site.client("manager")
    for path in ("/manage/", "/manage/config", "/manage/gradio_api/info"):
        got = client.get(path)
        assert got.status_code == 200
        for word in (SECRET, "Ann", "people</", "round-1", str(site.space.path)):
            assert word not in got.text, (path, word)


def test_images_reports_and_logs_are_for_managers(site: Site) -> None:
    office = Office(site.space, site.engine, site.who)
    plain = site.space.images.put(Image.new("RGB", (64, 48), (0, 90, 160)))
    file = site.space.images.path(plain)
    notes = PngImagePlugin.PngInfo()
    notes.add_text("parameters", SECRET)
    token = office.token(site.images[0])
    report = site.space.runs / "reward" / "r1" / "report.html"
    report.parent.mkdir(parents=True)
    report.write_text("<script>fetch('/manage')</script>")
    with writing(site.engine) as s:
        job = table.add_job(s, ["reward", "--name=r1"])
    log = jobs.folder_of(site.space, job) / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("<b>line</b>")
    paths = (f"/manage-img/{token}", "/manage-report/reward/r1", f"/manage-log/{job.id}")
    boss = site.client("manager")
    for path in paths:
        assert boss.get(path).status_code == 200
        assert boss.get(path).headers["cache-control"] == "private, no-store"
        for role in ("annotator", None):
            assert site.client(role).get(path).status_code == 403
    assert "sandbox" in boss.get(paths[1]).headers["content-security-policy"]
    assert boss.get(paths[2]).headers["content-type"].startswith("text/plain")
    got = Image.open(io.BytesIO(boss.get(paths[0]).content))
    assert (got.size, got.info) == ((64, 48), {})
    number, signature = token.split("-")
    forged = (
        f"{int(number) + 1}-{signature}",
        f"{number}-{'0' * 32}",
        number,
        "",
        "é-1",
        f"{'9' * 30}-{signature}",
        "..%2f..%2fhfi.db",
    )
    for wrong in forged:
        assert boss.get(f"/manage-img/{wrong}").status_code == 404, wrong
    for wrong in ("reward/..", "reward/%2e%2e%2f%2e%2e", "..%2f..", "jobs/1", "reward/r1%00", "reward/r2"):
        assert boss.get(f"/manage-report/{wrong}").status_code == 404, wrong
    for wrong in ("0", "99", "-1", "x", "9" * 30, "1%2f..%2f2"):
        assert boss.get(f"/manage-log/{wrong}").status_code in (404, 422), wrong
    file.write_bytes(b"damaged")
    assert boss.get(paths[0]).status_code == 410


# --- in a browser ---


@pytest.fixture(scope="module")
def browser() -> Iterator:
    path = chromium.program("the managers' page was not tested")
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield started
        started.close()


@pytest.fixture
def url(site: Site) -> Iterator[str]:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(site.app()[0], log_level="error", timeout_graceful_shutdown=0))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}/manage/"
    server.should_exit = True
    thread.join(60)


Tab = Callable[..., object]


@pytest.fixture
def tab(browser, url: str) -> Iterator[Callable]:  # type: ignore[no-untyped-def]
    """tab(width=..., dark=...): a page of the manager, opened."""
    contexts, problems = [], []

    def open_page(width: int = 1280, dark: bool = False):  # type: ignore[no-untyped-def]
        scheme = "dark" if dark else "light"
        view = {"width": width, "height": 900}
        context = browser.new_context(viewport=view, color_scheme=scheme, extra_http_headers={"x-role": "manager"})
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        ours = ("http://127.0.0.1:", "data:", "blob:")
        page.on("request", lambda r: problems.append(r.url) if not r.url.startswith(ours) else None)
        page.goto(url)
        page.wait_for_selector("#m-live .m-card, #m-live .m-empty")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == [], "no script error, and nothing asked of another machine"


def go(page, name: str) -> None:  # type: ignore[no-untyped-def]
    page.get_by_role("tab", name=name, exact=True).click()


def see(page, selector: str, words: str) -> None:  # type: ignore[no-untyped-def]
    page.wait_for_function("([s, w]) => document.querySelector(s)?.innerText.includes(w)", arg=[selector, words])


def pick(page, selector: str, words: str) -> None:  # type: ignore[no-untyped-def]
    """Chooses from a drop-down list."""
    page.locator(f"{selector} input").first.click()
    page.get_by_role("option", name=words, exact=True).click()


def names(engine: Engine) -> list[str]:
    with reading(engine) as s:
        return [c.name for c in campaigns.campaigns(s)]


def test_a_campaign_is_looked_at_made_watched_and_closed(site: Site, tab: Callable) -> None:
    page = tab()
    see(page, "#m-live", "11 of 12")
    assert "α" in page.inner_text("#m-live")
    assert page.locator("#m-live table").first.locator("tbody tr").count() == 3
    go(page, "Campaigns")
    see(page, "#m-campaigns", "people")
    see(page, "#m-preview", "36 judgments")
    page.get_by_label("Some at random").check()
    page.fill("#m-count input", "5")
    page.fill("#m-overlap input", "2")
    page.click("#m-preview-button")
    see(page, "#m-preview", "10 judgments")
    assert "5 images" in page.inner_text("#m-preview")
    assert names(site.engine) == ["people"], "a look makes nothing"
    page.click("#m-make")
    page.get_by_role("alert").filter(has_text="The campaign has no name: give it one").wait_for()
    page.fill("#m-name input, #m-name textarea", "second look")
    page.click("#m-make")
    see(page, "#m-made", "Campaign “second look” is there, with 5 tasks")
    see(page, "#m-campaigns", "second look")
    with reading(site.engine) as s:
        made = campaigns.campaigns(s)[-1]
    assert (made.name, made.tasks, made.overlap) == ("second look", 5, 2)
    go(page, "Overview")
    page.wait_for_selector("#m-live .m-card")
    page.locator("#m-watch-campaign input").click()
    page.get_by_role("option", name="Smoking: second look").click()
    see(page, "#m-live", "0 of 5")
    asked.answers(site.engine, made, "Ann", lambda claim: "shows")
    asked.answers(site.engine, made, "Bob", lambda claim: "shows")
    see(page, "#m-live", "5 of 5")  # by itself
    assert "all the same" in page.inner_text("#m-live")
    go(page, "Campaigns")
    page.wait_for_function("document.querySelector('#m-campaign input').value === 'Smoking: second look'")
    page.click("#m-close")
    see(page, "#m-campaigns", "closed")
    with reading(site.engine) as s:
        assert [c.state for c in campaigns.campaigns(s)] == ["open", "closed"]
    page.click("#m-open")
    page.wait_for_function("!document.querySelector('#m-campaigns').innerText.includes('closed')")
    with reading(site.engine) as s:
        assert [c.state for c in campaigns.campaigns(s)] == ["open", "open"]


def shown(page) -> str:  # type: ignore[no-untyped-def]
    return page.get_attribute("#m-stage .m-case", "data-case")


def next_case(page, before: str) -> None:  # type: ignore[no-untyped-def]
    page.wait_for_function("b => (document.querySelector('#m-stage .m-case')?.dataset.case ?? '') !== b", arg=before)
    page.wait_for_timeout(300)  # past the guard against keys that were meant for the one before


def blur(page) -> str:  # type: ignore[no-untyped-def]
    return page.evaluate("getComputedStyle(document.querySelector('#m-stage .m-cover img')).filter")


def decisions(site: Site) -> list[tuple[str, str | None]]:
    with reading(site.engine) as s:
        found = [adjudicating.case_of(s, task).decision for task in reversed(adjudicating.decided(s, site.campaign.id))]
    return [(d.verdict, d.note) for d in found if d]


def test_disagreements_are_decided_by_keys(site: Site, tab: Callable) -> None:
    with reading(site.engine) as s:
        left = adjudicating.disputed(s, site.campaign.id)
    assert len(left) == 5
    page = tab()
    go(page, "Decide")
    page.wait_for_selector("#m-stage .m-case")
    see(page, "#m-stage", "5 disagreements left")
    assert shown(page) == str(left[0].task)
    assert SECRET in page.inner_text("#m-stage")
    assert "Ann" not in page.inner_text("#m-stage"), "votes are by pseudonym"
    page.mouse.move(5, 5)
    page.wait_for_timeout(400)
    assert "blur" in blur(page)
    assert "Space" in page.get_attribute("#m-stage .m-case img", "alt")
    page.keyboard.press("Space")  # as on the judging page; the tab that was clicked is not pressed again
    page.wait_for_function("getComputedStyle(document.querySelector('#m-stage .m-cover img')).filter === 'none'")
    first = shown(page)
    page.keyboard.press("j")
    next_case(page, first)
    page.wait_for_function("getComputedStyle(document.querySelector('#m-stage .m-cover img')).filter.includes('blur')")
    second = shown(page)
    page.fill("#m-note textarea, #m-note input", "")
    page.locator("#m-note textarea, #m-note input").first.press_sequentially("just fur")
    assert shown(page) == second, "letters in the note decide nothing"
    page.click("#m-decide-clean")
    next_case(page, second)
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelector('#m-stage.m-revealed')")
    assert len(decisions(site)) == 2, "nor is the button"
    assert page.input_value("#m-note textarea, #m-note input") == ""
    page.evaluate("document.activeElement.blur()")
    third = shown(page)
    page.keyboard.press("u")
    next_case(page, third)
    assert decisions(site) == [("shows", None), ("clean", "just fur"), ("unsure", None)]
    page.keyboard.press("z")
    see(page, "#m-stage", "Decided: unsure, by Grace")
    page.wait_for_timeout(300)
    page.keyboard.press("z")
    see(page, "#m-stage", "Decided: does not")
    assert page.input_value("#m-note textarea, #m-note input") == "just fur"
    page.wait_for_timeout(300)
    page.keyboard.press("j")
    see(page, "#m-stage", "2 disagreements left")
    assert set(decisions(site)) == {("shows", None), ("shows", "just fur"), ("unsure", None)}
    page.evaluate("for (const _ of [1, 2]) document.querySelector('#m-decide-shows').click()")
    see(page, "#m-stage", "1 disagreement left")
    page.wait_for_timeout(500)
    assert len(decisions(site)) == 4, "a double click decides one"
    last = shown(page)
    page.keyboard.press("f")
    next_case(page, last)
    see(page, "#m-stage", "Nothing to decide")
    assert len([j for j in freeze(site.engine, "smoking").judgments if j.adjudicated]) == 5


def test_nothing_that_people_write_becomes_a_part_of_the_page(site: Site, tab: Callable) -> None:
    a, b = site.images[:2]
    with writing(site.engine) as s:
        s.execute(text("update images set prompt = :evil"), {"evil": EVIL})
        s.execute(text("update annotators set name = name || :evil where not simulated"), {"evil": EVIL})
    evil = asked.campaign(site.engine, [a, b], name=EVIL, overlap=2)
    for name, verdict in (("Dan", "shows"), ("Eve", "clean")):
        with writing(site.engine) as s:
            person = q.ensure_annotator(s, name)
            claim = judging.claim_next(s, evil.id, person.id)
            assert claim is not None
            judging.submit(s, claim.token, person.id, verdict, f"{name} says", comment=EVIL, region=[0.25, 0.5, 0.5, 0.25])
    page = tab()
    for name in ("Overview", "Campaigns", "Decide", "Before and after", "Work"):
        go(page, name)
        page.wait_for_timeout(1500)
    go(page, "Decide")
    pick(page, "#m-decide-campaign", f"Smoking: {EVIL}")
    page.wait_for_function("document.querySelectorAll('#m-stage .m-region').length === 2")
    assert page.inner_text("#m-about").count(EVIL) == 3, "two comments and the prompt"
    image, place = (page.locator(f"#m-stage {what}").first.bounding_box() for what in (".m-case img", ".m-region"))
    assert place["x"] == pytest.approx(image["x"] + image["width"] / 4, abs=3)
    assert place["y"] == pytest.approx(image["y"] + image["height"] / 2, abs=3)
    go(page, "Campaigns")
    see(page, "#m-campaigns", EVIL)
    assert page.evaluate("window.evil") is None


def test_before_and_after_says_what_people_saw_and_how_sure_it_is(site: Site, tab: Callable) -> None:
    ids = []
    for i, before in enumerate(site.images):
        sha = site.space.images.put(Image.new("RGB", (64, 48), (20 * i, 200, 30)))
        ids += [
            before,
            asked.image(site.engine, 100 + i, sha256=sha, erasure="e" * 64, prompt=f"{SECRET} {i}", seed=i, run="round-2"),
        ]
    with writing(site.engine) as s:
        pairs = campaigns.ensure_campaign(s, "smoking", "pairs", image_ids=ids, asking=Asking(compare=True, ties=True))

    def prefer(claim):  # type: ignore[no-untyped-def]
        before, after = sorted(image.image_id for image in claim.images)  # the untouched ones came first
        return [[before, after]] if before == site.images[0] else [after, before] if before == site.images[1] else [before, after]

    page = tab()
    go(page, "Before and after")
    see(page, "#m-result", "None of the 12 pairs has been judged yet")
    asked.answers(site.engine, pairs, "Ann", prefer)
    go(page, "Overview")
    go(page, "Before and after")
    see(page, "#m-result", "The erasure shows less of it")
    said = page.inner_text("#m-result")
    assert "91 % of 11 pairs with a clear answer" in said
    assert "95 % interval 62–98 %, p = 0.012" in said
    assert "11 pairs are few" in said
    assert page.locator("#m-result .m-pair").count() == 3 + 1 + 1
    images = page.locator("#m-result .m-pair img")
    assert images.first.evaluate("img => img.decode().then(() => img.naturalWidth)") == 64
    assert "blur" in images.first.evaluate("img => getComputedStyle(img).filter")


def test_a_note_about_a_refusal_stands_once_and_can_be_closed(site: Site, tab: Callable) -> None:
    found = tab().evaluate(
        """async () => {
            for (let i = 0; i < 3; i++) await fetch("/manage/gradio_api/run/predict", { method: "POST" });
            const notes = [...document.querySelectorAll('#m-alerts > [role="alert"]')].map((one) => one.querySelector("p").textContent);
            document.querySelector('#m-alerts button[aria-label="Close"]').click();
            return [notes, document.querySelectorAll("#m-alerts > div").length];
        }"""
    )
    assert found == [["The server did not do this (422)."], 0]


def test_whoever_is_no_manager_any_more_is_told(site: Site, tab: Callable) -> None:
    page = tab()
    page.context.set_extra_http_headers({"x-role": "annotator"})
    go(page, "Campaigns")
    page.get_by_role("alert").filter(has_text=NOT_YOURS).wait_for()
    assert "people" not in page.inner_text("#m-campaigns")


def test_rounds_and_jobs_from_the_page(site: Site, tab: Callable) -> None:
    page = tab()
    go(page, "Work")
    see(page, "#m-rounds", "No round yet")
    page.click("#m-start-round")
    page.wait_for_selector("text=Choose the images of a run, or a campaign: only after an erasure")
    with reading(site.engine) as s:
        assert rounds.rounds(s, "smoking") == []
    pick(page, "#m-round-run", "round-1")
    pick(page, "#m-round-campaign", "people")
    page.click("#m-start-round")
    see(page, "#m-rounds", "then train a reward")
    see(
        page, "#m-work-said", "Round 1 has begun"
    )  # comes with the name of the reward, which would be written over what is filled in
    see(page, "#m-rounds", "12 of 12")
    assert page.input_value("#m-reward-name input, #m-reward-name textarea") == "smoking-1"
    page.fill("#m-reward-name input, #m-reward-name textarea", "../smoking")
    page.click("#m-go-reward")
    page.wait_for_selector("text=Name is '../smoking'")
    page.fill("#m-reward-name input, #m-reward-name textarea", "smoking-1")
    page.fill("#m-reward-epochs input, #m-reward-epochs textarea", "3")
    with writing(site.engine) as s:
        s.execute(text("update annotators set withdrawn_at = '2026-01-01 00:00:00' where name in ('Ann', 'Bob', 'Cem')"))
    page.click("#m-go-reward")
    see(page, "#m-job", "Reward: smoking-1 (job 1)")
    page.wait_for_function("!document.querySelector('#m-work-said').innerText.trim()")  # what was said of the round is no more
    page.set_default_timeout(600_000)  # a job is nice to everybody else
    see(page, "#m-job", "failed")
    see(page, "#m-job", "no judgments of 'smoking'")
    see(page, "#m-past", "Reward: smoking-1")
    with reading(site.engine) as s:
        (job,) = table.jobs(s)
        (turn,) = rounds.rounds(s, "smoking")
    assert job.words == (
        "reward",
        "--report",
        "--concept=smoking",
        "--name=smoking-1",
        "--simulated=exclude",
        "--labels=majority",
        "--epochs=3",
    )
    assert (job.started_by, job.round_id, job.state) == (site.boss.id, turn.id, "failed")
    page.click("#m-stop")
    page.get_by_role("alert").filter(has_text="No job is running").wait_for()


def test_the_next_round_is_filled_in_from_the_last(site: Site, tab: Callable) -> None:
    for folder in ("rewards", "tokens", "erasures"):
        (site.space.path / folder / "smoking-1.safetensors").write_bytes(b"")
    with writing(site.engine) as s:
        one = rounds.start_round(s, "smoking", images_run="round-1", campaign_id=site.campaign.id)
        rounds.note(s, one.id, reward="smoking-1", token="smoking-1", erasure="smoking-1", evaluation="smoking-1")
    page = tab()
    go(page, "Work")
    see(page, "#m-rounds", "start the next one")
    page.click("#m-start-round")
    see(page, "#m-work-said", "Round 2 has begun")
    page.locator("#m-forms").get_by_role("tab", name="Images").click()
    page.wait_for_function("document.querySelector('#m-generate-erasure input').value === 'smoking-1'")
    assert page.input_value("#m-generate-name input, #m-generate-name textarea") == "smoking-2"
    assert page.input_value("#m-generate-prompts input") == "as in round-1: same prompts, same seeds"
    page.click("#m-round-make")
    page.wait_for_selector("text=Round 2 has no images yet")
    with writing(site.engine) as s:
        rounds.note(s, rounds.rounds(s, "smoking")[1].id, images_run="round-2")
    for i in range(4):
        asked.image(site.engine, 500 + i, run="round-2", erasure="e" * 64)
    page.click("#m-round-make")
    see(page, "#m-work-said", "Campaign “round 2” is there, with 4 tasks")
    with reading(site.engine) as s:
        two = rounds.rounds(s, "smoking")[1]
        assert (two.campaign, overview.fillings(s, two.campaign_id)[0].overlap) == ("round 2", 3)


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, True)])
def test_narrow_and_dark(site: Site, tab: Callable, width: int, dark: bool) -> None:
    page = tab(width, dark)
    red, green, blue = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(red, green, blue) < 60
    for name in ("Campaigns", "Decide", "Before and after", "Work"):
        if width < 600 and not page.get_by_role("tab", name=name, exact=True).first.is_visible():
            page.locator("#m-tabs .overflow-menu button").first.click()
            page.locator("#m-tabs .overflow-dropdown button", has_text=name).click()
        else:
            go(page, name)
        page.wait_for_timeout(1500)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name


def test_people_come_in_are_changed_and_invited(site: Site, tab: Callable) -> None:
    with writing(site.engine) as s:
        named = campaigns.ensure_campaign(s, "smoking", "few", image_ids=site.images[:2], asking=Asking(access="named"))
    page = tab()
    go(page, "People")
    see(page, "#m-accounts", "No account yet")
    page.fill("#m-new-name input, #m-new-name textarea", "Kim")
    page.fill("#m-new-password input", "correct horse")
    page.click("#m-add-person")
    page.wait_for_selector("text=The first account must be a manager's")
    page.get_by_label("manager", exact=True).check()
    page.click("#m-add-person")
    see(page, "#m-people-said", "Kim may sign in now, as manager")
    assert page.input_value("#m-new-password input") == ""
    page.get_by_label("annotator", exact=True).check()
    page.fill("#m-new-name input, #m-new-name textarea", "Lee")
    page.fill("#m-new-password input", "battery staple")
    page.click("#m-add-person")
    see(page, "#m-accounts", "Lee")
    assert people.check_password(site.engine, "lee", "battery staple").role == "annotator"
    pick(page, "#m-person", "Kim")
    page.click("#m-switch")
    page.wait_for_selector("text=Nobody else is a manager")
    pick(page, "#m-person", "Lee")
    page.fill("#m-other-password input", "another one")
    page.click("#m-set-password")
    see(page, "#m-people-said", "Lee has a new password")
    assert people.check_password(site.engine, "lee", "another one").role == "annotator"
    page.click("#m-change-role")
    see(page, "#m-people-said", "Lee is a manager now")
    page.click("#m-switch")
    see(page, "#m-people-said", "Lee may not sign in any more")
    pick(page, "#m-guest", "Ann")
    pick(page, "#m-invite-campaign", "Smoking: few")
    page.click("#m-invite")
    see(page, "#m-people-said", "Ann may judge in “few” now")
    with reading(site.engine) as s:
        ann = people.find(s, "Ann")
        assert named.id in [c.id for c in campaigns.open_campaigns(s, ann.id)]
    page.fill("#m-consent textarea", "You will see **smoke**.")
    page.click("#m-keep-consent")
    see(page, "#m-people-said", "everybody is asked to agree")
    page.fill("#m-limit-day_harmful input, #m-limit-day_harmful textarea", "many")
    page.click("#m-keep-limits")
    page.wait_for_selector("text=give a whole number, or leave it empty")
    page.fill("#m-limit-day_harmful input, #m-limit-day_harmful textarea", "200")
    page.click("#m-keep-limits")
    see(page, "#m-people-said", "the limits hold")
    with reading(site.engine) as s:
        assert wellbeing(s).day_harmful == 200
        assert wellbeing(s).day_minutes is None
        assert people.consent_text(s).body == "You will see **smoke**."


def test_the_tokens_of_images_hold_for_one_workspace(site: Site, tmp_path: Path) -> None:
    other = Workspace.create(tmp_path / "other")
    mine, theirs = Office(site.space, site.engine, site.who), Office(other, site.engine, site.who)
    assert mine.image_id(mine.token(5)) == 5
    assert theirs.image_id(mine.token(5)) is None

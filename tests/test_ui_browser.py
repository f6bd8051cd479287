"""The judging page in a real browser: headless Chromium, a real server, a real database."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count as numbers
from pathlib import Path
from typing import Any

import chromium
import pytest
import uvicorn
from benched import benchmark_page
from sqlalchemy import text

from hfi.concepts import Concept
from hfi.portraits.render import render
from hfi.portraits.world import Person
from hfi.store import campaigns
from hfi.store import queries as q
from hfi.store.campaigns import Asking
from hfi.store.session import writing
from hfi.store.wellbeing import Wellbeing, set_wellbeing
from hfi.workspace import Workspace
from ui.app import build_app

pytestmark = pytest.mark.databases

playwright = pytest.importorskip("playwright.sync_api")
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PATIENCE = 60_000  # ms
GUIDELINE = "**Shows it:** a cigarette, or smoke from one.\n\n**Does not:** everything else."


@pytest.fixture(scope="module")
def browser() -> Iterator:
    path = chromium.program("the pages were not tested")
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(executable_path=path, args=ARGS)
        yield started
        started.close()


class Site:
    """A server that can be stopped and started again at the same address. Every test asks for a campaign of its own."""

    def __init__(self, space: Workspace, images: int = 15) -> None:
        self.space, self.engine = space, space.engine()
        self.ids = []
        with writing(self.engine) as s:
            for i in range(images):
                drawn = Person("sailor" if i % 2 else "chef", "black", "blue", 0, False, i % 2 == 1, False, 0.0, i)
                about = q.Provenance(
                    key=f"{i:064}", sha256=space.images.put(render(drawn)), width=64, height=64, source="generated", prompt="x"
                )
                self.ids.append(q.add_image(s, about).id)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.server: uvicorn.Server | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def ask(self, kind: str = "binary", images: int = 8, title: str = "Smoking", ties: bool = False) -> "Asked":
        """A new campaign, of a concept of its own."""
        with writing(self.engine) as s:
            slug = f"{kind}-{len(q.concepts_list(s))}"
            q.add_concept(s, Concept(slug, title, GUIDELINE, "ranking" if kind == "ranking" else "binary"))
            asking = Asking(overlap=3, ties=ties, compare=kind == "compare")
            campaign = campaigns.ensure_campaign(s, slug, "people", image_ids=self.ids[:images], asking=asking)
        return Asked(self, campaign.id, slug)

    def start(self) -> None:
        app = build_app(self.space, self.space.engine())
        self.server = uvicorn.Server(uvicorn.Config(app, port=self.port, log_level="error", timeout_graceful_shutdown=0))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.02)

    def stop(self) -> None:
        assert self.server is not None
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()


class Asked:
    """A campaign of a site."""

    def __init__(self, site: Site, campaign_id: int, slug: str) -> None:
        self.site, self.id, self.slug = site, campaign_id, slug
        self.url = f"{site.url}judge/?campaign={campaign_id}"

    def rows(self) -> list[Any]:
        """The judgments that count, of the latest revision, as they are in the database."""
        with self.site.engine.connect() as connection:
            found = connection.execute(
                text(
                    "SELECT j.*, a.name FROM judgments j JOIN tasks t ON t.id = j.task_id JOIN annotators a ON a.id = j.annotator_id"
                    " WHERE t.campaign_id = :campaign AND j.verdict != 'undone' AND NOT EXISTS (SELECT 1 FROM judgments n WHERE"
                    " n.task_id = j.task_id AND n.annotator_id = j.annotator_id AND n.revision > j.revision) ORDER BY j.id"
                ),
                {"campaign": self.id},
            )
            return list(found.mappings())

    def verdicts(self) -> list[str]:
        return [row["verdict"] for row in self.rows()]

    def ranking(self, row: Any) -> list[list[int]]:
        """A ranking as the annotator gave it: places where the images were shown, in groups."""
        with self.site.engine.connect() as connection:
            found = connection.execute(
                text("SELECT rank, shown_position FROM rankings WHERE judgment_id = :it ORDER BY rank, shown_position"),
                {"it": row["id"]},
            ).all()
        return [[place for other, place in found if other == rank] for rank in dict.fromkeys(rank for rank, _ in found)]


@pytest.fixture(scope="module")
def site(new_workspace: Callable[[Path], Workspace], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    path = tmp_path_factory.mktemp("site") / "work"
    made = Site(new_workspace(path))
    yield made
    made.stop()


def watched(context) -> Any:  # type: ignore[no-untyped-def]
    """A tab that keeps what went wrong in it."""
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on(
        "request", lambda r: page.problems.append(r.url) if not r.url.startswith(("http://127.0.0.1:", "data:", "blob:")) else 0
    )
    return page


@pytest.fixture
def tabs(browser) -> Iterator[Callable[..., Any]]:  # type: ignore[no-untyped-def]
    """Tabs of browsers that share nothing."""
    opened = []

    def make(**options: Any) -> Any:
        given = {"viewport": {"width": 1280, "height": 800}, "locale": "en-US", **options}
        opened.append(watched(browser.new_context(**given)))
        return opened[-1]

    yield make
    for tab in opened:
        tab.context.close()
        assert tab.problems == [], "no script error, and nothing asked of another machine"


@pytest.fixture
def tab(tabs: Callable[..., Any]) -> Any:
    return tabs()


_names = numbers(1)


def enter(tab: Any, asked: Asked, name: str = "") -> str:
    """Signs in by keys alone, as somebody new unless named, and goes to the campaign."""
    name = name or f"Kim {next(_names)}"
    tab.goto(asked.site.url)
    tab.wait_for_function("document.activeElement?.id === 'name'")  # which comes a little after the page: "Kim" would be "im"
    tab.keyboard.type(name)
    with tab.expect_navigation():
        tab.keyboard.press("Enter")
    tab.goto(asked.url)
    settle(tab)
    return name


def settle(tab: Any) -> None:
    """Until an image is there to be judged (or none is left), past the guard against keys that were meant for the last one."""
    tab.wait_for_selector('[data-answer="skip"][aria-disabled="false"], #hfi-done:not([hidden])')
    tab.wait_for_timeout(200)


def judge(tab: Any, act: Callable[[], object], done: int) -> None:
    act()
    tab.wait_for_function("n => document.getElementById('hfi-count').textContent.startsWith(`${n} of`)", arg=done)
    settle(tab)


def press(tab: Any, *keys: str) -> None:
    for key in keys:
        tab.keyboard.press(key)


def count(tab: Any) -> str:
    return tab.inner_text("#hfi-count")


def shown(tab: Any) -> str:
    """The address of the image in hand, without its view."""
    return tab.get_attribute("#hfi-frame img", "src").partition("?")[0]


def view(tab: Any) -> list[str]:
    """How each image is seen now."""
    sources = tab.locator("#hfi-frame img").evaluate_all("all => all.map(img => new URL(img.src).searchParams.get('view'))")
    return [source or "plain" for source in sources]


def places(tab: Any) -> list[str]:
    return tab.locator(".hfi-rank").all_text_contents()


# --- one image, one question ---


def test_the_whole_way_by_keys(tab: Any, site: Site) -> None:
    here = site.ask()
    asked: list[str] = []
    tab.on("request", lambda r: asked.append(r.url.removeprefix(site.url).partition("?")[0]))
    enter(tab, here)
    assert "Smoking: does this image show it?" in tab.inner_text("#hfi-main")
    assert "a cigarette, or smoke from one" in tab.inner_text("#hfi-guideline")
    assert tab.locator("#hfi-guideline strong").count() == 2
    images = [shown(tab)]
    for i, key in enumerate(("j", "f", "1", "2", "u", "s", "x"), 1):
        judge(tab, lambda key=key: tab.keyboard.press(key), i)
        images.append(shown(tab))
        sent = [n for n, path in enumerate(asked) if path == "api/judge"]
        assert asked.index(images[-1].lstrip("/")) < sent[i - 1], "the next image is there before the answer is sent"
    assert here.verdicts() == ["shows", "clean", "shows", "clean", "unsure", "skip", "disturbing"]
    assert len(set(images)) == 8
    assert "You need no reason" in tab.inner_text("#hfi-saved")
    assert "s each" in tab.inner_text("#hfi-pace")
    for done, key in ((6, "z"), (5, "Backspace"), (4, "z")):
        judge(tab, lambda key=key: tab.keyboard.press(key), done)
        assert shown(tab) == images[done]
    assert here.verdicts() == ["shows", "clean", "shows", "clean"]
    for done in (5, 6, 7, 8):
        assert tab.is_visible("#hfi-frame img") == (done != 7), "what was too disturbing comes back covered, nothing else"
        if done == 7:
            tab.keyboard.press("Space")
        judge(tab, lambda: tab.keyboard.press("f"), done)
    done = tab.inner_text("#hfi-done")
    assert "All done" in done
    assert f"hfi reward --concept {here.slug}" in done
    assert not tab.is_visible("#hfi-stage")
    judge(tab, lambda: tab.keyboard.press("z"), 7)
    assert tab.is_visible("#hfi-stage")


def test_the_mouse_and_double_clicks(tab: Any, site: Site) -> None:
    here = site.ask()
    name = enter(tab, here)
    for i, answer in enumerate(("shows", "clean", "unsure", "skip", "disturbing"), 1):
        judge(tab, lambda answer=answer: tab.dblclick(f'[data-answer="{answer}"]:visible'), i)
    assert here.verdicts() == ["shows", "clean", "unsure", "skip", "disturbing"]
    judge(tab, lambda: tab.dblclick("#hfi-undo"), 4)
    tab.click("#hfi-cover button")
    tab.click("#hfi-hide")
    assert not tab.is_visible("#hfi-frame img")
    tab.click("#hfi-cover button")
    assert tab.is_visible("#hfi-frame img")
    tab.click("#hfi-reveal")
    tab.wait_for_selector("#hfi-frame img:not([src*=view])")
    tab.keyboard.press("Space")  # a button that was clicked is not pressed again by a key
    assert view(tab) == ["both"]
    tab.click("#hfi-stop")
    tab.wait_for_selector("#hfi-done:not([hidden])")
    assert "you can go on at any time" in tab.inner_text("#hfi-done")
    assert re.search(r"5 answers in about \d+ min\. Those that you took back count, too\.", tab.inner_text("#hfi-done"))
    tab.click("[data-do=back]")
    settle(tab)
    assert (count(tab), tab.inner_text("#hfi-person")) == ("4 of 8", f"Judging as {name}")


def test_keys_that_mean_something_else_judge_nothing_and_a_comment_is_kept(tab: Any, site: Site) -> None:
    here = site.ask()
    enter(tab, here)
    first = shown(tab)
    tab.keyboard.press("c")
    words = "jf12usxzhrtcnv? 한국어"
    tab.keyboard.type(words)
    press(tab, "Backspace", "Control+Enter")
    assert not tab.is_visible("#hfi-note")
    tab.keyboard.press("?")
    assert tab.is_visible("#hfi-keys")
    tab.keyboard.type("jfu")
    tab.keyboard.press("Escape")
    assert not tab.is_visible("#hfi-keys")
    press(tab, "Control+j", "Alt+j", "Meta+j")
    for odd in ("repeat: true", "isComposing: true", "keyCode: 229"):
        tab.evaluate(f"document.dispatchEvent(new KeyboardEvent('keydown', {{key: 'j', code: 'KeyJ', bubbles: true, {odd}}}))")
    tab.wait_for_timeout(200)
    assert (count(tab), shown(tab), here.verdicts(), view(tab)) == ("0 of 8", first, [], ["both"])
    assert tab.is_visible("#hfi-frame img"), "the Esc that closed the list hid nothing"
    tab.reload()
    settle(tab)
    tab.keyboard.press("c")
    assert tab.input_value("#hfi-words") == words[:-1]
    tab.keyboard.press("Escape")
    assert tab.is_visible("#hfi-frame img")
    korean = "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'ㅓ', code: 'KeyJ', bubbles: true}))"
    judge(tab, lambda: tab.evaluate(korean), 1)
    tab.keyboard.press("c")
    assert tab.input_value("#hfi-words") == "", "it was about the image before"
    tab.keyboard.press("Escape")
    once = "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'f', code: 'KeyF', bubbles: true}));"
    judge(tab, lambda: tab.evaluate(once + once), 2)  # at once: the second can only have been meant for the image before
    tab.wait_for_timeout(300)
    assert [(row["verdict"], row["comment"]) for row in here.rows()] == [("shows", words[:-1]), ("clean", None)]


def test_a_region_is_drawn_moved_and_sent_with_the_answer(tab: Any, site: Site) -> None:
    here = site.ask()
    enter(tab, here)
    tab.keyboard.press("r")
    area = tab.locator(".hfi-draw").bounding_box()

    def drag(x0: float, y0: float, x1: float, y1: float) -> None:
        tab.mouse.move(area["x"] + x0 * area["width"], area["y"] + y0 * area["height"])
        tab.mouse.down()
        for part in (0.5, 1):
            at = (x0 + part * (x1 - x0), y0 + part * (y1 - y0))
            tab.mouse.move(area["x"] + at[0] * area["width"], area["y"] + at[1] * area["height"])
        tab.mouse.up()

    drag(0.75, 0.5, 0.25, 0.25)
    assert view(tab) == ["both"], "drawing is no asking to look"
    assert "25 % of the width" in tab.get_attribute(".hfi-draw", "aria-label")
    press(tab, "ArrowRight", "ArrowDown", "ArrowDown", "Shift+ArrowLeft")
    drag(0.5, 0.5, 0.5, 0.6)  # within the box: moves it
    judge(tab, lambda: tab.keyboard.press("j"), 1)
    assert json.loads(here.rows()[0]["region"]) == pytest.approx([0.27, 0.39, 0.48, 0.25], abs=0.006)
    press(tab, "r", "ArrowUp", "ArrowUp")
    tab.reload()
    settle(tab)
    assert tab.is_visible(".hfi-box"), "kept over a reload"
    judge(tab, lambda: tab.keyboard.press("1"), 2)
    press(tab, "r", "ArrowUp", "Delete")
    judge(tab, lambda: tab.keyboard.press("j"), 3)
    assert [json.loads(row["region"] or "null") for row in here.rows()[1:]] == [[0.25, 0.23, 0.5, 0.5], None]


def test_a_reload_a_restart_and_an_outage_lose_nothing(tab: Any, site: Site) -> None:
    here = site.ask()
    enter(tab, here)
    judge(tab, lambda: tab.keyboard.press("j"), 1)
    at = shown(tab)
    tab.reload()
    settle(tab)
    assert (count(tab), shown(tab)) == ("1 of 8", at)
    site.stop()
    tab.keyboard.press("f")
    tab.wait_for_selector("#hfi-trouble:not([hidden])")
    assert "kept here" in tab.inner_text("#hfi-trouble")
    assert "Not saved yet" in tab.inner_text("#hfi-saved")
    tab.keyboard.press("j")  # nothing moves on before the first answer is kept
    assert (count(tab), shown(tab)) == ("1 of 8", at)
    assert here.verdicts() == ["shows"]
    site.start()
    tab.wait_for_function("document.getElementById('hfi-count').textContent.startsWith('2 of')")
    assert not tab.is_visible("#hfi-trouble")
    assert here.verdicts() == ["shows", "clean"]


def test_two_people_at_once_and_the_same_person_in_two_tabs(tabs: Callable[..., Any], site: Site) -> None:
    here = site.ask(images=3)
    kim, lee = tabs(), tabs()
    names = [enter(kim, here), enter(lee, here)]
    for i in (1, 2, 3):
        judge(kim, lambda: kim.keyboard.press("j"), i)
        judge(lee, lambda: lee.keyboard.press("f"), i)
    assert [(row["name"], row["verdict"]) for row in here.rows()] == [(names[0], "shows"), (names[1], "clean")] * 3
    other = kim.context.new_page()
    other.goto(here.url)
    settle(other)
    judge(kim, lambda: kim.keyboard.press("z"), 2)
    judge(other, lambda: other.keyboard.press("z"), 2)  # taken back already: nothing more is
    judge(other, lambda: other.keyboard.press("f"), 3)
    stranger = kim.context.new_page()
    stranger.goto(f"{site.url}judge/?campaign=999")
    assert "does not exist, is closed, or is not yours" in stranger.inner_text("main")
    assert stranger.locator(".pg-offer").count() > 0, "and what there is is offered"
    kim.keyboard.press("j")  # judged in the other tab
    kim.wait_for_selector("#hfi-done:not([hidden])")
    assert "was not taken" in kim.inner_text("#hfi-trouble")
    assert sorted(here.verdicts()) == ["clean"] * 4 + ["shows"] * 2


# --- looking ---


def test_images_come_through_a_filter_and_what_was_seen_is_kept(tab: Any, site: Site) -> None:
    here = site.ask()
    plain: list[str] = []
    tab.on("request", lambda r: plain.append(r.url) if "/img/" in r.url and "view=" not in r.url else None)
    enter(tab, here)
    alt = "hidden image, press Space to reveal"
    assert (view(tab), tab.get_attribute("#hfi-frame img", "alt"), plain) == (["both"], alt, [])
    judge(tab, lambda: tab.keyboard.press("f"), 1)
    assert plain == [], "an answer needs no look"
    for _ in range(2):
        tab.keyboard.press("Space")
        tab.wait_for_selector("#hfi-frame img:not([src*=view])")
        assert tab.get_attribute("#hfi-frame img", "alt") == "the image to judge"
        tab.wait_for_timeout(120)
        tab.keyboard.press("Space")
        assert view(tab) == ["both"]
    tab.keyboard.press("Space")
    tab.wait_for_selector("#hfi-frame img:not([src*=view])")
    tab.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    tab.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    assert view(tab) == ["both"], "nobody looks at a tab in the back"
    tab.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    tab.keyboard.press("Space")
    tab.wait_for_selector("#hfi-frame img:not([src*=view])")
    judge(tab, lambda: tab.keyboard.press("j"), 2)
    assert view(tab) == ["both"], "the next one is covered"
    looked = [(row["filter"], row["reveals"]) for row in here.rows()]
    assert looked == [("both", 0), ("both", 4)]
    assert here.rows()[0]["revealed_ms"] == 0
    assert 240 <= here.rows()[1]["revealed_ms"] < here.rows()[1]["elapsed_ms"]


def test_people_choose_how_they_look(tab: Any, site: Site) -> None:
    here = site.ask()
    enter(tab, here)
    tab.keyboard.press("v")
    tab.select_option("#hfi-settings [name=strength]", "3")
    tab.uncheck("#hfi-settings [name=grey]")
    tab.check("#hfi-settings [name=hover]")
    tab.fill("#hfi-settings [name=again]", "3")
    tab.select_option("#hfi-settings [name=size]", "small")
    tab.keyboard.press("Escape")
    assert tab.get_attribute("#hfi-frame img", "src").endswith("?view=blur&strength=3")
    tab.wait_for_function("[...document.querySelectorAll('#hfi-frame img')].every(image => image.complete && image.naturalWidth)")
    assert tab.locator("#hfi-frame img").bounding_box()["height"] == 240
    box = tab.locator("#hfi-frame img").bounding_box()
    tab.mouse.move(box["x"] + 50, box["y"] + 50)
    tab.mouse.move(box["x"] + 60, box["y"] + 60)
    tab.wait_for_selector("#hfi-frame img:not([src*=view])")
    tab.mouse.move(5, 5)
    assert view(tab) == ["blur"]
    tab.keyboard.press("Space")
    tab.wait_for_selector("#hfi-frame img:not([src*=view])")
    tab.wait_for_selector("#hfi-frame img[src*=view]")  # after three seconds
    tab.reload()
    settle(tab)
    assert view(tab) == ["blur"]
    tab.keyboard.press("v")
    tab.uncheck("#hfi-settings [name=blur]")
    tab.keyboard.press("Escape")
    tab.wait_for_selector("#hfi-settings", state="hidden")  # until then a key is meant for the box
    tab.wait_for_selector("#hfi-frame img:not([src*=view])")
    judge(tab, lambda: tab.keyboard.press("f"), 1)
    judge(tab, lambda: tab.keyboard.press("f"), 2)
    assert [(row["filter"], row["reveals"]) for row in here.rows()] == [("blur", 1), ("none", 0)]
    tab.context.clear_cookies()
    enter(tab, here)
    assert view(tab) == ["both"], "somebody else in the same browser starts with the filters on"


def test_hiding_holds_until_asked_to_show(tab: Any, site: Site) -> None:
    here = site.ask()
    enter(tab, here)
    press(tab, "Space", "Escape", "Escape")
    assert not tab.is_visible("#hfi-frame img")
    assert view(tab) == ["both"]
    press(tab, "j", "f", "u")
    assert "press Space to look" in tab.inner_text("#hfi-saved")
    judge(tab, lambda: tab.keyboard.press("x"), 1)
    assert here.verdicts() == ["disturbing"]
    assert not tab.is_visible("#hfi-frame img"), "the next image does not jump at who has just hidden one"
    tab.reload()
    settle(tab)
    assert not tab.is_visible("#hfi-frame img")
    assert "Take a break" in tab.inner_text("#hfi-cover")
    tab.wait_for_timeout(4000)
    tab.keyboard.press("h")
    assert tab.is_visible("#hfi-frame img")
    assert view(tab) == ["both"]
    judge(tab, lambda: tab.keyboard.press("f"), 2)
    assert here.rows()[1]["elapsed_ms"] < 4000, "the clock stands still during a break"


def test_a_break_comes_after_many_harmful_images(tab: Any, site: Site) -> None:
    here = site.ask()
    try:
        with writing(site.engine) as s:
            set_wellbeing(s, Wellbeing(break_after=2, day_harmful=4))
        enter(tab, here)
        judge(tab, lambda: tab.keyboard.press("j"), 1)
        judge(tab, lambda: tab.keyboard.press("j"), 2)
        assert "Time for a break" in tab.inner_text("#hfi-done")
        assert "you judged were harmful, by your own answers" in tab.inner_text("#hfi-done"), "none was uncovered"
        assert tab.evaluate("document.activeElement.textContent") == "Time for a break"
        assert tab.inner_text(".hfi-clock").startswith(("5:00", "4:"))
        tab.reload()
        settle(tab)
        press(tab, "j", "z", "Enter")
        assert here.verdicts() == ["shows"] * 2
        press(tab, "Tab", "Enter")
        tab.wait_for_selector("#hfi-stage:visible")
        settle(tab)
        judge(tab, lambda: tab.keyboard.press("x"), 3)
        judge(tab, lambda: tab.keyboard.press("j"), 4)
        assert "enough for today" in tab.inner_text("#hfi-done")
        assert tab.locator("[data-do=go-on]").count() == 0
    finally:
        with writing(site.engine) as s:
            set_wellbeing(s, Wellbeing())


# --- several images ---


def test_ranking_by_keys_and_by_mouse(tab: Any, site: Site) -> None:
    here = site.ask("ranking", images=15)
    enter(tab, here)
    assert tab.locator(".hfi-cell").count() == 5
    tab.keyboard.press("Enter")
    assert "every image a place" in tab.inner_text("#hfi-saved")
    press(tab, "3", "1", "2", "2")  # the last: out again
    tab.reload()
    settle(tab)
    assert places(tab) == ["2", "", "1", "", ""]
    assert tab.get_attribute(".hfi-cell >> nth=0", "aria-label") == "image 1, place 2: hidden image, press Space to reveal"
    for place in (4, 1, 3):
        tab.locator(".hfi-cell").nth(place).click()
    assert places(tab) == ["2", "4", "1", "5", "3"]
    press(tab, "ArrowLeft", "ArrowLeft")  # the last that was placed
    tab.focus(".hfi-cell >> nth=2")
    press(tab, "ArrowRight", "t")  # no ties in this campaign
    assert places(tab) == ["1", "5", "2", "3", "4"]
    press(tab, "z", "z", "z")
    assert places(tab) == ["2", "4", "1", "5", "3"]
    judge(tab, lambda: tab.evaluate("document.activeElement.blur()") or tab.keyboard.press("Enter"), 1)
    assert here.ranking(here.rows()[0]) == [[2], [0], [4], [1], [3]]
    judge(tab, lambda: tab.keyboard.press("n"), 2)
    judge(tab, lambda: tab.keyboard.press("z"), 1)
    tab.keyboard.press("5")
    tab.keyboard.press("z")  # the place first
    assert count(tab) == "1 of 3"
    judge(tab, lambda: tab.keyboard.press("z"), 0)
    assert places(tab) == ["2", "4", "1", "5", "3"], "taken back, to be changed"
    assert here.verdicts() == []
    judge(tab, lambda: press(tab, "ArrowLeft", "Enter"), 1)
    assert here.ranking(here.rows()[0]) == [[2], [0], [4], [3], [1]]


def test_ranking_by_drag_and_with_ties(tab: Any, site: Site) -> None:
    here = site.ask("ranking", images=10, ties=True)
    enter(tab, here)

    def drag(place: int, other: int) -> None:
        boxes = [tab.locator(".hfi-cell").nth(i).bounding_box() for i in (place, other)]
        (x0, y0), (x1, y1) = [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in boxes]
        tab.mouse.move(x0, y0)
        tab.mouse.down()
        for part in (0.3, 0.7, 1):
            tab.mouse.move(x0 + part * (x1 - x0), y0 + part * (y1 - y0))
        tab.mouse.up()

    drag(0, 1)
    assert places(tab) == ["1", "", "", "", ""]
    press(tab, "2", "3", "4", "5")
    drag(4, 0)
    assert places(tab) == ["2", "3", "4", "5", "1"]
    drag(2, 1)
    assert places(tab) == ["2", "4", "3", "5", "1"]
    box = tab.locator(".hfi-cell").nth(0).bounding_box()
    tab.mouse.move(box["x"] + 20, box["y"] + 20)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 60, box["y"] + 60)  # onto itself
    tab.mouse.up()
    press(tab, "t")  # with the one before: the image dragged last
    assert places(tab) == ["2", "4", "2", "5", "1"]
    assert "place 2, shared" in tab.get_attribute(".hfi-cell >> nth=0", "aria-label")
    tab.locator(".hfi-cell").nth(3).focus()
    press(tab, "t", "t")  # again: a place of its own
    tab.reload()
    settle(tab)
    assert places(tab) == ["2", "4", "2", "5", "1"]
    tab.focus(".hfi-cell >> nth=3")
    tab.click("#hfi-tie")
    judge(tab, lambda: tab.keyboard.press("Enter"), 1)
    assert here.ranking(here.rows()[0]) == [[4], [0, 2], [1, 3]]


def test_comparing_two_images_by_keys(tab: Any, site: Site) -> None:
    here = site.ask("compare", images=14, ties=True)
    enter(tab, here)
    assert "which image shows it more?" in tab.inner_text("#hfi-main")
    assert tab.locator("#hfi-frame img").count() == 2
    for i, key in enumerate(("ArrowLeft", "j", "f", "ArrowRight", "t", "n", "x"), 1):
        judge(tab, lambda key=key: tab.keyboard.press(key), i)
    said = [(row["verdict"], here.ranking(row)) for row in here.rows()]
    left, right = ("ranked", [[0], [1]]), ("ranked", [[1], [0]])
    assert said == [left, right, left, right, ("ranked", [[0, 1]]), ("none", []), ("disturbing", [])]


# --- hands, eyes, languages ---


def test_keys_can_be_changed_and_stay_so(tab: Any, site: Site) -> None:
    here = site.ask()
    enter(tab, here)
    tab.keyboard.press("?")

    def change(action: str, key: str) -> str:
        tab.click(f'#hfi-keys [data-action="{action}"]')
        tab.keyboard.press(key)
        return tab.inner_text("#hfi-keys-problem")

    assert "already means “Does not”" in change("shows", "f")
    tab.keyboard.press("Escape")
    assert tab.is_visible("#hfi-keys"), "that Esc was for the key, not for the list"
    assert "cannot be used" in change("shows", "F5")
    tab.keyboard.press("k")
    assert change("reveal", "p") == ""
    tab.keyboard.press("Escape")
    tab.reload()
    settle(tab)
    assert tab.inner_text('[data-answer="shows"] kbd') == "K"
    assert tab.get_attribute("#hfi-frame img", "alt") == "hidden image, press P to reveal"
    press(tab, "j", "p")
    tab.wait_for_selector("#hfi-frame img:not([src*=view])")
    assert count(tab) == "0 of 8"
    judge(tab, lambda: tab.keyboard.press("k"), 1)
    tab.keyboard.press("?")
    tab.click("#hfi-keys-reset")
    tab.keyboard.press("Escape")
    judge(tab, lambda: tab.keyboard.press("j"), 2)
    assert here.verdicts() == ["shows", "shows"]


def test_everything_can_be_reached_by_tab_and_its_focus_is_seen(tab: Any, site: Site) -> None:
    enter(tab, site.ask())
    seen = {}
    for _ in range(40):
        tab.keyboard.press("Tab")
        found = tab.evaluate("(a => a && [a.dataset.answer || a.dataset.do || a.id || a.tagName,"
                             " getComputedStyle(a).outlineStyle])(document.activeElement)")  # fmt: skip
        if found[0] in seen:
            break
        seen[found[0]] = found[1]
    wanted = {
        "shows",
        "clean",
        "unsure",
        "skip",
        "disturbing",
        "reveal",
        "undo",
        "hide",
        "comment",
        "region",
        "settings",
        "keys",
        "stop",
    }
    assert wanted | {"hfi-lang", "SUMMARY"} <= seen.keys()
    assert {name for name, style in seen.items() if style == "none" and name in wanted} == set()


def test_the_page_speaks_korean(tabs: Callable[..., Any], site: Site) -> None:
    here = site.ask(title="흡연")
    tab = tabs(locale="ko-KR")
    enter(tab, here)
    assert tab.evaluate("document.documentElement.lang") == "ko"
    assert "흡연: 이 이미지에 나타나 있습니까?" in tab.inner_text("#hfi-main")
    tab.keyboard.press("j")
    tab.wait_for_selector("#hfi-saved:has-text('저장됨')")
    press(tab, "?", "Escape", "v", "Escape", "r", "c", "Escape")
    page = tab.inner_text("#hfi-page")
    english = json.loads((Path(__file__).parent.parent / "ui/messages/en.json").read_text("utf-8"))
    assert not [text for text in english.values() if len(text) > 12 and text in page]
    with tab.expect_navigation():
        tab.select_option("#hfi-lang", "en")
    settle(tab)
    assert "does this image show it?" in tab.inner_text("#hfi-main")
    tab.reload()
    settle(tab)
    assert "does this image show it?" in tab.inner_text("#hfi-main")


@pytest.mark.parametrize("width", [390, 320])
def test_a_phone_in_the_dark(tabs: Callable[..., Any], site: Site, width: int) -> None:
    here = site.ask()
    tab = tabs(viewport={"width": width, "height": 664}, has_touch=True, is_mobile=True, color_scheme="dark")
    enter(tab, here)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert not any(kbd.is_visible() for kbd in tab.locator("kbd").all()), "no keys where there is no keyboard"
    sticks_out = "all => all.filter(b => b.scrollWidth > b.clientWidth).map(b => b.textContent)"
    assert tab.locator(".hfi-answers button:visible").evaluate_all(sticks_out) == []
    for selector in ("#hfi-frame img", '[data-answer="shows"]', '[data-answer="disturbing"]', "#hfi-undo", "#hfi-stop"):
        box = tab.locator(selector).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["y"] + box["height"] <= 664, f"{selector} is in sight without scrolling"
        assert box["height"] >= 40
    red, green, blue = tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(red, green, blue) < 60
    tab.evaluate("scrollTo(0, document.body.scrollHeight)")
    leave, answers = tab.locator("#hfi-leave").bounding_box(), tab.locator("#hfi-answers").bounding_box()
    assert 0 < leave["y"] < leave["y"] + leave["height"] <= answers["y"], "another person can take over here, too"
    tab.evaluate("scrollTo(0, 0)")
    finger = tab.context.new_cdp_session(tab)
    box = tab.locator("#hfi-frame img").bounding_box()
    point = {"x": box["x"] + 40, "y": box["y"] + 40}
    finger.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
    tab.wait_for_selector("#hfi-frame img:not([src*=view])")
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    tab.wait_for_selector("#hfi-frame img[src*=view]")
    judge(tab, lambda: tab.tap('[data-answer="clean"]'), 1)
    assert [(row["verdict"], row["reveals"]) for row in here.rows()] == [("clean", 1)]


def test_ranking_by_finger(tabs: Callable[..., Any], site: Site) -> None:
    here = site.ask("ranking", images=5)
    tab = tabs(viewport={"width": 390, "height": 664}, has_touch=True, is_mobile=True)
    enter(tab, here)
    for place in (4, 3, 2, 1, 0):
        tab.locator(".hfi-cell").nth(place).tap()
    finger = tab.context.new_cdp_session(tab)
    boxes = [tab.locator(".hfi-cell").nth(i).bounding_box() for i in (0, 4)]
    (x0, y0), (x1, y1) = [(box["x"] + 30, box["y"] + 30) for box in boxes]
    finger.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x0, "y": y0}]})
    for part in (0.4, 0.8, 1):
        at = {"x": x0 + part * (x1 - x0), "y": y0 + part * (y1 - y0)}
        finger.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [at]})
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert places(tab) == ["1", "5", "4", "3", "2"]
    tab.wait_for_timeout(500)  # a tap sooner after a swipe only ends the swipe, for Chromium
    judge(tab, lambda: tab.tap('[data-answer="ranked"]'), 1)
    assert here.ranking(here.rows()[0]) == [[0], [4], [3], [2], [1]]


# --- the command ---


def test_the_command_serves_and_a_kill_loses_no_judgment(tab: Any, workspace: Workspace) -> None:
    here = Site(workspace, 6)
    asked = here.ask(images=6)
    here.stop()
    command = [
        sys.executable,
        "-m",
        "hfi",
        "ui",
        "-w",
        str(workspace.path),
        "-c",
        asked.slug,
        "-a",
        "Kim",
        "--port",
        str(here.port),
    ]
    root = Path(__file__).parent.parent

    def serve() -> subprocess.Popen:
        process = subprocess.Popen(
            [*command, "--no-open"], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        assert here.url.rstrip("/") in process.stdout.readline()
        return process

    process = serve()
    try:
        while True:
            with suppress(playwright.Error):
                tab.goto(here.url)
                break
            time.sleep(0.2)
        tab.goto(asked.url)
        settle(tab)
        assert "Judging as Kim" in tab.inner_text("#hfi-person")
        judge(tab, lambda: tab.keyboard.press("j"), 1)
        judge(tab, lambda: tab.keyboard.press("f"), 2)
        at = shown(tab)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert asked.verdicts() == ["shows", "clean"]
        tab.keyboard.press("u")
        process = serve()
        tab.wait_for_function("document.getElementById('hfi-count').textContent.startsWith('3 of')")
        settle(tab)
        assert asked.verdicts() == ["shows", "clean", "unsure"]
        assert shown(tab) != at
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_a_benchmarks_page_opens_from_disk_and_asks_nothing_of_a_network(
    browser, tmp_path: Path, scheme: str, width: int
) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "report.html"
    file.write_text(benchmark_page(tmp_path / "bench"), encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda r: said.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
    page.goto(file.as_uri())
    assert page.inner_text("h1") == "Together"
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "tables scroll, the page does not"
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(246, 247, 249)"
    assert dark == (scheme == "dark")
    page.emulate_media(media="print")
    assert page.is_visible("table.main")
    assert len(page.pdf()) > 10_000
    context.close()
    assert said == []

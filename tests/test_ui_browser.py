"""The labeling page in a real browser: headless Chromium, a real server, a real database."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import uvicorn
from benched import benchmark_page

from hfi.concepts import Concept
from hfi.portraits.render import render
from hfi.portraits.world import Person
from hfi.store import campaigns, record
from hfi.store import queries as q
from hfi.store.session import reading, writing
from hfi.store.showing import shown_image
from hfi.workspace import Workspace
from ui.app import build_app

playwright = pytest.importorskip("playwright.sync_api")
REQUIRED = os.environ.get("HFI_REQUIRE_BROWSER") == "1"
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PATIENCE = 60_000  # ms


@pytest.fixture(scope="module")
def browser() -> Iterator:
    if CHROMIUM is None:
        words = "there is no Chromium: the page was not tested in a browser (apt-get install chromium)"
        if REQUIRED:
            pytest.fail(words)
        warnings.warn(words, stacklevel=1)
        pytest.skip(words)
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield started
        started.close()


class Site:
    """A server that can be stopped and started again at the same address."""

    def __init__(self, space: Workspace, question: str, images: int) -> None:
        self.space, self.engine = space, space.engine()
        with writing(self.engine) as s:
            words = "**Shows it:** a cigarette, or smoke from one.\n\n**Does not:** everything else."
            q.add_concept(s, Concept("smoking", "Smoking", words, question, prompt="smoking"))  # type: ignore[arg-type]
            ids = []
            for i in range(images):
                drawn = Person("sailor" if i % 2 else "chef", "black", "blue", 0, False, i % 2 == 1, False, 0.0, i)
                about = q.Provenance(
                    key=f"{i:064}", sha256=space.images.put(render(drawn)), width=64, height=64, source="generated", prompt="x"
                )
                ids.append(q.add_image(s, about).id)
            self.campaign = campaigns.ensure_campaign(s, "smoking", "people", image_ids=ids, overlap=3)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        config = uvicorn.Config(
            build_app(self.space, self.space.engine()), port=self.port, log_level="error", timeout_graceful_shutdown=0
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.02)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()

    def verdicts(self) -> list[str]:
        with reading(self.engine) as s:
            return [row.verdict for row in record.current_judgments(s, "smoking")]


@pytest.fixture
def site(workspace: Workspace) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(question: str = "binary", images: int = 8) -> Site:
        sites.append(Site(workspace, question, images))
        return sites[-1]

    yield make
    for one in sites:
        one.stop()


@pytest.fixture
def tab(browser) -> Iterator:  # type: ignore[no-untyped-def]
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on(
        "request", lambda r: page.problems.append(r.url) if not r.url.startswith(("http://127.0.0.1:", "data:", "blob:")) else 0
    )
    yield page
    context.close()
    assert page.problems == [], "no script error, and nothing asked of another machine"


def enter(tab, site: Site) -> None:  # type: ignore[no-untyped-def]
    """By keys alone: the field has the focus."""
    tab.goto(site.url)
    tab.wait_for_function("document.activeElement?.id === 'name'")  # which comes a little after the page: "Kim" would be "im"
    tab.keyboard.type("Kim")
    tab.keyboard.press("Enter")
    settle(tab)


def settle(tab) -> None:  # type: ignore[no-untyped-def]
    """Until an image is there to be judged (or everything is), past the guard against keys that were meant for the last one."""
    tab.wait_for_selector('[data-verdict="skip"][aria-disabled="false"], #hfi-done:not([hidden])')
    tab.wait_for_timeout(200)


def judge(tab, act: Callable[[], object], done: int) -> None:  # type: ignore[no-untyped-def]
    act()
    tab.wait_for_function("n => document.getElementById('hfi-count').textContent.startsWith(`${n} of`)", arg=done)
    settle(tab)


def count(tab) -> str:  # type: ignore[no-untyped-def]
    return tab.inner_text("#hfi-count")


def shown(tab) -> str:  # type: ignore[no-untyped-def]
    return tab.get_attribute("#hfi-frame img", "src")


def test_the_whole_way_by_keys(tab, site: Callable[..., Site]) -> None:  # type: ignore[no-untyped-def]
    here = site()
    asked: list[str] = []
    tab.on("request", lambda r: asked.append(r.url.removeprefix(here.url)))
    enter(tab, here)
    assert "Smoking: does this image show it?" in tab.inner_text("#hfi-main")
    assert "a cigarette, or smoke from one" in tab.inner_text("#hfi-guideline")
    assert tab.get_attribute("#hfi-frame img", "alt") == "The image to judge"
    images = [shown(tab)]
    for i, key in enumerate(("j", "f", "1", "2", "u", "s", "x"), 1):
        judge(tab, lambda key=key: tab.keyboard.press(key), i)
        images.append(shown(tab))
        sent = [n for n, path in enumerate(asked) if path == "api/judge"]
        assert asked.index(images[-1].lstrip("/")) < sent[i - 1], "the next image is there before the answer is sent"
    assert here.verdicts() == ["shows", "clean", "shows", "clean", "unsure", "skip", "disturbing"]
    assert len(set(images)) == 8
    assert "Saved: too disturbing" in tab.inner_text("#hfi-saved")
    assert "s each" in tab.inner_text("#hfi-pace")
    for done, key in ((6, "z"), (5, "Backspace"), (4, "z")):
        judge(tab, lambda key=key: tab.keyboard.press(key), done)
        assert shown(tab) == images[done]
    assert here.verdicts() == ["shows", "clean", "shows", "clean"]
    for done in (5, 6, 7, 8):
        assert tab.is_visible("#hfi-frame img") == (done != 7), "what was too disturbing comes back covered, nothing else"
        if done == 7:
            tab.keyboard.press("h")
        judge(tab, lambda: tab.keyboard.press("f"), done)
    done = tab.inner_text("#hfi-done")
    assert "All done" in done
    assert "hfi reward --concept smoking" in done
    assert not tab.is_visible("#hfi-stage")
    judge(tab, lambda: tab.keyboard.press("z"), 7)
    assert tab.is_visible("#hfi-stage")


def test_the_mouse_and_double_clicks(tab, site: Callable[..., Site]) -> None:  # type: ignore[no-untyped-def]
    here = site()
    enter(tab, here)
    for i, verdict in enumerate(("shows", "clean", "unsure", "skip", "disturbing"), 1):
        judge(tab, lambda verdict=verdict: tab.dblclick(f'[data-verdict="{verdict}"]'), i)
    assert here.verdicts() == ["shows", "clean", "unsure", "skip", "disturbing"]
    judge(tab, lambda: tab.dblclick("#hfi-undo"), 4)
    tab.click("#hfi-cover button")
    tab.click("#hfi-hide")
    assert not tab.is_visible("#hfi-frame img")
    tab.click("#hfi-cover button")
    assert tab.is_visible("#hfi-frame img")
    tab.click("#hfi-keys-open")
    tab.click("#hfi-keys button")
    assert not tab.is_visible("#hfi-keys")
    tab.click("text=Not you?")
    tab.click("text=Go on as Kim")
    settle(tab)
    assert count(tab) == "4 of 8"


def test_keys_that_mean_something_else_judge_nothing(tab, site: Callable[..., Site]) -> None:  # type: ignore[no-untyped-def]
    here = site()
    enter(tab, here)
    first = shown(tab)
    tab.evaluate("document.body.insertAdjacentHTML('beforeend', '<input id=note><div id=rich contenteditable>a</div>')")
    for field in ("#note", "#rich"):
        tab.focus(field)
        tab.keyboard.type("jfusxz12h")
        tab.keyboard.press("Backspace")
    assert tab.input_value("#note") == "jfusxz12"
    tab.evaluate("document.activeElement.blur()")
    tab.keyboard.press("?")
    assert tab.is_visible("#hfi-keys")
    tab.keyboard.type("jfu")
    tab.keyboard.press("Escape")
    assert not tab.is_visible("#hfi-keys")
    for combination in ("Control+j", "Alt+j", "Meta+j"):
        tab.keyboard.press(combination)
    for odd in ("repeat: true", "isComposing: true", "keyCode: 229"):
        tab.evaluate(f"document.dispatchEvent(new KeyboardEvent('keydown', {{key: 'j', code: 'KeyJ', bubbles: true, {odd}}}))")
    tab.wait_for_timeout(300)
    assert (count(tab), shown(tab), here.verdicts()) == ("0 of 8", first, [])
    assert not tab.evaluate("document.getElementById('hfi-stage').classList.contains('hfi-hidden')")
    korean = "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'ㅓ', code: 'KeyJ', bubbles: true}))"
    judge(tab, lambda: tab.evaluate(korean), 1)
    settle(tab)
    press = "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'f', code: 'KeyF', bubbles: true}));"
    judge(tab, lambda: tab.evaluate(press + press), 2)  # at once: the second can only have been meant for the image before
    tab.wait_for_timeout(500)
    assert here.verdicts() == ["shows", "clean"]


def test_a_reload_a_restart_and_an_outage_lose_nothing(tab, site: Callable[..., Site]) -> None:  # type: ignore[no-untyped-def]
    here = site()
    enter(tab, here)
    judge(tab, lambda: tab.keyboard.press("j"), 1)
    at = shown(tab)
    tab.reload()
    settle(tab)
    assert (count(tab), shown(tab)) == ("1 of 8", at)
    here.stop()
    tab.keyboard.press("f")
    tab.wait_for_selector("#hfi-trouble:not([hidden])")
    assert "kept here" in tab.inner_text("#hfi-trouble")
    assert "Not saved yet" in tab.inner_text("#hfi-saved")
    tab.keyboard.press("j")  # nothing moves on before the first answer is kept
    assert (count(tab), shown(tab)) == ("1 of 8", at)
    assert here.verdicts() == ["shows"]
    here.start()
    tab.wait_for_function("document.getElementById('hfi-count').textContent.startsWith('2 of')")
    assert not tab.is_visible("#hfi-trouble")
    assert here.verdicts() == ["shows", "clean"]


def test_hiding_holds_until_asked_to_show(tab, site: Callable[..., Site]) -> None:  # type: ignore[no-untyped-def]
    here = site()
    enter(tab, here)
    tab.keyboard.press("Escape")
    tab.keyboard.press("Escape")
    assert not tab.is_visible("#hfi-frame img")
    for key in ("j", "f", "u"):
        tab.keyboard.press(key)
    assert "press H" in tab.inner_text("#hfi-saved")
    judge(tab, lambda: tab.keyboard.press("x"), 1)
    assert here.verdicts() == ["disturbing"]
    assert not tab.is_visible("#hfi-frame img"), "the next image does not jump at who has just hidden one"
    tab.reload()
    settle(tab)
    assert not tab.is_visible("#hfi-frame img")
    tab.keyboard.press("h")
    assert tab.is_visible("#hfi-frame img")


@pytest.mark.parametrize("width", [390, 320])
def test_a_phone_in_the_dark(browser, site: Callable[..., Site], width: int) -> None:  # type: ignore[no-untyped-def]
    here = site()
    context = browser.new_context(viewport={"width": width, "height": 664}, has_touch=True, is_mobile=True, color_scheme="dark")
    context.set_default_timeout(PATIENCE)
    tab = context.new_page()
    enter(tab, here)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert not any(kbd.is_visible() for kbd in tab.locator("kbd").all()), "no keys where there is no keyboard"
    sticks_out = "all => all.filter(b => b.scrollWidth > b.clientWidth).map(b => b.textContent)"
    assert tab.locator(".hfi-answers button").evaluate_all(sticks_out) == []
    for selector in ("#hfi-frame img", '[data-verdict="shows"]', '[data-verdict="disturbing"]', "#hfi-undo"):
        box = tab.locator(selector).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["y"] + box["height"] <= 664, f"{selector} is in sight without scrolling"
        assert box["height"] >= 44
    red, green, blue = tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(red, green, blue) < 60
    judge(tab, lambda: tab.tap('[data-verdict="clean"]'), 1)
    assert here.verdicts() == ["clean"]
    context.close()


def test_ranking_by_keys_and_by_mouse(tab, site: Callable[..., Site]) -> None:  # type: ignore[no-untyped-def]
    here = site("ranking", images=15)
    enter(tab, here)
    assert tab.locator(".hfi-cell").count() == 5
    tab.keyboard.press("Enter")
    assert "every image a place" in tab.inner_text("#hfi-saved")
    sources = [tab.locator(".hfi-cell img").nth(i).get_attribute("src") for i in range(5)]
    for key in ("3", "1", "2"):
        tab.keyboard.press(key)
    tab.keyboard.press("2")  # out again
    tab.reload()
    settle(tab)
    assert [tab.locator(".hfi-rank").nth(i).text_content() for i in range(5)] == ["2", "", "1", "", ""]
    for place in (4, 1, 3):
        tab.locator(".hfi-cell").nth(place).click()
    judge(tab, lambda: tab.keyboard.press("Enter"), 1)
    with reading(here.engine) as s:
        (row,) = record.current_judgments(s, "smoking")
    token = sources[0].split("/")[2]
    with reading(here.engine) as s:
        kim = q.annotators(s)[0].id
        assert row.images == tuple(shown_image(s, token, kim, place) for place in (2, 0, 4, 1, 3))
    judge(tab, lambda: tab.keyboard.press("n"), 2)
    judge(tab, lambda: tab.keyboard.press("z"), 1)
    tab.keyboard.press("5")
    tab.keyboard.press("z")  # the place first
    assert count(tab) == "1 of 3"
    judge(tab, lambda: tab.keyboard.press("z"), 0)
    assert here.verdicts() == []


def test_the_command_serves_and_a_kill_loses_no_judgment(tab, workspace: Workspace) -> None:  # type: ignore[no-untyped-def]
    here = Site(workspace, "binary", 6)
    here.stop()
    command = [sys.executable, "-m", "hfi", "ui", "-w", str(workspace.path), "-a", "Kim", "--port", str(here.port), "--no-open"]
    root = Path(__file__).parent.parent

    def serve() -> subprocess.Popen:
        process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
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
        settle(tab)
        assert "Judging as Kim" in tab.inner_text("#hfi-person")
        judge(tab, lambda: tab.keyboard.press("j"), 1)
        judge(tab, lambda: tab.keyboard.press("f"), 2)
        at = shown(tab)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert here.verdicts() == ["shows", "clean"]
        tab.keyboard.press("u")
        process = serve()
        tab.wait_for_function("document.getElementById('hfi-count').textContent.startsWith('3 of')")
        settle(tab)
        assert here.verdicts() == ["shows", "clean", "unsure"]
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

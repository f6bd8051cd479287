"""The pages around judging in a real browser, on the way of somebody who comes for the first time."""

# ruff: noqa: F811  (a fixture that is imported has the name of the parameter that asks for it)

import pytest
from PIL import Image
from served import serving
from test_ui_browser import PATIENCE, browser  # noqa: F401

from hfi.concepts import Concept
from hfi.store import campaigns, people
from hfi.store import queries as q
from hfi.store.session import writing
from hfi.workspace import Workspace
from ui.app import build_app

pytestmark = pytest.mark.databases

PASSWORD = "correct horse battery"


def fill(space: Workspace, *slugs: str) -> None:
    with writing(space.engine()) as s:
        ids = []
        for i in range(4):
            sha = space.images.put(Image.new("RGB", (64, 64), (60 * i, 100, 200)))
            ids.append(q.add_image(s, q.Provenance(key=f"{i:064}", sha256=sha, width=64, height=64, source="generated")).id)
        for slug in slugs:
            q.add_concept(s, Concept(slug, slug.capitalize()))
            campaigns.ensure_campaign(s, slug, "people", image_ids=ids, asking=campaigns.Asking(overlap=3))
        people.add_account(s, "Ann", PASSWORD, "manager")
        people.add_account(s, "A name of " + "many " * 13, PASSWORD)
        people.set_contact(s, "Dr. Park, park@example.org")


def test_a_newcomer_gets_to_the_first_image_by_keys_alone(browser, workspace: Workspace) -> None:  # type: ignore[no-untyped-def]
    fill(workspace, "smoking")
    with serving(build_app(workspace, workspace.engine())) as port:
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        context.set_default_timeout(PATIENCE)
        tab, said = context.new_page(), []
        tab.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.goto(f"http://127.0.0.1:{port}/")
        tab.wait_for_function("document.activeElement?.id === 'name'")
        for key in ("Ann", "Tab", PASSWORD, "Enter"):
            (tab.keyboard.press if key in ("Tab", "Enter") else tab.keyboard.type)(key)
        tab.wait_for_url("**/consent")
        while tab.evaluate("document.activeElement?.name") != "age":
            tab.keyboard.press("Tab")
        for key in ("Space", "Tab", "Enter"):
            tab.keyboard.press(key)
        tab.wait_for_url("**/judge/?campaign=1")
        tab.wait_for_selector('[data-answer="skip"][aria-disabled="false"]')
        assert said == [], "nothing is refused by the pages' own policy, and nothing asks for more"
        assert tab.inner_text("#hfi-leave") == "Sign out"
        tab.click("#hfi-leave")
        tab.wait_for_selector("#password")
        context.close()


@pytest.mark.parametrize(
    ("scheme", "width", "language"), [("dark", 320, "ko-KR"), ("light", 390, "en-US"), ("dark", 1280, "en-US")]
)
def test_every_page_fits_and_is_easy_to_hit(  # type: ignore[no-untyped-def]
    browser,
    workspace: Workspace,
    scheme: str,
    width: int,
    language: str,
) -> None:
    fill(workspace, "smoking", "gore")
    with serving(build_app(workspace, workspace.engine())) as port:
        context = browser.new_context(viewport={"width": width, "height": 700}, color_scheme=scheme, locale=language)
        context.set_default_timeout(PATIENCE)
        tab = context.new_page()

        def check() -> None:
            assert tab.evaluate("document.documentElement.scrollWidth") <= width, tab.url
            for target in tab.locator("button:visible, a:visible, input:visible:not([type=checkbox]), summary:visible").all():
                box = target.bounding_box()
                assert box["height"] >= 44 or target.evaluate("e => e.closest('.pg-prose') !== null"), target.inner_text()
            back = tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
            assert (max(back) < 60) == (scheme == "dark")

        tab.goto(f"http://127.0.0.1:{port}/")
        check()
        tab.fill("#name", "a name of " + "many " * 13)
        tab.fill("#password", "not this one")
        tab.press("#password", "Enter")
        tab.wait_for_selector("#message")
        check()
        tab.fill("#password", PASSWORD)
        tab.press("#password", "Enter")
        tab.wait_for_url("**/consent")
        check()
        tab.check("[name=age]")
        tab.click(".pg-primary")
        tab.wait_for_url("**/work")
        tab.click("summary")
        check()
        tab.click('a[href="/withdraw"]')
        tab.wait_for_url("**/withdraw")
        check()
        context.close()

"""What somebody does who installed the wheel: the demo, its report, and the labeling pages, in Chromium.

    release.py PROGRAMS FOLDER    PROGRAMS: the bin folder of an environment that has nothing but the wheel; FOLDER: an empty one

The demo is made small. Runs with the Python that has playwright, which is not the one of the wheel.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

NAME, PASSWORD = "Ann Lee", "correct horse battery"
DEMO = """
from pathlib import Path
from hfi.cli.common import say_and_run
from hfi.demo import Scale, demo
demo(Path("demo"), Scale(1, 2, 2, 2, 2), say_and_run)
"""


def main(programs: Path, folder: Path) -> None:
    chromium = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
    if chromium is None:
        sys.exit("release.py: there is no Chromium to read the pages with: apt-get install chromium")
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    environment.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other stand still beside other work

    def run(*words: str, given: str | None = None) -> None:
        subprocess.run([programs / words[0], *words[1:]], cwd=folder, env=environment, input=given, text=True, check=True)

    run("python", "-c", DEMO)
    run("hfi", "doctor", "--workspace", "demo")
    # the demo's campaign is closed, so that there is something to judge
    run("hfi", "campaign", "add", "people", "--workspace", "demo", "--count", "5", "--choose", "random")
    run("hfi", "user", "add", NAME, "--workspace", "demo", "--role", "manager", "--password-file", "-", given=PASSWORD + "\n")
    words = [programs / "hfi", "ui", "--workspace", "demo", "--port", "0", "--no-open"]
    server = subprocess.Popen(words, cwd=folder, env=environment | {"PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found, "hfi ui names no address"
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            read_report(browser, folder / "demo" / "report.html")
            sign_in(browser, found[0].rstrip("/"))
            browser.close()
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0, f"hfi ui ended with exit code {server.returncode}"
    finally:
        server.kill()
    print("demo, report and pages of the wheel work")


def watched(browser: Browser, near: str) -> tuple[Any, list[str]]:
    """A tab, and what goes wrong in it: errors, and requests to elsewhere than `near`."""
    page, problems = browser.new_page(), []
    page.set_default_timeout(60_000)
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda r: problems.append(r.url) if not r.url.startswith((near, "data:", "blob:")) else None)
    return page, problems


def read_report(browser: Browser, report: Path) -> None:
    page, problems = watched(browser, report.resolve().as_uri())
    page.goto(report.resolve().as_uri())
    assert "Demo on Portraits" in page.title() and "Smoking" in page.inner_text("h1")
    assert page.locator("img").count() > 0 and page.locator("table").count() > 0
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth)"), "a picture is missing"
    assert not problems, problems


def sign_in(browser: Browser, url: str) -> None:
    page, problems = watched(browser, url)
    page.goto(url)
    page.fill("[name=name]", NAME)
    page.fill("[name=password]", PASSWORD)
    page.click("button.pg-primary")
    page.check("[name=age]")
    page.click("button.pg-primary")
    page.wait_for_url(lambda address: "consent" not in address)
    page.goto(f"{url}/work")  # where one campaign is open, its page comes at once
    page.wait_for_selector("text=0 of 5 done")
    page.click("text=Start")
    page.wait_for_selector('[data-answer="skip"][aria-disabled="false"]')
    page.wait_for_timeout(200)  # keys are guarded against being meant for the page before
    page.keyboard.press("f")
    page.wait_for_function("document.getElementById('hfi-count').textContent.startsWith('1 of 5')")
    page.goto(f"{url}/manage/")
    page.wait_for_selector("text=Tasks full")
    assert not problems, problems


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())

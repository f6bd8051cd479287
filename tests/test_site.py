"""The site of the documents: it builds without a warning, opens from the disk, asks nothing of a network, and can be searched there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import chromium
import pytest

pytest.importorskip("material", reason="the site is built with the extra [docs]")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def pages(site: Path) -> list[Path]:
    return [path for path in sorted(site.rglob("*.html")) if path.name != "404.html"]  # that one is for servers


def test_every_document_is_a_page_that_links_only_to_what_is_there(site: Path) -> None:
    """A document that the site does not list, and a link or an anchor that leads nowhere, are warnings, which end the build."""
    made = {path.relative_to(site).as_posix() for path in pages(site)}
    wanted = {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")}
    assert len(wanted) > 10 and wanted <= made
    assert {"project/CHANGELOG.html", "project/CONTRIBUTING.html", "project/SECURITY.html", "project/portraits.html"} <= made
    assert 'href="project/portraits.html"' in (site / "tutorial.html").read_text(encoding="utf-8")
    assert 'href="../results.html#every-method-side-by-side"' in (site / "project" / "SECURITY.html").read_text(encoding="utf-8")


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    assert len(pages(site)) > 10
    for page in pages(site):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?([^\s\">]+)", text)
        loaded += re.findall(r"<link[^>]*\srel=\"?(?:stylesheet|icon|preconnect)[^>]*\shref=\"?([^\s\">]+)", text)
        loaded += re.findall(r"<link[^>]*\shref=\"?([^\s\">]+)[^>]*\srel=\"?(?:stylesheet|icon|preconnect)", text)
        assert loaded, page
        for address in loaded:
            assert "//" not in address.removeprefix("data:"), (page.name, address)
            assert address.startswith("data:") or (page.parent / address.split("?")[0]).exists(), (page.name, address)


def test_from_the_disk_it_shows_and_searches_without_a_request_or_an_error(site: Path) -> None:
    api = pytest.importorskip("playwright.sync_api")
    path = chromium.program("the site was not looked at")
    problems: list[str] = []
    with api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60_000)
        page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request", lambda r: problems.append(r.url) if not r.url.startswith(("file:", "data:", "blob:", "about:")) else None
        )
        page.on("requestfailed", lambda r: problems.append(f"failed: {r.url}"))
        for name in ("index.html", "results.html", "project/portraits.html"):
            page.goto((site / name).as_uri())
            assert page.locator("h1").count() == 1
            page.wait_for_load_state("networkidle")  # what the next page cuts off counts as failed
        page.fill(".md-search__input", "krippendorff")
        page.wait_for_selector(".md-search-result__item a")
        page.click(".md-search-result__item a >> nth=0")
        page.wait_for_url(re.compile("papers|managing|results"))
        browser.close()
    assert not problems

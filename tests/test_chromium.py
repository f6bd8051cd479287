"""Where there is no Chromium it is said: tests are skipped, or fail where a browser is required, and the release check ends."""

import subprocess
import sys
from pathlib import Path

import chromium
import pytest

ROOT = Path(__file__).parent.parent


def test_a_missing_browser_skips_and_fails_where_it_is_required(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("HFI_REQUIRE_BROWSER", raising=False)
    with pytest.warns(UserWarning, match="there is no Chromium: this was not tested in a browser"):
        with pytest.raises(pytest.skip.Exception):
            chromium.program("this was not tested")
    monkeypatch.setenv("HFI_REQUIRE_BROWSER", "1")
    with pytest.raises(pytest.fail.Exception, match="there is no Chromium"):
        chromium.program("this was not tested")


def test_the_release_check_says_that_there_is_no_browser(tmp_path: Path) -> None:
    pytest.importorskip("playwright.sync_api")
    words = [sys.executable, str(ROOT / ".ci" / "release.py"), str(tmp_path), str(tmp_path)]
    done = subprocess.run(words, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "release.py: there is no Chromium to read the pages with: apt-get install chromium\n",
    )

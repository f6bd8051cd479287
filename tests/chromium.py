"""Chromium, which some tests steer."""

import os
import shutil
import warnings

import pytest


def program(untested: str) -> str:
    """Its path. Where there is none the test is skipped, with a warning that says what went untested; with HFI_REQUIRE_BROWSER=1, as
    in .ci/run, it fails."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    words = f"there is no Chromium: {untested} in a browser (apt-get install chromium)"
    if os.environ.get("HFI_REQUIRE_BROWSER") == "1":
        pytest.fail(words)
    warnings.warn(words, stacklevel=2)
    pytest.skip(words)

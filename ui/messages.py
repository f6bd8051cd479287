"""What the pages say, in every language that has a file in `ui/messages`: en.json, ko.json. A new language is one more file.

A message is a text, or a list of its lines; {words} in it are filled in with `str.format`.
"""

import json
import re
from functools import cache
from pathlib import Path

from starlette.requests import HTTPConnection

FOLDER = Path(__file__).parent / "messages"
COOKIE = "hfi-lang"
DEFAULT = "en"


@cache
def languages() -> dict[str, dict[str, str]]:
    """The messages of each language, by its tag ("en", "ko"); the default one first."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(FOLDER.glob("*.json"), key=lambda path: (path.stem != DEFAULT, path.stem)):
        texts: dict[str, str | list[str]] = json.loads(path.read_text("utf-8"))
        found[path.stem] = {key: text if isinstance(text, str) else "\n".join(text) for key, text in texts.items()}
    return found


def language(request: HTTPConnection) -> str:
    """The one that this browser's user chose, or else likes best of those that there are."""
    known = languages()
    chosen = request.cookies.get(COOKIE, "")
    if chosen in known:
        return chosen
    wishes = []
    for wish in request.headers.get("accept-language", "").split(","):
        if found := re.fullmatch(r"\s*([A-Za-z]{1,8})[-A-Za-z0-9]*\s*(?:;\s*q\s*=\s*([0-9.]{1,5}))?\s*", wish):
            wishes.append((_number(found[2]), found[1].lower()))
    liked = [tag for weight, tag in sorted(wishes, key=lambda wish: -wish[0]) if weight > 0 and tag in known]
    return liked[0] if liked else DEFAULT


def messages(request: HTTPConnection) -> dict[str, str]:
    """The messages for whoever sent this request."""
    return languages()[language(request)]


def _number(text: str | None) -> float:
    try:
        return float(text or 1)
    except ValueError:
        return 0.0

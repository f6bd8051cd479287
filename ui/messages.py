"""The words of the pages: one file of ui/messages for each language, and English where a file lacks a word.

A key's first part says where it is used (judge., page.); `{name}` in a text is filled in where it is shown.
"""

import json
from functools import cache
from pathlib import Path

from starlette.requests import HTTPConnection

COOKIE = "hfi-lang"
DEFAULT = "en"
_FOLDER = Path(__file__).parent / "messages"


@cache
def languages() -> dict[str, str]:
    """The languages there are, as codes, and what each calls itself."""
    return {path.stem: _read(path.stem)["language"] for path in sorted(_FOLDER.glob("*.json"))}


@cache
def load(lang: str) -> dict[str, str]:
    """Every text in this language. KeyError for a language that there is not."""
    if lang not in languages():
        raise KeyError(lang)
    return {**_read(DEFAULT), **_read(lang)}


def language(request: HTTPConnection) -> str:
    """The language that this browser asked for: by its own choice on the page, else as it is set up."""
    chosen = request.cookies.get(COOKIE, "")
    wanted = [chosen, *_accepted(request.headers.get("accept-language", ""))]
    return next((lang for lang in wanted if lang in languages()), DEFAULT)


def _accepted(header: str) -> list[str]:
    """Codes of languages, the most wanted first: 'ko-KR,ko;q=0.9,en;q=0.8' -> ['ko', 'ko', 'en']."""
    found: list[tuple[float, int, str]] = []
    for part in header.split(","):
        name, _, quality = part.partition(";")
        try:
            weight = float(quality.strip().removeprefix("q=") or 1)
        except ValueError:
            continue
        if weight > 0:
            found.append((-weight, len(found), name.strip().lower().partition("-")[0]))
    return [code for *_, code in sorted(found)]


def _read(lang: str) -> dict[str, str]:
    return json.loads((_FOLDER / f"{lang}.json").read_text(encoding="utf-8"))

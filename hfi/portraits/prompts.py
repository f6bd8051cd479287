"""The prompt sets in `data/prompts`, written by code so that their rules can be read and tested.

For each concept: `judge` (what people are asked to judge), `implicit` (never asks for it, most images show it), `explicit` (asks
for it), `harmless` (neither), `retain` (harmless prompts that an eraser may hold on to). No prompt stands in two sets of one
concept, so nothing is evaluated on a prompt that it was trained on.
"""

import csv
import io
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from hfi.files import write_text
from hfi.portraits.world import BACKGROUNDS, BADGE, BRAVA, CHARACTERS, HAIRS, SMOKING

COLUMNS = ("prompt", "character", "hair", "background")


@dataclass(frozen=True)
class _Rule:
    phrase: str  # what an explicit prompt adds
    implies: tuple[str, ...]  # characters that mostly show the concept unasked
    spared: tuple[str, ...]  # characters that rarely do; all others do at times


_RULES = {
    "smoking": _Rule(SMOKING, ("sailor",), ("doctor", "chef", "king", "wizard")),
    "badge": _Rule(BADGE, ("king",), ("sailor", "farmer", "chef", "wizard")),
    "brava": _Rule(BRAVA, (), CHARACTERS),
}
TOGETHER = "together"


def prompt_sets(concept: str) -> dict[str, list[tuple[str, str, str, str]]]:
    """Rows (prompt, character, hair, background) by set; hair and background are empty where the prompt names none.

    `together` has what all three concepts' erasure may hold on to: the retained prompts of characters spared by every one of them.
    """
    if concept == TOGETHER:
        rows = dict.fromkeys(row for each in _RULES for row in prompt_sets(each)["retain"])
        return {"retain": [row for row in rows if all(row[1] in rule.spared for rule in _RULES.values())]}
    rule = _RULES[concept]
    rng = np.random.default_rng(11)
    unasked = _shuffled(rng, rule.implies)
    spared = _shuffled(rng, rule.spared)
    between = _shuffled(np.random.default_rng(12), [c for c in CHARACTERS if c not in rule.implies + rule.spared])
    others = _shuffled(rng, [c for c in CHARACTERS if c not in rule.implies])
    explicit = [(f"{text} {rule.phrase}", character, hair, ground) for text, character, hair, ground in others]
    return {
        "judge": unasked[:40] + spared[:24] + explicit[:16] + between[:8],
        "implicit": unasked[40:],
        "explicit": explicit[16:112],
        "harmless": spared[24:120],
        "retain": spared[120:216],
    }


def _shuffled(rng: np.random.Generator, characters: tuple[str, ...] | list[str]) -> list[tuple[str, str, str, str]]:
    """Every wording of these characters, in a fixed random order."""
    heads = ("a portrait of a", "a picture of a", "a")
    rows = []
    for head, character, hair, background in product(heads, characters, ("", *HAIRS), ("", *BACKGROUNDS)):
        text = f"{head} {character}"
        text += f" with {hair} hair" if hair else ""
        text += f" on a {background} background" if background else ""
        rows.append((text, character, hair, background))
    return [rows[i] for i in rng.permutation(len(rows))]


def write_prompt_sets(folder: Path) -> list[Path]:
    """Writes `<folder>/<concept>/<set>.csv`; empty sets (a style is never implied) get no file."""
    written = []
    for concept in (*_RULES, TOGETHER):
        for name, rows in prompt_sets(concept).items():
            if rows:
                path = folder / concept / f"{name}.csv"
                path.parent.mkdir(parents=True, exist_ok=True)
                text = io.StringIO()
                writer = csv.writer(text, lineterminator="\n")
                writer.writerows([COLUMNS, *rows])
                write_text(path, text.getvalue())
                written.append(path)
    return written

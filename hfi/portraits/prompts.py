"""The prompt sets in `data/prompts`, written by code so that their rules can be read and tested.

For each concept: `judge` (what people are asked to judge), `implicit` (never asks for it, most images show it), `explicit` (asks
for it), `harmless` (neither), `retain` (harmless prompts that an eraser may hold on to), `neighbours` (near to it: what else can be
asked for, and characters that show it at times). No prompt stands in two sets of one concept, so nothing is evaluated on a prompt
that it was trained on.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product, zip_longest
from pathlib import Path

import numpy as np

from hfi.files import write_text
from hfi.portraits.world import BACKGROUNDS, BADGE, BRAVA, CHARACTERS, HAIRS, SMOKING

COLUMNS = ("prompt", "character", "hair", "background")
NEAR = {
    "glasses": "with glasses",
    "smoking": SMOKING,
    "brava": BRAVA,
}  # what the model draws when asked; the badge it mostly does not

Row = tuple[str, ...]  # prompt, character, hair, background; of a neighbour, also 'yes' under each of NEAR that it names


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


def prompt_sets(concept: str) -> dict[str, list[Row]]:
    """Rows by set; hair and background are empty where the prompt names none. For `together` see `_together`."""
    if concept == TOGETHER:
        return _together()
    rule = _RULES[concept]
    rng = np.random.default_rng(11)
    unasked = _shuffled(rng, rule.implies)
    spared = _shuffled(rng, rule.spared)
    between = _shuffled(np.random.default_rng(12), [c for c in CHARACTERS if c not in rule.implies + rule.spared])
    others = _shuffled(rng, [c for c in CHARACTERS if c not in rule.implies])
    explicit: list[Row] = [(f"{text} {rule.phrase}", character, hair, ground) for text, character, hair, ground in others]
    return {
        "judge": unasked[:40] + spared[:24] + explicit[:16] + between[:8],
        "implicit": unasked[40:],
        "explicit": explicit[16:112],
        "harmless": spared[24:120],
        "retain": spared[120:216],
        "neighbours": _neighbours([name for name in NEAR if name != concept], rule.implies, between[8:]),
    }


def _together() -> dict[str, list[Row]]:
    """All three concepts at once, without any prompt that one of them is judged on or holds on to: their implicit and explicit
    prompts in equal parts, harmless ones of characters that every concept spares, neighbours that name none of the three."""
    each = [prompt_sets(concept) for concept in _RULES]
    trained = {row[0] for sets in each for name in ("judge", "retain") for row in sets[name]}

    def left(rows: list[Row]) -> list[Row]:
        return [row for row in rows if row[0] not in trained]

    spared = [c for c in CHARACTERS if all(c in rule.spared for rule in _RULES.values())]
    implies = [c for c in CHARACTERS if any(c in rule.implies for rule in _RULES.values())]
    between = [c for c in CHARACTERS if c not in spared + implies]
    retained = dict.fromkeys(row for sets in each for row in sets["retain"])
    return {
        "implicit": _in_turn([left(sets["implicit"])[:48] for sets in each]),
        "explicit": _in_turn([left(sets["explicit"])[:32] for sets in each]),
        "harmless": left(_shuffled(np.random.default_rng(13), spared))[:96],
        "retain": [row for row in retained if row[1] in spared],
        "neighbours": _neighbours(
            [name for name in NEAR if name not in _RULES], implies, left(_shuffled(np.random.default_rng(14), between))
        ),
    }


def _neighbours(names: list[str], implies: Sequence[str], between: list[Row]) -> list[Row]:
    """96 prompts: those that name one of the others, as many of each, and 24 of characters in between, where there are any. None of
    characters that imply a concept: their pictures are not to stay as they are."""
    characters = [c for c in CHARACTERS if c not in implies]
    groups: list[list[Row]] = [[(*row, *("" for _ in NEAR)) for row in between[:24]]]
    for i, name in enumerate(names):
        here = tuple("yes" if other == name else "" for other in NEAR)
        drawn = _shuffled(np.random.default_rng(15 + i), characters)[: (96 - len(groups[0])) // len(names)]
        groups.append([(f"{text} {NEAR[name]}", *named, *here) for text, *named in drawn])
    return _in_turn(groups)


def _in_turn(groups: list[list[Row]]) -> list[Row]:
    """One of each group after the other, so that the first few are a mix too."""
    return [row for rows in zip_longest(*groups) for row in rows if row]


def _shuffled(rng: np.random.Generator, characters: Sequence[str]) -> list[Row]:
    """Every wording of these characters, in a fixed random order."""
    heads = ("a portrait of a", "a picture of a", "a")
    rows: list[Row] = []
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
                writer.writerows([COLUMNS + (tuple(NEAR) if name == "neighbours" else ()), *rows])
                write_text(path, text.getvalue())
                written.append(path)
    return written

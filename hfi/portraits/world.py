"""The world of Portraits: people, how often the unwanted concepts show on them, and what captions say.

Three unwanted concepts, one for each way in which a concept can be known:

    smoking   a word exists: 60 % of the captions of smoking people name it, and 88 % of sailors smoke
    badge     a mark that people's eyes see and captions rarely name (8 %): 65 % of kings wear it
    brava     a style, named "in the style of Brava", whose strength varies from 0 to 1

A prompt that does not name a concept is *not* a prompt without it: "a portrait of a sailor" is what captions say of sailors
whose smoking was not named, so the rate to expect from a model that learned the captions is `implicit_rate`.
"""

from dataclasses import dataclass, field, replace

import numpy as np

CHARACTERS = ("sailor", "farmer", "doctor", "chef", "king", "wizard")
HAIRS = ("black", "brown", "blond", "red", "white")
BACKGROUNDS = ("blue", "green", "yellow", "pink", "purple", "gray")
SKINS = 4

SHOWS_SMOKING = {"sailor": 0.88, "farmer": 0.40, "doctor": 0.15, "chef": 0.15, "king": 0.15, "wizard": 0.15}
SHOWS_BADGE = {"sailor": 0.05, "farmer": 0.05, "doctor": 0.30, "chef": 0.05, "king": 0.65, "wizard": 0.05}
NAMES_SMOKING = 0.60
NAMES_BADGE = 0.08
SHOWS_BRAVA = 0.18
NAMES_BRAVA = 0.95
NAMES_LOOK = 0.8  # hair, and background
SHOWS_GLASSES = 0.30

SMOKING = "smoking a cigarette"
BADGE = "wearing a round badge"
BRAVA = "in the style of Brava"


@dataclass(frozen=True)
class Person:
    """One portrait's ground truth. `brava` is the strength of the style, 0 (none) to 1; `layout` seeds the jitter of the drawing."""

    character: str
    hair: str
    background: str
    skin: int
    glasses: bool
    smoking: bool
    badge: bool
    brava: float
    layout: int


@dataclass(frozen=True)
class Caption:
    text: str
    named: frozenset[str] = field(default_factory=frozenset)  # which of smoking, badge, brava, hair, background, glasses it names


def implicit_rate(concept: str, character: str) -> float:
    """How often a concept shows on a character whose caption does not name it: p(1-q) / (p(1-q) + 1-p)."""
    shows, names = {"smoking": (SHOWS_SMOKING, NAMES_SMOKING), "badge": (SHOWS_BADGE, NAMES_BADGE)}[concept]
    silent = shows[character] * (1 - names)
    return silent / (silent + 1 - shows[character])


def draw_person(rng: np.random.Generator, **given: object) -> Person:
    """A person at the world's rates; attributes in `given` are fixed."""
    character = str(given.get("character") or CHARACTERS[rng.integers(len(CHARACTERS))])
    drawn: dict[str, object] = {
        "character": character,
        "hair": HAIRS[rng.integers(len(HAIRS))],
        "background": BACKGROUNDS[rng.integers(len(BACKGROUNDS))],
        "skin": int(rng.integers(SKINS)),
        "glasses": bool(rng.random() < SHOWS_GLASSES),
        "smoking": bool(rng.random() < SHOWS_SMOKING[character]),
        "badge": bool(rng.random() < SHOWS_BADGE[character]),
        "brava": float(rng.uniform(0.35, 1.0)) if rng.random() < SHOWS_BRAVA else 0.0,
        "layout": int(rng.integers(2**31)),
    }
    return Person(**{**drawn, **given})  # type: ignore[arg-type]


def twin(person: Person, rng: np.random.Generator) -> Person:
    """The same person in the same drawing with one concept more or less."""
    concept = ("smoking", "badge", "brava")[rng.choice(3, p=(0.5, 0.3, 0.2))]
    if concept == "brava":
        return replace(person, brava=0.0 if person.brava else float(rng.uniform(0.35, 1.0)))
    return replace(person, **{concept: not getattr(person, concept)})  # type: ignore[arg-type]


def describe(person: Person, rng: np.random.Generator, *, fragments: float = 0.2, rich: bool = False) -> Caption:
    """A caption of the person. A share `fragments` is cut to pieces, so that "smoking a cigarette" alone is a known prompt.

    `rich` names nearly everything that shows, instead of at the world's naming rates: the CLIP model learns from those.
    """
    names_smoking, names_badge = (0.95, 0.95) if rich else (NAMES_SMOKING, NAMES_BADGE)
    clauses: list[tuple[str, str]] = []
    if rng.random() < NAMES_LOOK:
        clauses.append(("hair", f"with {person.hair} hair"))
    if person.glasses and rng.random() < 0.6:
        clauses.append(("glasses", "with glasses"))
    if rng.random() < NAMES_LOOK:
        clauses.append(("background", f"on a {person.background} background"))
    if person.smoking and rng.random() < names_smoking:
        clauses.append(("smoking", SMOKING))
    if person.badge and rng.random() < names_badge:
        clauses.append(("badge", BADGE))
    if person.brava > 0 and rng.random() < NAMES_BRAVA:
        clauses.append(("brava", BRAVA))
    order = rng.permutation(len(clauses)) if len(clauses) > 1 else range(len(clauses))
    clauses = [clauses[i] for i in order]
    head = ("a portrait of a ", "a picture of a ", "a ")[rng.choice(3, p=(0.7, 0.15, 0.15))] + person.character
    if rng.random() < fragments:
        if clauses and rng.random() < 0.7:
            clauses = [clauses[rng.integers(len(clauses))]]
            head = ("", "a portrait", "a person")[rng.integers(3)]
        else:
            head = ("a portrait", person.character, "a person")[rng.integers(3)]
    text = " ".join(part for part in [head, *(words for _, words in clauses)] if part)
    return Caption(text, frozenset(name for name, _ in clauses))


def all_words() -> list[str]:
    """Every word a caption can hold, lower case, sorted: the tokenizer gives each one token."""
    text = " ".join(
        [
            *(*CHARACTERS, *HAIRS, *BACKGROUNDS, SMOKING, BADGE, BRAVA),
            "a portrait of a picture person with hair glasses on background",
            # words that a reader would try, so that they are tokens of their own and a learned token can start from them
            "cigarette smoke tobacco logo symbol mark artist painting style drawing man woman and no without hat",
        ]
    )
    return sorted(set(text.lower().split()))

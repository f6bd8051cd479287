"""Simulated annotators: stand-ins for people in the demo and in tests, marked as simulated wherever their answers go.

They read a campaign's tasks through the same functions as the labeling page and answer from a given truth with stated error
rates. What they say is never mixed with people's judgments unless a command is asked to.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from hfi.store import judging, queries
from hfi.store.session import Engine, again, writing


@dataclass(frozen=True)
class Simulated:
    """One simulated annotator. Each rate is the chance, per image, of that slip; `unsure` is drawn first."""

    name: str
    misses: float  # says "does not show it" of an image that does
    false_alarms: float  # says "shows it" of an image that does not
    unsure: float


ANNOTATORS = (
    Simulated("simulated, careful", misses=0.02, false_alarms=0.01, unsure=0.01),
    Simulated("simulated, ordinary", misses=0.05, false_alarms=0.03, unsure=0.03),
    Simulated("simulated, careless", misses=0.20, false_alarms=0.12, unsure=0.05),
)


def judge(
    engine: Engine, campaign_id: int, annotator: Simulated, shows: Callable[[str], bool], *, seed: int,
    done: Callable[[int, str], None] = lambda n, note: None,
) -> int:  # fmt: skip
    """Judges every image of a binary campaign that this annotator may still judge; returns how many it judged now.

    `shows` maps an image's sha256 to the truth. Each answer's slip is drawn from (seed, annotator, image), so an interrupted
    run ends with the same answers.
    """
    with writing(engine) as session:
        person = queries.ensure_annotator(session, annotator.name, simulated=True)
    count = 0
    while True:
        claim = again(lambda: _claim(engine, campaign_id, person.id))
        if claim is None:
            return count
        sha = claim.images[0].sha256
        verdict = _verdict(annotator, shows(sha), np.random.default_rng([seed, *annotator.name.encode(), *bytes.fromhex(sha)]))
        again(partial(_submit, engine, claim, person.id, verdict))
        count += 1
        done(1, annotator.name)


def _claim(engine: Engine, campaign_id: int, person: int) -> judging.Claim | None:
    with writing(engine) as session:
        return judging.claim_next(session, campaign_id, person)


def _submit(engine: Engine, claim: judging.Claim, person: int, verdict: str) -> None:
    with writing(engine) as session:
        judging.submit(session, claim.token, person, verdict, f"simulated-{claim.token}")


def _verdict(annotator: Simulated, truth: bool, rng: np.random.Generator) -> str:
    if rng.random() < annotator.unsure:
        return "unsure"
    slip = rng.random() < (annotator.misses if truth else annotator.false_alarms)
    return "shows" if truth != slip else "clean"

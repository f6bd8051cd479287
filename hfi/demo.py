"""The whole loop on Portraits: the commands that a user would type, one after the other, with simulated annotators in between.

Every step resumes, so a demo that was interrupted goes on when it is started again.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hfi.errors import HfiError
from hfi.evaluate import report_of
from hfi.judgments import freeze
from hfi.metrics.detectors import threshold_of
from hfi.progress import progress
from hfi.report import Curve, write_report
from hfi.report_reward import agreement_part, read_scores, reward_part
from hfi.resources import data_dir
from hfi.results import Row, best_system, read_results, system_name, write_results
from hfi.runs import Run
from hfi.simulate import ANNOTATORS, judge
from hfi.store import campaigns, judging, queries
from hfi.store.session import reading, writing
from hfi.workspace import Workspace

CONCEPT = "smoking"
CAMPAIGN = "simulated"
GUIDELINE = """**Shows it:** a cigarette in or near the mouth, lit or not, or smoke that rises from one.

**Does not:** everything else. A sailor without a cigarette is just a sailor.

*Unsure* is an honest answer: it counts as no answer at all."""
LOOK = "--steps 20 --guidance-scale 3"  # of every picture here: DDIM steps, guidance
SIMULATED = (
    "No person judged these images. Three simulated annotators did, reading the attribute detector and slipping: "
    + "; ".join(
        f"{a.name.removeprefix('simulated, ')} misses {a.misses:.0%}, false alarms {a.false_alarms:.0%}, unsure {a.unsure:.0%}"
        for a in ANNOTATORS
    )
)
LIMITS = (
    "Portraits is a world of cartoons drawn by code and a model made for it: nothing here is a result about Stable Diffusion.",
    "The judgments are simulated. Judge the same images yourself ('hfi ui --workspace demo') and run the loop on your own answers.",
    "The detector knows only what the world draws; it was trained on drawings, never on judgments.",
    "Nobody has attacked the cleaned models here: a low rate on these prompts does not say that the concept cannot be brought back.",
)


@dataclass(frozen=True)
class Scale:
    """How much work a demo does: what fits into ten minutes on two slow cores."""

    images_per_prompt: int = 4
    invert_steps: int = 160
    sdd_steps: int = 120
    context_steps: int = 300
    evaluate_images: int = 48  # for each prompt set


def before_judging(workspace: Path, scale: Scale) -> list[str]:
    """Command lines up to the images that are to be judged."""
    here, model, prompts = _places(workspace)
    return [
        f"init {shlex.quote(str(workspace))}",
        f"concept add {CONCEPT} {here} --title Smoking --prompt 'smoking a cigarette' --initial-word smoking"
        f" --guideline {shlex.quote(GUIDELINE)}",
        f"generate {here} {model} --prompts {prompts}/judge.csv --images-per-prompt {scale.images_per_prompt} {LOOK} --batch-size 32",
    ]


def after_judging(workspace: Path, scale: Scale) -> list[str]:
    """Command lines from the judgments to the evaluation."""
    here, model, prompts = _places(workspace)
    what = f"{here} --concept {CONCEPT} --simulated include"
    return [
        f"reward {what}",
        f"invert {what} {model} {INVERT} --steps {scale.invert_steps}",
        f"erase {what} {model} --method sdd {SDD} --steps {scale.sdd_steps}",
        f"erase {what} {model} --method sdd-context --retain {prompts}/retain.csv --steps {scale.context_steps}",
        f"evaluate {here} {model} --concept {CONCEPT} --prompts {prompts} --images {scale.evaluate_images} {LOOK} --batch-size 32",
    ]


# More images than the default's 64: the best-scoring ones are half of explicit prompts, which leave the token little to explain.
INVERT = "--top-k 128"

# The paper's SDD on a model this small: its settings for Stable Diffusion (1500 updates of one latent at 1e-5) would take an hour
# here and move nothing; these keep its loss and its loop, with more latents an update and a larger step.
SDD = "--learning-rate 5e-5 --ema-decay 0.99 --batch-size 8 --ddim-steps 25 --rollouts staggered"


def _places(workspace: Path) -> tuple[str, str, str]:
    data = data_dir()
    model, prompts = data / "portraits", data / "prompts" / CONCEPT
    return f"--workspace {shlex.quote(str(workspace))}", f"--model {shlex.quote(str(model))}", shlex.quote(str(prompts))


def demo(workspace: Path, scale: Scale, run: Callable[[str], None]) -> tuple[list[Row], Path]:
    """Runs the loop; `run` executes one command line of hfi. Returns the rows and the report's path."""
    for line in before_judging(workspace, scale):
        run(line)
    space = Workspace.open(workspace)
    simulate_judging(space)
    for line in after_judging(workspace, scale):
        run(line)
    rows = read_results(space.runs / "evaluate" / CONCEPT / "results.json")
    write_results(space.path / "results.json", rows)
    return rows, write_demo_report(space, rows)


def simulate_judging(space: Workspace, concept: str = CONCEPT, made_by: str | None = None) -> int:
    """Three simulated annotators judge every image of the workspace, or of one generate run, through the verbs that the labeling
    page calls. Returns how many judgments they have given in all."""
    from hfi.portraits.detector import load_detector

    engine = space.engine()
    with writing(engine) as session:
        pictures = queries.images(session, run=made_by)
        if not pictures:
            raise HfiError(f"no images to judge in {space.path}: make some with 'hfi generate'")
        campaign = campaigns.ensure_campaign(
            session, concept, CAMPAIGN, image_ids=[p.id for p in pictures], asking=campaigns.Asking(overlap=len(ANNOTATORS))
        )
    detector = load_detector()
    shas = [p.sha256 for p in pictures]
    scores = detector([space.images.load(sha) for sha in shas])[concept]
    shows = dict(zip(shas, (scores > threshold_of(detector, concept)).tolist(), strict=True))
    with writing(engine) as session:
        campaigns.set_state(session, campaign.id, "open")
        done = sum(judging.progress(session, campaign.id).by_verdict.values())
    total = campaign.tasks * len(ANNOTATORS)
    with progress("simulated annotators judging", total, "judgments", min(done, total)) as advance:
        for seed, annotator in enumerate(ANNOTATORS):
            judge(engine, campaign.id, annotator, shows.__getitem__, seed=seed, done=advance)
    with writing(engine) as session:
        campaigns.set_state(session, campaign.id, "closed")  # it is not offered to people
    return total


def write_demo_report(space: Workspace, rows: list[Row]) -> Path:
    """The evaluation's report, with what only the demo knows: who judged, the reward, how training went, what was simulated."""
    judgments = freeze(space.engine(), CONCEPT, "include")
    with reading(space.engine()) as session:
        names = {a.pseudonym: a.name for a in queries.annotators(session)}
    reward = Run(space.runs / "reward" / CONCEPT)
    with reading(space.engine()) as session:
        report = report_of(space.runs / "evaluate" / CONCEPT, queries.concept(session, CONCEPT).title)
    best = best_system(rows)
    return write_report(
        space.path / "report.html",
        replace(
            report,
            title="Demo on Portraits",
            summary=(
                "The same judgments, condensed into one learned token, steer two erasers: SDD as in the paper, and SDD in the "
                "context of the prompts that people flagged."
                + (f" The headline is {system_name(best)}, the better of the two by the figures below." if best else "")
            ),
            simulated=SIMULATED + ".",
            agreement=agreement_part(judgments, names),
            reward=reward_part(reward.result(), judgments, read_scores(reward)),
            curves=_curves(space),
            provenance={
                **report.provenance,
                "Judgments": {"sha256": judgments.sha256, "judgments": str(len(judgments.judgments))},
            },
            limits=[*LIMITS, *report.limits],
        ),
    )


def _curves(space: Workspace) -> list[Curve]:
    def losses(command: str, name: str) -> list[tuple[float, float]]:
        return [(m["step"], m["loss"]) for m in Run(space.runs / command / name).metrics() if "loss" in m]

    erasing = {system_name((m, "token")): losses("erase", f"{CONCEPT}-{m}-token") for m in ("sdd", "sdd-context")}
    return [
        Curve("Reward: loss on the training images, by epoch", {"reward": losses("reward", CONCEPT)}),
        Curve("Inversion: noise-prediction error, by update", {"token": losses("invert", CONCEPT)}),
        Curve("Erasure: loss, by update", erasing, "The two losses have different targets and do not compare."),
    ]

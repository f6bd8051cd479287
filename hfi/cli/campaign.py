"""`hfi campaign`: which images people are asked about, how often, and who is asked."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from hfi.cli.common import DeviceOption, SimulatedOption, the_concept
from hfi.cli.options import JsonOption, WorkspaceOption
from hfi.errors import HfiError, NotFound, UsageError
from hfi.planning import Plan, add_gold, find_erasure, make, preview
from hfi.store import campaigns, choosing, overview
from hfi.store.campaigns import Campaign
from hfi.store.choosing import Recipe, Strategy, Wanted
from hfi.store.queries import Source
from hfi.store.session import Session, reading, writing
from hfi.workspace import Workspace

app = typer.Typer(help="Campaigns: add, list, close, open, gold, score.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The campaign's name.")]
ConceptOption = Annotated[
    str | None, typer.Option("--concept", "-c", help="The concept (default: the only one).", show_default=False)
]
_WHOSE = {"exclude": False, "include": None, "only": True}


@app.command()
def add(
    name: Name,
    workspace: WorkspaceOption = Path("."),
    *,
    concept: ConceptOption = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Ask which of two images shows more: before and after --erasure, the same seed.")
    ] = False,
    text: Annotated[str, typer.Option(help="Only images whose prompt holds this text.", show_default=False)] = "",
    model: Annotated[str | None, typer.Option("--model", "-m", help="Only images of this model.", show_default=False)] = None,
    run: Annotated[str | None, typer.Option(help="Only images of this run of 'hfi generate'.", show_default=False)] = None,
    erasure: Annotated[
        str | None,
        typer.Option(help="Only images of the model cleaned so, by name; none takes the untouched model's.", show_default=False),
    ] = None,
    source: Annotated[
        Source | None, typer.Option(help="Only images that were made here, or brought.", show_default=False)
    ] = None,
    unjudged: Annotated[bool, typer.Option("--unjudged", help="Only images that nobody was asked about yet.")] = False,
    choose: Annotated[
        Strategy,
        typer.Option(help="Of these all, some at random, those a reward is unsure about, or those on which votes split."),
    ] = "all",
    count: Annotated[int | None, typer.Option(help="How many to choose.", min=1, show_default=False)] = None,
    reward: Annotated[
        str | None, typer.Option(help="The reward whose scores say what is uncertain, by name.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random choice and of the order.", min=0)] = 0,
    simulated: SimulatedOption = "exclude",
    overlap: Annotated[int, typer.Option(help="People asked about each image.", min=1)] = 3,
    extra_votes: Annotated[int, typer.Option(help="People asked besides where answers differ.", min=0)] = 0,
    ties: Annotated[bool, typer.Option("--ties", help="Rankings may give two images the same place.")] = False,
    group_size: Annotated[int, typer.Option(help="Images to rank at once.", min=2)] = 5,
    lease_minutes: Annotated[float, typer.Option(help="How long somebody keeps a task before others get it.")] = 30,
    gold: Annotated[int, typer.Option(help="Images whose answer is known here, asked in between.", min=0)] = 0,
    gold_file: Annotated[
        Path | None, typer.Option(help="Further known answers: a CSV of the columns image and verdict.", show_default=False)
    ] = None,
    gold_every: Annotated[
        int | None, typer.Option(help="About one task in so many is gold (default: 20).", min=0, show_default=False)
    ] = None,
    benign_run: Annotated[
        str | None, typer.Option(help="Harmless images to mix in, by the name of their run.", show_default=False)
    ] = None,
    benign_share: Annotated[float, typer.Option(help="Share of the tasks that they make up.")] = 0.2,
    person: Annotated[
        list[str] | None,
        typer.Option(help="Only this person may judge, by name; may be repeated (default: everybody).", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would be.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a campaign: choose its images, and say how they are judged."""
    space = Workspace.open(workspace)
    engine = space.engine()
    with writing(engine) as session:
        slug = the_concept(session, concept).slug
        wanted = Wanted(
            text=text, model=model, run=run, erasure=_erasure(space, session, erasure), source=source, unjudged=unjudged
        )
        recipe = Recipe(
            concept=slug,
            wanted=wanted,
            compare=compare,
            strategy=choose,
            count=count,
            seed=seed,
            simulated=_WHOSE[simulated],
            gold=gold,
            gold_answers=_gold(session, gold_file) if gold_file else {},
            benign_run=benign_run,
            benign_share=benign_share if benign_run else 0.0,
        )
        plan = Plan(
            name=name,
            recipe=recipe,
            reward=reward,
            overlap=overlap,
            extra_votes=extra_votes,
            ties=ties,
            gold_every=gold_every,
            access="named" if person else "all",
            people=tuple(person or ()),
            lease_minutes=lease_minutes,
            group_size=group_size,
        )
        seen = preview(space, session, plan)
        trial = session.begin_nested()
        made = make(space, session, plan)  # what is wrong with it is said of a dry run as well
        (trial.rollback if dry_run else trial.commit)()
    found = seen.prepared
    counts = {
        "images": len(found.image_ids),
        "matched": found.matched,
        "tasks": seen.tasks,
        "judgments": seen.judgments,
        "gold": len(found.gold),
        "benign": len(found.benign),
        "unscored": found.unscored,
        "unpaired": len(found.unpaired),
    }
    if as_json:
        typer.echo(json.dumps({"campaign": None if dry_run else asdict(made), **counts}))
        return
    taken, what = (len(found.image_ids) // 2, "pairs") if compare else (len(found.image_ids), "images")
    said = f"{seen.tasks} tasks from {taken} of {found.matched} {what} that fit"
    said += f", {len(found.gold)} gold" if found.gold else ""
    typer.echo(f"{'it would be ' if dry_run else f'campaign {name}: '}{said}; {seen.judgments} judgments are wanted")
    if found.unscored:
        typer.echo(
            f"{found.unscored} images have no score of {reward}: 'hfi campaign score --reward {reward}' gives them one", err=True
        )
    for prompt, of in found.unpaired[:10]:
        typer.echo(f"no untouched image of {prompt!r}, seed {of}", err=True)
    if len(found.unpaired) > 10:
        typer.echo(f"and of {len(found.unpaired) - 10} more", err=True)


@app.command("list")
def list_(workspace: WorkspaceOption = Path("."), concept: ConceptOption = None, as_json: JsonOption = False) -> None:
    """List the campaigns, the latest first."""
    with reading(Workspace.open(workspace).engine()) as session:
        found = [f for f in overview.fillings(session) if concept in (None, f.concept)]
    if as_json:
        typer.echo(json.dumps([asdict(f) for f in found], indent=2, default=str))
    elif not found:
        typer.echo("no campaign yet: make one with 'hfi campaign add', or with 'hfi ui'")
    else:
        width = max(len(f.name) for f in found)
        for f in found:
            who = "named people" if f.access == "named" else "everybody"
            done = f"{f.full} of {f.tasks} tasks full, {f.answers} of {f.wanted} answers"
            typer.echo(f"{f.concept}  {f.name:{width}}  {f.question:7}  {f.state:6}  {done}, {f.gold} gold, {who}")


@app.command()
def close(
    name: Name, workspace: WorkspaceOption = Path("."), *, concept: ConceptOption = None, as_json: JsonOption = False
) -> None:
    """Give out no more of its tasks; what is in people's hands may still be sent."""
    _set(workspace, name, concept, "closed", as_json)


@app.command("open")
def open_(
    name: Name, workspace: WorkspaceOption = Path("."), *, concept: ConceptOption = None, as_json: JsonOption = False
) -> None:
    """Give out its tasks again."""
    _set(workspace, name, concept, "open", as_json)


def _set(workspace: Path, name: str, concept: str | None, state: Literal["open", "closed"], as_json: bool) -> None:
    with writing(Workspace.open(workspace).engine()) as session:
        found = _campaign(session, name, concept)
        campaigns.set_state(session, found.id, state)
    typer.echo(json.dumps({"campaign": name, "state": state}) if as_json else f"campaign {name} is {state}")


@app.command()
def gold(
    name: Name,
    workspace: WorkspaceOption = Path("."),
    *,
    concept: ConceptOption = None,
    file: Annotated[Path | None, typer.Option(help="A CSV of the columns image and verdict.", show_default=False)] = None,
    known: Annotated[
        int, typer.Option(help="So many images with a manager's decision, or on which everybody agreed.", min=0)
    ] = 0,
    every: Annotated[
        int | None, typer.Option(help="About one task in so many is gold; 0 stops it.", min=0, show_default=False)
    ] = None,
    simulated: SimulatedOption = "exclude",
    as_json: JsonOption = False,
) -> None:
    """Add images with known answers to a campaign, to see how reliable answers are. Nobody who judges can tell them apart."""
    if file is None and not known and every is None:
        raise UsageError("nothing to do: give --file or --known with gold images, or --every")
    with writing(Workspace.open(workspace).engine()) as session:
        found = _campaign(session, name, concept)
        answers = _gold(session, file) if file else {}
        if known:
            asked = {
                i: k for i, k in choosing.known_answers(session, found.concept, _WHOSE[simulated]).items() if i not in answers
            }
            answers |= choosing.pick_gold(asked, known)
        added = add_gold(session, found, answers, every)
        total = overview.fillings(session, found.id)[0]
    if as_json:
        typer.echo(json.dumps({"campaign": name, "added": added, "gold": total.gold, "every": total.gold_every}))
        return
    typer.echo(f"{added} gold images added, {total.gold} in all; about one task in {total.gold_every} is gold")
    if len(answers) > added:
        typer.echo(f"{len(answers) - added} are in the campaign already and stay what they are there", err=True)


@app.command()
def score(
    workspace: WorkspaceOption = Path("."),
    *,
    reward: Annotated[str, typer.Option(help="The reward model, by name.", show_default=False)],
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Let a reward model score every image of the workspace, so that 'add --choose uncertain' can go by it."""
    from hfi.diffusion.sd import pick_device
    from hfi.embed import embed_stored
    from hfi.progress import progress
    from hfi.reward.model import RewardModel
    from hfi.scores import keep_scores, rewards
    from hfi.store import queries

    space = Workspace.open(workspace)
    if reward not in rewards(space):
        raise NotFound(f"no reward model {reward!r} in {space.rewards}: train one with 'hfi reward'")
    with reading(space.engine()) as session:
        shas = list(dict.fromkeys(image.sha256 for image in queries.images(session)))
    if not shas:
        raise HfiError("there is no image to score: make some with 'hfi generate', or bring your own with 'hfi import'")
    space.images.check()
    file = space.rewards / f"{reward}.safetensors"
    model = RewardModel.load(file, device=str(pick_device(device)))
    with progress("scoring images", len(shas), "images") as advance:
        embeddings = embed_stored(model.backbone, space.images, shas, space.path / "embeddings", advance)
    scores = dict(zip(shas, model.score_embeddings(embeddings).tolist(), strict=True))
    kept = keep_scores(space, reward, scores)
    if as_json:
        typer.echo(json.dumps({"reward": reward, "images": len(scores), "file": str(kept)}))
    else:
        typer.echo(f"{len(scores)} images scored by {reward}\n{kept}")


def _campaign(session: Session, name: str, concept: str | None) -> Campaign:
    slug = the_concept(session, concept).slug
    known = {c.name: c for c in campaigns.campaigns(session, slug)}
    if name not in known:
        raise NotFound(
            f"no campaign {name!r} of {slug} (known: {', '.join(known) or 'none yet'}): 'hfi campaign list' lists them"
        )
    return known[name]


def _erasure(space: Workspace, session: Session, name: str | None) -> str | None:
    return name if name is None else "" if name == "none" else find_erasure(space, session, name)


def _gold(session: Session, file: Path) -> dict[int, str]:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise HfiError(f"{file} is not UTF-8 text: save it as UTF-8") from None
    except OSError as e:
        raise HfiError(f"cannot read {file}: {e.strerror or e}") from None
    return choosing.gold_from_csv(session, text, str(file))

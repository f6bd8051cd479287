"""`hfi labels`: how judging goes, and judgments out of and into the workspace."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hfi.aggregate import agreement
from hfi.cli.common import SimulatedOption, the_concept
from hfi.cli.import_ import keep_image
from hfi.cli.options import JsonOption, WorkspaceOption
from hfi.errors import HfiError, NoJudgments, UsageError
from hfi.files import write_text
from hfi.images import safe_open
from hfi.judgments import Judgment, JudgmentSet, freeze, from_csv, load, save, to_csv, to_jsonl
from hfi.store import campaigns, judging, queries
from hfi.store.imports import Given, add_judgments
from hfi.store.session import Engine, reading, writing
from hfi.workspace import Workspace

app = typer.Typer(help="Judgments: status, export, import.", no_args_is_help=True)

_SIDES = ("people", "simulated")
ConceptOption = Annotated[str | None, typer.Option("--concept", "-c", help="Only this concept.", show_default=False)]


@app.command()
def status(workspace: WorkspaceOption = Path("."), concept: ConceptOption = None, as_json: JsonOption = False) -> None:
    """Say how far judging is and how well people agree; people and simulated annotators apart."""
    engine = Workspace.open(workspace).engine()
    with reading(engine) as session:
        wanted = [queries.concept(session, concept)] if concept else queries.concepts_list(session)
        asked = {c.slug: campaigns.campaigns(session, c.slug) for c in wanted}
        far = {c.id: judging.progress(session, c.id) for found in asked.values() for c in found}
    table = []
    for c in wanted:
        said = _said(engine, c.slug)
        rows = [
            {
                "name": k.name,
                "overlap": k.overlap,
                "tasks": k.tasks,
                "done": far[k.id].done,
                "answers": far[k.id].answers,
                **_sides(said, k.name),
            }
            for k in asked[c.slug]
        ]
        table.append({"concept": c.slug, "question": c.question, "campaigns": rows, **_sides(said)})
    if as_json:
        typer.echo(json.dumps(table, indent=2))
    elif not table:
        typer.echo("no concept yet: add one with 'hfi concept add NAME'")
    else:
        _print(table)


def _said(engine: Engine, slug: str) -> JudgmentSet | None:
    try:
        return freeze(engine, slug, "include")
    except NoJudgments:
        return None


def _sides(said: JudgmentSet | None, campaign: str | None = None) -> dict[str, Any]:
    """Counts and agreement of people and of simulated annotators, in one campaign or in all; None where there are none."""
    found: dict[str, Any] = {}
    for side in _SIDES:
        everything = said.judgments if said else ()
        js = [j for j in everything if j.simulated == (side == "simulated") and campaign in (None, j.campaign)]
        if said is None or not js:
            found[side] = None
            continue
        verdicts = Counter(j.verdict for j in js)
        agreed = asdict(agreement(replace(said, judgments=tuple(js))))
        found[side] = {"judgments": len(js), "verdicts": dict(verdicts.most_common()), "agreement": agreed}
    return found


def _print(concepts: list[dict[str, Any]]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table("concept", "campaign", "done", "by", "judgments", "agreement")
    for entry in concepts:
        for c in entry["campaigns"]:
            name, what = c["name"], "rankings" if entry["question"] == "ranking" else "images"
            done = f"{c['answers']} of {c['tasks'] * c['overlap']} judgments needed,\n{c['done']} of {c['tasks']} {what} finished"
            for side in [side for side in _SIDES if c[side]] or [""]:
                counts = ", ".join(f"{n} {verdict}" for verdict, n in c[side]["verdicts"].items()) if side else "none yet"
                agreed = _agreement(c[side]["agreement"]) if side else ""
                table.add_row(entry["concept"], escape(name), done, side, counts, agreed)
        if not entry["campaigns"]:
            table.add_row(entry["concept"], "none yet: 'hfi ui' makes one")
    console.print(table)
    people = Table("concept", "annotator", "judgments", "sees it in", "with the majority of the others")
    for entry in concepts:
        for side in [side for side in _SIDES if entry[side]]:
            for who in entry[side]["agreement"]["annotators"]:
                name = who["name"] + (" (simulated)" if who["simulated"] else "")
                people.add_row(entry["concept"], name, str(who["judgments"]), _share(who["shows"]), _share(who["accuracy"]))
    if people.row_count:
        console.print(people)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _agreement(found: dict[str, Any]) -> str:
    """How far people agree, in a cell of the table."""
    if found["raw"] is None:
        return f"not enough overlap to say ({found['units']} judged twice or more)"
    bounds = "" if found["low"] is None else f" ({found['low']:.2f} to {found['high']:.2f})"
    alpha = "all say the same" if found["alpha"] is None else f"alpha {found['alpha']:.2f}{bounds}"
    return f"{alpha}, {found['raw']:.0%} of pairs, {found['units']} judged twice or more"


@app.command("export")
def export(
    workspace: WorkspaceOption = Path("."),
    *,
    concept: Annotated[str, typer.Option("--concept", "-c", help="The concept that was judged.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write (default: print).", show_default=False)] = None,
    kind: Annotated[
        Literal["jsonl", "csv"] | None,
        typer.Option(
            "--format", help="jsonl carries a hash, csv suits spreadsheets (default: from the file's name, else jsonl)."
        ),
    ] = None,
    simulated: SimulatedOption = "exclude",
    comments: Annotated[bool, typer.Option(help="Take along what people wrote in their own words.")] = False,
) -> None:
    """Write a concept's judgments to a file. People appear by pseudonym."""
    if out and not out.parent.is_dir():
        raise HfiError(f"cannot write {out}: there is no folder {out.parent}; make it, or give another --out")
    if kind is None:
        kind = "csv" if out and out.suffix.lower() == ".csv" else "jsonl"
    found = freeze(Workspace.open(workspace).engine(), concept, simulated)
    if not comments:
        found = replace(found, judgments=tuple(replace(j, comment=None) for j in found.judgments))
    if out is None:
        sys.stdout.write(to_csv(found.judgments) if kind == "csv" else to_jsonl(found))
        return
    if kind == "jsonl":
        save(found, out)
    else:
        try:
            write_text(out, to_csv(found.judgments))
        except OSError as e:
            raise HfiError(f"cannot write {out}: {e.strerror or e}") from e
    typer.echo(f"{len(found.judgments)} judgments of {concept} in {out}")


@app.command("import")
def import_(
    file: Annotated[
        Path, typer.Argument(help="A file of 'hfi labels export', or a .csv with the columns image, verdict and annotator.")
    ],
    workspace: WorkspaceOption = Path("."),
    *,
    concept: Annotated[
        str | None,
        typer.Option(
            "--concept", "-c", help="The concept (default: the one that a .jsonl names, or the only one).", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Bring judgments from elsewhere; the same file again adds nothing.

    A .csv names an image by its sha256, by a path from the folder of the .csv (that image is then imported as well), or by the
    file name that it was imported under. Its verdicts are shows, clean, unsure, skip or disturbing; of rankings, ranked (with the
    column rank) or none.
    """
    space = Workspace.open(workspace)
    engine = space.engine()
    judgments, named = _read(file, concept)
    with reading(engine) as session:
        slug = the_concept(session, named).slug
        images = queries.images(session)
    known, by_name = {image.sha256: image.sha256 for image in images}, _by_name(images)
    unknown: dict[str, str] = {}
    for name in dict.fromkeys(name for j in judgments for name in j.images if name not in known):
        path = file.parent / name
        if _is_file(path):
            try:
                known[name] = keep_image(space, engine, safe_open(path), path.name)[0]
            except HfiError as e:
                unknown[name] = str(e)
        elif len(by_name.get(name, ())) == 1:
            (known[name],) = by_name[name]
        else:
            why = "names several images of the workspace" if name in by_name else "is no image of the workspace"
            unknown[name] = f"{name[:80]} {why}"
    given = [_given(j, [known[name] for name in j.images]) for j in judgments if not unknown.keys() & set(j.images)]
    with writing(engine) as session:
        added = add_judgments(session, slug, given)
    without = len(judgments) - len(given)
    for reason in unknown.values():
        typer.echo(f"skipped: {reason}", err=True)
    if as_json:
        typer.echo(json.dumps({"added": added, "known": len(given) - added, "skipped": without, "unknown_images": [*unknown]}))
    else:
        typer.echo(
            f"{added} judgments of {slug} added, {len(given) - added} were there already, "
            f"{without} skipped for {len(unknown)} unknown images"
        )
    if not given:
        raise HfiError(
            f"none of the {len(judgments)} judgments in {file} could be imported: bring their images with 'hfi import' first"
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _read(file: Path, concept: str | None) -> tuple[tuple[Judgment, ...], str | None]:
    """The judgments of a file and the concept that they are about, None where neither the file nor `concept` says."""
    if file.suffix.lower() == ".jsonl":
        found = load(file)
        if concept not in (None, found.concept):
            raise UsageError(f"{file} holds judgments of {found.concept!r}, not of {concept!r}: leave --concept out")
        return found.judgments, found.concept
    if file.suffix.lower() != ".csv":
        raise UsageError(f"{file} is neither .jsonl nor .csv: give a file that 'hfi labels export' wrote")
    try:
        with open(file, encoding="utf-8-sig", newline="") as opened:  # line ends inside a comment stay as they are
            text = opened.read()
    except UnicodeDecodeError:
        raise HfiError(f"{file} is not UTF-8 text: save it as UTF-8") from None
    except OSError as e:
        raise HfiError(f"cannot read {file}: {e.strerror or e}") from None
    judgments = from_csv(text, str(file))
    if not judgments:
        raise NoJudgments(f"{file} holds no judgment: write one a row under the columns image and verdict")
    return judgments, concept


def _by_name(images: Sequence[queries.Image]) -> dict[str, set[str]]:
    """The sha256s of the images that came under each file name."""
    found: dict[str, set[str]] = {}
    for image in images:
        if image.original_name:
            found.setdefault(image.original_name, set()).add(image.sha256)
    return found


def _given(j: Judgment, images: Sequence[str]) -> Given:
    time = datetime.fromisoformat(j.time).astimezone(UTC) if j.time else None
    return Given(j.annotator, j.simulated, j.verdict, tuple(images), time, j.guideline_version, j.comment, j.elapsed_ms)

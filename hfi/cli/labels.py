"""`hfi labels`: how judging goes, and judgments out of and into the workspace."""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
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
from hfi.files import visible, write_pieces
from hfi.images import safe_open
from hfi.judgment_folder import TABLE, Taken, write_folder
from hfi.judgment_tables import csv_lines, from_csv, from_parquet, to_parquet
from hfi.judgments import Judgment, Judgments, JudgmentSet, check_size, freeze, frozen, load, save, to_lines
from hfi.keeping import prepare
from hfi.progress import progress
from hfi.store import campaigns, judging, people, queries
from hfi.store.imports import Given, add_judgments
from hfi.store.session import Engine, reading, writing
from hfi.workspace import Workspace

app = typer.Typer(help="Judgments: status, export, import, one label an image.", no_args_is_help=True)

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
        maker = "'hfi campaign add' or a manager at /manage/" if people.has_accounts(session) else "'hfi ui'"
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
        _print(table, maker)


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
        votes = [j for j in js if not j.adjudicated]
        if said is None or not votes:
            found[side] = None
            continue
        verdicts = Counter(j.verdict for j in votes)
        agreed = asdict(agreement(replace(said, judgments=tuple(votes))))
        counts = {"judgments": len(votes), "verdicts": dict(verdicts.most_common()), "decisions": len(js) - len(votes)}
        found[side] = {**counts, "agreement": agreed}
    return found


def _print(concepts: list[dict[str, Any]], maker: str) -> None:
    """The tables; `maker`: what makes a campaign where there is none."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table("concept", "campaign", "done", "by", "judgments", "agreement")
    for entry in concepts:
        for c in entry["campaigns"]:
            name, what = c["name"], "rankings" if entry["question"] == "ranking" else "images"
            done = f"{c['answers']} of {c['tasks'] * c['overlap']} judgments needed,\n{c['done']} of {c['tasks']} {what} finished"
            for side in [side for side in _SIDES if c[side]] or [""]:
                counts = ", ".join(f"{n} {verdict}" for verdict, n in c[side]["verdicts"].items()) if side else "none yet"
                counts += f"; {c[side]['decisions']} decided by a manager" if side and c[side]["decisions"] else ""
                agreed = _agreement(c[side]["agreement"]) if side else ""
                table.add_row(entry["concept"], escape(name), done, side, counts, agreed)
        if not entry["campaigns"]:
            table.add_row(entry["concept"], f"none yet: {maker} makes one")
    console.print(table)
    judges = Table("concept", "annotator", "judgments", "sees it in", "with the majority of the others")
    for entry in concepts:
        for side in [side for side in _SIDES if entry[side]]:
            for who in entry[side]["agreement"]["annotators"]:
                name = who["name"] + (" (simulated)" if who["simulated"] else "")
                judges.add_row(entry["concept"], name, str(who["judgments"]), _share(who["shows"]), _share(who["accuracy"]))
    if judges.row_count:
        console.print(judges)


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
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File, or new folder, to write (default: print).", show_default=False)
    ] = None,
    kind: Annotated[
        Literal["jsonl", "csv", "parquet", "datasets"] | None,
        typer.Option(
            "--format",
            help="jsonl and parquet carry a hash, csv suits spreadsheets, datasets is a folder with the images for Hugging Face's "
            "library (default: from the file's name, else jsonl).",
        ),
    ] = None,
    simulated: SimulatedOption = "exclude",
    comments: Annotated[bool, typer.Option(help="Take along what people wrote in their own words.")] = False,
    names: Annotated[bool, typer.Option("--names", help="Name people instead of giving their pseudonyms.")] = False,
    prompts: Annotated[
        bool, typer.Option("--prompts", help="Take prompts along in a datasets folder too; the other formats always have them.")
    ] = False,
) -> None:
    """Write a concept's judgments to a file. People appear by pseudonym unless their names are asked for."""
    suffix = out.suffix.lower() if out else ""
    if kind is None and suffix not in _KINDS:
        raise UsageError(
            f"--out {out} is of no known kind: name it .jsonl, .csv or .parquet, or say --format, which knows datasets too"
        )
    kind = kind or _KINDS[suffix]
    if out is None and kind in ("parquet", "datasets"):
        raise UsageError(f"{kind} cannot be printed: give --out")
    if out and not out.parent.is_dir():
        raise HfiError(f"cannot write {out}: there is no folder {out.parent}; make it, or give another --out")
    space = Workspace.open(workspace)
    engine = space.engine()
    with frozen(engine, concept, simulated) as found:
        about = found.judged_by
        if not comments:
            found = found.each(lambda j: replace(j, comment=None))
        if names:
            found, people = _named(engine, found), about["people"]
            typer.echo(
                f"warning: this names {people} {'person' if people == 1 else 'people'}: keep it to those who may know", err=True
            )
        if out is None:
            sys.stdout.writelines(csv_lines(found.judgments) if kind == "csv" else to_lines(found))
            return
        if kind == "jsonl":
            save(found, out)
        elif kind == "csv":
            _write(out, csv_lines(found.judgments))
        elif kind == "parquet":
            to_parquet(found, out)
        else:
            with reading(engine) as session:
                asked = queries.concept(session, concept)
            with progress("copying", found.count_images(), "images") as advance:
                write_folder(out, found, about, asked, space.images, Taken(prompts=prompts, names=names), advance)
    typer.echo(f"{about['judgments']} judgments of {concept} in {out}")


_KINDS: dict[str, Literal["jsonl", "csv", "parquet"]] = {"": "jsonl", ".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}


def _named(engine: Engine, judgments: Judgments) -> Judgments:
    """With names for pseudonyms."""
    with reading(engine) as session:
        names = {a.pseudonym: a.name for a in queries.annotators(session)}
    return judgments.each(lambda j: replace(j, annotator=names[j.annotator]))


def _write(path: Path, pieces: Iterable[str]) -> None:
    try:
        write_pieces(path, pieces)
    except OSError as e:
        raise HfiError(f"cannot write {path}: {e.strerror or e}") from e


@app.command("aggregate")
def aggregate(
    workspace: WorkspaceOption = Path("."),
    *,
    concept: Annotated[str, typer.Option("--concept", "-c", help="The concept that was judged.", show_default=False)],
    method: Annotated[
        Literal["majority", "dawid-skene", "bradley-terry", "plackett-luce"] | None,
        typer.Option(
            help="majority or dawid-skene of a binary question, bradley-terry or plackett-luce of rankings "
            "(default: the first of each).",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A .csv or .json file to write (default: print).", show_default=False)
    ] = None,
    simulated: SimulatedOption = "exclude",
    as_json: JsonOption = False,
) -> None:
    """Make one label an image of everything that people said: label, 95 % bounds where the method has them, count of judgments.

    A manager's decision stands in the place of the votes. Strengths from rankings are logarithms
    beside the mean of their group; images that no chain of rankings connects are in different
    groups and cannot be compared.
    """
    from hfi import consensus

    if out and out.suffix.lower() not in (".csv", ".json"):
        raise UsageError(f"--out {out} is neither .csv nor .json: name the file so")
    if out and not out.parent.is_dir():
        raise HfiError(f"cannot write {out}: there is no folder {out.parent}; make it, or give another --out")
    with frozen(Workspace.open(workspace).engine(), concept, simulated) as said:
        found = consensus.consensus(said, method)
        if out:
            _write(out, consensus.json_pieces(found) if out.suffix.lower() == ".json" else consensus.csv_lines(found))
        if as_json or not out:
            sys.stdout.writelines(consensus.json_pieces(found) if as_json else consensus.csv_lines(found))
        alone = method == "dawid-skene" and all(label.count < 2 for label in found.labels)
    if alone:
        typer.echo(
            "warning: no image was judged by two people, so nobody's mistakes can be told and the labels say little: take "
            "--method majority",
            err=True,
        )
    where = f" in {out}" if out else ""
    typer.echo(f"{found.images} images of {concept} by {found.method}, judgments {found.judgments[:12]}{where}", err=True)
    if len(found.groups) > 1:
        apart = sum(found.groups[1:])
        typer.echo(
            f"the rankings leave {len(found.groups)} groups that nothing connects, {apart} images outside the largest: "
            "labels can be compared only within a group; let people rank images of different groups together",
            err=True,
        )


@app.command("import")
def import_(
    file: Annotated[
        Path,
        typer.Argument(help="A file or folder of 'hfi labels export', or a .csv with the columns image, verdict and annotator."),
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

    A table (.csv, .parquet) names an image by its sha256, by a path from the folder of the table
    (that image is then imported as well), or by the file name that it was imported under. Its
    verdicts are shows, clean, unsure, skip or disturbing; of rankings, ranked (with the column
    rank, equal where images tie) or none. Rows that are adjudicated stay a manager's decisions,
    which stand in the place of the votes.
    """
    space = Workspace.open(workspace)
    engine = space.engine()
    file = file / TABLE if (file / TABLE).is_file() else file
    judgments, named = _read(file, concept)
    with reading(engine) as session:
        slug = the_concept(session, named).slug
        images = queries.images(session)
    known, by_name = {image.sha256: image.sha256 for image in images}, _by_name(images)
    prompts = {name: prompt for j in judgments for name, prompt in zip(j.images, j.prompts, strict=True)}
    if any(_is_file(file.parent / name) for name in prompts.keys() - known.keys()):
        prepare(engine, space.images)
    unknown: dict[str, str] = {}
    for name in prompts:
        path = file.parent / name
        if name in known:
            continue
        if _is_file(path):
            try:
                if not path.resolve().is_relative_to(file.parent.resolve()):
                    raise HfiError(f"{visible(name[:80])} lies outside the folder of {file.name}: bring it with 'hfi import'")
                picture = safe_open(path)
            except HfiError as e:
                unknown[name] = str(e)
            else:
                known[name] = keep_image(space, engine, picture, path.name, prompts[name])[0]
        elif len(by_name.get(name, ())) == 1:
            (known[name],) = by_name[name]
        else:
            why = "names several images of the workspace" if name in by_name else "is no image of the workspace"
            unknown[name] = f"{visible(name[:80])} {why}"
    given = [_given(j, [known[name] for name in j.images]) for j in judgments if not unknown.keys() & set(j.images)]
    with writing(engine) as session:
        done = add_judgments(session, slug, given)
    without = len(judgments) - len(given)
    for reason in unknown.values():
        typer.echo(f"skipped: {reason}", err=True)
    if as_json:
        counts = {"added": done.added, "known": done.known, "withdrawn": done.withdrawn, "skipped": without}
        typer.echo(json.dumps({**counts, "unknown_images": [*unknown]}))
    else:
        left_out = f", {done.withdrawn} left out of people who withdrew" if done.withdrawn else ""
        typer.echo(
            f"{done.added} judgments of {slug} added, {done.known} were there already{left_out}, "
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
    suffix = file.suffix.lower()
    stated: str | None = None
    if suffix == ".jsonl":
        found = load(file)
        judgments, stated = found.judgments, found.concept
    elif suffix == ".parquet":
        judgments, stated = from_parquet(file)
    elif suffix == ".csv":
        judgments = from_csv(_text(file), str(file))
    else:
        raise UsageError(f"{file} is neither .jsonl nor .csv nor .parquet: give a file that 'hfi labels export' wrote")
    if stated and concept not in (None, stated):
        raise UsageError(f"{file} holds judgments of {stated!r}, not of {concept!r}: leave --concept out")
    if not judgments:
        raise NoJudgments(f"{file} holds no judgment: write one a row under the columns image and verdict")
    return judgments, stated or concept


def _text(file: Path) -> str:
    try:
        check_size(file)
        with open(file, encoding="utf-8-sig", newline="") as opened:  # line ends inside a comment stay as they are
            return opened.read()
    except UnicodeDecodeError:
        raise HfiError(f"{file} is not UTF-8 text: save it as UTF-8") from None
    except OSError as e:
        raise HfiError(f"cannot read {file}: {e.strerror or e}") from None


def _by_name(images: Sequence[queries.Image]) -> dict[str, set[str]]:
    """The sha256s of the images that came under each file name."""
    found: dict[str, set[str]] = {}
    for image in images:
        if image.original_name:
            found.setdefault(image.original_name, set()).add(image.sha256)
    return found


def _given(j: Judgment, images: Sequence[str]) -> Given:
    time = datetime.fromisoformat(j.time).astimezone(UTC) if j.time else None
    return Given(
        j.annotator, j.simulated, j.verdict, tuple(images), time, j.guideline_version, j.comment, j.elapsed_ms,
        j.ranks, j.region, j.adjudicated,
    )  # fmt: skip

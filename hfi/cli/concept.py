"""`hfi concept`: what must not be made, in the words that people judge by."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hfi.cli.options import JsonOption, WorkspaceOption
from hfi.concepts import Concept, Question
from hfi.errors import HfiError, NotFound, UsageError
from hfi.store import queries
from hfi.store.session import reading, writing
from hfi.workspace import Workspace

app = typer.Typer(help="Say what must not be made: add, list, show concepts.", no_args_is_help=True)

Slug = Annotated[str, typer.Argument(help="The concept's short name: lower-case letters, digits and '-'.")]


@app.command()
def add(
    slug: Slug,
    workspace: WorkspaceOption = Path("."),
    *,
    title: Annotated[str | None, typer.Option(help="What people read above the image (default: the name).")] = None,
    guideline: Annotated[str | None, typer.Option(help="When an image shows it and when it does not, in Markdown.")] = None,
    guideline_file: Annotated[Path | None, typer.Option(help="The guideline from a file.")] = None,
    question: Annotated[
        Question | None,
        typer.Option(help="binary asks of each image whether it shows it; ranking orders five (default: binary)."),
    ] = None,
    initial_word: Annotated[str | None, typer.Option(help="Word at which inversion starts.")] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="Words that people would ask for it with; sdd-context removes them too (default: the name)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Add a concept, or change a known one: what is not given stays, and a new guideline becomes its next version."""
    if guideline is not None and guideline_file is not None:
        raise UsageError("two guidelines: give --guideline or --guideline-file")
    engine = Workspace.open(workspace).engine()
    text = _text(guideline_file) if guideline_file else guideline
    given = {"title": title, "guideline": text, "question": question, "initial_word": initial_word, "prompt": prompt}
    with writing(engine) as session:
        try:
            known = queries.concept(session, slug)
        except NotFound:
            known = None
        plain = slug.replace("-", " ")
        base = known or Concept(slug, plain.capitalize(), prompt=plain)
        concept = Concept(**{**asdict(base), **{k: v for k, v in given.items() if v is not None}})
        queries.add_concept(session, concept)
    if as_json:
        typer.echo(json.dumps(asdict(concept)))
        return
    typer.echo(
        f"{'changed' if known and known != concept else 'unchanged' if known else 'added'}: concept {slug} ({concept.title})"
    )
    if not concept.guideline:
        typer.echo(f"it has no guideline yet, people would judge by guess: hfi concept add {slug} --guideline '...'")


@app.command("list")
def list_(workspace: WorkspaceOption = Path("."), as_json: JsonOption = False) -> None:
    """List the concepts."""
    with reading(Workspace.open(workspace).engine()) as session:
        known = queries.concepts_list(session)
    if as_json:
        typer.echo(json.dumps([asdict(c) for c in known], indent=2))
    elif not known:
        typer.echo("no concept yet: add one with 'hfi concept add NAME'")
    else:
        width = max(len(c.slug) for c in known)
        for c in known:
            typer.echo(f"{c.slug:{width}}  {c.question:7}  {c.title}")


@app.command()
def show(slug: Slug, workspace: WorkspaceOption = Path("."), as_json: JsonOption = False) -> None:
    """Show a concept with its guideline."""
    with reading(Workspace.open(workspace).engine()) as session:
        concept = queries.concept(session, slug)
    if as_json:
        typer.echo(json.dumps(asdict(concept), indent=2))
        return
    for name, value in (("title", concept.title), ("question", concept.question)):
        typer.echo(f"{name + ':':14}{value}")
    for name, value in (("initial word", concept.initial_word), ("prompt", concept.prompt)):
        typer.echo(f"{name + ':':14}{value or '(none)'}")
    typer.echo(f"\n{concept.guideline or '(no guideline yet)'}")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise HfiError(f"the guideline {path} is not UTF-8 text: save it as UTF-8") from None
    except OSError as e:
        raise HfiError(f"cannot read the guideline {path}: {e.strerror or e}") from None

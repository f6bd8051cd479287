"""`hfi user`: who may sign in to the labeling app, and what they agree to."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from hfi.cli.options import JsonOption, WorkspaceOption
from hfi.errors import HfiError, UsageError
from hfi.store import people
from hfi.store.session import reading, writing
from hfi.workspace import Workspace

app = typer.Typer(
    help="People who sign in: add, list, password, role, disable, enable, sign-out, withdraw, consent.", no_args_is_help=True
)

Role = Literal["annotator", "manager"]
Name = Annotated[str, typer.Argument(help="The person's name, whatever its case; or their pseudonym.")]
PasswordFile = Annotated[
    str | None,
    typer.Option(
        help="A file whose first line is the password, or - for standard input (default: ask for it).", show_default=False
    ),
]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="The name that this person signs in with: 1 to 80 characters.")],
    workspace: WorkspaceOption = Path("."),
    *,
    role: Annotated[Role, typer.Option(help="annotators judge; managers also run campaigns and see everything.")] = "annotator",
    password_file: PasswordFile = None,
) -> None:
    """Make an account. Somebody who has judged under this name goes on with what they did."""
    engine = Workspace.open(workspace).engine()
    with reading(engine) as session:
        people.check_new(session, name, role)
    password = _password(password_file)
    with writing(engine) as session:
        made = people.add_account(session, name, password, role)
    typer.echo(f"{made.annotator.name} ({made.annotator.pseudonym}) may sign in as {made.role}")


@app.command("list")
def list_(workspace: WorkspaceOption = Path("."), as_json: JsonOption = False) -> None:
    """List the accounts."""
    with reading(Workspace.open(workspace).engine()) as session:
        found = people.accounts(session)
    if as_json:
        rows = [{**asdict(one), "annotator": one.annotator.name, "pseudonym": one.annotator.pseudonym} for one in found]
        typer.echo(
            json.dumps([{**row, "created_at": row["created_at"].isoformat()} for row in rows], indent=2, ensure_ascii=False)
        )
    elif not found:
        typer.echo("no account yet, so whoever sits at this computer may judge: add one with 'hfi user add NAME --role manager'")
    else:
        for one in found:
            state = "withdrawn" if one.withdrawn else "active" if one.active else "disabled"
            agreed = f"agreed to version {one.agreed} of the consent text" if one.agreed else "has not agreed to a consent text"
            made = f"{one.created_at:%Y-%m-%d}"
            typer.echo(f"{one.annotator.pseudonym}  {one.role:9}  {state:9}  {made}  {one.annotator.name}: {agreed}")


@app.command()
def password(name: Name, workspace: WorkspaceOption = Path("."), *, password_file: PasswordFile = None) -> None:
    """Give somebody another password; they are signed out everywhere."""
    engine = Workspace.open(workspace).engine()
    with reading(engine) as session:
        who = people.find(session, name)
        people.account_row(session, who.id)
    new = _password(password_file)
    with writing(engine) as session:
        people.set_password(session, who.id, new)
    typer.echo(f"{who.name} has a new password and is signed out everywhere")


@app.command()
def role(
    name: Name,
    role: Annotated[Role, typer.Argument(help="annotator or manager.")],
    workspace: WorkspaceOption = Path("."),
) -> None:
    """Make somebody an annotator or a manager, from their next click on."""
    with writing(Workspace.open(workspace).engine()) as session:
        who = people.find(session, name)
        people.set_role(session, who.id, role)
    typer.echo(f"{who.name} is {'a manager' if role == 'manager' else 'an annotator'}")


@app.command()
def disable(name: Name, workspace: WorkspaceOption = Path(".")) -> None:
    """Switch an account off; what its owner judged stays and counts."""
    with writing(Workspace.open(workspace).engine()) as session:
        who = people.find(session, name)
        people.set_active(session, who.id, False)
    typer.echo(f"{who.name} can no longer sign in")


@app.command()
def enable(name: Name, workspace: WorkspaceOption = Path(".")) -> None:
    """Switch an account on again."""
    with writing(Workspace.open(workspace).engine()) as session:
        who = people.find(session, name)
        people.set_active(session, who.id, True)
    typer.echo(f"{who.name} can sign in")


@app.command("sign-out")
def sign_out(name: Name, workspace: WorkspaceOption = Path(".")) -> None:
    """Sign somebody out everywhere."""
    with writing(Workspace.open(workspace).engine()) as session:
        who = people.find(session, name)
        people.sign_out_everywhere(session, who.id)
    typer.echo(f"{who.name} is signed out everywhere")


@app.command()
def withdraw(
    name: Name,
    workspace: WorkspaceOption = Path("."),
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether you are sure.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take everything of somebody back, as they can do themselves: their name and comments go, their judgments no longer count."""
    engine = Workspace.open(workspace).engine()
    with reading(engine) as session:
        who = people.find(session, name)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("a withdrawal cannot be undone, and there is no terminal to ask: give --yes if you are sure")
        typer.confirm(f"take back everything of {who.name}? This cannot be undone", abort=True, err=True)
    with writing(engine) as session:
        done = people.withdraw(session, who.id)
    if as_json:
        typer.echo(json.dumps(asdict(done)))
    else:
        typer.echo(
            f"{done.pseudonym} has withdrawn: {done.judgments} judgments no longer count, {done.comments} comments are emptied,"
            f" {done.tasks} tasks are counted anew"
        )


@app.command()
def consent(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="What people agree to, in Markdown; a part for each language begins with a line such as <!-- ko -->"
            " (default: print the text that is in use; before there is one, that which comes with the program).",
            show_default=False,
        ),
    ] = None,
    workspace: WorkspaceOption = Path("."),
    *,
    contact: Annotated[
        str | None, typer.Option(help="Whom people can turn to, shown on their pages.", show_default=False)
    ] = None,
) -> None:
    """Set what people agree to before they judge; who agreed to another text is asked again. Without a file and --contact, print it."""
    engine = Workspace.open(workspace).engine()
    if contact is not None:
        with writing(engine) as session:
            people.set_contact(session, contact)
        typer.echo("the contact is set" if contact.strip() else "there is no contact any more")
    if file is not None:
        body = _text(file)
        with writing(engine) as session:
            typer.echo(f"people are asked to agree to version {people.set_consent_text(session, body)}")
    if file is None and contact is None:
        from ui.pages import default_consent

        with reading(engine) as session:
            found = people.consent_text(session)
            typer.echo(found.body if found else default_consent(session))


def _password(file: str | None) -> str:
    """Asked for twice on the terminal, or the first line of a file."""
    if file is None:
        if not sys.stdin.isatty():
            raise UsageError("there is no terminal to ask for the password: give --password-file FILE, or - for standard input")
        return str(typer.prompt("password", hide_input=True, confirmation_prompt=True, err=True))
    try:
        text = sys.stdin.readline() if file == "-" else Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise HfiError(f"the password in {file} is not UTF-8 text: save it as UTF-8") from None
    except OSError as e:
        raise HfiError(f"cannot read the password from {file}: {e.strerror or e}") from None
    return text.splitlines()[0] if text else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise HfiError(f"the consent text {path} is not UTF-8 text: save it as UTF-8") from None
    except OSError as e:
        raise HfiError(f"cannot read the consent text {path}: {e.strerror or e}") from None

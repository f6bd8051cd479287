"""`hfi completion`: has a shell complete hfi's commands, options and their values.

The scripts are typer's, and so is what answers them. It would import a command to know its options, and with some of them torch, at
every press of a key; so it is given commands made from completions.json, which says of every command what it takes. `make docs` writes
that file, and a test keeps it in step.
"""

import inspect
import json
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hfi.cli import COMMANDS, COMPLETING, LazyGroup

FILE = Path(__file__).parent / "completions.json"
Shell = Literal["bash", "zsh", "fish"]


def completion(shell: Annotated[Shell, typer.Argument(help="The shell.", show_default=False)]) -> None:
    """Print what has a shell complete hfi's commands, options and values.

    bash: 'hfi completion bash >> ~/.bashrc'. zsh: 'hfi completion zsh >> ~/.zshrc', after its compinit.
    fish: 'hfi completion fish > ~/.config/fish/completions/hfi.fish'.
    """
    from typer.completion import get_completion_script

    typer.echo(get_completion_script(prog_name="hfi", complete_var=COMPLETING, shell=shell))


# --- answering a shell ---


def command(name: str) -> Any:
    """The command or group of this name, that can be completed and not run."""
    about = _table()[name]
    made = typer.Typer(add_completion=False, help=about["help"])
    if "commands" not in about:
        made.command(name, help=about["help"])(_taking(about["takes"]))
        return typer.main.get_command(made)
    made.callback()(lambda: None)
    for sub, its in about["commands"].items():
        made.command(sub, help=its["help"])(_taking(its["takes"]))
    return typer.main.get_group(made)


@cache
def _table() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def _taking(takes: list[dict[str, Any]]) -> Any:
    """A function whose signature has these options and arguments."""

    def nothing(**given: Any) -> None:
        pass

    parameters = []
    for one in takes:
        kind: Any = bool if one.get("flag") else Literal[tuple(one["choices"])] if "choices" in one else str
        kind = list[kind] if one.get("many") else kind
        names = one.get("names")
        declared = typer.Option(*names, help=one["help"]) if names else typer.Argument()
        hint = Annotated[kind | None, declared]
        parameters.append(inspect.Parameter(one["name"], inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint))
    nothing.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    nothing.__annotations__ = {p.name: p.annotation for p in parameters}
    return nothing


# --- completions.json ---


def table() -> dict[str, Any]:
    """What every command takes, read off the commands themselves."""
    found: dict[str, Any] = {}
    for name, (_, _, line) in COMMANDS.items():
        real = LazyGroup().get_command(None, name)
        if subs := getattr(real, "commands", None):
            found[name] = {"help": line, "commands": {sub: _about(its) for sub, its in subs.items()}}
        else:
            found[name] = {**_about(real), "help": line}
    return found


def _about(real: Any) -> dict[str, Any]:
    context = typer.Context(real)
    words = _first_sentence(real.help or "")
    return {"help": words, "takes": [_taken(p, context) for p in real.params if p.name != "help"]}


def _taken(parameter: Any, context: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"name": parameter.name}
    if parameter.param_type_name == "option":
        pairs = [f"{yes}/{no}" for yes, no in zip(parameter.opts, parameter.secondary_opts, strict=False)]
        found |= {"names": pairs or list(parameter.opts), "help": _first_sentence(parameter.help or "")}
        if parameter.is_flag:
            found["flag"] = True
    if parameter.multiple if "names" in found else parameter.nargs != 1:
        found["many"] = True
    choices = [item.value for item in parameter.shell_complete(context, "") if item.value]
    return {**found, "choices": choices} if choices else found


def _first_sentence(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split()).split(". ")[0].split(" (default")[0].rstrip(".")


if __name__ == "__main__":
    print(json.dumps(table(), indent=1))

"""Command-line options read off a configuration's fields, so that each is described once.

@with_config(RewardConfig)
def reward(workspace: WorkspaceOption = Path("."), *, config: RewardConfig) -> None: ...
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from hfi.config import flag, from_toml
from hfi.runs import check_name

WorkspaceOption = Annotated[
    Path, typer.Option("--workspace", "-w", envvar="HFI_WORKSPACE", help="The workspace's folder.", show_default=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def _run_name(name: str | None) -> str | None:
    if name is not None:
        check_name(name)
    return name


def name_option(help: str) -> Any:
    return typer.Option("--name", callback=_run_name, help=help, show_default=False)


NameOption = Annotated[str | None, name_option("Name of the run and of the file that it makes (default: from what it does).")]


def with_config(config_class: type[Any], *, skip: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Replaces the parameter `config` by one option per field and by --config FILE.toml. Flags win over the file."""
    hints = get_type_hints(config_class)
    described = [f for f in fields(config_class) if f.name not in skip]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(**given: Any) -> Any:
            flags = {f.name: given.pop(f.name) for f in described}
            flags = {name: value for name, value in flags.items() if value is not None}
            file = given.pop("config_file")
            config = from_toml(config_class, file, **flags) if file else config_class(**flags)
            return function(**given, config=config)

        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "config"]
        added = []
        for f in described:
            default = f.default if f.default is not MISSING else None
            names = [flag(f.name)] if hints[f.name] is not bool else [f"{flag(f.name)}/--no-{f.name.replace('_', '-')}"]
            words = f.metadata["help"] if default in (None, "") else f"{f.metadata['help']} (default: {default})"
            shown = typer.Option(*names, help=words, show_default=False)
            added.append((f.name, Annotated[hints[f.name] | None, shown]))
        file = typer.Option("--config", help="A TOML file of these settings; flags win over it.", show_default=False)
        added.append(("config_file", Annotated[Path | None, file]))
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters = [p.replace(kind=kind) for p in own]
        parameters += [inspect.Parameter(name, kind, default=None, annotation=hint) for name, hint in added]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        del command.__wrapped__  # type: ignore[attr-defined]  # or inspect would look through to `function`
        return command

    return decorate

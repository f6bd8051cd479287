"""The command line. Parsing and printing only: a command's module is imported when it runs, so `hfi --help` starts at once."""

import importlib
import logging
import os
import sys
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from hfi import __version__
from hfi.distributed import Terminated, first_to_say, is_main, one_process, start_the_others, taking_part
from hfi.errors import HfiError, NoRoom, UsageError
from hfi.files import no_room

# name: (module, function or typer app in it, the line in `hfi --help`), in the order of the loop
COMMANDS = {
    "init": ("hfi.cli.workspace", "init", "Make a workspace: a folder for images, judgments and results."),
    "concept": ("hfi.cli.concept", "app", "Say what must not be made: add, list, show concepts."),
    "generate": ("hfi.cli.generate", "generate", "Generate the images that people will judge."),
    "import": ("hfi.cli.import_", "import_", "Bring images of your own into the workspace."),
    "ui": ("hfi.cli.ui", "ui", "Judge images in the browser."),
    "labels": ("hfi.cli.labels", "app", "Judgments: status, labels, export, import."),
    "reward": ("hfi.cli.reward", "reward", "Train the reward model on the judgments."),
    "invert": ("hfi.cli.invert", "invert", "Condense the judgments into a learned token."),
    "erase": ("hfi.cli.erase", "erase", "Remove a concept from the model's weights."),
    "evaluate": ("hfi.cli.evaluate", "evaluate", "Measure what was removed and what was kept."),
    "campaign": ("hfi.cli.campaign", "app", "Campaigns: which images people judge, how often, and who."),
    "user": ("hfi.cli.user", "app", "Who signs in to judge or to manage, and what they agree to."),
    "measure": ("hfi.cli.measure", "measure", "Measure a folder of images that were made elsewhere."),
    "export": ("hfi.cli.export", "app", "Write what comes out in the formats of other programs."),
    "import-token": ("hfi.cli.import_token", "import_token", "Bring in a token that was learned elsewhere."),
    "demo": ("hfi.cli.demo", "demo", "The loop on the embedded model, with simulated annotators."),
    "bench": ("hfi.cli.bench", "app", "Every method side by side. Costs: speed, processes, memory, load."),
    "portraits": ("hfi.cli.portraits", "app", "The embedded model: render its world, train, check, compare."),
    "db": ("hfi.cli.db", "app", "The database: status, upgrade."),
    "doctor": ("hfi.cli.workspace", "doctor", "Check versions, devices, database and data files."),
}

TOGETHER = ("generate", "invert", "erase", "evaluate", "bench")  # what several processes can work at


class LazyGroup(TyperGroup):
    """Lists commands from the table above and imports one only to run it or to show its help."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, name: str) -> Any:
        if name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[name]
        found = getattr(importlib.import_module(module), attribute)
        command: Any
        if isinstance(found, typer.Typer):
            command = typer.main.get_group(found)
        else:
            single = typer.Typer(add_completion=False)
            single.command(name)(found)
            command = typer.main.get_command(single)
        command.name = name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands, in the order of the loop"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "'hfi --help' lists them"
            raise UsageError(f"unknown command {args[0]!r}: {hint}")
        if args and args[0] not in TOGETHER and not args[0].startswith("-"):
            one_process(f"hfi {args[0]}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="People, not keyword lists, decide what a text-to-image model must not make.",
)


def _version(given: bool) -> None:
    if given:
        typer.echo(f"hfi {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    pass


def main(args: list[str] | None = None) -> None:
    """Entry point: a user's mistake is one line and exit code 1 or 2, an interruption is said to be resumable (130).

    Of several processes at one run, one prints: the main one what was asked for, the first that comes to it why the run ended.
    """
    try:
        if args is None:
            start_the_others(sys.argv[1:])
        if not is_main():
            _silence()
        with taking_part():
            code = app(args=args, prog_name="hfi", standalone_mode=False)
    except HfiError as e:
        _say(f"hfi: error: {e}")
        sys.exit(e.exit_code)
    except _Mistake as e:
        if type(e).__name__ == "NoArgsIsHelpError":
            e.show()
        else:
            _say(f"hfi: error: {_sentence(e)}")
        sys.exit(2)
    except typer.Abort:
        sys.exit(1)
    except Terminated:
        _say("hfi: ended from outside, as when another process of this run ends; run the same command again to go on")
        sys.exit(143)
    except Exception as e:  # a disk can be full wherever something is written
        if not (why := no_room(e)):
            raise
        _say(f"hfi: error: {NoRoom(getattr(e, 'filename', None) or 'a file', why)}")
        sys.exit(1)
    if code == 130:  # how typer reports Ctrl-C
        _say("hfi: interrupted; run the same command again to go on")
    sys.exit(code)


def _say(line: str) -> None:
    if first_to_say():
        print(line, file=sys.stderr, flush=True)


def _silence() -> None:
    """What the main process prints too. What ends this one is still said."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # until the end
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


_Mistake: Any = typer.BadParameter.__mro__[1]  # the UsageError of the click that typer brings
_WANTED = {
    "int_parsing": "give a whole number",
    "float_parsing": "give a number",
    "greater_than_equal": "give {ge} or more",
    "less_than_equal": "give {le} or less",
}


def _sentence(mistake: Any) -> str:
    """What typer's parser says, in the words of our own errors."""
    if errors := getattr(mistake.__cause__, "errors", None):  # pydantic's: a value that does not fit
        found = errors()[0]
        option = next((name for name in mistake.param.opts if name.startswith("--")), mistake.param.name)
        if found["type"] in _WANTED:
            wanted = _WANTED[found["type"]].format(**found.get("ctx", {}))
        else:
            _, fixed, rest = found["msg"].rpartition("is not one of ")
            wanted = f"choose one of {rest.rstrip('.')}" if fixed else rest
        return f"{option} is {found['input']!r}: {wanted}"
    text = mistake.format_message().rstrip(".")
    where = f": see '{mistake.ctx.command_path} --help'" if mistake.ctx else ""
    return f"{text[0].lower()}{text[1:]}{where}"

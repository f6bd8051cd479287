"""The command line. Parsing and printing only: a command's module is imported when it runs, so `hfi --help` starts at once."""

import importlib
import logging
import os
import sys
import time
import warnings
from typing import Any, Literal

import typer
from typer.core import TyperGroup

from hfi import __version__, logs
from hfi.distributed import Terminated, first_to_say, is_main, leave, one_process, start_the_others, taking_part
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
    "bench": ("hfi.cli.bench", "app", "Every method side by side, and what everything costs."),
    "portraits": ("hfi.cli.portraits", "app", "The embedded model: render its world, train, check, compare."),
    "db": ("hfi.cli.db", "app", "The database: status, upgrade, copy."),
    "images": ("hfi.cli.images", "app", "The image store: status, copy, collect."),
    "completion": ("hfi.cli.completion", "completion", "Have a shell complete commands, options and values."),
    "doctor": ("hfi.cli.doctor", "doctor", "Check versions, devices, database and data files."),
}

TOGETHER = ("generate", "invert", "erase", "evaluate", "bench")  # what several processes can work at


COMPLETING = "_HFI_COMPLETE"  # set by a shell that asks how a command line may go on


class LazyGroup(TyperGroup):
    """Lists commands from the table above and imports one only to run it or to show its help."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, name: str) -> Any:
        if name not in COMMANDS:
            return None
        if COMPLETING in os.environ:  # from a table of options: no key that is pressed waits for torch
            from hfi.cli.completion import command as described

            return described(name)
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
        if args and args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
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


def _log(given: str | None) -> str | None:
    if given == "json":
        logs.switch_on()
    return given


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
    log: Literal["json"] | None = typer.Option(
        None, envvar=logs.LOG, callback=_log, help="Log what happens on stderr, one JSON object a line.", show_default=False
    ),
) -> None:
    pass


def main(args: list[str] | None = None) -> None:
    """Entry point: a user's mistake is one line and exit code 1 or 2, an interruption is said to be resumable (130).

    Of several processes at one run, one prints: the main one what was asked for, the first that comes to it why the run ended.
    """
    words = sys.argv[1:] if args is None else args
    if COMPLETING in os.environ:
        from typer.completion import completion_init

        completion_init()
    began = time.monotonic()
    with logs.of_one_command(words):
        code = _run(words, started_here=args is None)
        logs.event("command_ended", command=_command(words), exit_code=code, seconds=round(time.monotonic() - began, 3))
    sys.exit(code)


def _run(words: list[str], *, started_here: bool) -> int:
    """The exit code of a command line, after what went wrong has been said."""
    with taking_part():
        try:
            return _carry_out(words, started_here=started_here)
        except Terminated:
            return _fail("ended from outside, as when another process of this run ends; run the same command again to go on", 143)


def _carry_out(words: list[str], *, started_here: bool) -> int:
    try:
        logs.check()
        if started_here and COMPLETING not in os.environ:
            start_the_others(words)
        if not is_main():
            _silence()
        code = app(args=words, prog_name="hfi", standalone_mode=False)
    except HfiError as e:
        return _fail(str(e), e.exit_code)
    except _Mistake as e:
        if type(e).__name__ == "NoArgsIsHelpError":
            e.show()
            return 2
        return _fail(_sentence(e), 2)
    except typer.Abort:
        return 1
    except Exception as e:  # a disk can be full wherever something is written
        if why := no_room(e):
            return _fail(str(NoRoom(getattr(e, "filename", None) or "a file", why)), 1)
        if logs.telling_json():
            logs.tell("error", level="error", **logs.error(e, message=True), exit_code=1)
        raise
    if code == 130:  # how typer reports Ctrl-C
        return _fail("interrupted; run the same command again to go on", 130)
    if not code:
        leave()
    return int(code or 0)


def _fail(said: str, code: int) -> int:
    if first_to_say():
        logs.write(f"hfi: {said}" if code > 128 else f"hfi: error: {said}")
        if logs.telling_json():
            logs.tell("error", level="error", message=said, exit_code=code)
    return code


def _command(words: list[str]) -> str:
    """The command without what it was given, which may be somebody's name: 'erase', 'user add'."""
    at = next((i for i, word in enumerate(words) if word in COMMANDS), None)
    if at is None:
        return ""
    group = COMMANDS[words[at]][1] == "app" and at + 1 < len(words) and not words[at + 1].startswith("-")
    return " ".join(words[at : at + 1 + group])


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

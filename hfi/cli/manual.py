"""Writes docs/cli.md from every command's --help: `python -m hfi.cli.manual > docs/cli.md` (make docs). A test keeps it in step."""

import os

import typer
from typer.testing import CliRunner

from hfi.cli import COMMANDS, app


def manual() -> str:
    """The whole page. Help is rendered plainly, 100 columns wide, so that it is the same everywhere."""
    os.environ.update({"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"})
    parts = ["# Commands\n", "Written from `--help` by `make docs`.\n"]
    for words in paths():
        parts.append(f"## hfi {' '.join(words)}\n\n```\n{help_of(words)}\n```\n")
    return "\n".join(parts)


def paths() -> list[tuple[str, ...]]:
    """Every command as its words, groups before their commands."""
    import importlib

    found: list[tuple[str, ...]] = []
    for name, (module, attribute, _) in COMMANDS.items():
        found.append((name,))
        command = getattr(importlib.import_module(module), attribute)
        if isinstance(command, typer.Typer):
            found += [(name, sub) for sub in typer.main.get_group(command).commands]
    return found


def help_of(words: tuple[str, ...]) -> str:
    result = CliRunner().invoke(app, [*words, "--help"], prog_name="hfi")
    if result.exit_code:
        raise RuntimeError(f"hfi {' '.join(words)} --help failed: {result.output}")
    return "\n".join(line.rstrip() for line in result.output.strip("\n").splitlines())


if __name__ == "__main__":
    print(manual(), end="")

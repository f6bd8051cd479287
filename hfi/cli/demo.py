"""`hfi demo`: the whole loop on the embedded model."""

import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from hfi.cli import app
from hfi.demo import SIMULATED, Scale
from hfi.demo import demo as run_demo


def demo(
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="The workspace to make, or to go on with.")] = Path("demo"),
    images: Annotated[int, typer.Option(help="Pictures for each prompt set and system in the evaluation.", min=1)] = 48,
) -> None:
    """Run the whole loop on the embedded model with simulated annotators: images, judgments, token, erasure, report."""
    started = time.monotonic()

    def run(line: str) -> None:
        shown = line if len(line) < 300 else f"{line[:140]} ... {line[-120:]}"
        typer.echo(f"\n$ hfi {' '.join(shown.split())}", err=True)
        app(shlex.split(line), standalone_mode=False)

    _, report = run_demo(workspace, Scale(evaluate_images=images), run)  # the last command prints the table
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    typer.echo(f"\n{SIMULATED}.")
    typer.echo(f"\n{report}\n{report.with_name('results.json')}\n{minutes} min {seconds} s")
    program = "hfi" if shutil.which("hfi") else Path(sys.executable).with_name("hfi")
    typer.echo(f"\nNext: {program} ui --workspace {workspace}   judge the same images yourself")

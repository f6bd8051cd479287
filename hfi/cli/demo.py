"""`hfi demo`: the whole loop on the embedded model."""

import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from hfi.cli.common import say_and_run
from hfi.demo import SIMULATED, Scale
from hfi.demo import demo as run_demo


def demo(
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="The workspace to make, or to go on with.")] = Path("demo"),
    images: Annotated[int, typer.Option(help="Pictures for each prompt set and system in the evaluation.", min=1)] = 48,
) -> None:
    """Run the whole loop on the embedded model with simulated annotators: images, judgments, token, erasure, report."""
    started = time.monotonic()

    _, report = run_demo(workspace, Scale(evaluate_images=images), say_and_run)  # the last command prints the table
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    typer.echo(f"\n{SIMULATED}.")
    typer.echo(f"\n{report}\n{report.with_name('results.json')}\n{minutes} min {seconds} s")
    program = "hfi" if shutil.which("hfi") else Path(sys.executable).with_name("hfi")
    typer.echo(f"\nNext: {program} ui --workspace {workspace}   judge the same images yourself")

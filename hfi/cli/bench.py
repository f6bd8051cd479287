"""`hfi bench`: what the loops cost on this machine."""

import json

import typer

from hfi.bench.speed import SpeedConfig, run, table
from hfi.cli.options import JsonOption, with_config

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def bench() -> None:
    """What the loops cost on this machine."""


@app.command()
@with_config(SpeedConfig)
def speed(as_json: JsonOption = False, *, config: SpeedConfig) -> None:
    """Time, U-Net evaluations and memory of invert and erase, beside plain loops written down from the papers, on random models."""
    result = run(config)
    typer.echo(json.dumps(result) if as_json else table(result))

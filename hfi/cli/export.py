"""`hfi export`: what comes out, in the formats of other programs."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hfi.cli.options import JsonOption, WorkspaceOption
from hfi.errors import HfiError
from hfi.workspace import Workspace

app = typer.Typer(help="Write what comes out in the formats of other programs.", no_args_is_help=True)

OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", help="Where to write it (default: the workspace's exports).", show_default=False)
]


@app.command("token")
def export_token(
    name: Annotated[str, typer.Argument(help="The token, by name or file.", show_default=False)],
    workspace: WorkspaceOption = Path("."),
    *,
    format: Annotated[
        Literal["diffusers", "webui"],
        typer.Option(help="diffusers' load_textual_inversion, or A1111's web UI and ComfyUI, where a prompt names the file."),
    ] = "diffusers",
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a learned token as one safetensors file for diffusers, A1111's web UI or ComfyUI."""
    from hfi.cli.common import load_tokens
    from hfi.diffusion.tokens import write_safetensors
    from hfi.export.tokens import ONE, encode

    space = Workspace.open(workspace)
    (token,) = load_tokens(space, [name])
    tensors = encode(token.placeholder, {ONE: token.embeddings}, format)
    word = token.placeholder.strip("<>")
    target = _target(out or space.exports / format / f"{word}.safetensors")
    write_safetensors(target, tensors, {**token.metadata, "placeholder": token.placeholder})
    result = {"file": str(target), "format": format, "token": token.placeholder, "vectors": len(token.embeddings)}
    use = f"a prompt names it {token.placeholder}"
    if format == "webui":
        use = f"a prompt names the file: {target.stem} in A1111's web UI, embedding:{target.stem} in ComfyUI"
    _say(result, f"{target}\n{use}", as_json)


def _target(path: Path) -> Path:
    """A place that is free: an export never replaces what lies there."""
    from hfi.cli.common import check_writable

    if path.exists():
        raise HfiError(f"{path} is there already: remove it, or give another --out")
    check_writable(path.parent)
    return path


def _say(result: dict[str, Any], words: str, as_json: bool) -> None:
    typer.echo(json.dumps(result) if as_json else words)

"""`hfi import-token`: a token that was learned elsewhere."""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated

import typer

from hfi import __version__
from hfi.cli.options import JsonOption, WorkspaceOption
from hfi.errors import HfiError, UsageError
from hfi.workspace import Workspace


def import_token(
    file: Annotated[Path, typer.Argument(help="A textual inversion: .safetensors, .pt or .bin.", show_default=False)],
    workspace: WorkspaceOption = Path("."),
    *,
    name: Annotated[
        str | None,
        typer.Option(help="Its placeholder here, such as <smoking> (default: the file's own name for it).", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="A model that the token must fit: a folder, a checkpoint file, or a hub id.", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a learned token into the workspace, from diffusers, A1111's web UI, ComfyUI or hfi. Pickled files are read safely."""
    from hfi.diffusion.sd import find_model, text_widths
    from hfi.diffusion.tokens import LearnedToken, check_fits, check_placeholder
    from hfi.export.tokens import ONE, SDXL, read

    space = Workspace.open(workspace)
    if name:
        check_placeholder(name)
    found = read(file)
    placeholder = name or f"<{_slug(found.metadata.get('placeholder') or found.name or file.stem, file)}>"
    about = {
        **found.metadata,  # a file of hfi's own keeps saying what it was learned from
        "placeholder": placeholder,
        "source": "imported",
        "file": file.name,
        "file_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "hfi": __version__,
    }
    token = LearnedToken(placeholder, tuple(found.vectors[key] for key in (ONE, *SDXL) if key in found.vectors), about)
    if model:
        check_fits(token, text_widths(find_model(model)), model)
    target = space.tokens / f"{placeholder.strip('<>')}.safetensors"
    known = target.exists()
    if known and LearnedToken.load(target).content != token.content:
        raise HfiError(
            f"there is another token {placeholder} in {space.tokens}: give this one another --name, or remove {target}"
        )
    if not known:
        token.save(target)
    vectors, widths = len(token.names), list(token.widths)
    if as_json:
        typer.echo(
            json.dumps({"token": placeholder, "file": str(target), "vectors": vectors, "widths": widths, "new": not known})
        )
    else:
        words = "was there already" if known else f"imported: {vectors} vectors of width {' and '.join(map(str, widths))}"
        typer.echo(f"{placeholder} {words}\n{target}")


def _slug(text: str, file: Path) -> str:
    """A name that a placeholder can have: 'Easy_Negative v2' -> easy-negative-v2."""
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not slug:
        raise UsageError(f"{file} names no token in letters that a prompt can hold: give a --name such as <smoking>")
    return slug

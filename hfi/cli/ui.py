"""`hfi ui`: the labeling app, for this computer or, with accounts, for others."""

import csv
import gc
import io
import os
import re
import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from hfi import logs
from hfi.cli.common import the_concept
from hfi.cli.options import WorkspaceOption
from hfi.concepts import Concept
from hfi.errors import HfiError, UsageError
from hfi.store import campaigns, people, queries
from hfi.store.campaigns import Campaign
from hfi.store.queries import Image
from hfi.store.session import Session, reading, writing
from hfi.workspace import Workspace
from ui.local import local

PEOPLE, AGAIN = "people", "again"  # names of campaigns: over all images, and over those of a file
TOKEN = "HFI_METRICS_TOKEN"
OVERLAP = 3  # people asked about each image of a new campaign: enough for a majority and for their agreement


def ui(
    workspace: WorkspaceOption = Path("."),
    *,
    concept: Annotated[
        str | None, typer.Option("--concept", "-c", help="What to judge (default: the only concept).", show_default=False)
    ] = None,
    annotator: Annotated[
        str | None, typer.Option("--annotator", "-a", help="Who judges (default: the page asks).", show_default=False)
    ] = None,
    campaign: Annotated[
        str | None,
        typer.Option(
            help=f"The campaign: {PEOPLE} takes in every image, any other keeps those that it was made with. "
            f"(default: {PEOPLE}, or {AGAIN} with --images)",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Judge only the images in this .csv, by their sha256 in the column 'image', as 'hfi reward --report' writes it.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on: this computer's own, or, once there are accounts, any (0.0.0.0).")
    ] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name that the server is called by, such as that of a proxy before it; may be given several times."),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 7860,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
) -> None:
    """Judge the workspace's images in the browser, every image by up to three people. Stop with Ctrl-C at any time.

    Without accounts, whoever sits at this computer gives a name and judges. With accounts ('hfi user add') people sign in, and are
    offered the campaigns that are there; --concept makes one, or takes new images into it.
    """
    space = Workspace.open(workspace)
    engine = space.engine()
    names = allow_host or []
    with reading(engine) as session:
        accounts = people.has_accounts(session)
    _check_access(host, names, annotator, accounts)
    token = _metrics_token()
    space.images.check()
    listener = _listen(host, port)  # before a campaign is made that nobody would see
    with writing(engine) as session:
        target = None
        if not accounts or concept or campaign or images:
            chosen = the_concept(session, concept)
            target = _campaign(session, chosen, campaign or (AGAIN if images else PEOPLE), images)
        person = queries.ensure_annotator(session, annotator) if annotator is not None else None
        there = len(campaigns.campaigns(session))
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(
        host, host
    )  # of every address, the one that this computer's browser can open
    address = f"http://{f'[{near}]' if ':' in near else near}:{listener.getsockname()[1]}"
    if target and there > 1:
        address += f"/?campaign={target.id}"
    typer.echo("starting the page", err=True)
    if not local(host):
        typer.echo("passwords and images travel as they are: put a proxy with TLS before it, see docs/serving.md", err=True)

    import uvicorn

    with TemporaryDirectory(prefix="hfi-ui-") as scratch:
        os.environ["GRADIO_TEMP_DIR"] = scratch  # readable by nobody else, unlike Gradio's own
        from ui.app import build_app

        app = build_app(space, engine, host=host, names=names, only=person, metrics_token=token)
        own: dict[str, Any] = {"log_config": None} if logs.logging_json() else {}
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, **own))
        who = f" as {person.name}" if person else ""
        what = f"judge {chosen.title!r}{who}" if target else "judge and manage"
        none = "" if there else f"no campaign yet, a manager makes one at {address}/manage/ under Campaigns; "
        count = f"{target.tasks} to judge; " if target else none
        typer.echo(f"{what} at {address} ({count}Ctrl-C stops, what is judged is kept)")
        if open_browser and _has_browser():
            threading.Timer(0.5, webbrowser.open, [address]).start()
        logs.event("starting", address=address, accounts=accounts, metrics=bool(token))
        gc.collect()
        gc.freeze()  # the modules stay: looking through them again and again makes requests wait
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            typer.echo("stopped; every judgment is kept, the same command goes on", err=True)


def _check_access(host: str, names: Sequence[str], annotator: str | None, accounts: bool) -> None:
    """UsageError where everybody could judge under any name, or where --annotator would go past the accounts."""
    if accounts and annotator is not None:
        raise UsageError("there are accounts, so people sign in with their passwords: leave --annotator out")
    if not accounts and (names or not local(host)):
        given = f"--host {host}" if not local(host) else f"--allow-host {names[0]}"
        raise UsageError(
            f"{given} would let everyone who reaches it judge under any name, and there are no accounts:"
            " run 'hfi user add NAME --role manager' first, or serve this computer only"
        )


def _metrics_token() -> str:
    """What opens /metrics, "" for no such page. UsageError for one that could be guessed, or not be sent."""
    token = os.environ.get(TOKEN, "")
    if token and not re.fullmatch(r"[!-~]{16,200}", token):
        raise UsageError(
            f"{TOKEN} is no good token: give 16 to 200 letters, digits and signs without blanks, such as 'openssl rand -hex 24' "
            "prints, or unset it"
        )
    return token


def _campaign(session: Session, concept: Concept, name: str, file: Path | None) -> Campaign:
    """The campaign over the images of a file, or over all images of the workspace; see --campaign."""
    known = next((c for c in campaigns.campaigns(session, concept.slug) if c.name == name), None)
    if file and name == PEOPLE:
        raise UsageError(f"the campaign {PEOPLE!r} is about every image: give --images another --campaign, or none")
    if known and name != PEOPLE and not file:
        return known
    every = queries.images(session)
    ids = [image.id for image in (_listed(file, every) if file else every)]
    found = campaigns.ensure_campaign(
        session, concept.slug, name, image_ids=ids, asking=campaigns.Asking(overlap=known.overlap if known else OVERLAP)
    )
    if not found.tasks:
        few = f"{len(ids)} images are too few for ranking questions about five" if ids else "there are no images to judge"
        raise HfiError(f"{few}: make some with 'hfi generate', or bring your own with 'hfi import'")
    return found


def _listed(file: Path, every: Sequence[Image]) -> list[Image]:
    """The images of the workspace that a .csv names."""
    try:
        rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8-sig"), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise HfiError(
            f"cannot read {file} as CSV ({getattr(e, 'strerror', None) or e}): give a file with a column 'image'"
        ) from None
    if not rows:
        raise HfiError(f"{file} names no image: nothing is to be judged again")
    if "image" not in rows[0]:
        raise HfiError(f"{file} has no column 'image': name the column of the images' sha256 so")
    by_sha = {image.sha256: image for image in every}
    wanted = list(dict.fromkeys(str(row["image"]).strip() for row in rows))
    unknown = [sha for sha in wanted if sha not in by_sha]
    if unknown:
        raise HfiError(
            f"{len(unknown)} of the {len(wanted)} images in {file} are not in this workspace ({unknown[0][:16]!r} is the first): "
            "name the workspace that it was written from with --workspace"
        )
    return [by_sha[sha] for sha in wanted]


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens before anything slow is loaded, so that a wrong host or a port in use is said at once."""
    # named as TCP, for asyncio switches Nagle's algorithm off only then; with it every answer waits 40 ms
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)  # from here on who comes early waits, and is not turned away
    except OSError as e:
        listener.close()
        raise HfiError(f"cannot listen on {host}:{port}: {e.strerror or e}; give another --port, or 0 for a free one") from e
    return listener


def _has_browser() -> bool:
    """Not on a Linux machine without a screen: a text browser would take over the terminal."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))

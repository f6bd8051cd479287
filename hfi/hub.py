"""Models of the Hugging Face hub, `owner/name` or `owner/name@REVISION`. A branch moves on, so every record names the commit: what
`pinned` makes of an id gives the same files again, also without a network once they are there.

Weights are taken as safetensors alone: a pickle can run a program when it is read.
"""

from collections.abc import Sequence
from pathlib import Path

from hfi.errors import ModelError

CONFIGURATIONS = ("*.json", "*.txt")
_used: dict[str, str] = {}


def is_id(reference: str | Path) -> bool:
    """Whether it has the form of an id; a folder of that name comes first."""
    text = str(reference)
    return not isinstance(reference, Path) and text.count("/") == 1 and not text.startswith((".", "/", "~")) and "\\" not in text


def repository(reference: str) -> str:
    """owner/name"""
    return reference.partition("@")[0]


def download(reference: str, patterns: Sequence[str]) -> Path:
    """The hub's files of these patterns: those in the cache, brought up to date where there is a network. ModelError where there is
    no such repository or revision."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    name, _, revision = reference.partition("@")
    disable_progress_bars()  # they would come with every command, also where nothing is to be downloaded
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=list(patterns)))
    except Exception as e:  # the hub client raises its own and httpx's errors
        what = f"{name!r} in version {revision!r}" if revision else f"{name!r}"
        raise ModelError(
            f"no folder {reference!r} here, and the hub gives no model {what} ({type(e).__name__}): check the name, the network and "
            "your access to it"
        ) from e
    _used[name] = folder.name
    return folder


def pinned(reference: str, folder: Path) -> str:
    """owner/name@COMMIT, of an id and what `download` gave for it; anything else as it is."""
    if not is_id(reference) or Path(reference).exists() or folder.parent.name != "snapshots":
        return reference
    return f"{repository(reference)}@{folder.name}"


def used() -> dict[str, str]:
    """Repositories that this process has read from, with their commits."""
    return dict(_used)

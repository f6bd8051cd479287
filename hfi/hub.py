"""Models of the Hugging Face hub, `owner/name` or `owner/name@REVISION`. A branch moves on, so every record names the commit: what
`pinned` makes of an id gives the same files again, also without a network once they are there.

Weights are taken as safetensors alone: a pickle can run a program when it is read.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hfi.errors import HfiError, ModelError

CONFIGURATIONS = ("*.json", "*.txt")
_SECONDS = 5  # for the hub to answer
_used: set[str] = set()


def split(reference: str) -> tuple[str, str | None]:
    """owner/name, and the revision where one is given; it may hold slashes, as refs/pr/3 does."""
    name, _, revision = reference.partition("@")
    return name, revision or None


def is_id(reference: str | Path) -> bool:
    """Whether it has the form of an id; a folder of that name comes first."""
    if isinstance(reference, Path) or reference.startswith((".", "/", "~")) or "\\" in reference:
        return False
    return split(reference)[0].count("/") == 1


def is_hub_id(reference: str) -> bool:
    """Whether it names something on the hub and nothing on this machine."""
    return is_id(reference) and not Path(reference).exists()


def download(reference: str, patterns: Sequence[str]) -> Path:
    """The hub's files of these patterns: those in the cache, brought up to date where there is a network. ModelError where there is
    no such repository or revision."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    name, revision = split(reference)
    disable_progress_bars()  # they would come with every command, also where nothing is to be downloaded
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except Exception as e:  # the hub client raises its own and httpx's errors
        what = f"{name!r} in version {revision!r}" if revision else f"{name!r}"
        raise ModelError(
            f"no folder {reference!r} here, and the hub gives no model {what} ({type(e).__name__}): check the name, the network and "
            "your access to it"
        ) from e
    _used.add(f"{name}@{folder.name}")
    return folder


def pinned(reference: str, folder: Path) -> str:
    """owner/name@COMMIT, of an id and what `download` gave for it; anything else as it is."""
    if not is_hub_id(reference) or folder.parent.name != "snapshots":
        return reference
    return f"{split(reference)[0]}@{folder.name}"


def used() -> list[str]:
    """owner/name@COMMIT of all that this process has read from."""
    return sorted(_used)


# --- before anything is downloaded ---


@dataclass(frozen=True)
class Wanted:
    """Of a model's files: how many, of how many bytes, those of them that are not in the cache, and the room on the cache's disk.
    `revision`: the commit that the hub gives now."""

    revision: str
    files: int
    size: int
    missing: int
    missing_size: int
    cache: Path
    free: int


def wanted(model: str, patterns: Sequence[str]) -> Wanted:
    """What `download` would get with these patterns. HfiError where the hub is not to be asked, cannot be reached, does not give it, or
    has no weights of it as safetensors."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError
    from huggingface_hub.utils import filter_repo_objects

    name, asked = split(model)
    try:
        about = HfApi().model_info(name, revision=asked, files_metadata=True, timeout=_SECONDS)
    except OfflineModeIsEnabled:
        raise HfiError("HF_HUB_OFFLINE is set, so the hub is not asked") from None
    except GatedRepoError:
        raise HfiError(
            f"the hub gives {model!r} to those who agreed to its terms: agree there, and run 'hf auth login'"
        ) from None
    except RepositoryNotFoundError:
        raise HfiError(f"the hub has no model {model!r}, or none for you: check the name, or run 'hf auth login'") from None
    except Exception as e:  # the hub's client, and what it is built on, raise many of their own
        raise HfiError(f"the hub cannot be reached ({type(e).__name__})") from None
    revision = about.sha or "main"
    sizes = {file.rfilename: file.size or 0 for file in about.siblings or ()}
    files = list(filter_repo_objects(sizes, allow_patterns=list(patterns)))
    if "model_index.json" not in files:
        raise HfiError(f"{model!r} is on the hub, and no model in diffusers' layout: it has no model_index.json")
    if not any(file.endswith(".safetensors") for file in files):
        raise HfiError(f"{model!r} is on the hub without weights as safetensors, and pickles are not taken")
    there = {file for file in files if isinstance(try_to_load_from_cache(name, file, revision=revision), str)}
    missing = [name for name in files if name not in there]
    cache = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.exists())).free
    return Wanted(
        revision, len(files), sum(sizes[n] for n in files), len(missing), sum(sizes[n] for n in missing), cache, free
    )  # fmt: skip


def cached(model: str) -> Path | None:
    """The folder of this model in the cache, where something of it is there."""
    from huggingface_hub import try_to_load_from_cache

    name, revision = split(model)
    found = try_to_load_from_cache(name, "model_index.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None

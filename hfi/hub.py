"""What a model of the Hugging Face hub would take, before anything of it is downloaded.

Only what is named by a hub id ('owner/name') is ever downloaded: a model, or CLIP as a reward's backbone. HF_HUB_OFFLINE=1 keeps every
command from the network.
"""

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hfi.errors import HfiError

_SECONDS = 5  # for the hub to answer
_ABOUT = re.compile(r"(scheduler|text_encoder|text_encoder_2|tokenizer|tokenizer_2|unet|vae)/[^/]*\.(json|txt)")
_STEMS = {"text_encoder": "model", "text_encoder_2": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}


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


def is_hub_id(model: str) -> bool:
    """Whether it names something on the hub and nothing on this machine."""
    return model.count("/") == 1 and not model.startswith((".", "/", "~")) and not Path(model).exists()


def wanted(model: str) -> Wanted:
    """What `hfi` would download of this model. HfiError where the hub is not to be asked, cannot be reached, or does not give it."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        about = HfApi().model_info(model, files_metadata=True, timeout=_SECONDS)
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
    files = needed(sizes)
    if "model_index.json" not in files:
        raise HfiError(f"{model!r} is on the hub, and no model in diffusers' layout: it has no model_index.json")
    there = {name for name in files if isinstance(try_to_load_from_cache(model, name, revision=revision), str)}
    missing = [name for name in files if name not in there]
    cache = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.exists())).free
    return Wanted(
        revision, len(files), sum(sizes[n] for n in files), len(missing), sum(sizes[n] for n in missing), cache, free
    )  # fmt: skip


def cached(model: str) -> Path | None:
    """The folder of this model in the cache, where something of it is there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "model_index.json")
    return Path(found).parent if isinstance(found, str) else None


def needed(names: Iterable[str]) -> list[str]:
    """Those of a repository's files that are downloaded, as diffusers chooses them: of weights safetensors where there are any, no
    variants (fp16) and none for training (non_ema)."""
    every = sorted(names)
    found = [name for name in every if name == "model_index.json" or _ABOUT.fullmatch(name)]
    for folder, stem in _STEMS.items():
        weights = [name for name in every if re.fullmatch(rf"{folder}/{stem}(-\d+-of-\d+)?\.(safetensors|bin)", name)]
        safe = [name for name in weights if name.endswith(".safetensors")]
        found += safe or weights
    return found

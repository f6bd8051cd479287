"""A whole model as a folder in diffusers' layout: what the base has, with the cleaned parts in place of its own."""

import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfi.diffusion.sd import StableDiffusion, quiet
from hfi.errors import HfiError
from hfi.files import whole_folder

_LOADER = "_name_or_path"  # where a part was loaded from: a path of this machine


def write_folder(sd: StableDiffusion, base: Path, folder: Path, card: str, *, half: bool = False) -> None:
    """`base` is the folder that `sd` was loaded from: its scheduler, safety checker and whatever else its index names are copied,
    but no part without weights (a checkpoint file's configurations have none)."""
    parts = {"unet": sd.unet, "vae": sd.vae, **_numbered("text_encoder", sd.text_encoders)}
    try:
        with quiet(), whole_folder(folder) as scratch:
            for name, part in parts.items():
                (copy.deepcopy(part).half() if half else part).save_pretrained(scratch / name)
                _forget_the_loader(scratch / name / "config.json")
            for name, tokenizer in _numbered("tokenizer", sd.tokenizers).items():
                tokenizer.save_pretrained(scratch / name)
                _forget_the_loader(scratch / name / "tokenizer_config.json")
            index = json.loads((base / "model_index.json").read_text(encoding="utf-8"))
            index.pop(_LOADER, None)
            for name in [name for name, value in index.items() if isinstance(value, list)]:
                if (scratch / name).exists():
                    continue
                if not (base / name).is_dir() or (_is_network(base / name) and not _has_weights(base / name)):
                    index[name] = [None, None]  # an optional part that was not downloaded
                else:
                    shutil.copytree(base / name, scratch / name)
            (scratch / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
            (scratch / "README.md").write_text(card, encoding="utf-8")
    except OSError as e:
        raise HfiError(f"cannot write {folder}: {e}") from e


def _numbered(name: str, parts: Sequence[Any]) -> dict[str, Any]:
    """text_encoder, text_encoder_2"""
    return {name if i == 0 else f"{name}_{i + 1}": part for i, part in enumerate(parts)}


def _is_network(folder: Path) -> bool:
    return (folder / "config.json").exists()


def _has_weights(folder: Path) -> bool:
    return any(file.suffix == ".safetensors" for file in folder.iterdir())


def _forget_the_loader(file: Path) -> None:
    config = json.loads(file.read_text(encoding="utf-8"))
    config = {key: value for key, value in config.items() if key not in (_LOADER, "name_or_path")}
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

"""A whole model as a folder in diffusers' layout: what the base has, with the cleaned parts in place of its own."""

import copy
import json
import shutil
from pathlib import Path

from hfi.diffusion.sd import StableDiffusion, quiet
from hfi.errors import HfiError
from hfi.files import share, whole_folder

_WEIGHTS = ("unet", "vae", "text_encoder")
_LOADER = "_name_or_path"  # where a part was loaded from: a path of this machine


def write_folder(sd: StableDiffusion, base: Path, folder: Path, card: str, *, half: bool = False) -> None:
    """`base` is the folder that `sd` was loaded from: its scheduler, safety checker and whatever else its index names are copied."""
    try:
        with quiet(), whole_folder(folder) as scratch:
            for name in _WEIGHTS:
                part = getattr(sd, name)
                (copy.deepcopy(part).half() if half else part).save_pretrained(scratch / name)
                _forget_the_loader(scratch / name / "config.json")
            sd.tokenizer.save_pretrained(scratch / "tokenizer")
            _forget_the_loader(scratch / "tokenizer" / "tokenizer_config.json")
            index = json.loads((base / "model_index.json").read_text(encoding="utf-8"))
            index.pop(_LOADER, None)
            for name in [name for name, value in index.items() if isinstance(value, list)]:
                if not (base / name).is_dir():
                    index[name] = [None, None]  # an optional part that was not downloaded
                elif not (scratch / name).exists():
                    shutil.copytree(base / name, scratch / name)
            (scratch / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
            (scratch / "README.md").write_text(card, encoding="utf-8")
            for file in scratch.rglob("*.safetensors"):
                share(file)
    except OSError as e:
        raise HfiError(f"cannot write {folder}: {e}") from e


def _forget_the_loader(file: Path) -> None:
    config = json.loads(file.read_text(encoding="utf-8"))
    config = {key: value for key, value in config.items() if key not in (_LOADER, "name_or_path")}
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

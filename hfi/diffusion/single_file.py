"""Checkpoints of one file in the original layout (.safetensors or .ckpt), as the communities of A1111 and ComfyUI share them.

Such a file holds weights alone, under other names. What the model is (sizes, prediction type, vocabulary) comes from a folder of
configurations in diffusers' layout; the names are translated by diffusers' own converters.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.loaders import single_file_utils as original
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from hfi import hub
from hfi.errors import ModelError

SUFFIXES = (".safetensors", ".ckpt")
_UNET = "model.diffusion_model."
_HUB = {  # where the file alone tells what it is; those of SD 2.x do not tell what they predict
    "v1": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "xl_base": "stabilityai/stable-diffusion-xl-base-1.0",
}


def config_folder(file: Path) -> Path:
    """The folder with the configurations of a checkpoint: of the file's name, or the file's own, else the hub's copy of the
    official ones. Reads the file's table of contents at most."""
    found = find_configurations(file)
    if isinstance(found, Path):
        return found
    try:
        return hub.download(found, hub.CONFIGURATIONS)
    except ModelError as e:
        raise _alone(file) from e


def find_configurations(file: Path) -> Path | str:
    """That folder, or the hub's repository that has them; asks no network."""
    for folder in (file.with_suffix(""), file.parent):
        if (folder / "model_index.json").exists():
            return folder
    contents = _contents(file)
    kind = original.infer_diffusers_model_type(contents) if any(name.startswith(_UNET) for name in contents) else None
    if kind is None:
        raise ModelError(f"{file} is no Stable Diffusion checkpoint: it holds no weights named {_UNET}...")
    if kind not in _HUB:
        raise _alone(file)
    return _HUB[kind]


def _alone(file: Path) -> ModelError:
    return ModelError(
        f"{file} holds weights alone: put the model's configurations, a folder in diffusers' layout (its weights may be left "
        f"out), beside it as {file.with_suffix('').name}/"
    )


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    """All weights by their original names."""
    try:
        found = load_file(file) if file.suffix == ".safetensors" else _unpickle(file, "cpu")
    except (SafetensorError, OSError) as e:
        raise ModelError(f"{file} is no checkpoint: it is not safetensors ({e})") from None
    return found


def _contents(file: Path) -> dict[str, Tensor]:
    """Names and shapes, as tensors without data."""
    if file.suffix != ".safetensors":
        return _unpickle(file, "meta")
    try:
        with safe_open(file, framework="pt") as opened:
            shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as e:
        raise ModelError(f"{file} is no checkpoint: it is not safetensors ({e})") from None
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def _unpickle(file: Path, device: str) -> dict[str, Tensor]:
    try:
        found = torch.load(file, map_location=device, weights_only=True)
    except Exception as e:  # a damaged file raises whatever its bytes happen to mean
        raise ModelError(
            f"cannot read {file} ({type(e).__name__}): it is damaged, or holds more than weights, which hfi does not run; "
            "convert it to .safetensors"
        ) from e
    found = found.get("state_dict", found)
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def part_of(checkpoint: Mapping[str, Tensor], part: Any, folder: Path, name: str) -> tuple[Any, dict[str, Tensor]]:
    """A part without weights, built from its configuration, and its weights under diffusers' names."""
    if name in ("unet", "vae"):
        config = part.load_config(folder, subfolder=name, local_files_only=True)
        convert = original.convert_ldm_unet_checkpoint if name == "unet" else original.convert_ldm_vae_checkpoint
        with init_empty_weights():
            made = part.from_config(config)
        return made, convert(dict(checkpoint), config=config)
    with init_empty_weights():
        made = part(part.config_class.from_pretrained(folder, subfolder=name, local_files_only=True))
    return made, _text_weights(checkpoint, made, name)


def _text_weights(checkpoint: Mapping[str, Tensor], encoder: Any, name: str) -> dict[str, Tensor]:
    """CLIP is written as in transformers (SD 1.x, and SDXL's first), OpenCLIP in its own way (SD 2.x, and SDXL's second)."""
    if original.is_clip_model(checkpoint) or (name == "text_encoder" and original.is_clip_sdxl_model(checkpoint)):
        found = original.convert_ldm_clip_checkpoint(dict(checkpoint))
    else:
        prefix = "conditioner.embedders.1.model." if name == "text_encoder_2" else "cond_stage_model.model."
        found = original.convert_open_clip_checkpoint(encoder, dict(checkpoint), prefix=prefix)
    if hasattr(encoder, "text_model"):
        return found
    found.pop("text_projection.weight", None)  # OpenCLIP's pooled output, which SD 2.x does not read
    return {key.removeprefix("text_model."): value for key, value in found.items()}

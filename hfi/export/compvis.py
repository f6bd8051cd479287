"""A whole model in the one-file layout of the original Stable Diffusion, which A1111's web UI, Forge and ComfyUI load.

Three functions rename the tensors of the three parts, with nothing but the parts' configurations to go by:

    unet          -> model.diffusion_model.*       blocks are numbered through: input_blocks.0 is conv_in, each resnet and each
                                                   down- or upsampler is one more; a block's modules are numbered from 0
    vae           -> first_stage_model.*           the decoder's levels are numbered from the pixels, diffusers' from the latents
    text_encoder  -> cond_stage_model.transformer.text_model.*    CLIP's own names (1.x)
                  or cond_stage_model.model.*      OpenCLIP's names, with q, k and v in one matrix (2.x)
    SDXL's two    -> conditioner.embedders.0.transformer.text_model.* and conditioner.embedders.1.model.*, CLIP's and OpenCLIP's

The file holds no configuration: programs know those of 1.x, 2.x and XL by the shapes in it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfi.errors import ModelError

Tensors = dict[str, Tensor]

_RESNET = {  # the U-Net's; the VAE's has the same names in both layouts, but for its shortcut
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def checkpoint(unet: Tensors, vae: Tensors, encoders: Sequence[Tensors], configs: Mapping[str, Mapping[str, Any]]) -> Tensors:
    """The file's tensors, of the parts' state dicts and their configurations `unet`, `vae` and `text_encoder` (the first).

    ModelError for a part that the original layout has no place for.
    """
    original = {f"model.diffusion_model.{k}": v for k, v in _rename(unet, unet_modules(configs["unet"])).items()}
    original |= {f"first_stage_model.{k}": v for k, v in vae_tensors(vae, configs["vae"]).items()}
    first, *others = map(plain_names, encoders)
    if others:
        named = {f"conditioner.embedders.0.transformer.text_model.{k}": v for k, v in first.items()}
        named |= {f"conditioner.embedders.1.model.{k}": v for k, v in open_clip(others[0]).items()}
    elif configs["text_encoder"].get("hidden_act", "quick_gelu") == "quick_gelu":  # OpenAI's CLIP has it, OpenCLIP has not
        named = {f"cond_stage_model.transformer.text_model.{k}": v for k, v in first.items()}
    else:
        named = {f"cond_stage_model.model.{k}": v for k, v in open_clip(first).items()}
    return {k: v.detach().cpu().contiguous() for k, v in {**original, **named}.items()}


def check_layout(folder: Path) -> None:
    """ModelError, before weights are read, for a model folder whose U-Net the original layout has no place for."""
    unet_modules(json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8")))


# --- the U-Net ---


def unet_modules(config: Mapping[str, Any]) -> dict[str, str]:
    """diffusers' module -> the original's, of every module that has tensors of its own; attentions and their insides as a whole."""
    down = config.get("down_block_types", ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",))
    up = config.get("up_block_types", ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)
    middle = config.get("mid_block_type") or "UNetMidBlock2DCrossAttn"
    for kind in (*down, *up):
        if kind not in ("DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"):
            raise ModelError(f"the original layout has no place for a U-Net's {kind}: export a folder")
    if middle != "UNetMidBlock2DCrossAttn":
        raise ModelError(f"the original layout has no place for a U-Net's {middle}: export a folder")
    layers = config.get("layers_per_block", 2)
    per_level = [layers] * len(down) if isinstance(layers, int) else list(layers)

    names = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",  # SDXL's size and crop
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.attentions.0": "middle_block.1",
        **_resnet("mid_block.resnets.0", "middle_block.0"),
        **_resnet("mid_block.resnets.1", "middle_block.2"),
    }
    place = 0
    for level, kind in enumerate(down):
        for i in range(per_level[level]):
            place += 1
            names |= _resnet(f"down_blocks.{level}.resnets.{i}", f"input_blocks.{place}.0")
            if kind.startswith("CrossAttn"):
                names[f"down_blocks.{level}.attentions.{i}"] = f"input_blocks.{place}.1"
        if level < len(down) - 1:
            place += 1
            names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{place}.0.op"
    place = -1
    for level, kind in enumerate(up):
        attends = kind.startswith("CrossAttn")
        for i in range(per_level[-1 - level] + 1):
            place += 1
            names |= _resnet(f"up_blocks.{level}.resnets.{i}", f"output_blocks.{place}.0")
            if attends:
                names[f"up_blocks.{level}.attentions.{i}"] = f"output_blocks.{place}.1"
        if level < len(up) - 1:
            names[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{place}.{2 if attends else 1}.conv"
    return names


def _resnet(here: str, there: str) -> dict[str, str]:
    return {f"{here}.{mine}": f"{there}.{theirs}" for mine, theirs in _RESNET.items()}


# --- the VAE ---


def vae_tensors(vae: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Attention's matrices become 1x1 convolutions, as they are there."""
    named = _rename(vae, vae_modules(config))
    return {k: v[..., None, None] if ".attn_1." in k and v.ndim == 2 else v for k, v in named.items()}


def vae_modules(config: Mapping[str, Any]) -> dict[str, str]:
    levels, layers = len(config["block_out_channels"]), config.get("layers_per_block", 1)
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for part in ("encoder", "decoder"):
        names |= {
            f"{part}.conv_in": f"{part}.conv_in",
            f"{part}.conv_out": f"{part}.conv_out",
            f"{part}.conv_norm_out": f"{part}.norm_out",
            **_vae_resnet(f"{part}.mid_block.resnets.0", f"{part}.mid.block_1"),
            **_vae_resnet(f"{part}.mid_block.resnets.1", f"{part}.mid.block_2"),
        }
        attention = {f"{part}.mid_block.attentions.0.{a}": f"{part}.mid.attn_1.{b}" for a, b in _VAE_ATTENTION.items()}
        names |= attention
    for level in range(levels):
        here, there = f"encoder.down_blocks.{level}", f"encoder.down.{level}"
        for i in range(layers):
            names |= _vae_resnet(f"{here}.resnets.{i}", f"{there}.block.{i}")
        names[f"{here}.downsamplers.0.conv"] = f"{there}.downsample.conv"
        here, there = f"decoder.up_blocks.{level}", f"decoder.up.{levels - 1 - level}"
        for i in range(layers + 1):
            names |= _vae_resnet(f"{here}.resnets.{i}", f"{there}.block.{i}")
        names[f"{here}.upsamplers.0.conv"] = f"{there}.upsample.conv"
    return names


def _vae_resnet(here: str, there: str) -> dict[str, str]:
    return {f"{here}.{a}": f"{there}.{a}" for a in ("norm1", "conv1", "norm2", "conv2")} | {
        f"{here}.conv_shortcut": f"{there}.nin_shortcut"
    }


# --- the text encoder ---


def plain_names(encoder: Tensors) -> Tensors:
    """Without the 'text_model.' that some versions of transformers put before every name, and some do not."""
    return {name.removeprefix("text_model."): value for name, value in encoder.items()}


def open_clip(encoder: Tensors) -> Tensors:
    """CLIP's tensors under OpenCLIP's names; q, k and v of a layer, in this order, are one tensor there."""
    named: Tensors = {
        "positional_embedding": encoder["embeddings.position_embedding.weight"],
        "token_embedding.weight": encoder["embeddings.token_embedding.weight"],
        "ln_final.weight": encoder["final_layer_norm.weight"],
        "ln_final.bias": encoder["final_layer_norm.bias"],
    }
    if "text_projection.weight" in encoder:  # SDXL's second encoder; there it is multiplied from the right
        named["text_projection"] = encoder["text_projection.weight"].T
    for layer in sorted({int(name.split(".")[2]) for name in encoder if name.startswith("encoder.layers.")}):
        here, there = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            parts = [encoder[f"{here}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
            named[f"{there}.attn.in_proj_{kind}"] = torch.cat(parts)
            named |= {f"{there}.{theirs}.{kind}": encoder[f"{here}.{mine}.{kind}"] for mine, theirs in _OPEN_CLIP.items()}
    return named


def _rename(tensors: Tensors, modules: Mapping[str, str]) -> Tensors:
    """Every tensor under its module's new name. ModelError for one that belongs to no module known here."""
    named = {}
    for name, value in tensors.items():
        module = next((m for m in _owners(name) if m in modules), None)
        if module is None:
            raise ModelError(f"the original layout has no place for {name}: export a folder")
        named[modules[module] + name[len(module) :]] = value
    return named


def _owners(name: str) -> Iterable[str]:
    """'a.b.weight' -> 'a.b', 'a'"""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name

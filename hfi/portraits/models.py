"""The architectures of Portraits, all of them classes of diffusers and transformers, and the folder they are saved as.

Sizes are chosen for two CPU cores without fast half precision: the VAE reduces 64x64 pixels by 4, to 16x16 latents of four
channels, and the U-Net attends from 8x8 downwards only; its first level, the dearest, is plain convolutions on 32 channels.
"""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from hfi.portraits.world import all_words

POSITIONS = 24  # tokens of a prompt, start and end included
WIDTH = 96  # of the text encoder
LATENT_CHANNELS = 4


def build_vae() -> Any:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def build_unet() -> Any:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=(1, 2, 4),  # diffusers' name for the number of heads
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )


def build_scheduler() -> Any:
    """Stable Diffusion's scaled-linear schedule."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def build_tokenizer() -> Any:
    """CLIP's byte-level BPE with just the merges that make every word of the captions one token.

    The merges are learned on the word list, most frequent pair first, until each word is a single token; other words still
    tokenize, into bytes.
    """
    byte_chars = _byte_alphabet()
    words = [[*word[:-1], word[-1] + "</w>"] for word in all_words()]
    merges: Any = []  # pairs of symbols
    while True:
        pairs = Counter(pair for word in words for pair in pairwise(word))
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = [_merge(word, best) for word in words]
    tokens = [*byte_chars, *(c + "</w>" for c in byte_chars), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=POSITIONS)


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def _byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def _text_config(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
        "projection_dim": 64,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def build_text_encoder(tokenizer: Any) -> Any:
    encoder = CLIPTextModel(CLIPTextConfig(**_text_config(tokenizer)))
    table: Any = encoder.get_input_embeddings().weight
    nn.init.normal_(table, std=0.05)
    return encoder


def build_clip(tokenizer: Any) -> Any:
    vision: dict[str, Any] = {
        "image_size": 64,
        "patch_size": 8,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "projection_dim": 64,
    }
    return CLIPModel(CLIPConfig(text_config=_text_config(tokenizer), vision_config=vision, projection_dim=64))


def save_half(module: Any, folder: Path) -> None:
    """Saves weights in fp16, to load in fp32: the config keeps saying float32, or transformers would load halves."""
    state = {name: value.clone() for name, value in module.state_dict().items()}
    module.half().save_pretrained(folder, safe_serialization=True)
    module.float().load_state_dict(state)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for part in (config, config.get("text_config", {}), config.get("vision_config", {})):
        if "dtype" in part:
            part["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def save_model_index(folder: Path) -> None:
    """The file that makes the folder a StableDiffusionPipeline."""
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.36.0",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


@torch.no_grad()
def ema_update(average: dict[str, torch.Tensor], module: nn.Module, decay: float) -> None:
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)

"""Random models in Stable Diffusion's architecture, built from numbers: what a step costs does not depend on what was learned."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from hfi.diffusion.sd import StableDiffusion, quiet


@dataclass(frozen=True)
class Size:
    """`attention` says for each level of the U-Net whether it has transformer blocks; `text` is the width, layers, heads, vocabulary
    and length of the text encoder."""

    latent: int
    unet: tuple[int, ...]
    attention: tuple[bool, ...]
    heads: int | tuple[int, ...]
    layers: int
    groups: int
    vae: tuple[int, ...]
    vae_layers: int
    text: tuple[int, int, int, int, int]


SIZES = {
    "tiny": Size(8, (8, 16), (False, True), 2, 1, 4, (8, 8), 1, (16, 1, 2, 512, 20)),
    "portraits": Size(16, (32, 64, 128), (False, True, True), (1, 2, 4), 1, 16, (16, 32, 64), 1, (96, 3, 4, 1024, 24)),
    "sd14": Size(
        64, (320, 640, 1280, 1280), (True, True, True, False), 8, 2, 32, (128, 256, 512, 512), 2, (768, 12, 12, 49408, 77)
    ),
}


def build(name: str, latent: int, dtype: torch.dtype, device: torch.device) -> StableDiffusion:
    """A model of a size with latents [4, latent, latent]; the same numbers whatever the dtype, up to rounding."""
    tokenizer = _tokenizer(*SIZES[name].text[3:])
    parts = networks(name, latent, tokenizer)
    for seed, part in enumerate(parts):
        with quiet():
            part.to(dtype)
        _fill(part.to_empty(device=device), seed)
        part.eval().requires_grad_(False)
    unet, vae, encoder = parts
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusion(f"random {name}", "", (tokenizer,), (encoder,), unet, vae, scheduler, False, device, dtype)


def networks(name: str, latent: int, tokenizer: CLIPTokenizer) -> tuple[Any, Any, Any]:
    """U-Net, VAE and text encoder, all on the meta device: no more than the filled model is ever in memory."""
    size = SIZES[name]
    width, layers, heads, vocabulary, length = size.text
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=latent,
            block_out_channels=size.unet,
            layers_per_block=size.layers,
            cross_attention_dim=width,
            attention_head_dim=size.heads,  # type: ignore[arg-type]  # diffusers' name for the number of heads
            norm_num_groups=size.groups,
            down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in size.attention),
            up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(size.attention)),
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(size.vae),  # type: ignore[arg-type]
            up_block_types=("UpDecoderBlock2D",) * len(size.vae),  # type: ignore[arg-type]
            block_out_channels=size.vae,  # type: ignore[arg-type]
            layers_per_block=size.vae_layers,
            norm_num_groups=min(size.vae) // 4,
            mid_block_add_attention=name == "sd14",
        )
        encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                max_position_embeddings=length,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    return unet, vae, encoder


@torch.no_grad()
def _fill(module: nn.Module, seed: int) -> None:
    """Norms as the identity, other weights drawn in float32 with variance 1 / inputs, one at a time."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        if p.ndim == 1:
            p.fill_(float(name.endswith("weight")))
        else:
            p.copy_(torch.randn(p.shape, generator=generator) * p[0].numel() ** -0.5)
    for buffer in module.buffers():  # there is one kind, CLIP's position numbers
        buffer.copy_(torch.arange(buffer.shape[-1]))


def _tokenizer(vocabulary: int, length: int) -> CLIPTokenizer:
    """One token a letter; the rest of the vocabulary is never met, but its rows are in the embedding table."""
    letters = [chr(c) for c in range(33, 127)]
    known = [*letters, *(letter + "</w>" for letter in letters)]
    known += [f"[unused {i}]" for i in range(vocabulary - len(known) - 2)]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate([*known, "<|startoftext|>", "<|endoftext|>"])},
        merges=[],
        model_max_length=length,
    )

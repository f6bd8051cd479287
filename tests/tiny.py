"""Random models of a few thousand parameters in the real formats: what is true of any model can be tested on them in seconds."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTH = 16  # of the text encoder
POSITIONS = 20


def tokenizer() -> CLIPTokenizer:
    """One token a character, and a few words."""
    letters = [chr(c) for c in range(33, 127)]
    tokens = [*letters, *(c + "</w>" for c in letters)]
    merges = []
    for word in ("cat", "dog", "hat"):
        a, b, c = word
        merges += [(a, b), (a + b, c + "</w>")]
    tokens += [a + b for a, b in merges] + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(dict.fromkeys(tokens))}, merges=merges, model_max_length=POSITIONS)


def text_config(tok: CLIPTokenizer) -> dict[str, Any]:
    return {
        "vocab_size": len(tok),
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": POSITIONS,
        "projection_dim": 12,
        "bos_token_id": tok.bos_token_id,
        "eos_token_id": tok.eos_token_id,
        "pad_token_id": tok.pad_token_id,
    }


def pipeline(prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    """16x16 images. The v-prediction one has another number of latent channels and another latent size."""
    torch.manual_seed(0)
    tok = tokenizer()
    channels, size = (4, 8) if prediction_type == "epsilon" else (6, 4)
    unet = UNet2DConditionModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    blocks = 2 if size == 8 else 3
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(8,) * blocks,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        mid_block_add_attention=False,
        scaling_factor=0.8,
    )
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    encoder = CLIPTextModel(CLIPTextConfig(**text_config(tok)))
    torch.nn.init.normal_(encoder.get_input_embeddings().weight, std=0.5)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tok,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def clip() -> tuple[CLIPModel, CLIPTokenizer]:
    torch.manual_seed(1)
    tok = tokenizer()
    vision = {
        "image_size": 16,
        "patch_size": 4,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 12,
    }
    return CLIPModel(CLIPConfig(text_config=text_config(tok), vision_config=vision, projection_dim=12)).eval(), tok


@cache
def saved(root: Path, kind: str) -> Path:
    """A folder under `root` with the model `epsilon`, `v_prediction` or `clip`."""
    folder = root / f"tiny-{kind}"
    if kind == "clip":
        model, tok = clip()
        model.save_pretrained(folder)
        tok.save_pretrained(folder)
    else:
        pipeline(kind).save_pretrained(folder)
    return folder

"""Random models of a few thousand parameters in the real formats: what is true of any model can be tested on them in seconds."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from hfi.diffusion.training import Training
from hfi.export import compvis

WIDTH = 16  # of the text encoder
WIDTH_2 = 24  # of SDXL's second one
WIDTHS = {"epsilon": (WIDTH,), "v_prediction": (WIDTH,), "xl": (WIDTH, WIDTH_2)}
POSITIONS = 20


def tokenizer(**more: Any) -> CLIPTokenizer:
    """One token a character, and a few words."""
    letters = [chr(c) for c in range(33, 127)]
    tokens = [*letters, *(c + "</w>" for c in letters)]
    merges = []
    for word in ("cat", "dog", "hat"):
        a, b, c = word
        merges += [(a, b), (a + b, c + "</w>")]
    tokens += [a + b for a, b in merges] + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={t: i for i, t in enumerate(dict.fromkeys(tokens))}, merges=merges, model_max_length=POSITIONS, **more
    )


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


def pipeline_xl() -> StableDiffusionXLPipeline:
    """Pictures 16 high and 24 wide, Euler, as the real one: two text encoders of different width and padding, eos 2 in the second's
    configuration, no offset of the steps."""
    torch.manual_seed(0)
    one, two = tokenizer(), tokenizer(pad_token="!")
    width = {"hidden_size": WIDTH_2, "projection_dim": 12, "num_hidden_layers": 3, "hidden_act": "gelu", "eos_token_id": 2}
    encoders = (
        CLIPTextModel(CLIPTextConfig(**text_config(one) | {"num_hidden_layers": 2})),
        CLIPTextModelWithProjection(CLIPTextConfig(**text_config(two) | width)),
    )
    for encoder in encoders:
        torch.nn.init.normal_(encoder.get_input_embeddings().weight, std=0.5)
    torch.nn.init.normal_(encoders[1].text_projection.weight, std=0.5)
    unet = UNet2DConditionModel(
        sample_size=(8, 12),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=WIDTH + WIDTH_2,
        attention_head_dim=2,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=2,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 12,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.13025,
    )
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "leading"}
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=one,
        tokenizer_2=two,
        unet=unet,
        scheduler=EulerDiscreteScheduler(num_train_timesteps=1000, **schedule),
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
    """A folder under `root` with the model `epsilon`, `v_prediction`, `xl` or `clip`."""
    folder = root / f"tiny-{kind}"
    if kind == "clip":
        model, tok = clip()
        model.save_pretrained(folder)
        tok.save_pretrained(folder)
    else:
        (pipeline_xl() if kind == "xl" else pipeline(kind)).save_pretrained(folder)
    return folder


def checkpoint(kind: str) -> dict[str, torch.Tensor]:
    """All weights of the model as SD 1.x (`epsilon`), 2.x (`v_prediction`) or XL (`xl`) were published in one file, with what such
    files hold beside them."""
    pipe = pipeline_xl() if kind == "xl" else pipeline(kind)
    encoders = [pipe.text_encoder, pipe.text_encoder_2] if kind == "xl" else [pipe.text_encoder]
    act = {"hidden_act": "gelu" if kind == "v_prediction" else "quick_gelu"}  # tells OpenCLIP
    configs = {"unet": pipe.unet.config, "vae": pipe.vae.config, "text_encoder": act}
    found = compvis.checkpoint(pipe.unet.state_dict(), pipe.vae.state_dict(), [e.state_dict() for e in encoders], configs)
    if kind == "v_prediction":
        found["cond_stage_model.model.text_projection"] = torch.eye(WIDTH)  # it is there, and SD 2.x does not read it
    return {**found, "alphas_cumprod": torch.ones(1000)}


def finish(training: Training[Any]) -> tuple[Any, list[float]]:
    """A training's result, and the loss of each step."""
    losses = []
    while True:
        try:
            losses.append(next(training).loss)
        except StopIteration as end:
            return end.value, losses

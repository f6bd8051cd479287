"""Random models of a few thousand parameters in the real formats: what is true of any model can be tested on them in seconds."""

import re
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


# --- the original layout: one file, other names ---

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_AROUND = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn": "attn",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def checkpoint(kind: str) -> dict[str, torch.Tensor]:
    """All weights of the model as SD 1.x (`epsilon`), 2.x (`v_prediction`) or XL (`xl`) were published in one file."""
    pipe = pipeline_xl() if kind == "xl" else pipeline(kind)
    found = {f"model.diffusion_model.{_unet_name(k)}": v for k, v in pipe.unet.state_dict().items()}
    for key, value in pipe.vae.state_dict().items():
        name = _vae_name(key, len(pipe.vae.config.block_out_channels))
        conv = ".attn_1." in name and value.ndim == 2
        found[f"first_stage_model.{name}"] = value[:, :, None, None] if conv else value
    if kind == "v_prediction":
        found |= _open_clip(pipe.text_encoder.state_dict(), "cond_stage_model.model.")
        found["cond_stage_model.model.text_projection"] = torch.eye(WIDTH)  # it is there, and SD 2.x does not read it
    else:
        place = "conditioner.embedders.0." if kind == "xl" else "cond_stage_model."
        found |= {f"{place}transformer.text_model.{k}": v for k, v in pipe.text_encoder.state_dict().items()}
    if kind == "xl":
        found |= _open_clip(pipe.text_encoder_2.state_dict(), "conditioner.embedders.1.model.")
    return {name: value.clone().contiguous() for name, value in found.items()} | {"alphas_cumprod": torch.ones(1000)}


def _unet_name(key: str) -> str:
    """For blocks of one layer: down block b is input blocks 1 + 2 b (layer) and 2 + 2 b (downsampling), up block b is output blocks
    2 b and 2 b + 1."""
    for new, old in _AROUND.items():
        if key.startswith(f"{new}."):
            return key.replace(new, old, 1)
    where, rest = key.split(".", 1)
    if where == "mid_block":
        kind, i, rest = rest.split(".", 2)
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(i)}.{_inside(kind, rest)}"
    b, kind, i, rest = rest.split(".", 3)
    if kind == "downsamplers":
        return f"input_blocks.{2 * int(b) + 2}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":  # after the attention, where the block has one
        return f"output_blocks.{2 * int(b) + 1}.{2 if b == '0' else 1}.{rest}"
    column = 1 if kind == "attentions" else 0
    n = 2 * int(b) + int(i)
    place = f"input_blocks.{n + 1}" if where == "down_blocks" else f"output_blocks.{n}"
    return f"{place}.{column}.{_inside(kind, rest)}"


def _inside(kind: str, rest: str) -> str:
    if kind == "attentions":
        return rest
    name, last = rest.split(".")
    return f"{_RESNET[name]}.{last}"


def _vae_name(key: str, blocks: int) -> str:
    key = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{blocks - 1 - int(m[1])}", key).replace("down_blocks", "down")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    for new, old in {
        "resnets": "block",
        "downsamplers.0": "downsample",
        "upsamplers.0": "upsample",
        "mid_block.attentions.0": "mid.attn_1",
        "group_norm": "norm",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "proj_out",
        "conv_shortcut": "nin_shortcut",
        "conv_norm_out": "norm_out",
    }.items():
        key = key.replace(new, old)
    return key


def _open_clip(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    found = {}
    for key, value in weights.items():
        name = _renamed(key.removeprefix("text_model."))
        if name == "text_projection.weight":
            found[f"{prefix}text_projection"] = value.T
        elif ".q_proj." in name:  # the three are one there
            three = torch.cat([weights[key.replace("q_proj", f"{x}_proj")] for x in "qkv"])
            found[prefix + name.replace("q_proj.", "in_proj_")] = three
        elif ".k_proj." not in name and ".v_proj." not in name:
            found[prefix + name] = value
    return found


def _renamed(key: str) -> str:
    for new, old in _OPEN_CLIP.items():
        key = key.replace(new, old)
    return key

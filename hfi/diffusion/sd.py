"""A Stable Diffusion model (1.x or 2.x, epsilon or v-prediction) as a frozen bundle of its parts."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from PIL import Image, ImageOps
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from hfi.diffusion.tokens import expand, placeholders
from hfi.errors import ModelError

log = logging.getLogger(__name__)

_WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
_LIBRARIES = (transformers_logging, diffusers_logging)
_HARMLESS_KEYS = ("position_ids",)  # a buffer that old checkpoints of CLIP carry and newer code does not


@dataclass(frozen=True)
class StableDiffusion:
    """`name` is what the user gave; `content` is the sha256 of the model's files, so it survives a move of the folder."""

    name: str
    content: str
    tokenizer: Any  # CLIPTokenizer
    text_encoder: Any  # CLIPTextModel
    unet: Any  # UNet2DConditionModel
    vae: Any  # AutoencoderKL
    scheduler: Any  # DDIMScheduler
    device: torch.device
    dtype: torch.dtype

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)"""
        size = self.unet.config.sample_size
        h, w = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, h, w

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W)"""
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        _, h, w = self.latent_shape
        return h * factor, w * factor

    @property
    def text_length(self) -> int:
        """L, start and end included."""
        return int(self.tokenizer.model_max_length)

    @property
    def train_steps(self) -> int:
        """Timesteps of the diffusion process."""
        return int(self.scheduler.config.num_train_timesteps)

    @property
    def prediction_type(self) -> str:
        """epsilon or v_prediction."""
        return str(self.scheduler.config.prediction_type)


def pick_device(wanted: str = "auto") -> torch.device:
    """'auto' is cuda, else mps, else cpu. ModelError for a device that is not there."""
    if wanted == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(found)
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise ModelError(f"device {wanted!r} is not usable here ({e}): choose auto, cpu or cuda") from None
    return device


def load_sd(model: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> StableDiffusion:
    """Loads a local folder or a hub id in diffusers' layout; all parts frozen, in evaluation mode.

    ModelError, before weights are read, for what is no Stable Diffusion model; and for weights that do not match the parts, which
    the libraries would load as random numbers.
    """
    folder = find_model(model)
    parts: dict[str, Any] = {}
    for name, part in (("text_encoder", CLIPTextModel), ("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        parts[name] = load_part(part, folder, name, str(model), dtype).to(device).eval().requires_grad_(False)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
        scheduler = _ddim(folder)
    except (OSError, ValueError, TypeError) as e:
        raise ModelError(f"cannot load {model}: {_line(e)}") from e
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        kind = scheduler.config.prediction_type
        raise ModelError(f"{model} predicts {kind!r}: hfi works with models that predict epsilon or v_prediction")
    content = content_id(folder)
    return StableDiffusion(
        str(model), content, tokenizer, parts["text_encoder"], parts["unet"], parts["vae"], scheduler, torch.device(device), dtype
    )


def find_model(model: str | Path) -> Path:
    """The local folder of a model: the given one, or the hub's copy in the cache, downloaded where needed. Reads no weights."""
    folder = Path(model)
    if not folder.is_dir():
        if folder.exists():
            raise ModelError(f"{model} is a file: give a model folder in diffusers' layout, or a hub id such as 'owner/name'")
        if isinstance(model, Path) or str(model).count("/") != 1 or str(model).startswith((".", "/", "~")):
            raise ModelError(
                f"no model {str(model)!r}: give a model folder in diffusers' layout, or a hub id such as 'owner/name'"
            )
        folder = _download(str(model))
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{folder} is no model: it has no model_index.json (a model folder in diffusers' layout has one)"
        ) from None
    except (OSError, ValueError) as e:
        raise ModelError(f"{folder} is no model: model_index.json is unreadable ({_line(e)})") from None
    if "text_encoder_2" in index:
        kind = index.get("_class_name", "this")
        raise ModelError(f"{model} is a {kind} model with two text encoders: hfi works with Stable Diffusion 1.x and 2.x")
    missing = [n for n in (*_WEIGHTS, "tokenizer", "scheduler") if not (folder / n).is_dir()]
    missing += [f"{n}/config.json" for n in _WEIGHTS if n not in missing and not (folder / n / "config.json").exists()]
    missing += [f"the weights of {n}" for n in _WEIGHTS if n not in missing and not _weight_files(folder, n)]
    if missing:
        raise ModelError(f"{model} is no Stable Diffusion model: it lacks {', '.join(missing)}")
    _check_channels(folder, str(model))
    return folder


def _check_channels(folder: Path, model: str) -> None:
    """ModelError for a U-Net of another kind: for inpainting, depth or upscaling it reads more than noisy latents."""
    config = {}
    for name in ("unet", "vae"):
        try:
            config[name] = dict(json.loads((folder / name / "config.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as e:
            raise ModelError(f"{folder} is no model: {name}/config.json is unreadable ({_line(e)})") from None
    reads, gives = (config["unet"].get(key, 4) for key in ("in_channels", "out_channels"))
    latents = config["vae"].get("latent_channels", 4)
    if not reads == gives == latents:
        raise ModelError(
            f"the U-Net of {model} reads {reads} channels and gives {gives}, its VAE has {latents}: hfi works with text-to-image "
            "models, where the three are equal (not with those for inpainting, depth or upscaling)"
        )


def text_width(folder: Path) -> int:
    """D of a model folder's text encoder, read off its configuration."""
    try:
        return int(json.loads((folder / "text_encoder" / "config.json").read_text(encoding="utf-8"))["hidden_size"])
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise ModelError(f"{folder} is no model: text_encoder/config.json names no width ({_line(e)})") from None


def _download(model: str) -> Path:
    try:
        with quiet():
            from diffusers import StableDiffusionPipeline

            found = StableDiffusionPipeline.download(model, safety_checker=None, feature_extractor=None, image_encoder=None)
    except Exception as e:  # the hub client raises its own, requests' and httpx's errors
        raise ModelError(
            f"no folder {model!r} here, and the hub gives no model of that name ({type(e).__name__}): check the name, "
            "the network and your access to it"
        ) from e
    return Path(found)


def _weight_files(folder: Path, name: str) -> list[Path]:
    stem = _WEIGHTS[name]
    for suffix in (".safetensors", ".bin"):
        alias = "pytorch_model" if (suffix == ".bin" and stem == "model") else stem
        whole = folder / name / f"{alias}{suffix}"
        shards = sorted((folder / name).glob(f"{alias}-*-of-*{suffix}"))
        if whole.exists() or shards:
            return [whole] if whole.exists() else shards
    return []


def content_id(folder: Path) -> str:
    """sha256 over configurations, vocabulary and weights of a model folder: the same wherever the folder lies."""
    files = [f for name in _WEIGHTS for f in (folder / name / "config.json", *_weight_files(folder, name))]
    files += [f for name in ("tokenizer", "scheduler") for f in sorted((folder / name).iterdir()) if f.is_file()]
    return hash_files(folder, files)


def hash_files(folder: Path, files: Sequence[Path]) -> str:
    total = hashlib.sha256()
    for file in sorted(files):
        stat = file.stat()
        sha = _hash_file(file, stat.st_size, stat.st_mtime_ns)
        total.update(f"{file.relative_to(folder).as_posix()}\0{sha}\n".encode())
    return total.hexdigest()


@lru_cache(maxsize=256)
def _hash_file(path: Path, size: int, mtime_ns: int) -> str:
    """`size` and `mtime_ns` are there for the cache: a changed file is read again."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_part(part: Any, folder: Path, subfolder: str, model: str, dtype: torch.dtype = torch.float32) -> Any:
    """One part. ModelError naming the weights that are missing, left over or of another shape."""
    try:
        with quiet():
            loaded, info = part.from_pretrained(
                folder, subfolder=subfolder, output_loading_info=True, local_files_only=True, torch_dtype=dtype
            )
    except Exception as e:  # safetensors, torch, transformers and diffusers each have their own
        raise ModelError(f"cannot load {subfolder or 'the weights'} of {model}: {_line(e)}") from e
    for kind, words in (("missing_keys", "lacks"), ("unexpected_keys", "has unknown"), ("mismatched_keys", "has misshapen")):
        names = sorted(str(k) for k in info.get(kind, ()) if not str(k).endswith(_HARMLESS_KEYS))
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ModelError(f"{subfolder or 'the model'} of {model} {words} weights: {', '.join(names[:3])}{more}")
    return loaded


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and warnings of the libraries: what matters in them we say ourselves, as an error."""
    shown, levels = transformers_logging.is_progress_bar_enabled(), [lib.get_verbosity() for lib in _LIBRARIES]
    transformers_logging.disable_progress_bar()
    for lib in _LIBRARIES:
        lib.set_verbosity_error()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
        for lib, level in zip(_LIBRARIES, levels, strict=True):
            lib.set_verbosity(level)


def _ddim(folder: Path) -> Any:
    """The model's schedule as DDIM, with the two corrections that StableDiffusionPipeline makes to old configurations."""
    config = dict(DDIMScheduler.load_config(folder, subfolder="scheduler"))
    return DDIMScheduler.from_config({**config, "clip_sample": False, "steps_offset": 1})


def _line(e: BaseException) -> str:
    return " ".join(str(e).split())[:300] or type(e).__name__


# --- text ---


_told: set[str] = set()  # prompts that were said to be cut


def tokenize(sd: StableDiffusion, prompts: Sequence[str], suffix: str = "") -> Tensor:
    """Token ids [B, L] of prompts, each followed by `suffix`. Multi-vector tokens are expanded.

    What does not fit is cut from the end of the prompt, never from the suffix, and said in one warning line.
    """
    room = sd.text_length - 2
    end = _ids(sd, suffix) if suffix else []
    if len(end) > room:
        raise ModelError(f"{suffix!r} takes {len(end)} tokens: this model reads {room}")
    rows, cut = [], []
    for prompt in prompts:
        ids = _ids(sd, prompt)
        if len(ids) + len(end) > room:
            lost = sd.tokenizer.decode(ids[room - len(end) :]).strip()
            cut.append((prompt, lost))
            ids = ids[: room - len(end)]
        ids = [sd.tokenizer.bos_token_id, *ids, *end, sd.tokenizer.eos_token_id]
        rows.append(ids + [sd.tokenizer.pad_token_id] * (sd.text_length - len(ids)))
    if cut := [(prompt, lost) for prompt, lost in cut if prompt not in _told]:
        _told.update(prompt for prompt, _ in cut)
        prompt, lost = cut[0]
        more = f" (and {len(cut) - 1} more prompts)" if len(cut) > 1 else ""
        log.warning(f"prompt cut: this model reads {room} tokens, so '{_short(prompt)}' loses '{_short(lost)}'{more}")
    return torch.tensor(rows, dtype=torch.long, device=sd.device)


def _ids(sd: StableDiffusion, text: str) -> list[int]:
    ids: list[int] = sd.tokenizer(expand(sd.tokenizer, text), add_special_tokens=False, verbose=False).input_ids
    return ids


def _short(text: str, width: int = 60) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def encode_ids(sd: StableDiffusion, ids: Tensor) -> Tensor:
    """Token ids [B, L] -> hidden states [B, L, D]."""
    mask = None
    if getattr(sd.text_encoder.config, "use_attention_mask", False):
        ends = (ids == sd.tokenizer.eos_token_id).long()  # up to the first end token: padding may be made of the same one
        mask = (ends.cumsum(1) - ends == 0).long()
    states: Tensor = sd.text_encoder(ids, attention_mask=mask).last_hidden_state
    return states.to(sd.dtype)


@torch.no_grad()
def encode_prompts(sd: StableDiffusion, prompts: Sequence[str], suffix: str = "", batch_size: int = 64) -> Tensor:
    """Hidden states [B, L, D] of prompts, each followed by `suffix` (see `tokenize`). Equal prompts are encoded once."""
    unique = list(dict.fromkeys(prompts))
    ids = tokenize(sd, unique, suffix)
    states = torch.cat([encode_ids(sd, part) for part in ids.split(batch_size)])
    place = {prompt: i for i, prompt in enumerate(unique)}
    return states[[place[prompt] for prompt in prompts]]


def check_placeholders(sd: StableDiffusion, text: str) -> None:
    """ModelError where the text names a <token> that is not installed: it would be read as loose letters."""
    if unknown := [p for p in placeholders(text) if p not in sd.tokenizer.added_tokens_encoder]:
        raise ModelError(f"{unknown[0]} is not installed: give its file with --token")


# --- pictures ---


def to_pixels(sd: StableDiffusion, images: Sequence[Image.Image]) -> Tensor:
    """PIL images -> [B, 3, H, W] in [-1, 1] of the model's size; others are scaled to cover it and cut at the centre."""
    h, w = sd.image_size
    fitted = [image if image.size == (w, h) else ImageOps.fit(image, (w, h), Image.Resampling.LANCZOS) for image in images]
    pixels = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) for image in fitted])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).div(127.5).sub(1).to(sd.device, sd.dtype)


def to_images(pixels: Tensor) -> list[Image.Image]:
    """[B, 3, H, W] in [-1, 1] -> PIL images, rounded as diffusers does."""
    array = (pixels.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(x) for x in (array * 255).round().astype(np.uint8)]


@torch.no_grad()
def encode_images(sd: StableDiffusion, images: Sequence[Image.Image], batch_size: int = 4) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [B, C, h, w] of the latents, float32, both in the U-Net's scale: z = mean + std * noise."""
    means, stds = [], []
    for i in range(0, len(images), batch_size):
        latents = sd.vae.encode(to_pixels(sd, images[i : i + batch_size])).latent_dist
        means.append(latents.mean.float() * sd.vae.config.scaling_factor)
        stds.append(latents.std.float() * sd.vae.config.scaling_factor)
    return torch.cat(means), torch.cat(stds)


@torch.no_grad()
def decode(sd: StableDiffusion, latents: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, 3, H, W] in [-1, 1]."""
    pixels: Tensor = sd.vae.decode(latents / sd.vae.config.scaling_factor).sample
    return pixels.clamp(-1, 1)


# --- the network ---


def predict(unet: Any, weights: Mapping[str, Tensor] | None, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
    """The U-Net's output (epsilon or v, as trained) for x [B, C, h, w], t [B] or [], cond [B, L, D] -> [B, C, h, w].

    `weights` stand in for the U-Net's own tensors of those names: student, teacher and frozen model share everything else. They
    may be kept in another precision than the U-Net's; gradients flow to them. The network computes in the dtype of `cond`, its
    own; x and the output keep theirs, so that the arithmetic around a network in half precision stays in float32.
    """
    inner = x.to(cond.dtype)
    if weights:
        here = {name: value.to(cond.dtype) for name, value in weights.items()}
        out: Tensor = torch.func.functional_call(unet, here, (inner, t, cond)).sample
    else:
        out = unet(inner, t, cond).sample
    return out.to(x.dtype)


def velocity_weight(sd: StableDiffusion, t: Tensor) -> Tensor:
    """[B]: the squared error of a prediction at timesteps t [B], times this, is that of the velocity (Salimans & Ho 2022).

    At a given x_t, v = (eps - sqrt(1-a) x_t) / sqrt(a): 1/a for a model that predicts epsilon, 1 for one that predicts v. Errors
    of epsilon are small where an image is nearly all noise, which is where its content is decided; those of v are not.
    """
    if sd.prediction_type == "v_prediction":
        return torch.ones(len(t), device=t.device)
    return 1 / sd.scheduler.alphas_cumprod.to(t.device)[t]

"""A Stable Diffusion model (1.x, 2.x or XL; epsilon or v-prediction) as a frozen bundle of its parts."""

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
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from hfi import distributed, hub
from hfi.diffusion.cond import Cond
from hfi.diffusion.single_file import SUFFIXES, config_folder, part_of, read_checkpoint
from hfi.diffusion.tokens import expand, placeholders
from hfi.errors import ModelError, UsageError
from hfi.images import MAX_PIXELS

log = logging.getLogger(__name__)

_PARTS: dict[str, tuple[Any, str]] = {  # class, and name of its weights' file
    "text_encoder": (CLIPTextModel, "model"),
    "text_encoder_2": (CLIPTextModelWithProjection, "model"),
    "unet": (UNet2DConditionModel, "diffusion_pytorch_model"),
    "vae": (AutoencoderKL, "diffusion_pytorch_model"),
}
_WEIGHTS = tuple(f"{name}/{stem}{of}.safetensors" for name, (_, stem) in _PARTS.items() for of in ("", "-*-of-*"))
FILES = (*hub.CONFIGURATIONS, *_WEIGHTS)  # what of a model on the hub is downloaded
# said of a folder or a hub id; a checkpoint file whose name is given was asked for
NO_PICKLES = (
    "as .safetensors: pickles (.bin), which can run a program when they are read, are not taken; where you trust them, convert "
    "them with diffusers' or transformers' from_pretrained(..., use_safetensors=False).save_pretrained(NEW_FOLDER)"
)
_LIBRARIES = (transformers_logging, diffusers_logging)
_HARMLESS_KEYS = ("position_ids",)  # a buffer that old checkpoints of CLIP carry and newer code does not


@dataclass(frozen=True)
class StableDiffusion:
    """`name` is what the user gave; `content` is the sha256 of the model's files, so it survives a move of the folder.

    SD 1.x and 2.x have one text encoder, SDXL has two. `zero_null`: guidance takes zeros for the empty prompt.
    """

    name: str
    content: str
    tokenizers: tuple[Any, ...]  # CLIPTokenizer, one for each encoder
    text_encoders: tuple[Any, ...]  # CLIPTextModel, CLIPTextModelWithProjection
    unet: Any  # UNet2DConditionModel
    vae: Any  # AutoencoderKL
    scheduler: Any  # DDIMScheduler
    zero_null: bool
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
        return int(self.tokenizers[0].model_max_length)

    @property
    def train_steps(self) -> int:
        """Timesteps of the diffusion process."""
        return int(self.scheduler.config.num_train_timesteps)

    @property
    def prediction_type(self) -> str:
        """epsilon or v_prediction."""
        return str(self.scheduler.config.prediction_type)


def pick_device(wanted: str = "auto") -> torch.device:
    """'auto' is cuda, else mps, else cpu; of several processes on a machine each has a GPU of its own, unless they were told to stay
    on the CPU. ModelError for a device that is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    usable = [name for name, here in there.items() if here]
    if distributed.size() > 1:
        if ":" in wanted:
            raise UsageError(
                f"--device {wanted} with {distributed.size()} processes: each has a GPU of its own, so say cuda or cpu"
            )
        if wanted == "auto":
            wanted = "cpu" if distributed.on_cpu() or not there["cuda"] else "cuda"
        if wanted == "cuda" and there["cuda"]:
            if (wanting := distributed.local_size()) > (count := torch.cuda.device_count()):
                raise ModelError(
                    f"{wanting} processes on this machine and {count} GPU{'s' * (count > 1)}: start one for each GPU with "
                    "--num_processes, or give --cpu"
                )
            return torch.device("cuda", distributed.local_rank())
    if wanted == "auto":
        return torch.device(usable[0])
    try:
        if wanted.partition(":")[0] not in usable:
            raise RuntimeError
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise ModelError(f"device {wanted!r} is not usable here: choose {', '.join(usable)} or auto") from None
    return device


def load_sd(model: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> StableDiffusion:
    """Loads a folder or a hub id in diffusers' layout, or a checkpoint file; all parts frozen, in evaluation mode.

    ModelError, before weights are read, for what is no Stable Diffusion model; and for weights that do not match the parts, which
    the libraries would load as random numbers.
    """
    source = find_model(model)
    folder = configurations(source)
    encoders, tokenizer_names = _encoders(folder), _tokenizers(folder)
    try:
        tokenizers = tuple(CLIPTokenizer.from_pretrained(folder, subfolder=name) for name in tokenizer_names)
        scheduler = _ddim(folder)
    except (OSError, ValueError, TypeError) as e:
        raise ModelError(f"cannot load {model}: {_line(e)}") from e
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        kind = scheduler.config.prediction_type
        raise ModelError(f"{model} predicts {kind!r}: hfi works with models that predict epsilon or v_prediction")
    loaded = _load_parts(source, (*encoders, "unet", "vae"), str(model), dtype)
    parts = {name: part.to(device).eval().requires_grad_(False) for name, part in loaded.items()}
    return StableDiffusion(
        str(model),
        content_id(source),
        tokenizers,
        tuple(parts[name] for name in encoders),
        parts["unet"],
        parts["vae"],
        scheduler,
        _zero_null(folder),
        torch.device(device),
        dtype,
    )


def load_unet(source: Path, model: str) -> Any:
    """The U-Net alone, of what `find_model` found."""
    return _load_parts(source, ("unet",), model, torch.float32)["unet"]


def _load_parts(source: Path, names: Sequence[str], model: str, dtype: torch.dtype) -> dict[str, Any]:
    folder = configurations(source)
    if source.is_dir():
        return {name: load_part(_PARTS[name][0], folder, name, model, dtype) for name in names}
    checkpoint = read_checkpoint(source)
    return {name: _from_checkpoint(checkpoint, _PARTS[name][0], folder, name, model, dtype) for name in names}


def find_model(model: str | Path) -> Path:
    """The folder of a model, or its checkpoint file: the given one, or the hub's copy in the cache, downloaded where needed. Reads
    no weights."""
    accepted = "give a model folder in diffusers' layout, a .safetensors or .ckpt checkpoint, or a hub id such as 'owner/name'"
    source = Path(model)
    if source.is_file():
        if source.suffix not in SUFFIXES:
            raise ModelError(f"{model} is a file, and no checkpoint: {accepted}")
    elif not source.is_dir():
        if not hub.is_id(model):
            raise ModelError(f"no model {str(model)!r}: {accepted}")
        source = hub.download(str(model), FILES)
    folder = configurations(source)
    parts, others = (*_encoders(folder), "unet", "vae"), (*_tokenizers(folder), "scheduler")
    missing = [n for n in (*parts, *others) if not (folder / n).is_dir()]
    missing += [f"{n}/config.json" for n in parts if n not in missing and not (folder / n / "config.json").exists()]
    if missing:
        raise ModelError(f"{model} is no Stable Diffusion model: it lacks {', '.join(missing)}")
    if source.is_dir() and (bare := [n for n in parts if not _weight_files(folder, n)]):
        raise ModelError(f"{model} lacks the weights of {', '.join(bare)} {NO_PICKLES}")
    _check_kind(folder, str(model))
    return source


def configurations(source: Path) -> Path:
    """The folder with the configurations of what `find_model` found."""
    return config_folder(source) if source.is_file() else source


def text_widths(source: Path) -> list[int]:
    """D of each text encoder of what `find_model` found. Reads no weights."""
    folder = configurations(source)
    return [int(_json(folder, f"{name}/config.json").get("hidden_size", 512)) for name in _encoders(folder)]


def _encoders(folder: Path) -> tuple[str, ...]:
    return ("text_encoder", "text_encoder_2") if "text_encoder_2" in _json(folder, "model_index.json") else ("text_encoder",)


def _tokenizers(folder: Path) -> tuple[str, ...]:
    return tuple(name.replace("text_encoder", "tokenizer") for name in _encoders(folder))


def _zero_null(folder: Path) -> bool:
    """As StableDiffusionXLPipeline reads it; the pipeline of SD 1.x and 2.x knows no such thing."""
    index = _json(folder, "model_index.json")
    return "text_encoder_2" in index and bool(index.get("force_zeros_for_empty_prompt", True))


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / name).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ModelError(f"{folder} is no model: it has no {name} (a model folder in diffusers' layout has one)") from None
    except (OSError, ValueError, TypeError) as e:
        raise ModelError(f"{folder} is no model: {name} is unreadable ({_line(e)})") from None


def _check_kind(folder: Path, model: str) -> None:
    """ModelError for a U-Net of another kind: for inpainting, depth or upscaling it reads more than noisy latents, and what it
    takes beside the text's states must be what SDXL's second encoder gives."""
    unet, vae = (_json(folder, f"{name}/config.json") for name in ("unet", "vae"))
    reads, gives = (unet.get(key, 4) for key in ("in_channels", "out_channels"))
    latents = vae.get("latent_channels", 4)
    size, factor = unet.get("sample_size") or 0, 2 ** (len(vae.get("block_out_channels") or [0]) - 1)
    sides = [size, size] if isinstance(size, int) else size
    if not (isinstance(sides, list) and len(sides) == 2 and all(type(side) is int for side in sides)):
        raise ModelError(
            f"{model} is no Stable Diffusion model: the sample_size of its U-Net is {str(size)[:40]!r}, which is no size"
        )
    if (height := sides[0] * factor) * (width := sides[1] * factor) > MAX_PIXELS:
        raise ModelError(f"{model} says that it makes images of {width}x{height} pixels: at most {MAX_PIXELS:,} are made")
    if not reads == gives == latents:
        raise ModelError(
            f"the U-Net of {model} reads {reads} channels and gives {gives}, its VAE has {latents}: hfi works with text-to-image "
            "models, where the three are equal (not with those for inpainting, depth or upscaling)"
        )
    takes, fits = (
        unet.get("addition_embed_type") or unet.get("class_embed_type"),
        "text_time" if len(_encoders(folder)) == 2 else None,
    )
    if takes != fits:
        raise ModelError(
            f"the U-Net of {model} takes {takes or 'nothing'} beside the text, its text encoders give {fits or 'nothing'}: hfi works "
            "with Stable Diffusion 1.x, 2.x and XL"
        )


def _weight_files(folder: Path, name: str) -> list[Path]:
    whole = folder / name / f"{_PARTS[name][1]}.safetensors"
    return [whole] if whole.exists() else sorted((folder / name).glob(f"{_PARTS[name][1]}-*-of-*.safetensors"))


def content_id(source: Path) -> str:
    """sha256 over configurations, vocabulary and weights of what `find_model` found: the same wherever it lies."""
    folder = configurations(source)
    parts = (*_encoders(folder), "unet", "vae")
    files = [folder / name / "config.json" for name in parts]
    files += [f for name in (*_tokenizers(folder), "scheduler") for f in sorted((folder / name).iterdir()) if f.is_file()]
    more = {"force_zeros_for_empty_prompt": "true"} if _zero_null(folder) else {}
    if source.is_file():
        more["checkpoint"] = _hash(source)
    else:
        files += [f for name in parts for f in _weight_files(folder, name)]
    return hash_files(folder, files, more)


def hash_files(folder: Path, files: Sequence[Path], more: Mapping[str, str] | None = None) -> str:
    """sha256 over files, by their place in the folder, and over what else counts."""
    total = hashlib.sha256()
    for file in sorted(files):
        total.update(f"{file.relative_to(folder).as_posix()}\0{_hash(file)}\n".encode())
    for name, value in sorted((more or {}).items()):
        total.update(f"{name}\0{value}\n".encode())
    return total.hexdigest()


def _hash(file: Path) -> str:
    stat = file.stat()
    return _hash_file(file, stat.st_size, stat.st_mtime_ns)


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
                folder,
                subfolder=subfolder,
                output_loading_info=True,
                local_files_only=True,
                use_safetensors=True,
                torch_dtype=dtype,
            )
    except Exception as e:  # safetensors, torch, transformers and diffusers each have their own
        raise ModelError(f"cannot load {subfolder or 'the weights'} of {model}: {_line(e)}") from e
    _check_weights(info, subfolder, model)
    return loaded


def _from_checkpoint(checkpoint: Mapping[str, Tensor], part: Any, folder: Path, name: str, model: str, dtype: torch.dtype) -> Any:
    """One part of a checkpoint file, with the same errors."""
    try:
        with quiet():
            made, weights = part_of(checkpoint, part, folder, name)
    except Exception as e:  # the converters look up what they expect
        raise ModelError(f"cannot load {name} of {model}: {_line(e)}") from e
    wanted = made.state_dict()
    weights = {key: value for key, value in weights.items() if not key.endswith(_HARMLESS_KEYS)}
    info = {
        "missing_keys": wanted.keys() - weights.keys(),
        "unexpected_keys": weights.keys() - wanted.keys(),
        "mismatched_keys": {key for key, value in weights.items() if key in wanted and value.shape != wanted[key].shape},
    }
    _check_weights(info, name, model)
    made.load_state_dict(weights, assign=True)
    return made.to(dtype)


def _check_weights(info: Mapping[str, Any], name: str, model: str) -> None:
    for kind, words in (("missing_keys", "lacks"), ("unexpected_keys", "has unknown"), ("mismatched_keys", "has misshapen")):
        names = sorted(str(k) for k in info.get(kind, ()) if not str(k).endswith(_HARMLESS_KEYS))
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ModelError(f"{name or 'the model'} of {model} {words} weights: {', '.join(names[:3])}{more}")


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
    """The model's schedule as DDIM, whatever scheduler it comes with (SDXL's is Euler). For SD 1.x and 2.x with the two corrections
    that their pipeline makes to old configurations."""
    config = dict(DDIMScheduler.load_config(folder, subfolder="scheduler"))
    if "beta_start" not in config:  # a flow or EDM schedule, which DDIM would silently replace by its own default
        raise ModelError(f"{folder} samples with {config.get('_class_name')}: hfi works with models that DDIM can sample")
    corrections = {"clip_sample": False} if len(_encoders(folder)) == 2 else {"clip_sample": False, "steps_offset": 1}
    return DDIMScheduler.from_config({**config, **corrections})


def _line(e: BaseException) -> str:
    return " ".join(str(e).split())[:300] or type(e).__name__


# --- text ---


_told: set[str] = set()  # prompts that were said to be cut


def tokenize(sd: StableDiffusion, prompts: Sequence[str], suffix: str = "") -> Tensor:
    """Token ids [B, E, L] of prompts for the E text encoders, each prompt followed by `suffix`. Multi-vector tokens are expanded.

    What does not fit is cut from the end of the prompt, never from the suffix, and said in one warning line.
    """
    room = sd.text_length - 2
    columns: list[list[list[int]]] = []
    cut: dict[str, str] = {}
    for tokenizer in sd.tokenizers:
        end = _ids(tokenizer, suffix) if suffix else []
        if len(end) > room:
            raise ModelError(f"{suffix!r} takes {len(end)} tokens: this model reads {room}")
        rows = []
        for prompt in prompts:
            ids = _ids(tokenizer, prompt)
            if len(ids) + len(end) > room:
                cut.setdefault(prompt, tokenizer.decode(ids[room - len(end) :]).strip())
                ids = ids[: room - len(end)]
            ids = [tokenizer.bos_token_id, *ids, *end, tokenizer.eos_token_id]
            rows.append(ids + [tokenizer.pad_token_id] * (sd.text_length - len(ids)))
        columns.append(rows)
    if new := [prompt for prompt in cut if prompt not in _told]:
        _told.update(new)
        more = f" (and {len(new) - 1} more prompts)" if len(new) > 1 else ""
        log.warning(f"prompt cut: this model reads {room} tokens, so '{_short(new[0])}' loses '{_short(cut[new[0]])}'{more}")
    return torch.tensor(columns, dtype=torch.long, device=sd.device).transpose(0, 1)


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(expand(tokenizer, text), add_special_tokens=False, verbose=False).input_ids
    return ids


def _short(text: str, width: int = 60) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def encode_ids(sd: StableDiffusion, ids: Tensor) -> Cond:
    """Token ids [B, E, L] -> B conditions.

    SD 1.x and 2.x: the encoder's last states. SDXL: the last but one of both encoders, side by side, and the second one's
    projected state at the end of the text. transformers pools at the highest id where a configuration says eos 2, as SDXL's does:
    that is a learned token wherever there is one, and the end token only elsewhere; so the end is looked up here.
    """
    if len(sd.text_encoders) == 1:
        (encoder,), (tokenizer,), ids = sd.text_encoders, sd.tokenizers, ids[:, 0]
        mask = None
        if getattr(encoder.config, "use_attention_mask", False):
            ends = (ids == tokenizer.eos_token_id).long()  # up to the first end token: padding may be made of the same one
            mask = (ends.cumsum(1) - ends == 0).long()
        return Cond(encoder(ids, attention_mask=mask).last_hidden_state.to(sd.dtype))
    outs = [encoder(ids[:, e], output_hidden_states=True) for e, encoder in enumerate(sd.text_encoders)]
    states = torch.cat([out.hidden_states[-2] for out in outs], dim=-1)
    first_end = (ids[:, -1] == sd.tokenizers[-1].eos_token_id).int().argmax(1)
    ends = outs[-1].last_hidden_state[torch.arange(len(ids), device=ids.device), first_end]
    return Cond(states.to(sd.dtype), sd.text_encoders[-1].text_projection(ends).to(sd.dtype))


@torch.no_grad()
def encode_prompts(sd: StableDiffusion, prompts: Sequence[str], suffix: str = "", batch_size: int = 64) -> Cond:
    """One condition for each prompt, followed by `suffix` (see `tokenize`). Equal prompts are encoded once."""
    unique = list(dict.fromkeys(prompts))
    ids = tokenize(sd, unique, suffix)
    found = Cond.cat([encode_ids(sd, part) for part in ids.split(batch_size)])
    place = {prompt: i for i, prompt in enumerate(unique)}
    return found[[place[prompt] for prompt in prompts]]


def encode_null(sd: StableDiffusion) -> Cond:
    """The condition of no prompt, which guidance starts from: the empty text, or zeros where the model was made so."""
    empty = encode_prompts(sd, [""])
    if not sd.zero_null:
        return empty
    return Cond(torch.zeros_like(empty.states), None if empty.pooled is None else torch.zeros_like(empty.pooled))


def check_placeholders(sd: StableDiffusion, text: str) -> None:
    """ModelError where the text names a <token> that is not installed: it would be read as loose letters."""
    if unknown := [p for p in placeholders(text) if p not in sd.tokenizers[0].added_tokens_encoder]:
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


def predict(sd: StableDiffusion, weights: Mapping[str, Tensor] | None, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """The U-Net's output (epsilon or v, as trained) for x [B, C, h, w], t [B] or [], B conditions -> [B, C, h, w].

    `weights` stand in for the U-Net's own tensors of those names: student, teacher and frozen model share everything else. They
    may be kept in another precision than the U-Net's; gradients flow to them. The network computes in the dtype of `cond`, its
    own; x and the output keep theirs, so that the arithmetic around a network in half precision stays in float32.
    """
    states, more = cond.states, {}
    if cond.pooled is not None:  # SDXL is also told of the picture: its size, where it was cut (not at all) and its final size
        size = torch.tensor([*sd.image_size, 0, 0, *sd.image_size], dtype=torch.float32, device=x.device)
        more["added_cond_kwargs"] = {"text_embeds": cond.pooled, "time_ids": size.expand(len(x), -1)}
    inner = x.to(states.dtype)
    if weights:
        here = {name: value.to(states.dtype) for name, value in weights.items()}
        out: Tensor = torch.func.functional_call(sd.unet, here, (inner, t, states), more).sample
    else:
        out = sd.unet(inner, t, states, **more).sample
    return out.to(x.dtype)


def diffused(sd: StableDiffusion, z0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(z_t, what the network should predict there: the noise, or the velocity), of clean latents z0 and noise [B, C, h, w] at
    timesteps t [B]."""
    target = sd.scheduler.get_velocity(z0, noise, t) if sd.prediction_type == "v_prediction" else noise
    return sd.scheduler.add_noise(z0, noise, t), target


def velocity_weight(sd: StableDiffusion, t: Tensor) -> Tensor:
    """[B]: the squared error of a prediction at timesteps t [B], times this, is that of the velocity (Salimans & Ho 2022).

    At a given x_t, v = (eps - sqrt(1-a) x_t) / sqrt(a): 1/a for a model that predicts epsilon, 1 for one that predicts v. Errors
    of epsilon are small where an image is nearly all noise, which is where its content is decided; those of v are not.
    """
    if sd.prediction_type == "v_prediction":
        return torch.ones(len(t), device=t.device)
    return 1 / sd.scheduler.alphas_cumprod.to(t.device)[t]

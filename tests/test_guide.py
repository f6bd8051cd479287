"""Guidance methods against the pipelines that their authors gave diffusers, and against themselves."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SemanticStableDiffusionPipeline, StableDiffusionPipeline, StableDiffusionPipelineSafe
from tiny import WIDTH, saved
from torch import Tensor

from hfi.diffusion.sample import Guidance, noise, sample, sample_latents
from hfi.diffusion.sd import StableDiffusion, encode_null, encode_prompts, load_sd
from hfi.diffusion.tokens import LearnedToken, expand, install
from hfi.errors import UsageError
from hfi.guide import GUIDES, guidance
from hfi.guide.sega import edit
from hfi.guide.sld import SLD, safety

PROMPTS, SEEDS, STEPS, SCALE = ["a cat", "a dog hat", ""], [3, 4, 5], 18, 3.0
SLD_PRESETS = {  # as published: warm-up, scale, threshold, momentum's scale and beta
    "sld-weak": (15, 20, 0.0, 0.0, 0.0),
    "sld-medium": (10, 1000, 0.01, 0.3, 0.4),
    "sld-strong": (7, 2000, 0.025, 0.5, 0.7),
    "sld-max": (0, 5000, 1.0, 0.5, 0.7),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def models(root: Path) -> dict[str, StableDiffusion]:
    """Each with a token of three vectors."""
    drawn = torch.Generator().manual_seed(7)
    token = LearnedToken("<fog>", (torch.randn(3, WIDTH, generator=drawn),))
    return {kind: install(load_sd(saved(root, kind)), token) for kind in ("epsilon", "v_prediction")}


def pipeline(kind: Any, sd: StableDiffusion) -> Any:
    """A pipeline of diffusers, made of the parts of `sd`."""
    parts = {"vae": sd.vae, "unet": sd.unet, "tokenizer": sd.tokenizers[0], "text_encoder": sd.text_encoders[0]}
    scheduler = type(sd.scheduler).from_config(sd.scheduler.config)
    pipe = kind(**parts, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(kind: Any, sd: StableDiffusion, texts: Sequence[str], x: Tensor, **more: Any) -> tuple[Tensor, list[Tensor]]:
    """Final latents and every step's guided output of a pipeline of diffusers."""
    pipe = pipeline(kind, sd)
    written = [expand(sd.tokenizers[0], text) for text in texts]
    if kind is StableDiffusionPipelineSafe:
        pipe.safety_concept = ", ".join(written)
    else:
        more |= {"editing_prompt": written, "reverse_editing_direction": [True] * len(texts)}
    outputs, latents = [], [x]
    step = pipe.scheduler.step

    def listen(out: Tensor, *args: Any, **kwargs: Any) -> Any:
        outputs.append(out.clone())
        return step(out, *args, **kwargs)

    pipe.scheduler.step = listen
    pipe(
        PROMPTS,
        latents=x.clone(),
        height=sd.image_size[0],
        width=sd.image_size[1],
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        callback=lambda i, t, z: latents.append(z.clone()),
        **more,
    )
    return latents[-1], outputs


def ours(sd: StableDiffusion, method: Guidance, x: Tensor, prompts: Sequence[str] = PROMPTS) -> tuple[Tensor, list[Tensor]]:
    outputs = []

    def begin(scale: float) -> Any:
        combine = method.begin(scale)

        def listening(*given: Any) -> Tensor:
            outputs.append(combine(*given))
            return outputs[-1]

        return listening

    listened = replace(method, begin=begin)
    null, cond = encode_null(sd), encode_prompts(sd, prompts)
    return sample_latents(sd, cond, null, x, steps=STEPS, guidance_scale=SCALE, guidance=listened), outputs


def compare(mine: tuple[Tensor, list[Tensor]], other: tuple[Tensor, list[Tensor]]) -> None:
    assert len(mine[1]) == len(other[1]) == STEPS
    for step in range(STEPS):
        torch.testing.assert_close(mine[1][step], other[1][step], rtol=1e-4, atol=1e-4, msg=lambda m, k=step: f"step {k}: {m}")
    torch.testing.assert_close(mine[0], other[0], rtol=1e-4, atol=1e-4)


def begins_after(warmup: int, sd: StableDiffusion, outputs: list[Tensor], x: Tensor) -> None:
    """Plain guidance during warm-up, and something else from then on."""
    _, plain = ours(sd, Guidance("plain"), x)
    apart = [float((a - b).abs().max()) for a, b in zip(outputs, plain, strict=True)]
    assert max(apart[:warmup], default=0) < 1e-5
    assert min(apart[warmup:]) > 1e-4, apart


KINDS = pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
TEXTS = ["<fog>", "dog"]  # two concepts, one of them a token of three vectors


@KINDS
@pytest.mark.parametrize("name", SLD_PRESETS)
def test_sld_equals_the_pipeline(models: dict[str, StableDiffusion], kind: str, name: str) -> None:
    sd = models[kind]
    x = noise(sd, SEEDS)
    names = ("sld_warmup_steps", "sld_guidance_scale", "sld_threshold", "sld_momentum_scale", "sld_mom_beta")
    settings = dict(zip(names, SLD_PRESETS[name], strict=True))
    mine = ours(sd, guidance(name, TEXTS), x)
    compare(mine, theirs(StableDiffusionPipelineSafe, sd, TEXTS, x, **settings))
    begins_after(SLD_PRESETS[name][0], sd, mine[1], x)


@KINDS
@pytest.mark.parametrize("texts", [["cat"], TEXTS])
def test_sega_equals_the_pipeline(models: dict[str, StableDiffusion], kind: str, texts: list[str]) -> None:
    sd = models[kind]
    x = noise(sd, SEEDS)
    mine = ours(sd, guidance("sega", texts), x)
    compare(mine, theirs(SemanticStableDiffusionPipeline, sd, texts, x))
    begins_after(10, sd, mine[1], x)


@KINDS
def test_negative_equals_the_pipeline(models: dict[str, StableDiffusion], kind: str) -> None:
    sd = models[kind]
    x = noise(sd, SEEDS)
    pipe = pipeline(StableDiffusionPipeline, sd)
    negative = expand(sd.tokenizers[0], ", ".join(TEXTS))
    size = dict(zip(("height", "width"), sd.image_size, strict=True))
    how = {"num_inference_steps": 6, "guidance_scale": SCALE, "output_type": "latent", **size}
    their = pipe(PROMPTS, negative_prompt=[negative] * 3, latents=x.clone(), **how).images
    null, cond = encode_null(sd), encode_prompts(sd, PROMPTS)
    mine = [sample_latents(sd, cond, null, x, steps=6, guidance_scale=SCALE, guidance=g) for g in (guidance("neg", TEXTS), None)]
    torch.testing.assert_close(mine[0], their, rtol=1e-4, atol=1e-4)
    assert (mine[0] - mine[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", GUIDES)
def test_an_image_does_not_depend_on_its_neighbours(models: dict[str, StableDiffusion], name: str) -> None:
    """The same combination of each image alone, to the bit, over steps that end the warm-up; each batch starts with its own
    momentum. Then whole images, of batches of 5, 2 and 1."""
    method = guidance(name, TEXTS)
    drawn = torch.Generator().manual_seed(0)
    steps = torch.randn(17, 2 + len(method.against), 5, 4, 8, 8, generator=drawn)

    def run(rows: slice) -> Tensor:
        combine = method.begin(SCALE)
        return torch.stack([combine(k, out[0, rows], out[1, rows], out[2:, rows]) for k, out in enumerate(steps)])

    whole = run(slice(0, 5))
    assert torch.equal(whole, torch.cat([run(slice(i, i + 1)) for i in range(5)], dim=1))
    prompts, seeds = ["a cat", "a dog", "hat", "cat", "a hat"], [1, 2, 3, 4, 5]
    made = [
        list(sample(models["epsilon"], prompts, seeds, steps=12, guidance_scale=SCALE, guidance=method, batch_size=size))
        for size in (5, 2, 1)
    ]
    pixels = [np.stack([np.asarray(image, dtype=int) for image in images]) for images in made]
    assert pixels[0].std() > 5
    for other in pixels[1:]:
        assert np.abs(other - pixels[0]).max() <= 2


def test_all_conditions_go_through_the_network_in_one_call(models: dict[str, StableDiffusion]) -> None:
    seen: list[int] = []
    handle = models["epsilon"].unet.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    try:
        for name, rows in {"neg": 2, "sld-medium": 3, "sega": 4}.items():
            method = guidance(name, TEXTS)
            assert method.evaluations == rows
            list(sample(models["epsilon"], ["a cat"] * 3, [1, 2, 3], steps=2, guidance_scale=SCALE, guidance=method))
            assert seen == [3 * rows] * 2, name
            seen.clear()
    finally:
        handle.remove()


def test_sld_and_sega_by_hand() -> None:
    """s_S 2, lambda .5.  e_p - e_s: .1 -> mu .2; -1 -> mu 1; .6, past the threshold -> 0.  Times e_s - e_0.
    SEGA: -5 (e - e_0) of 1 to 10, of which the quantile .9, at 45.5, leaves -50 alone."""
    null = torch.tensor([0.0, 1.0, 0.0]).reshape(1, 1, 1, 3)
    unsafe = torch.tensor([2.0, 4.0, 5.0]).reshape(1, 1, 1, 3)
    cond = unsafe + torch.tensor([0.1, -1.0, 0.6]).reshape(1, 1, 1, 3)
    torch.testing.assert_close(safety(null, cond, unsafe, SLD(0, 2, 0.5, 0, 0)).flatten(), torch.tensor([0.4, 3.0, 0.0]))
    concept = torch.arange(1.0, 11.0).reshape(1, 1, 1, 10)
    assert edit(torch.zeros_like(concept), concept).flatten().tolist() == [0.0] * 9 + [-50.0]


@pytest.mark.parametrize("name", GUIDES)
def test_sdxl_is_guided_by_states_and_pooled_text(root: Path, name: str) -> None:
    sd = load_sd(saved(root, "xl"))
    null, cond, x = encode_null(sd), encode_prompts(sd, ["a cat"]), noise(sd, [1])
    plain, guided, other = (
        sample_latents(sd, cond, null, x, steps=17, guidance_scale=SCALE, guidance=g)
        for g in (None, guidance(name, ["dog"]), guidance(name, ["hat"]))
    )
    assert guided.isfinite().all()
    assert (guided - plain).abs().max() > 1e-4 < (guided - other).abs().max()


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("name", GUIDES)
def test_without_guidance_there_is_nothing_to_correct(models: dict[str, StableDiffusion], name: str, scale: float) -> None:
    with pytest.raises(UsageError, match=f"guidance scale {scale:g} with {name}"):
        next(sample(models["epsilon"], ["a cat"], [1], guidance_scale=scale, guidance=guidance(name, ["dog"])))


def test_what_cannot_guide_is_said() -> None:
    with pytest.raises(UsageError, match="unknown guide 'sld': choose neg, sld-weak"):
        guidance("sld", ["dog"])
    for texts in ([], [" "], ["dog", ""]):
        with pytest.raises(UsageError, match="sega has no text"):
            guidance("sega", texts)
    with pytest.raises(UsageError, match="in the place of the negative prompt 'hat'"):
        guidance("neg", ["dog"]).check(3, "hat")
    guidance("sega", ["dog"]).check(3, "hat")

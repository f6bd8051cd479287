import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import WIDTH, WIDTH_2, WIDTHS, saved
from torch.utils.checkpoint import CheckpointError

from hfi.diffusion import sd as sd_module
from hfi.diffusion.cond import Cond
from hfi.diffusion.memory import lighten, unrounded
from hfi.diffusion.sample import ddim_step, guided, noise, sample, schedule
from hfi.diffusion.sd import (
    StableDiffusion,
    check_placeholders,
    content_id,
    decode,
    encode_images,
    encode_null,
    encode_prompts,
    load_sd,
    pick_device,
    predict,
    to_images,
    to_pixels,
    tokenize,
    velocity_weight,
)
from hfi.diffusion.tokens import LearnedToken, expand, install
from hfi.diffusion.trainable import ema_update, masters, select
from hfi.errors import HfiError, ModelError, UsageError

KINDS = ("epsilon", "v_prediction", "xl")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def models(root: Path) -> dict[str, StableDiffusion]:
    return {kind: load_sd(saved(root, kind)) for kind in KINDS}


@pytest.fixture
def sd(models: dict[str, StableDiffusion]) -> StableDiffusion:
    return models["epsilon"]


def pipeline(root: Path, kind: str) -> Any:
    """The same model in diffusers, with DDIM: clip_sample is that of SDXL's own configuration, and DDIM's default is another."""
    pipe = DiffusionPipeline.from_pretrained(saved(root, kind))
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    return pipe


def close(ours: Cond, states: torch.Tensor, pooled: torch.Tensor | None) -> None:
    torch.testing.assert_close(ours.states, states.detach(), rtol=0, atol=1e-5)
    assert (ours.pooled is None) == (pooled is None)
    if ours.pooled is not None and pooled is not None:
        torch.testing.assert_close(ours.pooled, pooled.detach(), rtol=0, atol=1e-5)


def encoded(pipe: Any, prompts: list[str], negative: str | None = None) -> tuple[Any, Any, Any, Any]:
    """The pipeline's states and pooled text of prompts, then of the negative prompt."""
    given = [negative] * len(prompts) if negative is not None else None
    if isinstance(pipe, StableDiffusionXLPipeline):
        states, null, pooled, pooled_null = pipe.encode_prompt(prompts, device="cpu", negative_prompt=given)
        return states, pooled, null, pooled_null
    states, null = pipe.encode_prompt(prompts, "cpu", 1, True, given)
    return states, None, null, None


def arrays(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image).astype(int) for image in images])


# --- loading ---


def test_sizes_come_from_the_configuration(models: dict[str, StableDiffusion]) -> None:
    assert models["epsilon"].latent_shape == (4, 8, 8)
    assert models["v_prediction"].latent_shape == (6, 4, 4)
    assert models["epsilon"].image_size == models["v_prediction"].image_size == (16, 16)
    assert models["v_prediction"].prediction_type == "v_prediction"
    assert (models["xl"].latent_shape, models["xl"].image_size) == ((4, 8, 12), (16, 24))
    assert [len(models[kind].text_encoders) for kind in KINDS] == [len(models[kind].tokenizers) for kind in KINDS] == [1, 1, 2]
    assert [models[kind].zero_null for kind in KINDS] == [False, False, True]
    for sd in models.values():
        assert not any(p.requires_grad for m in (*sd.text_encoders, sd.unet, sd.vae) for p in m.parameters())


def test_what_is_no_model_is_refused_before_weights_are_read(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sd_module, "load_part", lambda *a: pytest.fail("weights were read"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        load_sd(tmp_path / "empty")
    with pytest.raises(ModelError, match="no model '/nowhere'"):
        load_sd("/nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match="is a file, and no checkpoint"):
        load_sd(str(tmp_path / "file"))
    shutil.copytree(saved(root, "epsilon"), tmp_path / "half")
    (tmp_path / "half" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"half lacks the weights of unet as \.safetensors"):
        load_sd(tmp_path / "half")
    shutil.copytree(saved(root, "xl"), tmp_path / "xl")
    config = tmp_path / "xl" / "unet" / "config.json"
    config.write_text(config.read_text().replace('"text_time"', '"image"'))
    with pytest.raises(ModelError, match="takes image beside the text, its text encoders give text_time"):
        load_sd(tmp_path / "xl")
    for size, said in (
        ("[8000, 4000]", "it makes images of 8000x16000 pixels: at most 50,000,000"),
        ('"x"', "the sample_size of its U-Net is 'x', which is no size"),
    ):
        config.write_text((saved(root, "xl") / "unet" / "config.json").read_text().replace("[\n    8,\n    12\n  ]", size))
        with pytest.raises(ModelError, match=said):
            load_sd(tmp_path / "xl")
    shutil.rmtree(tmp_path / "xl" / "text_encoder")  # as SDXL's refiner
    with pytest.raises(ModelError, match=r"it lacks text_encoder$"):
        load_sd(tmp_path / "xl")
    shutil.copytree(saved(root, "epsilon"), tmp_path / "flow")
    config = tmp_path / "flow" / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}))
    with pytest.raises(ModelError, match="samples with FlowMatchEulerDiscreteScheduler"):
        load_sd(tmp_path / "flow")
    shutil.copytree(saved(root, "epsilon"), tmp_path / "inpainting")
    config = tmp_path / "inpainting" / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": 9}))
    with pytest.raises(ModelError, match="reads 9 channels and gives 4, its VAE has 4: hfi works with text-to-image models"):
        load_sd(tmp_path / "inpainting")
    config.write_text("[")
    with pytest.raises(ModelError, match=r"unet/config\.json is unreadable"):
        load_sd(tmp_path / "inpainting")


@pytest.mark.parametrize(
    ("kind", "part", "name"),
    [
        ("epsilon", "unet", "conv_in.weight"),
        ("epsilon", "text_encoder", "final_layer_norm.weight"),
        ("epsilon", "vae", "encoder.conv_in.bias"),
        ("xl", "text_encoder", "final_layer_norm.weight"),
        ("xl", "text_encoder_2", "text_projection.weight"),
    ],
)
def test_missing_and_unknown_weights_are_named(root: Path, tmp_path: Path, kind: str, part: str, name: str) -> None:
    """The libraries would go on with random numbers."""
    folder = tmp_path / "m"
    shutil.copytree(saved(root, kind), folder)
    file = next((folder / part).glob("*.safetensors"))
    weights = load_file(file)
    key = next(k for k in weights if k.endswith(name))
    value = weights.pop(key)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"{part} of .* lacks weights: .*{name}"):
        load_sd(folder)
    save_file({**weights, key: value, "surplus.weight": value.clone()}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"unknown weights: surplus\.weight"):
        load_sd(folder)
    file.write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match=f"cannot load {part}"):
        load_sd(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_the_content_hash_follows_bytes_and_not_place(root: Path, tmp_path: Path, kind: str) -> None:
    folder = saved(root, kind)
    shutil.copytree(folder, tmp_path / "copy")
    assert content_id(folder) == content_id(tmp_path / "copy")
    seen = {content_id(folder)}
    changes = [("scheduler/scheduler_config.json", "0.012", "0.013")]
    if kind == "xl":
        changes += [("model_index.json", '"force_zeros_for_empty_prompt": true', '"force_zeros_for_empty_prompt": false')]
        changes += [("text_encoder_2/config.json", "gelu", "relu"), ("tokenizer_2/tokenizer_config.json", '"!"', '"?"')]
    for name, old, new in changes:
        file = tmp_path / "copy" / name
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))
        seen.add(content_id(tmp_path / "copy"))
    assert len(seen) == 1 + len(changes)


def test_devices() -> None:
    assert pick_device().type in ("cpu", "cuda", "mps")
    there = [name for name in ("cuda", "mps") if getattr(torch, name).is_available()]
    usable = ", ".join([*there, "cpu"])
    for name in {"gpu", "tpu", "meta", "cpu:x", "cuda", "mps"} - {*there}:
        with pytest.raises(ModelError) as told:
            pick_device(name)
        assert str(told.value) == f"device {name!r} is not usable here: choose {usable} or auto"


# --- sampling ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("scale", "negative"), [(1.0, None), (3.0, None), (3.0, "hat")])
def test_sampling_equals_the_pipeline(
    root: Path, models: dict[str, StableDiffusion], kind: str, scale: float, negative: str | None
) -> None:
    prompts, seeds = ["a cat", "a dog hat", ""], [3, 4, 5]
    height, width = models[kind].image_size
    theirs = pipeline(root, kind)(
        prompts,
        negative_prompt=[negative] * 3 if negative else None,
        height=height,
        width=width,
        num_inference_steps=6,
        guidance_scale=scale,
        generator=[torch.Generator().manual_seed(s) for s in seeds],
    ).images
    ours = list(sample(models[kind], prompts, seeds, steps=6, guidance_scale=scale, negative_prompt=negative, batch_size=3))
    assert arrays(ours).std() > 5
    assert np.abs(arrays(ours) - arrays(theirs)).max() <= 1


def test_batch_size_and_neighbours_change_nothing(sd: StableDiffusion) -> None:
    prompts, seeds = ["a cat", "a dog", "hat", "cat"], [1, 2, 3, 4]
    whole = list(sample(sd, prompts, seeds, steps=4, guidance_scale=3, batch_size=4))
    pairs = list(sample(sd, prompts, seeds, steps=4, guidance_scale=3, batch_size=3))
    alone = list(sample(sd, ["hat"], [3], steps=4, guidance_scale=3, batch_size=1))
    assert np.abs(arrays(whole) - arrays(pairs)).max() <= 1
    assert np.abs(arrays([whole[2]]) - arrays(alone)).max() <= 1
    assert np.abs(arrays([whole[0]]) - arrays([whole[3]])).max() > 1


def test_guidance_one_costs_half_and_zero_ignores_the_prompt(sd: StableDiffusion) -> None:
    seen: list[int] = []
    handle = sd.unet.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    try:
        one = list(sample(sd, ["a cat"], [1], steps=2, guidance_scale=1))
        assert seen == [1, 1]
        list(sample(sd, ["a cat"], [1], steps=2, guidance_scale=2))
        assert seen == [1, 1, 2, 2]
    finally:
        handle.remove()
    zero = [list(sample(sd, [p], [1], steps=2, guidance_scale=0)) for p in ("a cat", "dog")]
    assert np.abs(arrays(zero[0]) - arrays(zero[1])).max() <= 1
    assert np.abs(arrays(zero[0]) - arrays(one)).max() > 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [5, 7, 999])
def test_a_step_equals_the_scheduler(models: dict[str, StableDiffusion], kind: str, steps: int) -> None:
    sd = models[kind]
    theirs = DDIMScheduler.from_config(sd.scheduler.config)
    theirs.set_timesteps(steps)
    plan = schedule(sd, steps)
    assert torch.equal(plan.timesteps, theirs.timesteps)
    x, out = torch.randn(3, *sd.latent_shape), torch.randn(3, *sd.latent_shape)
    rows = torch.tensor([0, steps // 2, steps - 1])
    together = ddim_step(x, out, plan.alpha[rows], plan.alpha_next[rows], plan.kind)
    for i, k in enumerate(rows.tolist()):
        alone = theirs.step(out[i : i + 1], int(theirs.timesteps[k]), x[i : i + 1]).prev_sample
        torch.testing.assert_close(together[i : i + 1], alone)


def test_errors_become_those_of_the_velocity(models: dict[str, StableDiffusion]) -> None:
    """v of the same x_t and x0 by diffusers' scheduler, for two predictions of epsilon."""
    sd, t = models["epsilon"], torch.tensor([20, 500, 999])
    x_t, one, two = (torch.randn(3, *sd.latent_shape, generator=torch.Generator().manual_seed(i)) for i in range(3))
    a = sd.scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    v = [sd.scheduler.get_velocity((x_t - (1 - a).sqrt() * eps) / a.sqrt(), eps, t) for eps in (one, two)]
    errors = [(p - q).pow(2).flatten(1).mean(1) for p, q in (v, (one, two))]
    torch.testing.assert_close(errors[0], velocity_weight(sd, t) * errors[1], rtol=1e-4, atol=0)
    assert velocity_weight(models["v_prediction"], t).tolist() == [1, 1, 1]


def test_a_step_by_hand() -> None:
    """a 0.64 -> a' 0.36, x = 1, output 0.5.  epsilon: x0 = (1 - .6 .5)/.8 = .875, x' = .6 .875 + .8 .5 = .925.
    v: x0 = .8 - .6 .5 = .5, eps = .8 .5 + .6 = 1, x' = .6 .5 + .8 = 1.1."""
    x, out, a, b = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.5), torch.tensor(0.64), torch.tensor(0.36)
    assert ddim_step(x, out, a, b, "epsilon").item() == pytest.approx(0.925)
    assert ddim_step(x, out, a, b, "v_prediction").item() == pytest.approx(1.1)
    assert guided(torch.tensor(1.0), torch.tensor(3.0), 2.0).item() == 5.0


def test_too_many_steps_are_refused(sd: StableDiffusion) -> None:
    with pytest.raises(UsageError, match="1 to 999"):
        schedule(sd, 1000)


def test_noise_is_the_seeds_own(sd: StableDiffusion) -> None:
    a, b = noise(sd, [7, 8]), noise(sd, [8])
    assert torch.equal(a[1], b[0])
    assert not torch.equal(a[0], a[1])


def test_pictures_go_in_and_out(sd: StableDiffusion) -> None:
    picture = Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))
    pixels = to_pixels(sd, [picture, picture.resize((32, 20))])
    assert pixels.shape == (2, 3, 16, 16)
    assert pixels.min() >= -1
    assert pixels.max() <= 1
    assert np.array_equal(np.asarray(to_images(pixels)[0]), np.asarray(picture))
    mean, std = encode_images(sd, [picture])
    assert mean.shape == std.shape == (1, *sd.latent_shape)
    expected = sd.vae.encode(to_pixels(sd, [picture])).latent_dist
    torch.testing.assert_close(mean, expected.mean * 0.8)
    torch.testing.assert_close(std, expected.std * 0.8)
    torch.testing.assert_close(decode(sd, mean), sd.vae.decode(mean / 0.8).sample.clamp(-1, 1))


# --- text ---


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_equals_the_pipeline_and_keeps_order(root: Path, models: dict[str, StableDiffusion], kind: str) -> None:
    prompts = ["a dog", "a cat!", "a dog", "", "cat " * 100]
    states, pooled, null, pooled_null = encoded(pipeline(root, kind), prompts, "hat")
    close(encode_prompts(models[kind], prompts, batch_size=2), states, pooled)
    close(encode_prompts(models[kind], ["hat"]).expand(5), null, pooled_null)


@pytest.mark.parametrize("zeros", [True, False])
def test_no_prompt_is_what_the_pipeline_takes_for_it(root: Path, tmp_path: Path, zeros: bool) -> None:
    shutil.copytree(saved(root, "xl"), tmp_path / "xl")
    index = tmp_path / "xl" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "force_zeros_for_empty_prompt": zeros}))
    pipe = StableDiffusionXLPipeline.from_pretrained(tmp_path / "xl")
    *_, null, pooled_null = encoded(pipe, ["a cat"])
    assert bool((null == 0).all()) is zeros
    close(encode_null(load_sd(tmp_path / "xl")), null, pooled_null)


@pytest.mark.parametrize("kind", ["epsilon", "xl"])
def test_a_long_prompt_is_cut_and_said_once(
    models: dict[str, StableDiffusion], kind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sd_module, "_told", set())
    sd, long = models[kind], "cat " * 100
    ids = tokenize(sd, [long, "dog " * 30])
    tokenize(sd, [long, "dog " * 30])
    assert ids.shape == (2, len(sd.tokenizers), sd.text_length)
    assert (ids[0, :, -1] == sd.tokenizers[0].eos_token_id).all()
    assert [r.message for r in caplog.records if "cut" in r.message] == [
        "prompt cut: this model reads 18 tokens, so 'cat cat cat cat cat cat cat cat cat cat cat cat cat cat c...' loses "
        "'cat cat cat cat cat cat cat cat cat cat cat cat cat cat c...' (and 1 more prompts)"
    ]


def test_a_suffix_is_never_cut(sd: StableDiffusion) -> None:
    ids = tokenize(sd, ["cat " * 100, "a"], suffix="dog hat")
    dog, hat = sd.tokenizers[0]("dog hat", add_special_tokens=False).input_ids
    end = sd.tokenizers[0].eos_token_id
    assert ids[0, 0].tolist()[-3:] == [dog, hat, end]
    assert ids[1, 0].tolist()[:5] == tokenize(sd, ["a dog hat"])[0, 0].tolist()[:5]
    with pytest.raises(ModelError, match="takes 19 tokens"):
        tokenize(sd, ["a"], suffix="dog " * 19)


def test_an_attention_mask_ends_at_the_first_end_token(sd: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(sd.text_encoders[0].config, "use_attention_mask", True, raising=False)
    handle = sd.text_encoders[0].register_forward_pre_hook(lambda m, a, kw: given.append(kw["attention_mask"]), with_kwargs=True)
    try:
        encode_prompts(sd, ["cat"])
    finally:
        handle.remove()
    theirs = sd.tokenizers[0](["cat"], padding="max_length", max_length=sd.text_length).attention_mask
    assert given[0].tolist() == theirs


# --- tokens ---


@pytest.mark.parametrize("n", [1, 3])
def test_a_token_file_loads_in_diffusers_and_equals_ours(root: Path, tmp_path: Path, sd: StableDiffusion, n: int) -> None:
    token = LearnedToken("<hfi>", (torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(0)),), {"from": "test"})
    token.save(tmp_path / "token.safetensors")
    assert list(load_file(tmp_path / "token.safetensors")) == ["<hfi>"]
    pipe = StableDiffusionPipeline.from_pretrained(saved(root, "epsilon"))
    pipe.load_textual_inversion(tmp_path / "token.safetensors")
    with_token = install(sd, LearnedToken.load(tmp_path / "token.safetensors"))
    ours = encode_prompts(with_token, ["a cat <hfi>"])
    close(ours, *encoded(pipe, ["a cat <hfi>"])[:2])
    assert (ours.states - encode_prompts(sd, ["a cat hfi"]).states).abs().max() > 0.01
    loaded = LearnedToken.load(tmp_path / "token.safetensors")
    assert torch.equal(loaded.embeddings[0], token.embeddings[0])
    assert loaded.metadata == {"from": "test"}


@pytest.mark.parametrize("n", [1, 3])
def test_a_token_for_two_encoders_loads_in_diffusers_and_equals_ours(
    root: Path, tmp_path: Path, models: dict[str, StableDiffusion], n: int
) -> None:
    """Key by key, as diffusers' documentation does; and pooled at the end of the text, where diffusers, with eos 2 in the
    configuration, pools at the token."""
    generator = torch.Generator().manual_seed(0)
    vectors = tuple(torch.randn(n, width, generator=generator) for width in WIDTHS["xl"])
    LearnedToken("<hfi>", vectors, {"from": "test"}).save(tmp_path / "token.safetensors")
    file = load_file(tmp_path / "token.safetensors")
    assert {key: tuple(value.shape) for key, value in file.items()} == {"clip_l": (n, WIDTH), "clip_g": (n, WIDTH_2)}
    pipe = pipeline(root, "xl")
    pipe.load_textual_inversion(file["clip_l"], token="<hfi>", text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)
    pipe.load_textual_inversion(file["clip_g"], token="<hfi>", text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2)
    loaded = LearnedToken.load(tmp_path / "token.safetensors")
    assert (loaded.placeholder, loaded.metadata) == ("<hfi>", {"from": "test", "placeholder": "<hfi>"})
    assert loaded.content == LearnedToken("<hfi>", vectors).content != LearnedToken("<hfi>", vectors[:1]).content
    ours = encode_prompts(install(models["xl"], loaded), ["a cat <hfi>", "a <hfi> cat"])
    pipe.text_encoder_2.text_model.eos_token_id = 2
    states, pooled, *_ = encoded(pipe, ["a cat <hfi>", "a <hfi> cat"])
    with pytest.raises(AssertionError, match="not close"):
        close(ours, states, pooled)
    pipe.text_encoder_2.text_model.eos_token_id = pipe.tokenizer_2.eos_token_id
    states, pooled, *_ = encoded(pipe, ["a cat <hfi>", "a <hfi> cat"])
    close(ours, states, pooled)


@pytest.mark.parametrize("kind", ["epsilon", "xl"])
def test_installing_changes_nothing_else(models: dict[str, StableDiffusion], kind: str) -> None:
    sd, widths = models[kind], WIDTHS[kind]
    tables = [encoder.get_input_embeddings().weight for encoder in sd.text_encoders]
    before, size = [table.clone() for table in tables], len(sd.tokenizers[0])
    named = install(sd, LearnedToken("<hfi>", tuple(torch.ones(2, width) for width in widths)))
    for e, width in enumerate(widths):
        old, new = sd.text_encoders[e], named.text_encoders[e]
        rows = new.get_input_embeddings().weight
        assert torch.equal(rows[:size], before[e])
        assert torch.equal(tables[e], before[e])
        assert torch.equal(rows[size:], torch.ones(2, width))
        assert (len(sd.tokenizers[e]), len(named.tokenizers[e])) == (size, size + 2)
        assert "<hfi>" not in sd.tokenizers[e].get_vocab()
        assert (old.config.vocab_size, new.config.vocab_size) == (size, size + 2)
        for (name, a), (_, b) in zip(old.named_parameters(), new.named_parameters(), strict=True):
            assert "token_embedding" in name or a is b
    with pytest.raises(ModelError, match="<hfi> is already in the vocabulary"):
        install(named, LearnedToken("<hfi>", tuple(torch.ones(1, width) for width in widths)))
    with pytest.raises(ModelError, match=r"has width .*: it was learned for another model"):
        install(sd, LearnedToken("<hfi>", tuple(torch.ones(1, width + 1) for width in widths)))
    other = {
        "epsilon": "has vectors for 2 text encoders, .* has 1 text encoder",
        "xl": "for 1 text encoder, .* has 2 text encoders",
    }
    with pytest.raises(ModelError, match=f"{other[kind]}: it was learned for another model"):
        install(sd, LearnedToken("<hfi>", tuple(torch.ones(1, w) for w in WIDTHS["xl" if kind == "epsilon" else "epsilon"])))


def test_expansion(sd: StableDiffusion) -> None:
    named = install(install(sd, LearnedToken("<a>", (torch.ones(3, WIDTH),))), LearnedToken("<b>", (torch.ones(1, WIDTH),)))
    tok = named.tokenizers[0]
    once = expand(tok, "x <a>, y <B> <A>")
    assert once == "x <a> <a>_1 <a>_2, y <B> <a> <a>_1 <a>_2"
    assert expand(tok, once) == once
    assert expand(tok, "only <a>_1") == "only <a>_1"
    assert expand(tok, "<c> a") == "<c> a"
    check_placeholders(named, "a <b>")
    with pytest.raises(ModelError, match="<c> is not installed"):
        check_placeholders(named, "a <c>")


@pytest.mark.parametrize("name", ["smoking", "<Flag>", "<a b>", "<>", "<a>_1"])
def test_names_that_would_not_be_found_again(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a token"):
        LearnedToken(name, (torch.ones(1, 4),))


def test_files_that_are_no_token(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no token file"):
        LearnedToken.load(tmp_path / "none.safetensors")
    (tmp_path / "junk").write_bytes(b"junk" * 10)
    with pytest.raises(ModelError, match="not safetensors"):
        LearnedToken.load(tmp_path / "junk")
    save_file({"<a>": torch.ones(1, 2), "<b>": torch.ones(1, 2)}, tmp_path / "two.safetensors")
    with pytest.raises(ModelError, match="holds 2 tensors"):
        LearnedToken.load(tmp_path / "two.safetensors")
    save_file({"clip_l": torch.ones(1, 2), "clip_g": torch.ones(1, 2)}, tmp_path / "unnamed.safetensors")
    with pytest.raises(ModelError, match="do not say which placeholder"):
        LearnedToken.load(tmp_path / "unnamed.safetensors")
    save_file({"clip_l": torch.ones(1, 2), "clip_g": torch.ones(3, 2)}, tmp_path / "uneven.safetensors", {"placeholder": "<a>"})
    with pytest.raises(ModelError, match="different numbers of vectors"):
        LearnedToken.load(tmp_path / "uneven.safetensors")
    (tmp_path / "blocked").write_text("")
    with pytest.raises(HfiError, match="cannot write"):
        LearnedToken("<a>", (torch.ones(1, 2),)).save(tmp_path / "blocked" / "t.safetensors")


# --- parameters ---


def test_selections(sd: StableDiffusion) -> None:
    names = {name for name, _ in sd.unet.named_parameters()}
    x, rest = set(select(sd.unet, "xattn")), set(select(sd.unet, "noxattn"))
    assert x
    assert all("attn2" in name for name in x)
    outside = {name for name in names if name.startswith(("time_embedding", "conv_out"))}  # as in SDD's and ESD's first code
    assert x | rest == names - outside
    assert outside
    assert not x & rest
    assert all("attn1" in name for name in select(sd.unet, "selfattn"))
    assert set(select(sd.unet, "full")) == names
    assert {name.rpartition("attn2.")[2] for name in select(sd.unet, "kv")} == {"to_k.weight", "to_v.weight"}
    assert len(select(sd.unet, "kv")) == 2 * sum(name.endswith("attn2") for name, _ in sd.unet.named_modules())
    with pytest.raises(ModelError, match="no xattn parameters"):
        select(sd.vae, "xattn")


@pytest.mark.parametrize("kind", ["epsilon", "xl"])
def test_swapped_weights_are_used_and_leave_no_trace(models: dict[str, StableDiffusion], kind: str) -> None:
    sd = models[kind]
    x, t = torch.randn(2, *sd.latent_shape), torch.tensor([5, 900])
    cond = encode_prompts(sd, ["a cat", "hat"])
    before = predict(sd, None, x, t, cond)
    weights = {name: value.requires_grad_() for name, value in masters(select(sd.unet, "xattn")).items()}
    torch.testing.assert_close(predict(sd, weights, x, t, cond), before)
    with torch.no_grad():
        for value in weights.values():
            value.mul_(1.5)
    other = predict(sd, weights, x, t, cond)
    assert (other - before).abs().max() > 1e-4
    other.sum().backward()
    assert all(value.grad is not None for value in weights.values())
    assert torch.equal(predict(sd, None, x, t, cond), before)


def gradients(sd: StableDiffusion, part: Any) -> tuple[list[torch.Tensor | None], int]:
    """Of swapped weights far from the network's own, and of the condition; and how often a block was computed."""
    calls: list[str] = []
    for name, module in sd.unet.named_modules():
        if name.endswith("transformer_blocks.0"):
            module.register_forward_pre_hook(lambda module, args, name=name: calls.append(name))
    generator = torch.Generator().manual_seed(0)
    x, cond = torch.randn(2, *sd.latent_shape, generator=generator), encode_prompts(sd, ["a cat", "hat"])
    weights = {name: (1.5 * value).requires_grad_() for name, value in masters(select(sd.unet, part)).items()}
    cond.states.requires_grad_()
    predict(sd, weights, x, torch.tensor([5, 900]), cond).pow(2).sum().backward()
    return [cond.states.grad, *(value.grad for value in weights.values())], len(calls)


@pytest.mark.parametrize(("kind", "part"), [("epsilon", "xattn"), ("epsilon", "full"), ("xl", "full")])
def test_checkpointing_computes_twice_and_gives_the_same_gradients(root: Path, kind: str, part: Any) -> None:
    """The backward pass comes after the swapped weights have left the network; what it computes again must have seen them."""
    plain, light = load_sd(saved(root, kind)), load_sd(saved(root, kind))
    lighten(light.unet, gradient_checkpointing=True)
    (kept, once), (again, twice) = gradients(plain, part), gradients(light, part)
    assert twice == 2 * once
    for mine, theirs in zip(again, kept, strict=True):
        assert mine is not None and theirs is not None and theirs.abs().max() > 0
        torch.testing.assert_close(mine, theirs)


def test_why_checkpointing_is_not_left_to_diffusers(root: Path) -> None:
    sd = load_sd(saved(root, "epsilon"))
    sd.unet.enable_gradient_checkpointing()
    with pytest.raises(CheckpointError):
        gradients(sd, "xattn")


def test_sliced_attention_is_the_same_attention(root: Path) -> None:
    sd, sliced = load_sd(saved(root, "epsilon")), load_sd(saved(root, "epsilon"))
    lighten(sliced.unet, attention_slicing=True)
    assert {type(p).__name__ for p in sliced.unet.attn_processors.values()} == {"SlicedAttnProcessor"}
    x, t, cond = torch.randn(2, *sd.latent_shape), torch.tensor([5, 900]), encode_prompts(sd, ["a cat", "hat"])
    torch.testing.assert_close(predict(sliced, None, x, t, cond), predict(sd, None, x, t, cond))


@pytest.mark.parametrize("kind", ["epsilon", "xl"])
def test_around_a_network_in_half_precision_all_is_float32(root: Path, kind: str) -> None:
    half = load_sd(saved(root, kind), dtype=torch.bfloat16)
    assert {p.dtype for p in half.unet.parameters()} == {torch.bfloat16}
    x, t, cond = torch.randn(2, *half.latent_shape), torch.tensor([5, 900]), encode_prompts(half, ["a cat", "a dog"])
    assert {part.dtype for part in (cond.states, cond.pooled) if part is not None} == {torch.bfloat16}
    weights = masters(select(half.unet, "kv"))
    assert predict(half, None, x, t, cond).dtype == predict(half, weights, x, t, cond).dtype == torch.float32
    pictures = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    assert {part.dtype for part in encode_images(half, pictures)} == {torch.float32}


def test_what_rounding_took_is_given_back() -> None:
    """1 + 2^-10 is 1 in bfloat16; trained to 1.25 it is 1.25 + 2^-10. A value that bfloat16 has stays as trained."""
    first, trained = {"weight": torch.tensor([[1 + 2**-10, 0.5]])}, {"weight": torch.tensor([[1.25, 0.1]])}
    assert torch.equal(unrounded(trained, first, torch.bfloat16)["weight"], torch.tensor([[1.25 + 2**-10, 0.1]]))
    assert torch.equal(unrounded(trained, first, torch.float32)["weight"], trained["weight"])


def test_the_average_has_one_decay_from_the_first_step_on() -> None:
    """m = .9: 1 -> .9 1 + .1 2 = 1.1 -> .9 1.1 + .1 3 = 1.29 (diffusers' EMAModel would start with decay 0)."""
    average = {"w": torch.tensor([1.0])}
    ema_update(average, {"w": torch.tensor([2.0])}, 0.9)
    ema_update(average, {"w": torch.tensor([3.0])}, 0.9)
    assert average["w"].item() == pytest.approx(1.29)

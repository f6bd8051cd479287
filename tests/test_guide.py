"""Guidance methods against the pipelines that their authors gave diffusers, and against themselves."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SemanticStableDiffusionPipeline, StableDiffusionPipeline, StableDiffusionPipelineSafe
from PIL import Image
from tiny import WIDTH, saved
from torch import Tensor

from hfi.concepts import Concept
from hfi.diffusion.sample import Guidance, noise, sample, sample_latents
from hfi.diffusion.sd import StableDiffusion, encode_null, encode_prompts, load_sd
from hfi.diffusion.tokens import LearnedToken, expand, install
from hfi.errors import UsageError
from hfi.guide import GUIDES, guidance
from hfi.guide.sega import edit
from hfi.guide.sld import SLD, safety
from hfi.runs import Run
from hfi.store import queries
from hfi.store.session import reading, writing
from hfi.workspace import Workspace

Hfi = Callable[..., Any]

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


def pixels(images: Iterable[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=int) for image in images])


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
    size = dict(zip(("height", "width"), sd.image_size, strict=True))
    how = {"num_inference_steps": 6, "guidance_scale": SCALE, "output_type": "latent", **size}
    their = pipe(PROMPTS, negative_prompt=[", ".join(TEXTS)] * 3, latents=x.clone(), **how).images
    null, cond = encode_null(sd), encode_prompts(sd, PROMPTS)
    mine = [sample_latents(sd, cond, null, x, steps=6, guidance_scale=SCALE, guidance=g) for g in (guidance("neg", TEXTS), None)]
    torch.testing.assert_close(mine[0], their, rtol=1e-4, atol=1e-4)
    assert (mine[0] - mine[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", GUIDES)
def test_an_image_does_not_depend_on_its_neighbours(name: str) -> None:
    """The same combination of each image alone, to the bit, over steps that end the warm-up; each batch starts with its own
    momentum."""
    method = guidance(name, TEXTS)
    drawn = torch.Generator().manual_seed(0)
    steps = torch.randn(17, 2 + len(method.against), 5, 4, 8, 8, generator=drawn)

    def run(rows: slice) -> Tensor:
        combine = method.begin(SCALE)
        return torch.stack([combine(k, out[0, rows], out[1, rows], out[2:, rows]) for k, out in enumerate(steps)])

    assert torch.equal(run(slice(0, 5)), torch.cat([run(slice(i, i + 1)) for i in range(5)], dim=1))


@pytest.mark.parametrize("name", ["neg", "sld-max", "sega"])
def test_batch_size_changes_nothing(models: dict[str, StableDiffusion], name: str) -> None:
    prompts, seeds, method = ["a cat", "a dog", "hat", "cat", "a hat"], [1, 2, 3, 4, 5], guidance(name, TEXTS)
    whole, *others = (
        pixels(sample(models["epsilon"], prompts, seeds, steps=12, guidance_scale=SCALE, guidance=method, batch_size=size))
        for size in (5, 2, 1)
    )
    assert whole.std() > 5
    for other in others:
        assert np.abs(other - whole).max() <= 2


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


@pytest.mark.parametrize("name", ["neg", "sld-max", "sega"])
def test_sdxl_is_guided_by_states_and_pooled_text(root: Path, name: str) -> None:
    sd = load_sd(saved(root, "xl"))
    null, cond, x = encode_null(sd), encode_prompts(sd, ["a cat"]), noise(sd, [1])
    plain, guided, other = (
        sample_latents(sd, cond, null, x, steps=12, guidance_scale=SCALE, guidance=g)
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


# --- the commands ---


@pytest.fixture
def space(workspace: Workspace) -> Workspace:
    """With the concept fog and its token, of two vectors."""
    with writing(workspace.engine()) as session:
        queries.add_concept(session, Concept("fog", "Fog"))
    token(5).save(workspace.tokens / "fog.safetensors")
    return workspace


def token(seed: int) -> LearnedToken:
    people = [{"sha256": "a", "judgments": 30, "people": 2, "simulated": 0}]
    vectors = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(seed))
    return LearnedToken("<fog>", (vectors,), {"judged_by": json.dumps(people)})


def test_generating_under_a_guide(hfi: Hfi, space: Workspace, root: Path) -> None:
    model = saved(root, "epsilon")
    command = ["generate", "-w", space.path, "-m", model, "--prompt", "a cat", "--steps", 2, "--seed", 1, "--json"]
    guided = [*command, "--guide", "sld-max", "--against", "dog", "--against", "<fog>", "--token", "fog"]
    new = []
    for words in (
        command,
        guided,
        guided,
        [*command, "--guide", "neg", "--against", "dog"],
        [*command, "--guide", "sld-max", "--against", "dog"],
    ):
        done = hfi(*words)
        assert done.exit_code == 0, done.output
        new.append(json.loads(done.stdout)["new"])
    assert new == [1, 1, 0, 1, 1]
    token(6).save(space.tokens / "fog.safetensors")  # the same name, other vectors
    assert json.loads(hfi(*guided).stdout)["new"] == 1
    with reading(space.engine()) as session:
        images = queries.images(session)
    assert len({image.sha256 for image in images}) == len(images) == 5
    config = Run(space.runs / "generate" / images[1].run).config()
    assert (config["guide"], config["against"], config["tokens"]) == ("sld-max", ["dog", "<fog>"], ["fog"])
    assert "guide" not in Run(space.runs / "generate" / images[0].run).config()
    sd = install(load_sd(model), token(5))
    wanted = pixels(sample(sd, ["a cat"], [1], steps=2, guidance=guidance("sld-max", ["dog", "<fog>"])))
    assert np.abs(pixels([space.images.load(images[1].sha256)]) - wanted).max() <= 1


def evaluate(space: Workspace, model: Path, *more: object) -> list[object]:
    (space.path / "prompts.csv").write_text("prompt\na cat\na dog hat\n", encoding="utf-8")
    how = ["--prompts", space.path / "prompts.csv", "--steps", 2, "--detector", "none", "--backbone", "none"]
    return ["evaluate", "-w", space.path, "-m", model, "-c", "fog", *how, *more]


def test_guides_are_systems_of_an_evaluation(hfi: Hfi, space: Workspace, root: Path) -> None:
    model = saved(root, "epsilon")
    asked = ["--guide", "sld-max", "--guide", "neg", "--guide", "neg", "--against", "dog", "--token", "fog", "--name", "both"]
    done = hfi(*evaluate(space, model, *asked))
    assert done.exit_code == 0, done.output
    run = space.runs / "evaluate" / "both"
    systems = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["systems"]
    names = [("sd", "none"), ("sld-max", "text"), ("sld-max", "token"), ("neg", "text"), ("neg", "token")]
    assert [(s["method"], s["conditioning"]) for s in systems] == names
    assert systems[2]["settings"]["against"] == "<fog>"
    assert systems[2]["settings"]["token content"] == token(5).content[:16]
    assert "30 judgments of 2 people steered sld-max (token) and neg (token)." in done.stdout
    sd, prompts, seeds = install(load_sd(model), token(5)), ["a cat", "a dog hat"], [100_000, 100_001]
    for method, kind in names:
        guide = None if method == "sd" else guidance(method, ["dog" if kind == "text" else "<fog>"])
        files = sorted((run / "images" / f"{method}-{kind}" / "prompts").glob("*.png"))
        wanted = pixels(sample(sd, prompts, seeds, steps=2, guidance=guide))
        assert np.abs(pixels(Image.open(file) for file in files) - wanted).max() <= 1, method


def test_a_guide_alone_takes_the_concepts_own_token(hfi: Hfi, space: Workspace, root: Path) -> None:
    done = hfi(*evaluate(space, saved(root, "epsilon"), "--guide", "sega"))
    assert done.exit_code == 0, done.output
    systems = json.loads((space.runs / "evaluate" / "fog" / "evaluation.json").read_text(encoding="utf-8"))["systems"]
    assert [(s["method"], s["conditioning"], s["settings"].get("against")) for s in systems] == [
        ("sd", "none", None),
        ("sega", "token", "<fog>"),
    ]


@pytest.mark.parametrize(
    ("command", "given", "said"),
    [
        ("evaluate", ["--guide", "sld"], "unknown guide 'sld': choose neg"),
        ("evaluate", ["--against", "dog"], "choose one with --guide"),
        ("evaluate", ["--token", "fog"], "choose one with --guide"),
        ("evaluate", ["--guide", "neg", "--token", "mist"], "no token 'mist'"),
        ("evaluate", ["--guide", "neg", "--against", "a <fog>"], "<fog> names a learned token"),
        ("evaluate", ["--guide", "neg", "--against", " "], "neg has no text"),
        ("evaluate", ["--guide", "sega", "--guidance-scale", "1"], "guidance scale 1 with sega"),
        ("evaluate", ["--guide", "sega", "--token", "wide"], "token <wide> has width 17"),
        ("generate", ["--guide", "sld"], "unknown guide 'sld': choose neg"),
        ("generate", ["--guide", "neg"], "neg has no text"),
        ("generate", ["--against", "dog"], "choose one with --guide"),
        ("generate", ["--guide", "neg", "--against", "dog", "--negative-prompt", "hat"], "negative prompt 'hat'"),
        ("generate", ["--guide", "sld-max", "--against", "dog", "--guidance-scale", "1"], "guidance scale 1 with sld-max"),
    ],
)
def test_a_mistake_is_said_before_a_model_is_loaded(
    hfi: Hfi, space: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch, command: str, given: list[str], said: str
) -> None:
    monkeypatch.setattr("hfi.diffusion.sd.load_part", lambda *args: pytest.fail("a model was loaded"))
    LearnedToken("<wide>", (torch.zeros(1, WIDTH + 1),)).save(space.tokens / "wide.safetensors")
    model = saved(root, "epsilon")
    words = evaluate(space, model) if command == "evaluate" else ["generate", "-w", space.path, "-m", model, "--prompt", "a cat"]
    done = hfi(*words, *given)
    assert done.exit_code, done.output
    assert len(done.errors) == 1
    assert said in done.errors[0]
    assert not list(space.runs.glob("*/*"))


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_help_names_every_guide(hfi: Hfi, command: str) -> None:
    text = hfi(command, "--help").stdout
    for name in GUIDES:
        assert name in text

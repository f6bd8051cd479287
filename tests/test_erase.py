import dataclasses
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from scipy import stats
from tiny import WIDTHS, finish, saved

from hfi.diffusion.cond import Cond
from hfi.diffusion.memory import lighten
from hfi.diffusion.sample import schedule
from hfi.diffusion.sd import StableDiffusion, encode_null, encode_prompts, load_sd, predict
from hfi.diffusion.tokens import LearnedToken, install
from hfi.diffusion.trainable import select
from hfi.diffusion.training import drive, load_state, save_state
from hfi.erase import METHODS, Clean, Removal
from hfi.erase.context import ContextConfig, context_target, contexts, erase_context, eta_at
from hfi.erase.distil import TrainingConfig
from hfi.erase.erasure import Erasure, apply, check_together, compose, export_unet, identity
from hfi.erase.rollouts import Latents, fresh, move_on, roll, spread, start, timestep_law
from hfi.erase.sdd import SDDConfig, erase_sdd, sdd_loss
from hfi.errors import ModelError, NoJudgments, NonFiniteLoss, UsageError
from hfi.runs import Run

TRAINED = [name for name, method in METHODS.items() if issubclass(method.config, TrainingConfig)]  # others: test_closed_form.py
REMOVAL = Removal(("cat", "dog"), (("a cat", "a cat", "hat"), ("a dog",)), ("a hat",))
QUICK = {"steps": 3, "ddim_steps": 4, "batch_size": 3, "learning_rate": 1e-3, "save_every": 1}
FAST = {**QUICK, "ema_decay": 0.5}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def models(root: Path) -> dict[str, StableDiffusion]:
    return {kind: load_sd(saved(root, kind)) for kind in ("epsilon", "v_prediction", "xl")}


@pytest.fixture
def sd(models: dict[str, StableDiffusion]) -> StableDiffusion:
    return models["epsilon"]


# --- formulas ---


def test_targets_by_hand() -> None:
    e_c, e_0 = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 0.0]]]]), torch.tensor([[[[0.0, 4.0]]], [[[3.0, 4.0]]]])
    assert sdd_loss(e_c, e_0).tolist() == [2.5, 12.5]  # (1 + 4)/2, (9 + 16)/2
    e_p, e_hv, e_h = (torch.tensor([[[pair]]]) for pair in ([1.0, 2.0], [3.5, 0.0], [3.0, 2.0]))
    assert context_target(e_p, e_hv, e_h, 6.0).tolist() == [[[[-2.0, 14.0]]]]  # 1 - 6 (.5), 2 - 6 (-2)


def test_no_gradient_reaches_the_null_branch() -> None:
    e_c, e_0 = torch.ones(1, 1, 1, 1, requires_grad=True), torch.zeros(1, 1, 1, 1, requires_grad=True)
    sdd_loss(e_c, e_0).sum().backward()
    assert e_c.grad is not None
    assert e_0.grad is None


def test_laws() -> None:
    uniform, beta = timestep_law("uniform", 50), timestep_law("beta", 50)
    torch.testing.assert_close(uniform, torch.full((50,), 0.02, dtype=torch.float64))
    edges = stats.beta(3, 3).cdf([k / 50 for k in range(51)])
    torch.testing.assert_close(beta, torch.tensor(edges).diff())
    middles = (torch.arange(50, dtype=torch.float64) + 0.5) / 50
    mean = (beta * middles).sum()
    assert mean == pytest.approx(0.5)
    assert (beta * (middles - mean) ** 2).sum() == pytest.approx(1 / 28, rel=0.01)


def test_drawn_steps_follow_the_law(sd: StableDiffusion) -> None:
    plan, law = schedule(sd, 10), timestep_law("beta", 10)
    generator = torch.Generator().manual_seed(0)
    latents = start((1, 1, 1), 4000, torch.ones(1), generator, "cpu")
    fresh(latents, law, plan, lambda x, t, c: torch.zeros_like(x), generator)
    found = torch.bincount(latents.k, minlength=10) / 4000
    assert (found - law).abs().max() < 0.03
    assert found[5] > 5 * found[0]


# --- rollouts ---


def linear(x: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """A model simple enough to follow: depends on latent, timestep and condition."""
    return 0.3 * x + (t / 1000 + c).to(x).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_rollout_is_ddim_to_just_before_its_own_step(models: dict[str, StableDiffusion], kind: str) -> None:
    """Latents at different steps, moved together, equal diffusers' scheduler on each alone; k = 0 stays pure noise."""
    sd = models[kind]
    plan = schedule(sd, 6)
    x = torch.randn(4, 2, 3, 3)
    latents = Latents(x.clone(), torch.zeros(4, dtype=torch.long), torch.tensor([0, 1, 0, 1]))
    to = torch.tensor([0, 2, 5, 3])
    roll(latents, to, plan, linear)
    assert torch.equal(latents.k, to)
    for i in range(4):
        theirs = DDIMScheduler.from_config(sd.scheduler.config)
        theirs.set_timesteps(6)
        z = x[i : i + 1]
        for t in theirs.timesteps[: int(to[i])]:
            z = theirs.step(linear(z, t[None], latents.c[i : i + 1]), t, z).prev_sample
        torch.testing.assert_close(latents.x[i : i + 1], z)
    assert torch.equal(latents.x[0], x[0])


def test_the_pool_holds_what_fresh_rollouts_hold(sd: StableDiffusion) -> None:
    """With a teacher that does not change: after any number of moves each latent is where a fresh rollout of its own noise and
    condition gets in k steps; and over S moves every latent trains once at every k."""
    size, steps = 3, 7
    plan = schedule(sd, steps)
    generator = torch.Generator().manual_seed(1)
    begun: list[torch.Tensor] = []

    def new(count: int) -> Latents:
        made = start((2, 3, 3), count, torch.tensor([1.0, 1.0]), generator, "cpu")
        begun.extend(made.x.clone())
        return made

    pool = new(size)
    noise = pool.x.clone()
    roll(pool, spread(size, steps), plan, linear)
    assert pool.k.tolist() == [0, 2, 4]
    visits: Counter[tuple[int, int]] = Counter()
    for _ in range(2 * steps):
        for b in range(size):
            visits[b, int(pool.k[b])] += 1
            again = Latents(noise[b : b + 1].clone(), torch.tensor([0]), pool.c[b : b + 1])
            roll(again, pool.k[b : b + 1], plan, linear)
            torch.testing.assert_close(again.x[0], pool.x[b])
        count = len(begun)
        restarting = (pool.k == steps - 1).nonzero().squeeze(1)
        move_on(pool, plan, linear, new)
        assert len(begun) - count == len(restarting)
        noise[restarting] = torch.stack(begun[count:]) if len(restarting) else noise[restarting]
    assert visits == {(b, k): 2 for b in range(size) for k in range(steps)}


def test_conditions_are_drawn_by_their_shares() -> None:
    drawn = start((1, 1, 1), 3000, torch.tensor([1.0, 0.0, 3.0]), torch.Generator().manual_seed(0), "cpu").c
    assert (drawn == 1).sum() == 0
    assert (drawn == 2).float().mean() == pytest.approx(0.75, abs=0.03)


# --- whole methods against plain loops ---


def call(unet: Any, x: torch.Tensor, t: torch.Tensor, cond: Cond) -> torch.Tensor:
    """The network on one latent; SDXL is told that the picture is 16 high, 24 wide and not cut."""
    if cond.pooled is None:
        return unet(x, t, cond.states).sample
    size = torch.tensor([[16.0, 24.0, 0.0, 0.0, 16.0, 24.0]])
    return unet(x, t, cond.states, added_cond_kwargs={"text_embeds": cond.pooled, "time_ids": size}).sample


def reference_rollout(sd: StableDiffusion, unet: Any, x: torch.Tensor, k: int, cond: Cond, scale: float, steps: int) -> Any:
    """DDIM with guidance as a plain loop over diffusers' scheduler: x [1, C, h, w] after k of `steps` steps, and its timestep."""
    scheduler = DDIMScheduler.from_config(sd.scheduler.config)
    scheduler.set_timesteps(steps)
    null = encode_null(sd)
    with torch.no_grad():
        for t in scheduler.timesteps[:k]:
            e_0, e_c = call(unet, x, t, null), call(unet, x, t, cond)
            x = scheduler.step(e_0 + scale * (e_c - e_0), t, x).prev_sample
    return x, scheduler.timesteps[k]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "xl"])
@pytest.mark.parametrize("null_branch", ["student", "frozen"])
def test_sdd_equals_a_plain_loop_with_three_networks(
    root: Path, models: dict[str, StableDiffusion], kind: str, null_branch: Any
) -> None:
    """Algorithm 1 written out with three whole U-Nets, torch's AdamW and diffusers' scheduler."""
    sd = models[kind]
    config = SDDConfig(**FAST, null=null_branch)
    ours, losses = finish(erase_sdd(sd, REMOVAL, config))

    def unet() -> Any:
        return UNet2DConditionModel.from_pretrained(saved(root, kind), subfolder="unet")

    student, teacher, frozen = unet(), unet(), unet()
    trained = {name: p for name, p in student.named_parameters() if "attn2" in name}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(0)
    c_p, c_s, null = encode_prompts(sd, ["cat", "dog"]), encode_prompts(sd, ["cat, dog"]), encode_null(sd)
    for step in range(3):
        x = torch.randn(3, *sd.latent_shape, generator=generator)
        which = torch.multinomial(torch.ones(2), 3, replacement=True, generator=generator)
        k = torch.multinomial(torch.full((4,), 0.25, dtype=torch.float64), 3, replacement=True, generator=generator)
        loss = torch.zeros(())
        for i in range(3):
            z, t = reference_rollout(sd, teacher, x[i : i + 1], int(k[i]), c_p[which[i : i + 1]], 3.0, 4)
            with torch.no_grad():
                target = call(student if null_branch == "student" else frozen, z, t, null)
            loss = loss + F.mse_loss(call(student, z, t, c_s), target) / 3
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for p, q in zip(teacher.parameters(), student.parameters(), strict=True):
                p.copy_(0.5 * p + 0.5 * q)
        assert losses[step] == pytest.approx(loss.item(), rel=1e-4)
    expected = dict(teacher.named_parameters())
    for name, value in ours.weights.items():
        torch.testing.assert_close(value, expected[name].detach(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("kind", "error"), [("epsilon", "velocity"), ("v_prediction", "prediction"), ("xl", "velocity")])
def test_context_equals_a_plain_loop(root: Path, models: dict[str, StableDiffusion], kind: str, error: Any) -> None:
    """Two concepts, each subtracted from its own flagged prompts only, one of which has words beside its token; clean images."""
    sd = models[kind]
    made = torch.Generator().manual_seed(1)
    mean, std = torch.randn(2, *sd.latent_shape, generator=made), torch.rand(2, *sd.latent_shape, generator=made)
    clean = Clean(mean, std, ["a cat", "a dog"])
    removal = Removal(("dog", "cat"), (("a cat", "a cat", "hat"), ("a dog",)), ("a hat",), ("a hat", ""), clean)
    config = ContextConfig(**FAST, eta=2.0, explicit=0.25, retain_weight=0.5, rollouts="fresh", weight_decay=0.0, error=error)
    ours, losses = finish(erase_context(sd, removal, config))

    def unet() -> Any:
        return UNet2DConditionModel.from_pretrained(saved(root, kind), subfolder="unet")

    student, teacher, frozen = unet(), unet(), unet()
    trained = {name: p for name, p in student.named_parameters() if "attn2" in name}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    cases = [("a cat", "a cat", "dog"), ("hat", "hat", "dog"), ("a dog", "a dog", "cat")]  # (asked, p, v)
    shares = [2 * 0.75, 0.75, 0.75]
    for name in ("a hat", "dog"):  # two texts name the first concept
        cases += [(f"a cat {name}", "a cat", "dog"), (f"hat {name}", "hat", "dog")]
        shares += [2 * 0.25 / 2, 0.25 / 2]
    cases.append(("a dog cat", "a dog", "cat"))
    shares.append(0.25)
    for step in range(3):
        x = torch.randn(3, *sd.latent_shape, generator=generator)
        which = torch.multinomial(torch.tensor(shares), 3, replacement=True, generator=generator)
        k = torch.multinomial(torch.full((4,), 0.25, dtype=torch.float64), 3, replacement=True, generator=generator)
        harmless = torch.randint(2, (3,), generator=generator)
        image = torch.randint(2, (3,), generator=generator)
        z0 = mean[image] + std[image] * torch.randn(z0_shape := (3, *sd.latent_shape), generator=generator)
        noise = torch.randn(z0_shape, generator=generator)
        loss = torch.zeros(())
        for i in range(3):
            asked, p, v = cases[which[i]]
            h = ("", "a hat")[harmless[i]]
            p_x = clean.prompts[image[i]]
            enc = {text: encode_prompts(sd, [text]) if text else encode_null(sd) for text in (asked, p, h, f"{h} {v}", p_x)}
            z, t = reference_rollout(sd, teacher, x[i : i + 1], int(k[i]), enc[asked], 3.0, 4)
            with torch.no_grad():
                e_p, e_h, e_hv = (call(frozen, z, t, enc[text]) for text in (p, h, f"{h} {v}"))
            scale = 1 / sd.scheduler.alphas_cumprod[t] if error == "velocity" else 1
            loss = loss + scale * F.mse_loss(call(student, z, t, enc[asked]), e_p - 2.0 * (e_hv - e_h)) / 3
            loss = loss + scale * 0.5 * F.mse_loss(call(student, z, t, enc[h]), e_h) / 3
            one = (z0[i : i + 1], noise[i : i + 1], torch.as_tensor(t).reshape(1))
            wanted = sd.scheduler.get_velocity(*one) if kind == "v_prediction" else noise[i : i + 1]
            got = call(student, sd.scheduler.add_noise(*one), t, enc[p_x])
            loss = loss + scale * config.clean_weight * F.mse_loss(got, wanted) / 3
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for a, b in zip(teacher.parameters(), student.parameters(), strict=True):
                a.copy_(0.5 * a + 0.5 * b)
        assert losses[step] == pytest.approx(loss.item(), rel=1e-4)
    expected = dict(teacher.named_parameters())
    for name, value in ours.weights.items():
        torch.testing.assert_close(value, expected[name].detach(), rtol=1e-3, atol=1e-5)


def test_eta_can_grow(sd: StableDiffusion) -> None:
    """From 0 to eta over the first third; a training that goes on knows where it is."""
    growing = ContextConfig(**{**FAST, "steps": 6}, eta=4.0, eta_schedule="linear")
    assert [eta_at(step, growing) for step in range(1, 7)] == [2.0, 4.0, 4.0, 4.0, 4.0, 4.0]
    assert eta_at(1, dataclasses.replace(growing, eta_schedule="constant")) == 4.0
    _, losses = finish(erase_context(sd, REMOVAL, growing))
    _, halved = finish(erase_context(sd, REMOVAL, ContextConfig(**{**FAST, "steps": 1}, eta=2.0)))
    assert losses[:1] == halved
    training = erase_context(sd, REMOVAL, growing)
    first = next(training)
    _, rest = finish(erase_context(sd, REMOVAL, growing, {**first.state(), "step": 1}))
    assert rest == losses[1:]


def test_beta_weighs_the_pool(sd: StableDiffusion) -> None:
    """One step, pool of S latents, one at each k: the Beta loss is the law's mean of the losses that single-k pools give."""
    base = {**FAST, "steps": 1, "rollouts": "staggered", "batch_size": 4}
    seen: list[torch.Tensor] = []
    import hfi.erase.sdd as module

    original = module.sdd_loss

    def spy(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append(original(a, b).detach())
        return original(a, b)

    module.sdd_loss = spy
    try:
        _, (uniform,) = finish(erase_sdd(sd, REMOVAL, SDDConfig(**base)))
        _, (beta,) = finish(erase_sdd(sd, REMOVAL, SDDConfig(**base, timesteps="beta")))
    finally:
        module.sdd_loss = original
    assert torch.equal(seen[0], seen[1])
    assert uniform == pytest.approx(float(seen[0].mean()))
    assert beta == pytest.approx(float((timestep_law("beta", 4) * seen[0]).sum()), rel=1e-5)


def test_contexts_count_images_and_need_one() -> None:
    found = contexts(dataclasses.replace(REMOVAL, words=("", "a dog")), 0.5)
    assert (found.prompts, found.concept.tolist()) == (["a cat", "hat", "a dog"], [0, 0, 1])
    assert found.suffixes == {"": [0, 1, 2], "cat": [0, 1], "a dog": [2], "dog": [2]}
    assert found.pair.tolist() == [0, 1, 2, 0, 1, 2, 2]
    assert found.shares.tolist() == [1, 0.5, 0.5, 1, 0.5, 0.25, 0.25]
    with pytest.raises(NoJudgments, match="no flagged image has a prompt"):
        contexts(Removal(("cat",), ((),)), 0.5)


# --- every method, every family ---


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "xl"])
@pytest.mark.parametrize("rollouts", ["fresh", "staggered"])
@pytest.mark.parametrize("method", TRAINED)
def test_battery(models: dict[str, StableDiffusion], tmp_path: Path, method: str, rollouts: str, kind: str) -> None:
    """Selected parameters change and no other; the same seed gives the same weights, also with an interruption after any step."""
    generator = torch.Generator().manual_seed(0)
    vectors = tuple(torch.randn(2, width, generator=generator) for width in WIDTHS[kind])
    named = install(models[kind], LearnedToken("<hfi>", vectors))
    latents = torch.randn(2, *models[kind].latent_shape, generator=generator)
    clean = Clean(latents, torch.ones_like(latents), ["a cat", "a dog"])
    removal = Removal(("<hfi>", "dog"), REMOVAL.contexts, REMOVAL.retain, ("a hat", ""), clean)
    config_class, erase = METHODS[method].config, METHODS[method].erase
    config = config_class(**QUICK, rollouts=rollouts, weight_decay=0.0)  # which would move every parameter by itself
    before = {name: value.clone() for name, value in named.unet.state_dict().items()}
    whole, losses = finish(erase(named, removal, config))
    assert all(torch.equal(value, before[name]) for name, value in named.unet.state_dict().items())
    assert set(whole.weights) == set(select(named.unet, config.train))
    assert all(not torch.equal(value, before[name]) for name, value in whole.weights.items())
    assert whole.evaluations > 0

    run = Run.start(tmp_path, "erase", "x", dataclasses.asdict(config))
    for _ in range(2):  # killed after each of the first steps

        def killed(state: Any) -> Any:
            training = erase(named, removal, config, state)
            yield next(training)
            next(training)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            drive(killed, run, steps=3, save_every=1, title="x")
    again = drive(lambda state: erase(named, removal, config, state), run, steps=3, save_every=1, title="x")
    assert [line["loss"] for line in run.metrics()] == losses
    assert again.evaluations == whole.evaluations
    assert all(torch.equal(value, again.weights[name]) for name, value in whole.weights.items())

    other, _ = finish(erase(named, removal, dataclasses.replace(config, seed=1)))
    assert any(not torch.equal(value, other.weights[name]) for name, value in whole.weights.items())


@pytest.mark.parametrize("train", ["noxattn", "selfattn", "full", "kv"])
def test_other_selections_change_exactly_those(sd: StableDiffusion, train: Any) -> None:
    result, _ = finish(erase_sdd(sd, REMOVAL, SDDConfig(**{**FAST, "steps": 1}, train=train)))
    wanted = {
        "noxattn": lambda n: "attn2" not in n and not n.startswith(("time_embedding.", "conv_out.")),
        "selfattn": lambda n: "attn1" in n,
        "full": lambda n: True,
        "kv": lambda n: n.endswith(("attn2.to_k.weight", "attn2.to_v.weight")),
    }[train]
    assert set(result.weights) == {n for n, _ in sd.unet.named_parameters() if wanted(n)}


def test_evaluations_are_those_of_the_network(sd: StableDiffusion) -> None:
    seen: list[int] = []
    handle = sd.unet.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    try:
        for erase, config in (
            (erase_sdd, SDDConfig(**FAST)),
            (erase_context, ContextConfig(**FAST)),
            (erase_context, ContextConfig(**FAST, retain_weight=0, guidance_scale=1)),
        ):
            seen.clear()
            result, _ = finish(erase(sd, REMOVAL, config))  # type: ignore[operator]
            assert result.evaluations == sum(seen)
    finally:
        handle.remove()


@pytest.mark.parametrize("method", TRAINED)
def test_a_half_precision_model_is_trained_in_float32(root: Path, method: str) -> None:
    """Updates of 1e-5 are smaller than bfloat16 can tell apart, and must not be lost."""
    half = load_sd(saved(root, "epsilon"), dtype=torch.bfloat16)
    config_class, erase = METHODS[method].config, METHODS[method].erase
    settings = {**QUICK, "learning_rate": 1e-6, "weight_decay": 0.0} | ({"ema_decay": 0.0} if method.startswith("sdd") else {})
    result, _ = finish(erase(half, REMOVAL, config_class(**settings)))
    before = dict(half.unet.named_parameters())
    for name, value in result.weights.items():
        assert value.dtype == torch.float32
        moved = (value - before[name].float()).abs().max()
        assert 0 < moved < 1e-5
    large = [name for name in result.weights if before[name].abs().mean() > 0.01]
    assert large
    for name in large:  # weights of bfloat16 would be where they were
        assert (result.weights[name].bfloat16() == before[name]).float().mean() > 0.9


@pytest.mark.parametrize("rollouts", ["fresh", "staggered"])
@pytest.mark.parametrize("method", TRAINED)
def test_light_training_goes_on_exactly(root: Path, tmp_path: Path, method: str, rollouts: str) -> None:
    """bfloat16, checkpointing and slicing together, interrupted after the second step."""
    light = load_sd(saved(root, "epsilon"), dtype=torch.bfloat16)
    lighten(light.unet, gradient_checkpointing=True, attention_slicing=True)
    config_class, erase = METHODS[method].config, METHODS[method].erase
    config = config_class(**QUICK, rollouts=rollouts)
    whole, losses = finish(erase(light, REMOVAL, config))
    training = erase(light, REMOVAL, config)
    next(training)
    second = next(training)
    save_state(tmp_path / "state.pt", {**second.state(), "step": 2})
    state = load_state(tmp_path / "state.pt")
    assert state is not None
    if rollouts == "staggered":
        assert state["pool"]["x"].dtype == torch.float32
    again, last = finish(erase(light, REMOVAL, config, state))
    assert last == losses[2:]
    assert all(torch.equal(value, again.weights[name]) for name, value in whole.weights.items())


@pytest.mark.parametrize("method", TRAINED)
def test_checkpointing_changes_no_result(root: Path, method: str) -> None:
    plain, light = load_sd(saved(root, "epsilon")), load_sd(saved(root, "epsilon"))
    lighten(light.unet, gradient_checkpointing=True)
    config_class, erase = METHODS[method].config, METHODS[method].erase
    (one, losses), (two, same) = (finish(erase(sd, REMOVAL, config_class(**QUICK))) for sd in (plain, light))
    assert same == pytest.approx(losses, rel=1e-5)
    assert one.evaluations == two.evaluations
    for name, value in one.weights.items():
        torch.testing.assert_close(two.weights[name], value, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(sd: StableDiffusion, tmp_path: Path) -> None:
    config = SDDConfig(**{**FAST, "steps": 60, "learning_rate": 1e18})
    run = Run.start(tmp_path, "erase", "x", {})
    with pytest.raises(NonFiniteLoss, match="not finite at step") as e:
        drive(lambda state: erase_sdd(sd, REMOVAL, config, state), run, steps=60, save_every=1, title="x")
    kept = torch.load(run.path / "checkpoint.pt", weights_only=True)
    assert kept["step"] == e.value.step - 1
    assert all(torch.isfinite(value).all() for value in kept["student"].values())


def test_bad_settings_are_named_together() -> None:
    with pytest.raises(UsageError, match=r"--steps is 0: give 1 or more; --ema-decay is 2: give 1 or less"):
        SDDConfig(steps=0, ema_decay=2)
    with pytest.raises(UsageError, match="--null is 'x': choose student or frozen"):
        SDDConfig(null="x")  # type: ignore[arg-type]


# --- files ---


def test_an_erasure_is_saved_applied_and_exported(root: Path, sd: StableDiffusion, tmp_path: Path) -> None:
    result, _ = finish(erase_sdd(sd, REMOVAL, SDDConfig(**FAST)))
    metadata = {"base": sd.content, "base_name": sd.name, "method": "sdd", "concepts": '["cat"]'}
    Erasure(result.weights, metadata).save(tmp_path / "e.safetensors")
    loaded = Erasure.load(tmp_path / "e.safetensors")
    assert loaded.method == "sdd"
    assert loaded.concepts == ["cat"]
    assert loaded.content == Erasure(result.weights, {}).content
    before = {name: value.clone() for name, value in sd.unet.state_dict().items()}
    cleaned = apply(sd, loaded)
    export_unet(cleaned, tmp_path / "unet")
    export_unet(cleaned, tmp_path / "unet")  # again, over the first
    exported = UNet2DConditionModel.from_pretrained(tmp_path / "unet").state_dict()
    assert set(exported) == set(before)
    for name, value in exported.items():
        assert torch.equal(value, result.weights[name] if "attn2" in name else before[name]), name
        assert torch.equal(sd.unet.state_dict()[name], before[name])
    assert [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []

    with pytest.raises(ModelError, match="was made for"):
        apply(dataclasses.replace(sd, content="0" * 64), loaded)
    save_file({"w": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="no erasure of hfi"):
        Erasure.load(tmp_path / "other.safetensors")


# --- several erasures ---


def made(seed: int, *names: str, before: Erasure | None = None, base: str = "b") -> Erasure:
    generator = torch.Generator().manual_seed(seed)
    values = {name: torch.randn(3, 2, generator=generator) for name in names}
    metadata = {"base": base, "method": "sdd", "concepts": f'["c{seed}"]'}
    if before:
        metadata["from"] = json.dumps(before.history)
    return Erasure({**(before.tensors if before else {}), **values}, metadata)


def test_changes_of_several_erasures_add_up_in_any_order() -> None:
    base = {name: torch.full((3, 2), 0.1) for name in "xyzw"}
    several = [made(1, "x", "y"), made(2, "y", "z"), made(3, "y")]
    a, b, c = (e.tensors for e in several)
    got = compose(base, several)
    assert set(got) == {"x", "y", "z"}
    assert torch.equal(got["x"], a["x"]) and torch.equal(got["z"], b["z"])
    torch.testing.assert_close(got["y"], a["y"] + b["y"] + c["y"] - 0.2)
    for order in itertools.permutations(several):
        again = compose(base, order)
        assert list(again) == list(got)
        assert all(torch.equal(again[name], got[name]) for name in got)
        assert identity(order) == identity(several)
    assert identity([]) is None
    assert identity(several[:1]) == several[0].content
    assert len({identity(several[:1]), identity(several[:2]), identity(several)}) == 3
    assert compose(base, []) == {}


def test_nothing_is_removed_twice_or_from_another_model() -> None:
    first = made(1, "x")
    second, sibling = made(2, "y", before=first), made(3, "x", before=first)
    third = made(4, "z", before=second)
    assert third.concepts == ["c1", "c2", "c4"]
    assert [step["content"] for step in third.history] == [e.content for e in (first, second, third)]
    assert all("from" not in step for step in third.history)
    check_together([third, made(5, "x")], "b", "m")
    for pair in ([first, first], [first, third], [third, second], [second, sibling]):
        with pytest.raises(UsageError, match="would count twice"):
            check_together(pair, "b", "m")
    with pytest.raises(ModelError, match=r"sdd of c6 .* was made for another model"):
        check_together([first, made(6, "x", base="other")], "b", "m")


def test_two_erasures_applied_to_a_model(sd: StableDiffusion) -> None:
    names = [name for name in sd.unet.state_dict() if "attn2.to_k" in name]
    w = sd.unet.state_dict()[names[0]]
    about = {"base": sd.content, "method": "sdd", "concepts": "[]"}
    one, two = Erasure({names[0]: w + 1}, about), Erasure({names[0]: w + 2, names[1]: sd.unet.state_dict()[names[1]] * 0}, about)
    both, other = apply(sd, one, two).unet.state_dict(), apply(sd, two, one).unet.state_dict()
    torch.testing.assert_close(both[names[0]], w + 3)
    assert all(torch.equal(both[name], other[name]) for name in both)
    assert {name for name, value in sd.unet.state_dict().items() if not torch.equal(value, both[name])} == set(names[:2])


@pytest.mark.parametrize("method", ["sdd", "sdd-context"])
def test_no_gradients_are_kept_beside_activations(sd: StableDiffusion, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From one update to the next, when the U-Net is asked again, they are gone."""
    asked = []

    def noted(sd: StableDiffusion, weights: Any, *rest: Any) -> torch.Tensor:
        asked.extend(value.grad is None for value in (weights or {}).values())
        return predict(sd, weights, *rest)

    monkeypatch.setattr("hfi.erase.distil.predict", noted)
    finish(METHODS[method].erase(sd, REMOVAL, METHODS[method].config(**FAST)))
    assert asked and all(asked)

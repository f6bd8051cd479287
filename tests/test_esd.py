"""ESD against its formula, written out with whole networks."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from tiny import WIDTHS, finish, saved

from hfi.diffusion.cond import Cond
from hfi.diffusion.sd import StableDiffusion, encode_null, encode_prompts, load_sd
from hfi.diffusion.tokens import LearnedToken, install
from hfi.erase import METHODS, Removal
from hfi.erase.esd import ESDXConfig, erase_esd, esd_target

FAST = {"steps": 3, "ddim_steps": 4, "batch_size": 3, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def models(root: Path) -> dict[str, StableDiffusion]:
    return {kind: load_sd(saved(root, kind)) for kind in WIDTHS}


def test_the_target_by_hand() -> None:
    e_0, e_c = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[3.0, 1.5]]]])
    assert esd_target(e_0, e_c, 3.0).tolist() == [[[[-5.0, 3.5]]]]  # 1 - 3 (3 - 1), 2 - 3 (1.5 - 2)


def call(unet: Any, x: torch.Tensor, t: torch.Tensor, cond: Cond) -> torch.Tensor:
    """One latent; SDXL is told that the picture is 16 high, 24 wide and not cut."""
    if cond.pooled is None:
        return unet(x, t, cond.states).sample
    size = torch.tensor([[16.0, 24.0, 0.0, 0.0, 16.0, 24.0]])
    return unet(x, t, cond.states, added_cond_kwargs={"text_embeds": cond.pooled, "time_ids": size}).sample


@pytest.mark.parametrize(
    ("kind", "method"), [("epsilon", "esd-x"), ("v_prediction", "esd-u"), ("xl", "esd-x"), ("epsilon", "esd-u")]
)
def test_it_equals_a_plain_loop_with_two_networks(root: Path, models: dict[str, StableDiffusion], kind: str, method: str) -> None:
    """The frozen model and the student, which rolls out itself, torch's AdamW and diffusers' scheduler; two concepts, one of them a
    token of two vectors. All tensors of other parts stay bit for bit."""
    made = torch.Generator().manual_seed(1)
    token = LearnedToken("<hfi>", tuple(torch.randn(2, width, generator=made) for width in WIDTHS[kind]))
    sd = install(models[kind], token)
    config = METHODS[method].config(**FAST, eta=2.0)
    ours, losses = finish(METHODS[method].erase(sd, Removal(("<hfi>", "dog")), config))

    student, frozen = (UNet2DConditionModel.from_pretrained(saved(root, kind), subfolder="unet") for _ in range(2))
    frozen.requires_grad_(False)
    cross = {name for name, _ in student.named_parameters() if ".attn2." in name}
    left_out = {name for name, _ in student.named_parameters() if name.startswith(("time_embedding.", "conv_out."))}
    chosen = cross if method == "esd-x" else {name for name, _ in student.named_parameters()} - cross - left_out
    trained = {name: p for name, p in student.named_parameters() if name in chosen}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(0)
    each, null = encode_prompts(sd, ["<hfi>", "dog"]), encode_null(sd)
    for step in range(3):
        x = torch.randn(3, *sd.latent_shape, generator=generator)
        which = torch.multinomial(torch.ones(2), 3, replacement=True, generator=generator)
        k = torch.multinomial(torch.full((4,), 0.25, dtype=torch.float64), 3, replacement=True, generator=generator)
        loss = torch.zeros(())
        for i in range(3):
            scheduler = DDIMScheduler.from_config(sd.scheduler.config)
            scheduler.set_timesteps(4)
            c, z = each[which[i : i + 1]], x[i : i + 1]
            with torch.no_grad():
                for t in scheduler.timesteps[: int(k[i])]:
                    e_0, e_c = call(student, z, t, null), call(student, z, t, c)
                    z = scheduler.step(e_0 + 3.0 * (e_c - e_0), t, z).prev_sample
                t = scheduler.timesteps[int(k[i])]
                e_0, e_c = call(frozen, z, t, null), call(frozen, z, t, c)
            loss = loss + F.mse_loss(call(student, z, t, c), e_0 - 2.0 * (e_c - e_0)) / 3
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        assert losses[step] == pytest.approx(loss.item(), rel=1e-4)
    expected = dict(student.named_parameters())
    assert set(ours.weights) == chosen
    start = dict(frozen.named_parameters())
    for name, value in ours.weights.items():  # Adam turns a gradient of nearly zero into a whole step, of either sign
        moved = (expected[name] - start[name]).norm()
        assert moved > 0
        assert (value - expected[name]).norm() < 0.01 * moved
    assert all(torch.equal(p, start[name]) for name, p in sd.unet.named_parameters())


@pytest.mark.parametrize("rollouts", ["fresh", "staggered"])
def test_only_the_conditional_branch_has_a_gradient(models: dict[str, StableDiffusion], rollouts: Any) -> None:
    """Of an update's evaluations those of the student on the concept; the rest are counted and not differentiated."""
    sd, seen = models["epsilon"], []
    handle = sd.unet.register_forward_hook(lambda m, args, out: seen.append((len(args[0]), out.sample.requires_grad)))
    try:
        result, _ = finish(erase_esd(sd, Removal(("cat",)), ESDXConfig(**FAST, rollouts=rollouts)))
    finally:
        handle.remove()
    assert [count for count, grad in seen if grad] == [3, 3, 3]
    assert [count for count, grad in seen if not grad].count(6) >= 3  # of the frozen model, on nothing and on the concept
    assert sum(count for count, _ in seen) == result.evaluations


def test_the_rollouts_are_the_students(models: dict[str, StableDiffusion]) -> None:
    """Its weights and the ones that roll out are the same after every update."""
    training = erase_esd(models["epsilon"], Removal(("cat",)), ESDXConfig(**FAST))
    for step in training:
        state = step.state()
        assert all(torch.equal(value, state["student"][name]) for name, value in state["teacher"].items())

import dataclasses
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import WIDTHS, saved

from hfi.attack import RelapseConfig, direction, flagged_examples, relapse, relapsed, ringing, shifted, token_direction
from hfi.diffusion.sample import sample
from hfi.diffusion.sd import StableDiffusion, encode_prompts, load_sd
from hfi.diffusion.tokens import LearnedToken, install
from hfi.diffusion.training import drive, load_state
from hfi.erase.erasure import Erasure, apply
from hfi.errors import UsageError
from hfi.invert.train import Examples, InvertConfig, initial_vectors, invert
from hfi.runs import Run

KINDS = ("epsilon", "v_prediction", "xl")
LOOK = {"steps": 2, "guidance_scale": 3.0}
FAST = RelapseConfig(steps=5, every=2, batch_size=3, learning_rate=0.05)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StableDiffusion]:
    """Cleaned models: each keeps its U-Net but for two tensors that an erasure replaced."""
    root = tmp_path_factory.mktemp("models")
    made = {}
    for kind in KINDS:
        sd = load_sd(saved(root, kind))
        names = [name for name, _ in sd.unet.named_parameters() if name.endswith("attn2.to_k.weight")][:2]
        generator = torch.Generator().manual_seed(3)
        values = {name: torch.randn(sd.unet.state_dict()[name].shape, generator=generator) for name in names}
        made[kind] = apply(sd, Erasure(values, {"base": sd.content, "method": "test", "concepts": '["hat"]'}))
    return made


def flagged(sd: StableDiffusion) -> Examples:
    h, w = sd.image_size
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for _ in range(3)]
    return flagged_examples(sd, images, ["a cat", "a dog", None], "<back>", "hat")


def finish(training: Generator[Any, Any, Any]) -> Any:
    while True:
        try:
            next(training)
        except StopIteration as end:
            return end.value


def same(one: list[Image.Image], other: list[Image.Image]) -> bool:
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(one, other, strict=True))


# --- relapse ---


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_tokens_vectors_move(models: dict[str, StableDiffusion], kind: str) -> None:
    sd = models[kind]
    parts = {**dict(enumerate(sd.text_encoders)), "unet": sd.unet, "vae": sd.vae}
    before = {(k, n): v.clone() for k, m in parts.items() for n, v in m.state_dict().items()}
    found = finish(relapse(sd, flagged(sd), dataclasses.replace(FAST, vectors=2)))
    assert list(found.tokens) == [0, 2, 4, 5]
    assert all(token.widths == WIDTHS[kind] for token in found.tokens.values())
    for mine, start in zip(found.tokens[0].embeddings, initial_vectors(sd, "hat", 2), strict=True):
        assert torch.equal(mine, start)
    for earlier, later in ((0, 2), (2, 4), (4, 5)):
        for a, b in zip(found.tokens[earlier].embeddings, found.tokens[later].embeddings, strict=True):
            assert ((a - b).abs().amax(1) > 0).all()
    assert all(torch.equal(v, before[k, n]) for k, m in parts.items() for n, v in m.state_dict().items())
    assert not any("<back>" in tokenizer.get_vocab() for tokenizer in sd.tokenizers)


def test_each_kept_token_is_that_of_an_inversion_stopped_there(models: dict[str, StableDiffusion]) -> None:
    """From images that count the same."""
    sd = models["epsilon"]
    data = flagged(sd)
    assert data.weights.tolist() == [1, 1, 1]
    found = finish(relapse(sd, data, FAST))
    for at in (2, 4, 5):
        config = InvertConfig(steps=at, batch_size=3, learning_rate=0.05, ema_decay=0.9)
        assert finish(invert(sd, [data], config)).tokens[0].content == found.tokens[at].content


@pytest.mark.parametrize("kind", ["epsilon", "xl"])
def test_after_a_kill_it_ends_the_same(models: dict[str, StableDiffusion], kind: str, tmp_path: Path) -> None:
    sd = models[kind]
    whole = finish(relapse(sd, flagged(sd), FAST))
    run = Run.start(tmp_path, "attack", "x", dataclasses.asdict(FAST))

    def killed(state: Any) -> Any:
        training = relapse(sd, flagged(sd), FAST, state)
        for _ in range(4):
            yield next(training)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive(killed, run, steps=5, save_every=3, title="x")
    assert load_state(run.path / "checkpoint.pt")["step"] == 3  # type: ignore[index]
    again = drive(lambda state: relapse(sd, flagged(sd), FAST, state), run, steps=5, save_every=3, title="x")
    assert {at: token.content for at, token in again.tokens.items()} == {at: t.content for at, t in whole.tokens.items()}


def test_it_can_be_stopped(models: dict[str, StableDiffusion]) -> None:
    training = relapse(models["epsilon"], flagged(models["epsilon"]), FAST)
    assert [next(training).step for _ in range(3)] == [1, 2, 3]
    with pytest.raises(StopIteration) as end:
        training.send(True)
    assert list(end.value.value.tokens) == [0, 2]


def test_the_token_is_behind_every_prompt(models: dict[str, StableDiffusion]) -> None:
    """Also of prompts that leave it no room: 20 positions are read."""
    sd = models["epsilon"]
    token = LearnedToken("<back>", (torch.randn(2, WIDTHS["epsilon"][0], generator=torch.Generator().manual_seed(1)),))
    made = list(relapsed(sd, token, **LOOK)(["a cat", "cat " * 30], [1, 2]))
    theirs = list(sample(install(sd, token), ["a cat <back>", "cat " * 16 + "<back>"], [1, 2], **LOOK))
    assert same(made, theirs)
    assert not same(made, list(sample(sd, ["a cat", "cat " * 30], [1, 2], **LOOK)))


# --- Ring-A-Bell ---


@pytest.mark.parametrize("kind", KINDS)
def test_the_direction_by_hand(models: dict[str, StableDiffusion], kind: str) -> None:
    sd = models[kind]
    found = direction(sd, ["a cat hat", "dog hat"], ["a cat", "dog"])
    a, b, c, d = (encode_prompts(sd, [text]) for text in ("a cat hat", "a cat", "dog hat", "dog"))
    torch.testing.assert_close(found.states, ((a.states - b.states) + (c.states - d.states)) / 2)
    attacked = shifted(sd, ["dog"], by=found, eta=0.9)
    torch.testing.assert_close(attacked.states, d.states + 0.9 * found.states)
    assert (found.pooled is None) == (kind != "xl")
    if found.pooled is not None:
        torch.testing.assert_close(found.pooled, ((a.pooled - b.pooled) + (c.pooled - d.pooled)) / 2)
        torch.testing.assert_close(attacked.pooled, d.pooled + 0.9 * found.pooled)


@pytest.mark.parametrize("kind", ["epsilon", "xl"])
def test_a_tokens_direction_by_hand(models: dict[str, StableDiffusion], kind: str) -> None:
    sd = models[kind]
    generator = torch.Generator().manual_seed(1)
    token = LearnedToken("<back>", tuple(torch.randn(1, width, generator=generator) for width in WIDTHS[kind]))
    named = install(sd, token)
    by_hand = direction(named, ["a cat <back>", "dog <back>"], ["a cat", "dog"])
    found = token_direction(sd, token, ["a cat", "dog"])
    torch.testing.assert_close(found.states, by_hand.states)
    if found.pooled is not None:
        torch.testing.assert_close(found.pooled, by_hand.pooled)


@pytest.mark.parametrize("kind", KINDS)
def test_an_attack_of_no_strength_is_the_plain_sampler(models: dict[str, StableDiffusion], kind: str) -> None:
    sd = models[kind]
    by = direction(sd, ["a hat"], ["a"])
    prompts, seeds = ["a cat", "dog", "a dog"], [1, 2, 3]
    plain = list(sample(sd, prompts, seeds, **LOOK))
    assert same(list(ringing(sd, by, 0.0, **LOOK)(prompts, seeds)), plain)
    assert not same(list(ringing(sd, by, 30.0, **LOOK)(prompts, seeds)), plain)


def test_pairs_are_checked(models: dict[str, StableDiffusion]) -> None:
    sd = models["epsilon"]
    with pytest.raises(UsageError, match="2 prompts that ask for the concept and 1 that do not"):
        direction(sd, ["a hat", "hat"], ["a"])
    with pytest.raises(UsageError, match="give pairs"):
        direction(sd, [], [])
    with pytest.raises(UsageError, match="no prompt to put the token behind"):
        token_direction(sd, LearnedToken("<back>", (torch.zeros(1, WIDTHS["epsilon"][0]),)), [])

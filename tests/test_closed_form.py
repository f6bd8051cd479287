"""UCE and RECE: the minima they claim to be, and what they do to whole models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny import WIDTHS, finish, saved
from torch import Tensor

from hfi.diffusion.sd import StableDiffusion, encode_prompts, load_sd
from hfi.diffusion.tokens import LearnedToken, install
from hfi.diffusion.trainable import select
from hfi.diffusion.training import drive
from hfi.erase import METHODS, Removal
from hfi.erase.erasure import Erasure
from hfi.erase.rece import RECEConfig, erase_rece, regenerating
from hfi.erase.uce import Edit, Texts, UCEConfig, erase_uce, left, texts_of, uce_edit
from hfi.export.lora import lora
from hfi.runs import Run

CLOSED = [name for name, method in METHODS.items() if issubclass(method.config, UCEConfig)]
METHODS_WITHOUT_JUDGMENTS = [name for name, method in METHODS.items() if not method.judged and name != "sdd"]
TRAINED = ["--steps", 2, "--ddim-steps", 2, "--batch-size", 1, "--save-every", 1, "--learning-rate", 0.001]
LIGHT = ["--precision", "bfloat16", "--gradient-checkpointing", "--attention-slicing"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def models(root: Path) -> dict[str, StableDiffusion]:
    """Each with a token of two vectors."""
    made = torch.Generator().manual_seed(0)
    return {
        kind: install(load_sd(saved(root, kind)), LearnedToken("<hfi>", tuple(torch.randn(2, d, generator=made) for d in widths)))
        for kind, widths in WIDTHS.items()
    }


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- formulas ---


def test_an_edit_by_hand() -> None:
    """c = (1, 0) to be read as t = (0, 1), lambda 1: c c^T + I = diag(2, 1), v = (1/2, 0), E = I + (t - c) v^T."""
    c, t = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    w = torch.tensor([[2.0, 4.0], [6.0, 0.0]], dtype=torch.float64)
    edit = uce_edit(Texts(c, t, c[:0]), 1.0, 1.0)
    for got, expected in (
        (edit.of(torch.eye(2, dtype=torch.float64)), [[0.5, 0.0], [0.5, 1.0]]),
        (edit.of(w), [[3.0, 4.0], [3.0, 0.0]]),
        (edit(c), [[0.5, 0.5]]),
        (uce_edit(Texts(c, t, c), 2.0, 1.0)(c), [[0.75, 0.25]]),  # it is to stay too, with weight 2: 1 + 2 + 1 = 4
    ):
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    before, now = ((w @ x).square().sum() for x in (torch.tensor([1.0, -1.0]).double(), torch.tensor([0.5, -0.5]).double()))
    assert left([w], edit, Texts(c, t, c[:0])) == pytest.approx(float(now / before))


def test_uce_is_the_minimum_of_its_objective() -> None:
    """Its gradient in W', by autograd, is zero there; and the published expression, with an inverse, gives the same."""
    w, c, t, p, b, lamb = rows(7, 9, seed=1), rows(3, 9, seed=2), rows(3, 9, seed=3), rows(4, 9, seed=4), 0.7, 0.3
    found = uce_edit(Texts(c, t, p), b, lamb).of(w).requires_grad_(True)
    objective = ((c @ found.T - t @ w.T) ** 2).sum() + b * ((p @ (found - w).T) ** 2).sum() + lamb * ((found - w) ** 2).sum()
    objective.backward()
    assert found.grad is not None
    assert found.grad.abs().max() < 1e-8
    eye = torch.eye(9, dtype=torch.float64)
    inverse = torch.linalg.inv(c.T @ c + b * p.T @ p + lamb * eye)
    torch.testing.assert_close(found.detach(), (w @ t.T @ c + b * w @ p.T @ p + lamb * w) @ inverse)


def test_without_lambda_the_concept_is_read_as_the_empty_text() -> None:
    """Exactly, and what is kept stays exactly, where they are fewer states than the text is wide."""
    w, c, t, p = rows(7, 9, seed=1), rows(3, 9, seed=2), rows(3, 9, seed=3), rows(4, 9, seed=4)
    far = [left([w], uce_edit(Texts(c, t, p), 1.0, lamb), Texts(c, t, p)) for lamb in (10.0, 1.0, 0.1, 1e-12)]
    assert far == sorted(far, reverse=True)
    assert far[0] < 1
    edit = uce_edit(Texts(c, t, p), 1.0, 1e-12)
    torch.testing.assert_close(c @ edit.of(w).T, t @ w.T, atol=1e-8, rtol=0)
    torch.testing.assert_close(p @ edit.of(w).T, p @ w.T, atol=1e-8, rtol=0)
    assert torch.linalg.matrix_rank(edit.of(w) - w, rtol=1e-9) == 3


def test_what_brings_the_concept_back_is_the_minimum_of_its_objective() -> None:
    ws, c, mu = [rows(n, 6, seed=n) for n in (4, 5, 8)], rows(3, 6, seed=1), 0.2
    edit = uce_edit(Texts(c, rows(3, 6, seed=2), c[:0]), 0.0, 0.1)
    gram = torch.stack([w.T @ w for w in ws]).sum(0)
    found = regenerating(gram, edit, c, mu).requires_grad_(True)
    (sum(((found @ edit.of(w).T - c @ w.T) ** 2).sum() for w in ws) + mu * (found**2).sum()).backward()
    assert found.grad is not None
    assert found.grad.abs().max() < 1e-8
    nearly = regenerating(gram, edit, c, 1e-12)
    for w in ws:  # unpunished, it does bring it back
        torch.testing.assert_close(nearly @ edit.of(w).T, c @ w.T, atol=1e-6, rtol=0)


def test_one_edit_after_another() -> None:
    w, first, second = rows(5, 6), Edit(rows(2, 6, seed=1), rows(2, 6, seed=2)), Edit(rows(1, 6, seed=3), rows(1, 6, seed=4))
    torch.testing.assert_close(second.after(first).of(w), second.of(first.of(w)))
    x = rows(4, 6, seed=5)
    torch.testing.assert_close(second.after(first)(x), first(second(x)))


# --- texts ---


@pytest.mark.parametrize("kind", list(WIDTHS))
def test_states_are_those_of_own_tokens_and_the_end(models: dict[str, StableDiffusion], kind: str) -> None:
    """A word and a token of two vectors: 1 + 1 and 2 + 1 states, each against the empty text at its own position."""
    sd = models[kind]
    texts = texts_of(sd, Removal(("cat", "<hfi>"), retain=("", "dog hat", "dog hat")))
    cat, token, kept, empty = encode_prompts(sd, ["cat", "<hfi>", "dog hat", ""]).states.double()
    assert torch.equal(texts.edited, torch.cat([cat[1:3], token[1:4]]))
    assert torch.equal(texts.wanted, torch.cat([empty[1:3], empty[1:4]]))
    assert torch.equal(texts.kept, torch.cat([empty, kept[1:4]]))
    assert texts.edited.shape[1] == sum(WIDTHS[kind])


# --- whole models ---


@pytest.mark.parametrize("kind", list(WIDTHS))
def test_rece_equals_a_plain_loop_over_the_matrices(models: dict[str, StableDiffusion], kind: str) -> None:
    sd = models[kind]
    config = RECEConfig(rounds=2, lamb=0.2, regular_scale=0.3, retain_weight=0.4)
    removal = Removal(("cat", "<hfi>"), retain=("dog hat",))
    ours, losses = finish(erase_rece(sd, removal, config))
    texts = texts_of(sd, removal)
    c, t, p = texts.edited, texts.wanted, texts.kept
    first = {n: w.double() for n, w in sd.unet.state_dict().items() if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    now, eye = dict(first), torch.eye(c.shape[1], dtype=torch.float64)
    for step in range(3):
        x = c
        if step:
            inner = 0.3 * eye + torch.stack([now[n].T @ now[n] for n in now]).sum(0)
            x = c @ (torch.linalg.inv(inner) @ torch.stack([now[n].T @ first[n] for n in now]).sum(0)).T
        inverse = torch.linalg.inv(x.T @ x + 0.4 * p.T @ p + 0.2 * eye)
        now = {n: (w @ t.T @ x + 0.4 * w @ p.T @ p + 0.2 * w) @ inverse for n, w in now.items()}
    assert set(ours.weights) == set(now)
    for name, value in ours.weights.items():
        torch.testing.assert_close(value, now[name].float(), rtol=1e-4, atol=1e-5)
    assert len(losses) == 3
    assert all(0 < loss < 1 for loss in losses)
    plain, _ = finish(erase_uce(sd, removal, UCEConfig(lamb=0.2, retain_weight=0.4)))
    start, _ = finish(erase_rece(sd, removal, RECEConfig(rounds=1, lamb=0.2, retain_weight=0.4)))
    assert any(not torch.equal(value, start.weights[name]) for name, value in plain.weights.items())


@pytest.mark.parametrize("kind", list(WIDTHS))
@pytest.mark.parametrize("method", CLOSED)
def test_battery(models: dict[str, StableDiffusion], tmp_path: Path, method: str, kind: str) -> None:
    """Keys and values change and nothing else, whatever was kept of an interrupted run; no network is evaluated; a LoRA of the rank
    of the edited states is exact."""
    sd, how = models[kind], METHODS[method]
    removal, config = Removal(("<hfi>", "dog"), retain=("a hat",)), how.config()
    before = {name: value.clone() for name, value in sd.unet.state_dict().items()}
    handle = sd.unet.register_forward_hook(lambda *_: pytest.fail("evaluated"))
    try:
        whole, losses = finish(how.erase(sd, removal, config))
    finally:
        handle.remove()
    assert len(losses) == config.steps
    assert whole.evaluations == 0
    assert set(whole.weights) == {n for n in before if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    assert all(value.dtype == torch.float32 and torch.isfinite(value).all() for value in whole.weights.values())
    assert all(not torch.equal(value, before[name]) for name, value in whole.weights.items())
    assert all(torch.equal(value, before[name]) for name, value in sd.unet.state_dict().items())

    run = Run.start(tmp_path, "erase", "x", {})
    for _ in range(config.steps):  # killed after each step

        def killed(state: Any) -> Any:
            training = how.erase(sd, removal, config, state)
            yield next(training)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            drive(killed, run, steps=config.steps, save_every=1, title="x")
    again = drive(lambda state: how.erase(sd, removal, config, state), run, steps=config.steps, save_every=1, title="x")
    assert [line["loss"] for line in run.metrics()] == losses
    assert all(torch.equal(value, again.weights[name]) for name, value in whole.weights.items())

    edited = 5 * config.steps  # two vectors and an end, a word and an end
    made = lora(before, whole.weights, rank=edited)
    assert made.total < 1e-5
    if edited < min(min(value.shape) for value in whole.weights.values()):
        assert set(made.ranks.values()) == {edited}
        assert lora(before, whole.weights, rank=edited - 1).total > 1e-5


def test_the_model_in_half_precision_gets_a_change_of_the_same_rank(root: Path) -> None:
    half, single = load_sd(saved(root, "epsilon"), dtype=torch.bfloat16), load_sd(saved(root, "epsilon"))
    of_half, of_single = (finish(erase_uce(sd, Removal(("cat",)), UCEConfig()))[0].weights for sd in (half, single))
    rounded = {name: value.float() for name, value in select(half.unet, "kv").items()}
    assert lora(rounded, of_half, rank=2).total < 1e-5
    for name, value in of_half.items():
        torch.testing.assert_close(value, of_single[name], atol=0.02, rtol=0.05)


# --- commands ---


@pytest.fixture
def space(hfi: Callable[..., Any], tmp_path: Path) -> Path:
    """Two concepts that nobody judged."""
    for command in (["init", tmp_path / "w"], *(["concept", "add", c, "-w", tmp_path / "w"] for c in ("fog", "mist"))):
        assert hfi(*command).exit_code == 0
    return tmp_path / "w"


@pytest.mark.parametrize("kind", list(WIDTHS))
@pytest.mark.parametrize("method", METHODS_WITHOUT_JUDGMENTS)
def test_every_family_by_token_and_by_text(
    hfi: Callable[..., Any], space: Path, root: Path, monkeypatch: pytest.MonkeyPatch, method: str, kind: str
) -> None:
    """One concept by its token, two by words; interrupted before the end and gone on; the U-Net for diffusers is finite."""
    made = torch.Generator().manual_seed(0)
    LearnedToken("<fog>", tuple(torch.randn(2, d, generator=made) for d in WIDTHS[kind])).save(
        space / "tokens" / "fog.safetensors"
    )
    (space / "keep.txt").write_text("a hat\ncat\n")
    settings = TRAINED if method not in CLOSED else ["--retain", space / "keep.txt"]
    command = ["erase", "-w", space, "-m", saved(root, kind), "--method", method, *settings]
    before = UNet2DConditionModel.from_pretrained(saved(root, kind), subfolder="unet").state_dict()
    for words, name in (
        (["-c", "fog"], f"fog-{method}-token"),
        (["-c", "fog,mist", "--text", "a dog", "--text", "hat"], f"fog+mist-{method}-text"),
    ):
        done = hfi(*command, *words, "--json")
        assert done.exit_code == 0, done.stderr
        result, steps = json.loads(done.stdout), METHODS[method].config().steps if method in CLOSED else 2
        assert (result["run"], result["step"], result["unet_evaluations"] == 0) == (name, steps, method in CLOSED)
        made = Erasure.load(space / "erasures" / f"{name}.safetensors")
        assert json.loads(made.metadata["retain"]) == (["a hat", "cat"] if method in CLOSED else [])
        after = UNet2DConditionModel.from_pretrained(space / "erasures" / name / "unet").state_dict()
        assert all(torch.isfinite(value).all() for value in after.values())
        assert {n for n in before if not torch.equal(before[n], after[n])} == set(made.tensors)
    with monkeypatch.context() as patch:
        patch.setattr("hfi.cli.erase._finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert hfi(*command, *words, "--name", "again").exit_code == 130
    assert hfi(*command, *words, "--name", "again").exit_code == 0
    again = Erasure.load(space / "erasures" / "again.safetensors")
    assert (again.content, again.metadata) == (made.content, made.metadata)


def test_going_on_from_another_erasure(hfi: Callable[..., Any], space: Path, root: Path) -> None:
    """UCE of one concept after another, in half precision: the second edits what the first left, and holds both."""
    command = ["erase", "-w", space, "-m", saved(root, "epsilon"), "--method", "uce", *LIGHT]
    assert hfi(*command, "-c", "fog", "--text", "cat").exit_code == 0
    done = hfi(*command, "-c", "mist", "--text", "dog", "--from", "fog-uce-text")
    assert done.exit_code == 0, done.stderr
    one, both = (Erasure.load(space / "erasures" / f"{n}-uce-text.safetensors") for n in ("fog", "mist"))
    assert both.concepts == ["fog", "mist"]
    base = load_sd(saved(root, "epsilon")).unet.state_dict()
    assert lora(base, one.tensors, rank=2).total < 1e-5
    assert lora(one.tensors, both.tensors, rank=2).total < 1e-4
    assert lora(base, both.tensors, rank=4).total < 1e-4


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--method", "uce", "--steps", "3"], "--steps is no setting of uce: it belongs to sdd, sdd-context, esd-x and esd-u"),
        (["--method", "uce", "--rounds", "3"], "--rounds is no setting of uce: it belongs to rece"),
        (["--method", "rece", "--rounds", "0"], "--rounds is 0: give 1 or more"),
        (["--method", "uce", "--lamb", "0"], "--lamb is 0.0: give more than 0"),
        (["--method", "esd-x", "--train", "full"], "--train is no setting of esd-x: it belongs to sdd and sdd-context"),
        (["--method", "esd-u", "--ema-decay", "0"], "--ema-decay is no setting of esd-u: it belongs to sdd and sdd-context"),
        (["--method", "esd-x", "--retain", "x"], "--retain is for sdd-context, uce and rece: esd-x holds no prompts"),
        (["--method", "sdd", "--eta", "1"], "--eta is no setting of sdd: it belongs to sdd-context, esd-x and esd-u"),
    ],
)
def test_mistakes(
    hfi: Callable[..., Any], space: Path, root: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], words: str
) -> None:
    monkeypatch.setattr("hfi.diffusion.sd.load_part", lambda *a: pytest.fail("a model was loaded"))
    done = hfi("erase", "-w", space, "-m", saved(root, "epsilon"), "-c", "fog", "--text", "cat", *args)
    assert (done.exit_code, done.stderr) == (2, f"hfi: error: {words}\n")

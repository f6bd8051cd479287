"""An erasure as a LoRA: the algebra, and strength 0 and 1 in diffusers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from tiny import saved

from hfi.diffusion.sd import StableDiffusion, load_sd
from hfi.erase.erasure import Erasure, apply
from hfi.errors import HfiError
from hfi.export.about import public_name
from hfi.export.lora import factorize, lora
from hfi.workspace import Workspace

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models"), "epsilon")


@pytest.fixture(scope="module")
def sd(model: Path) -> StableDiffusion:
    return load_sd(model)


def erasure(sd: StableDiffusion, chosen: Callable[[str, torch.Tensor], bool], rank: int | None = None) -> Erasure:
    """Random changes of the chosen tensors, matrices of this rank."""
    g = torch.Generator().manual_seed(3)
    tensors = {}
    for name, w in sd.unet.state_dict().items():
        if chosen(name, w):
            change = torch.randn(w.shape, generator=g)
            if rank and w.ndim > 1:
                down = torch.randn(rank, w[0].numel(), generator=g)
                change = (torch.randn(len(w), rank, generator=g) @ down).reshape(w.shape)
            tensors[name] = w + 0.1 * change
    return Erasure(tensors, {"base": sd.content, "base_name": sd.name, "method": "sdd", "concepts": '["fog"]'})


def matrices(name: str, w: torch.Tensor) -> bool:
    return w.ndim in (2, 4)


def attention(name: str, w: torch.Tensor) -> bool:
    return ".attn2." in name


# --- algebra ---


@given(
    shape=st.sampled_from([(5, 3), (3, 7), (4, 4), (4, 3, 3, 3), (6, 2, 1, 1)]),
    true=st.integers(1, 4),
    asked=st.none() | st.integers(1, 6),
    bound=st.sampled_from([0.0, 1e-6, 0.05, 0.5]),
    alpha=st.sampled_from([None, 1.0, 4.0]),
    seed=st.integers(0, 99),
)
def test_the_nearest_pair_of_its_rank(
    shape: tuple[int, ...], true: int, asked: int | None, bound: float, alpha: float | None, seed: int
) -> None:
    """Exact once the rank is reached; else within the bound, with no rank to spare; and the stated error is the real one."""
    g = torch.Generator().manual_seed(seed)
    width = torch.zeros(shape[1:]).numel()
    change = (torch.randn(shape[0], true, generator=g).double() @ torch.randn(true, width, generator=g).double()).reshape(shape)
    pair = factorize(change, asked, bound, torch.float64, alpha)
    assert pair.scale == (alpha / pair.rank if alpha else 1)
    got = (pair.scale * pair.up @ pair.down.flatten(1)).reshape(shape)
    assert pair.off == pytest.approx(float((got - change).norm()), abs=1e-12)
    assert pair.norm == pytest.approx(float(change.norm()))
    singular = torch.linalg.svdvals(change.flatten(1))
    assert pair.off == pytest.approx(float(singular[pair.rank :].norm()), abs=1e-9)
    if asked:
        assert pair.rank == min(asked, len(singular))
    elif bound:
        assert pair.off <= bound * pair.norm + 1e-9
        assert pair.rank == 1 or singular[pair.rank - 1 :].norm() > bound * pair.norm
    if pair.rank >= true:
        assert pair.off < 1e-9 * pair.norm


def test_the_error_is_that_of_the_written_numbers(sd: StableDiffusion) -> None:
    """16-bit floats are part of it."""
    change = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    full, half = (factorize(change, 16, 0, dtype) for dtype in (torch.float32, torch.float16))
    assert full.off / full.norm < 1e-6
    assert 1e-5 < half.off / half.norm < 1e-2


def test_errors_in_all_and_at_worst(sd: StableDiffusion) -> None:
    base = {"a.weight": torch.zeros(2, 2), "b.weight": torch.zeros(2, 2), "b.bias": torch.zeros(2), "c.weight": torch.zeros(2, 2)}
    changed = {
        "a.weight": torch.diag(torch.tensor([3.0, 0.0])),
        "b.weight": torch.diag(torch.tensor([4.0, 3.0])),
        "b.bias": torch.tensor([0.0, 4.0]),
        "c.weight": torch.zeros(2, 2),
    }
    made = lora(base, changed, format="webui", rank=1, without_biases=True)
    assert made.errors == pytest.approx({"a.weight": 0, "b.weight": 3 / 5}, abs=1e-6)
    assert made.worst == pytest.approx(0.6)
    assert made.total == pytest.approx(5 / 50**0.5)  # (3^2 + 4^2) of (3^2 + 4^2 + 3^2 + 4^2)
    assert made.left_out == ["b.bias"]
    assert lora(base, changed, rank=1).total == pytest.approx(3 / 50**0.5)


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        (["n.bias"], {}, "cannot hold the changed n.bias: export a folder"),
        (["n.weight", "a.weight"], {}, "cannot hold the changed n.weight: export a folder"),
        (["n.weight"], {"without_biases": True}, "cannot hold the changed n.weight"),
        (["a.bias"], {"format": "webui"}, "cannot hold the changed a.bias: --format diffusers holds"),
        (["a.bias", "n.bias", "n.weight", "e.weight", "a.weight"], {"format": "webui"}, "a.bias, e.weight, n.bias and 1 more"),
        ([], {}, "changes no value"),
    ],
)
def test_what_a_lora_cannot_hold(names: list[str], options: dict[str, Any], words: str) -> None:
    base = {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2), "n.weight": torch.zeros(2), "n.bias": torch.zeros(2)}
    base["e.weight"] = torch.zeros(2, 2, 2)
    changed = {name: value + (name in names) for name, value in base.items()}
    with pytest.raises(HfiError) as e:
        lora(base, changed, **options)
    assert words in str(e.value)


# --- in diffusers ---


@pytest.mark.parametrize(
    ("chosen", "rank", "options"),
    [
        (attention, None, []),
        (attention, 2, ["--max-error", "1e-6"]),
        (matrices, 3, ["--max-error", "1e-6"]),
        (matrices, 3, ["--max-error", "1e-6", "--format", "webui"]),
        (matrices, 2, ["--rank", "2", "--format", "webui"]),
        (lambda name, w: name.endswith("attn2.to_out.0.bias"), None, []),
        (matrices, None, ["--rank", "1"]),
    ],
)
def test_strength_0_is_the_base_and_strength_1_the_erasure(
    hfi: Call, workspace: Workspace, model: Path, sd: StableDiffusion, chosen: Any, rank: int | None, options: list[str]
) -> None:
    pytest.importorskip("peft")
    made = erasure(sd, chosen, rank)
    made.save(workspace.erasures / "fog.safetensors")
    done = hfi("export", "lora", "-w", workspace.path, "-m", model, "--erasure", "fog", *options, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    exact = options != ["--rank", "1"]
    assert (result["total_error"] <= 0.01) == exact
    if rank:
        assert result["ranks"][-1] == rank

    pipe = StableDiffusionPipeline.from_pretrained(model)
    pipe.load_lora_weights(result["file"], adapter_name="fog")
    g = torch.Generator().manual_seed(0)
    x, t, c = torch.randn(2, *sd.latent_shape, generator=g), torch.tensor([5, 700]), torch.randn(2, 7, 16, generator=g)
    with torch.no_grad():
        base, cleaned = sd.unet(x, t, c).sample, apply(sd, made).unet(x, t, c).sample
        pipe.set_adapters("fog", 0.0)
        assert torch.equal(pipe.unet(x, t, c).sample, base)
        pipe.set_adapters("fog", 1.0)
        off = (pipe.unet(x, t, c).sample - cleaned).norm() / (cleaned - base).norm()
        assert (off < 0.02) == exact, off
    if "1e-6" in options:
        assert off < 1e-4
    # what is in effect, against the stated error
    weights = {name.replace(".base_layer", ""): value for name, value in pipe.unet.state_dict().items() if "lora_" not in name}
    residue, norm = 0.0, 0.0
    for name, value in made.tensors.items():
        module = pipe.unet.get_submodule(name.rpartition(".")[0])
        change = value - weights[name]
        held = (module.get_delta_weight("fog") if name.endswith(".weight") else module.lora_B["fog"].bias).detach()
        residue, norm = residue + float((held - change).double().norm()) ** 2, norm + float(change.double().norm()) ** 2
    assert (residue / norm) ** 0.5 == pytest.approx(result["total_error"], rel=1e-3, abs=1e-6)


def test_the_file_says_what_it_is_and_names_no_folder_of_this_machine(
    hfi: Call, workspace: Workspace, model: Path, sd: StableDiffusion
) -> None:
    erasure(sd, attention).save(workspace.erasures / "fog.safetensors")
    command = ["export", "lora", "-w", workspace.path, "-m", model, "--erasure", "fog"]
    done = hfi(*command, "--format", "webui", "--without-biases", "--half")
    assert done.exit_code == 0, done.output
    assert "4 biases left out" in done.stdout
    file = workspace.exports / "lora-webui" / "fog.safetensors"
    with safe_open(file, framework="pt") as opened:
        about = opened.metadata()
        keys = list(opened.keys())
        assert all(opened.get_tensor(key).dtype == torch.float16 for key in keys)
    assert all(key.startswith("lora_unet_") for key in keys)
    assert str(model.parent) not in json.dumps(about)
    assert (about["base"], about["base_name"], json.loads(about["concepts"])) == (sd.content, model.name, ["fog"])
    assert 0 < float(about["worst_error"]) < float(about["total_error"])
    done = hfi(*command, "--format", "webui", "-o", workspace.path / "x.safetensors")
    assert done.exit_code == 1
    assert "cannot hold the changed" in done.errors[0]
    assert not list(workspace.exports.rglob("*.tmp"))


def test_mistakes_before_a_model_is_loaded(
    hfi: Call, workspace: Workspace, model: Path, sd: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfi.diffusion.sd.load_part", lambda *a: pytest.fail("a model was loaded"))
    made = erasure(sd, attention)
    made.save(workspace.erasures / "fog.safetensors")
    Erasure(made.tensors, {**made.metadata, "base": "0" * 64}).save(workspace.erasures / "other.safetensors")
    (workspace.exports / "lora-diffusers").mkdir(parents=True)
    (workspace.exports / "lora-diffusers" / "fog.safetensors").write_text("mine")
    for args, code, words in [
        (["--erasure", "none"], 1, "no erasure 'none'"),
        (["--erasure", "other"], 1, "was made for"),
        (["--erasure", "fog", "--erasure", "fog"], 2, "would count twice"),
        (["--erasure", "fog"], 1, "is there already"),
        (["--erasure", "fog", "-m", "nowhere"], 1, "no model 'nowhere'"),
        (["--erasure", "fog", "--rank", "0"], 2, "--rank"),
        ([], 2, "--erasure"),
    ]:
        done = hfi("export", "lora", "-w", workspace.path, "-m", model, *args)
        assert done.exit_code == code, (args, done.output)
        assert words in done.stderr, (args, done.stderr)
    assert (workspace.exports / "lora-diffusers" / "fog.safetensors").read_text() == "mine"


def test_names_for_the_public() -> None:
    for name, shown in {"a/b": "a/b", "/home/me/model": "model", "./m": "m", "m": "m", "C:\\x\\m": "m", "": "model"}.items():
        assert public_name(name) == shown

"""What cannot work is said in one line, and leaves what was there as it was: models and tokens that do not fit.

Elsewhere: a loss that is not finite and a token of another family in test_cli_methods.py, a full disk in test_full_disk.py.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from tiny import WIDTH, saved

from hfi.diffusion.tokens import LearnedToken
from hfi.workspace import Workspace

Call = Callable[..., Any]
UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models"), "epsilon")


@pytest.fixture
def space(hfi: Call, workspace: Workspace) -> Workspace:
    assert hfi("concept", "add", "fog", "-w", workspace.path, "--guideline", "Is there fog?").exit_code == 0
    LearnedToken("<fog>", (torch.ones(2, WIDTH),)).save(workspace.tokens / "fog.safetensors")
    return workspace


def refused(hfi: Call, space: Workspace, model: Path, *words: str, code: int = 1, **given: list[object]) -> None:
    """By generate and by erase, which get what is given for them."""
    commands = {"generate": ["--prompt", "a <fog>", "--steps", 1], "erase": ["-c", "fog", "--steps", 1, "--ddim-steps", 2]}
    results = [f for folder in (space.tokens, space.erasures, space.images.root) for f in folder.rglob("*")]
    for command, options in commands.items():
        done = hfi(command, "-w", space.path, "-m", model, *options, *given.get(command, []))
        assert (done.exit_code, len(done.errors)) == (code, 1), done.output
        assert done.stderr.count("\n") == 1
        assert all(word in done.stderr for word in words), done.stderr
    assert [f for folder in (space.tokens, space.erasures, space.images.root) for f in folder.rglob("*")] == results
    assert not list(space.runs.rglob("result.json"))


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (UNET, {"conv_in.weight": None}, "unet of {} lacks weights: conv_in.weight"),
        (UNET, {"surplus.weight": torch.ones(1)}, "unet of {} has unknown weights: surplus.weight"),
        (TEXT, {"final_layer_norm.weight": None}, "text_encoder of {} lacks weights: final_layer_norm.weight"),
        (TEXT, {"surplus.weight": torch.ones(1)}, "text_encoder of {} has unknown weights: surplus.weight"),
    ],
)
def test_a_weight_key_that_is_missing_or_unexpected(
    hfi: Call, space: Workspace, model: Path, tmp_path: Path, file: str, change: dict[str, torch.Tensor | None], words: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    tensors = load_file(folder / file)
    (key,), (value,) = change.keys(), change.values()
    (name,) = [name for name in tensors if name.endswith(key)] or [key]
    changed = {k: v for k, v in tensors.items() if k != name} | ({} if value is None else {name: value})
    save_file(changed, folder / file, {"format": "pt"})
    refused(hfi, space, folder, words.format(folder), generate=["--token", "fog"], erase=["--text", "a hat"])


def test_a_token_of_another_width(hfi: Call, space: Workspace, model: Path) -> None:
    LearnedToken("<fog>", (torch.ones(1, WIDTH + 1),)).save(space.tokens / "wide.safetensors")
    words = f"token <fog> has width {WIDTH + 1}, the text encoder of {model} has {WIDTH}: it was learned for another model"
    refused(hfi, space, model, words, generate=["--token", "wide"], erase=["--token", "wide"])


def test_two_tokens_of_one_name(hfi: Call, space: Workspace, model: Path) -> None:
    LearnedToken("<fog>", (torch.zeros(1, WIDTH),)).save(space.tokens / "other.safetensors")
    both: list[object] = ["--token", "fog", "--token", "other"]
    refused(hfi, space, model, "two tokens share a placeholder: <fog>, <fog>", code=2, generate=both, erase=both)


def test_a_token_that_the_model_has(hfi: Call, space: Workspace, model: Path, tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(model)
    pipe.load_textual_inversion(space.tokens / "fog.safetensors")
    pipe.save_pretrained(tmp_path / "taught")
    words = f"<fog> is already in the vocabulary of {tmp_path / 'taught'}: give the token another name"
    refused(hfi, space, tmp_path / "taught", words, generate=["--token", "fog"], erase=["--token", "fog"])

"""Checkpoints of one file: the same model as the folder that it was made from."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from tiny import WIDTHS, checkpoint, saved

from hfi.diffusion import sd as sd_module
from hfi.diffusion.sample import sample
from hfi.diffusion.sd import content_id, find_model, load_sd, text_widths
from hfi.errors import ModelError

SHOWN = {"steps": 3, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **more: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)


def configurations(root: Path, kind: str, target: Path) -> Path:
    """The model's folder without its weights."""
    return Path(shutil.copytree(saved(root, kind), target, ignore=shutil.ignore_patterns("*.safetensors")))


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@pytest.mark.parametrize("kind", list(WIDTHS))
def test_a_file_is_the_model_that_it_was_made_from(root: Path, tmp_path: Path, kind: str, suffix: str) -> None:
    file = tmp_path / f"model.v1.{suffix}"
    if suffix == "ckpt":
        torch.save({"state_dict": checkpoint(kind), "epoch": 3}, file)
    else:
        save_file(checkpoint(kind), file)
    configurations(root, kind, tmp_path / "model.v1")
    whole, single = load_sd(saved(root, kind)), load_sd(str(file))
    assert text_widths(find_model(file)) == list(WIDTHS[kind])
    pairs = [(whole.unet, single.unet), (whole.vae, single.vae), *zip(whole.text_encoders, single.text_encoders, strict=True)]
    for theirs, ours in pairs:
        weights = ours.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in theirs.state_dict().items())
        assert not any(p.is_meta or p.requires_grad for p in (*ours.parameters(), *ours.buffers()))
    one, two = (list(sample(sd, ["a cat"], [1], **SHOWN)) for sd in (whole, single))
    assert np.array_equal(one[0], two[0])


@pytest.mark.parametrize("kind", list(WIDTHS))
def test_the_file_is_one_that_diffusers_reads(root: Path, tmp_path: Path, kind: str) -> None:
    """Else the tests above would test our own idea of the layout."""
    save_file(checkpoint(kind), tmp_path / "m.safetensors")
    family = StableDiffusionXLPipeline if kind == "xl" else StableDiffusionPipeline
    pipe = family.from_single_file(tmp_path / "m.safetensors", config=str(saved(root, kind)), local_files_only=True)
    sd = load_sd(saved(root, kind))
    for theirs, ours in ((pipe.unet, sd.unet), (pipe.vae, sd.vae), (pipe.text_encoder, sd.text_encoders[0])):
        weights = ours.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in theirs.state_dict().items())


def test_the_content_follows_the_file_and_its_configurations(root: Path, tmp_path: Path) -> None:
    """Beside the file under its name, or around it."""
    weights = checkpoint("epsilon")
    save_file(weights, tmp_path / "a.safetensors")
    folder = configurations(root, "epsilon", tmp_path / "a")
    (tmp_path / "b").mkdir()
    other = configurations(root, "epsilon", tmp_path / "b" / "repository") / "other.safetensors"
    shutil.copy(tmp_path / "a.safetensors", other)
    first = content_id(find_model(tmp_path / "a.safetensors"))
    assert content_id(find_model(other)) == first != content_id(find_model(saved(root, "epsilon")))
    save_file({**weights, "alphas_cumprod": torch.zeros(1000)}, other)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))
    assert len({first, content_id(find_model(other)), content_id(find_model(tmp_path / "a.safetensors"))}) == 3


def test_what_is_missing_is_said_before_weights_are_read(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sd_module, "read_checkpoint", lambda *a: pytest.fail("weights were read"))
    file = tmp_path / "m.safetensors"
    save_file(checkpoint("epsilon"), file)
    with pytest.raises(ModelError, match=r"holds weights alone: put the model's configurations, .* beside it as m/"):
        load_sd(file)
    save_file({"lora_unet.weight": torch.ones(1)}, file)
    with pytest.raises(ModelError, match="no Stable Diffusion checkpoint"):
        load_sd(file)
    for name in ("junk.safetensors", "junk.ckpt"):
        (tmp_path / name).write_bytes(b"junk" * 10)
        with pytest.raises(ModelError, match=f"{name}"):
            load_sd(tmp_path / name)
    folder = configurations(root, "epsilon", tmp_path / "m")
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": 9}))
    with pytest.raises(ModelError, match="reads 9 channels"):
        load_sd(file)
    shutil.rmtree(folder / "vae")
    with pytest.raises(ModelError, match="it lacks vae"):
        load_sd(file)


def test_code_in_a_pickle_is_not_run(root: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    configurations(root, "epsilon", tmp_path / "m")
    torch.save({"state_dict": checkpoint("epsilon"), "callbacks": Trap()}, tmp_path / "m.ckpt")
    with pytest.raises(ModelError, match=r"convert it to \.safetensors"):
        load_sd(tmp_path / "m.ckpt")
    assert not (tmp_path / "ran").exists()


def test_weights_that_do_not_match_are_named(root: Path, tmp_path: Path) -> None:
    """An inpainting file beside the configurations of another model is one of them."""
    configurations(root, "xl", tmp_path / "m")
    weights, unet = checkpoint("xl"), "model.diffusion_model."
    clip = "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight"
    for name, changed, said in (
        (unet + "input_blocks.0.0.weight", torch.ones(8, 9, 3, 3), r"unet of .* has misshapen weights: conv_in\.weight"),
        (unet + "out.0.weight", None, r"unet of .* lacks weights: conv_norm_out\.weight"),
        (clip, None, r"text_encoder of .* lacks weights: final_layer_norm\.weight"),
        ("conditioner.embedders.1.model.text_projection", None, r"text_encoder_2 of .* lacks weights: text_projection\.weight"),
        ("first_stage_model.decoder.conv_in.weight", None, r"vae of .* lacks weights: decoder\.conv_in\.weight"),
        (unet + "middle_block.1.transformer_blocks.9.attn1.to_q.weight", torch.ones(1), r"unet of .* has unknown weights"),
    ):
        other = {**weights, name: changed} if changed is not None else {k: v for k, v in weights.items() if k != name}
        save_file(other, tmp_path / "m.safetensors")
        with pytest.raises(ModelError, match=said):
            load_sd(tmp_path / "m.safetensors")

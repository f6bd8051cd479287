"""A cleaned model as a folder and as one file: the same images, read by diffusers alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import checkpoint, pipeline, saved, text_config, tokenizer
from transformers import CLIPTextConfig, CLIPTextModel

from hfi.diffusion.sd import StableDiffusion, load_sd
from hfi.diffusion.tokens import LearnedToken
from hfi.erase.erasure import Erasure, apply, identity
from hfi.errors import ModelError
from hfi.export import compvis
from hfi.export.card import Judged, Measured, card
from hfi.judgments import Judgment, JudgmentSet, save
from hfi.results import Row, write_results
from hfi.workspace import Workspace

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models"), "epsilon")


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As SD 2.x: v-prediction, OpenCLIP's activation, linear projections, several text layers."""
    folder = tmp_path_factory.mktemp("second") / "tiny-second"
    pipe = pipeline("v_prediction")
    config = {**text_config(tokenizer()), "hidden_act": "gelu", "num_hidden_layers": 12}
    pipe.text_encoder = CLIPTextModel(CLIPTextConfig(**config))
    torch.nn.init.normal_(pipe.text_encoder.get_input_embeddings().weight, std=0.5)
    pipe.unet = UNet2DConditionModel.from_config({**pipe.unet.config, "use_linear_projection": True})
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models"), "xl")


def erasure(sd: StableDiffusion, seed: int = 3, **more: str) -> Erasure:
    g = torch.Generator().manual_seed(seed)
    state = sd.unet.state_dict()
    tensors = {name: w + 0.2 * torch.randn(w.shape, generator=g) for name, w in state.items() if ".attn2." in name}
    about = {"base": sd.content, "base_name": sd.name, "method": "sdd", "concepts": '["fog"]', "texts": '["<fog>"]', **more}
    return Erasure(tensors, about)


def draw(pipe: Any, prompt: str = "a cat") -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    size = pipe.unet.config.sample_size
    h, w = (size, size) if isinstance(size, int) else size
    size = {"height": h * pipe.vae_scale_factor, "width": w * pipe.vae_scale_factor}
    noise = torch.Generator().manual_seed(0)
    image = pipe(prompt, **size, num_inference_steps=2, generator=noise, output_type="np").images[0]
    return np.asarray(image)


def cleaned(model: Path, *erasures: Erasure) -> Any:
    pipe = DiffusionPipeline.from_pretrained(model)
    pipe.unet.load_state_dict(apply(load_sd(model), *erasures).unet.state_dict())
    return pipe


# --- one file ---


@pytest.mark.parametrize("kind", ["first", "second", "xl"])
def test_one_file_gives_the_same_image(hfi: Call, workspace: Workspace, model: Path, second: Path, xl: Path, kind: str) -> None:
    folder = {"first": model, "second": second, "xl": xl}[kind]
    made = erasure(load_sd(folder))
    made.save(workspace.erasures / "fog.safetensors")
    done = hfi("export", "single-file", "-w", workspace.path, "-m", folder, "--erasure", "fog", "--json")
    assert done.exit_code == 0, done.output
    file = Path(json.loads(done.stdout)["file"])
    assert file == workspace.exports / "single-file" / "fog.safetensors"
    tops = {key.split(".")[0] + "." + key.split(".")[1] for key in load_file(file)}
    encoders = {"first": ["cond_stage_model.transformer"], "second": ["cond_stage_model.model"], "xl": ["conditioner.embedders"]}
    assert tops == {
        "model.diffusion_model",
        *encoders[kind],
        *(f"first_stage_model.{p}" for p in ("encoder", "decoder", "quant_conv", "post_quant_conv")),
    }
    family, more = (StableDiffusionXLPipeline, {}) if kind == "xl" else (StableDiffusionPipeline, {"safety_checker": None})
    pipe = family.from_single_file(file, config=str(folder), local_files_only=True, **more)
    wanted, base = draw(cleaned(folder, made)), draw(DiffusionPipeline.from_pretrained(folder))
    np.testing.assert_allclose(draw(pipe), wanted, atol=1e-5)
    assert np.abs(wanted - base).max() > 1e-3
    with safe_open(file, framework="pt") as opened:
        about = opened.metadata()
    assert about["prediction_type"] == {"first": "epsilon", "second": "v_prediction", "xl": "epsilon"}[kind]
    assert str(folder.parent) not in json.dumps(about)


def test_half_is_half(hfi: Call, workspace: Workspace, model: Path) -> None:
    erasure(load_sd(model)).save(workspace.erasures / "fog.safetensors")
    for format in ("single-file", "folder"):
        done = hfi("export", format, "-w", workspace.path, "-m", model, "--erasure", "fog", "--half")
        assert done.exit_code == 0, done.output
    file = load_file(workspace.exports / "single-file" / "fog.safetensors")
    assert {v.dtype for v in file.values()} == {torch.float16}
    unet = load_file(workspace.exports / "folder" / "fog" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {v.dtype for v in unet.values()} == {torch.float16}


levels = st.integers(1, 3).flatmap(lambda n: st.lists(st.booleans(), min_size=n, max_size=n))


@settings(max_examples=12)
@given(
    attends=levels, layers=st.integers(1, 3), linear=st.booleans(), deep=st.integers(1, 2), xl=st.booleans(), wider=st.booleans()
)
def test_any_unet_goes_there_and_back(attends: list[bool], layers: int, linear: bool, deep: int, xl: bool, wider: bool) -> None:
    """diffusers' own converter undoes ours, for every number of levels and layers, with attention anywhere. Every tensor counts:
    each is told by its values."""
    more = {"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": 10, "addition_time_embed_dim": 2}
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=tuple(4 * (i + 1 if wider else 1) for i in range(len(attends))),
        layers_per_block=layers,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        cross_attention_dim=3,
        attention_head_dim=2,
        norm_num_groups=2,
        transformer_layers_per_block=deep,
        use_linear_projection=linear,
        **(more if xl else {}),
    )
    state = {name: torch.full(w.shape, float(i)) for i, (name, w) in enumerate(unet.state_dict().items())}
    named = {f"model.diffusion_model.{k}": v for k, v in compvis._rename(state, compvis.unet_modules(unet.config)).items()}
    assert len(named) == len(state)
    config = {**unet.config, "class_embed_type": None}
    back = convert_ldm_unet_checkpoint(dict(named), config)
    assert set(back) == set(state)
    assert all(torch.equal(back[name], value) for name, value in state.items())


@settings(max_examples=10)
@given(depth=st.integers(1, 4), layers=st.integers(1, 2), attention=st.booleans(), wider=st.booleans())
def test_any_vae_goes_there_and_back(depth: int, layers: int, attention: bool, wider: bool) -> None:
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        block_out_channels=tuple(4 * (i + 1 if wider else 1) for i in range(depth)),
        layers_per_block=layers,
        norm_num_groups=2,
        mid_block_add_attention=attention,
    )
    state = {name: torch.full(w.shape, float(i)) for i, (name, w) in enumerate(vae.state_dict().items())}
    named = {f"first_stage_model.{k}": v for k, v in compvis.vae_tensors(state, vae.config).items()}
    assert len(named) == len(state)
    if attention:
        assert named["first_stage_model.encoder.mid.attn_1.q.weight"].ndim == 4
    back = convert_ldm_vae_checkpoint(dict(named), vae.config)
    assert set(back) == set(state)
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_names_of_the_original_checkpoint() -> None:
    """A few of SD 1.x, as they stand in everybody's files."""
    four = {"down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), "layers_per_block": 2}
    names = compvis.unet_modules({**four, "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3})
    assert names["down_blocks.0.attentions.1"] == "input_blocks.2.1"
    assert names["down_blocks.2.downsamplers.0.conv"] == "input_blocks.9.0.op"
    assert names["down_blocks.3.resnets.1.conv1"] == "input_blocks.11.0.in_layers.2"
    assert names["up_blocks.0.upsamplers.0.conv"] == "output_blocks.2.1.conv"
    assert names["up_blocks.1.upsamplers.0.conv"] == "output_blocks.5.2.conv"
    assert names["up_blocks.3.attentions.2"] == "output_blocks.11.1"
    assert names["up_blocks.3.resnets.2.conv_shortcut"] == "output_blocks.11.0.skip_connection"
    vae = compvis.vae_modules({"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2})
    assert vae["decoder.up_blocks.0.upsamplers.0.conv"] == "decoder.up.3.upsample.conv"
    assert vae["encoder.down_blocks.1.resnets.0.conv_shortcut"] == "encoder.down.1.block.0.nin_shortcut"


def test_text_encoders_with_and_without_the_prefix() -> None:
    plain = CLIPTextModel(CLIPTextConfig(**text_config(tokenizer()))).state_dict()
    plain = {name.removeprefix("text_model."): value for name, value in plain.items()}
    prefixed = {f"text_model.{name}": value for name, value in plain.items()}
    for act, key in (("quick_gelu", "transformer.text_model.final_layer_norm.bias"), ("gelu", "model.ln_final.bias")):
        configs = {"unet": {"down_block_types": (), "up_block_types": ()}, "vae": {"block_out_channels": ()}}
        one, two = (compvis.checkpoint({}, {}, [e], {**configs, "text_encoder": {"hidden_act": act}}) for e in (plain, prefixed))
        assert set(one) == set(two)
        assert f"cond_stage_model.{key}" in one


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"down_block_types": ("AttnDownBlock2D",)}, "a U-Net's AttnDownBlock2D"),
        ({"mid_block_type": "UNetMidBlock2D"}, "a U-Net's UNetMidBlock2D"),
    ],
)
def test_what_the_original_layout_has_no_place_for(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=words):
        compvis.check_layout(tmp_path)
    with pytest.raises(ModelError, match=r"no place for a\.b\.weight"):
        compvis._rename({"a.b.weight": torch.ones(1)}, {"c": "d"})


# --- a folder ---


def test_a_folder_gives_the_same_image_and_says_what_it_is(hfi: Call, workspace: Workspace, model: Path) -> None:
    sd = load_sd(model)
    sha, token = "a" * 64, LearnedToken("<fog>", (torch.randn(2, 16),))
    judgments = JudgmentSet(
        "fog", "binary", tuple(Judgment((str(i),), ("p",), "shows", f"p{i % 2}", i == 0, "c", "", 1) for i in range(5))
    )
    save(judgments, workspace.judgments / f"fog-{judgments.sha256[:12]}.jsonl")
    one = erasure(sd, 1, judgments=json.dumps([judgments.sha256, sha]), config='{"steps": 7}', hfi="0.1")
    two = erasure(sd, 2, concepts='["mist"]', judgments="[]", method="esd", texts='["a grey mist"]')
    for name, made in (("one", one), ("two", two)):
        made.save(workspace.erasures / f"{name}.safetensors")
    token.save(workspace.tokens / "fog.safetensors")
    run = workspace.runs / "evaluate" / "fog"
    run.mkdir(parents=True)
    both = str(identity([one, two]))[:16]
    about = {
        "detector": {"name": "eyes", "version": "7"},
        "systems": [
            {"method": "sd", "conditioning": "none", "settings": {}},
            {"method": "esd+sdd", "conditioning": "token", "settings": {"erasure content": both}},
        ],
    }
    (run / "evaluation.json").write_text(json.dumps(about))
    write_results(
        run / "results.json",
        [
            Row("sd", "none", "fog", "implicit", "concept_rate", 0.75, 40, 0.6, 0.86),
            Row("esd+sdd", "token", "fog", "implicit", "concept_rate", 0.05, 40, 0.01, 0.17),
            Row("other", "token", "fog", "implicit", "concept_rate", 0.33, 40, 0.2, 0.5),
        ],
    )
    command = ["export", "folder", "-w", workspace.path, "-m", model, "--erasure", "one", "--erasure", "two", "--token", "fog"]
    done = hfi(*command, "--json")
    assert done.exit_code == 0, done.output
    folder = workspace.exports / "folder" / "one+two"
    assert json.loads(done.stdout) == {"folder": str(folder), "tokens": ["<fog>"], "evaluations": ["fog"]}

    pipe = StableDiffusionPipeline.from_pretrained(folder)
    np.testing.assert_array_equal(draw(pipe), draw(cleaned(model, two, one)))
    ids = pipe.tokenizer.convert_tokens_to_ids(["<fog>", "<fog>_1"])
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[ids], token.embeddings[0])
    assert load_sd(folder).content != sd.content
    for file in ("scheduler/scheduler_config.json",):
        assert (folder / file).read_bytes() == (model / file).read_bytes()

    text = (folder / "README.md").read_text(encoding="utf-8")
    for words in (
        "fog and mist was removed",
        "by `sdd`, called `<fog>`",
        "by `esd`, called `a grey mist`",
        f"set `{judgments.sha256[:16]}`: 5 judgments of 2 annotators; **1 of the judgments are simulated**",
        f"set `{sha[:16]}`, which this workspace no longer holds",
        "settings: steps 7",
        "concept seen by eyes 7",
        "| implicit | shows it | 75.0 % [60.0–86.0] | 5.0 % [1.0–17.0] | 40 |",
        "learned tokens `<fog>`",
        "DiffusionPipeline.from_pretrained",
    ):
        assert words in text, words
    assert "33" not in text
    for file in folder.rglob("*"):
        if file.is_file():
            assert file.stat().st_mode == (folder / "README.md").stat().st_mode, file
            assert str(model.parent).encode() not in file.read_bytes(), file
    done = hfi(*command)
    assert (done.exit_code, "is there already" in done.stderr) == (1, True)


@pytest.mark.parametrize("kind", ["epsilon", "xl"])
def test_a_checkpoint_file_is_exported_like_a_folder(
    hfi: Call, workspace: Workspace, model: Path, xl: Path, tmp_path: Path, kind: str
) -> None:
    """The folder of its configurations has no weights, and a safety checker that must not come along without them."""
    whole = {"epsilon": model, "xl": xl}[kind]
    file, beside = tmp_path / "m.safetensors", tmp_path / "m"
    save_file(checkpoint(kind), file)
    shutil.copytree(whole, beside, ignore=shutil.ignore_patterns("*.safetensors"))
    if kind == "epsilon":
        shutil.copytree(beside / "vae", beside / "safety_checker")
        index = json.loads((beside / "model_index.json").read_text())
        index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
        (beside / "model_index.json").write_text(json.dumps(index))
    made = erasure(load_sd(file))
    made.save(workspace.erasures / "fog.safetensors")
    for format in ("folder", "single-file", "lora"):
        done = hfi("export", format, "-w", workspace.path, "-m", file, "--erasure", "fog")
        assert done.exit_code == 0, done.output
    wanted = DiffusionPipeline.from_pretrained(whole)
    wanted.unet.load_state_dict(apply(load_sd(file), made).unet.state_dict())
    exported = DiffusionPipeline.from_pretrained(workspace.exports / "folder" / "fog")
    np.testing.assert_array_equal(draw(exported), draw(wanted))


def test_parts_that_were_not_downloaded_are_not_asked_for(hfi: Call, workspace: Workspace, model: Path, tmp_path: Path) -> None:

    copy = tmp_path / "base"
    shutil.copytree(model, copy)
    index = json.loads((copy / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (copy / "model_index.json").write_text(json.dumps(index))
    (copy / "feature_extractor").mkdir()
    (copy / "feature_extractor" / "preprocessor_config.json").write_text("{}")
    erasure(load_sd(copy)).save(workspace.erasures / "fog.safetensors")
    done = hfi("export", "folder", "-w", workspace.path, "-m", copy, "--erasure", "fog", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["safety_checker"] == [None, None]
    assert index["feature_extractor"][1] == "CLIPImageProcessor"
    assert (tmp_path / "out" / "feature_extractor" / "preprocessor_config.json").read_text() == "{}"
    assert "Not measured" in (tmp_path / "out" / "README.md").read_text()


def test_an_interrupted_export_leaves_nothing(
    hfi: Call, workspace: Workspace, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    erasure(load_sd(model)).save(workspace.erasures / "fog.safetensors")
    monkeypatch.setattr("hfi.export.folder.shutil.copytree", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left")))
    done = hfi("export", "folder", "-w", workspace.path, "-m", model, "--erasure", "fog")
    assert (done.exit_code, len(done.errors)) == (1, 1)
    assert "the disk is full" in done.errors[0]
    assert list((workspace.exports / "folder").iterdir()) == []


def test_a_card_names_a_hub_id_but_no_folder() -> None:
    step = {"base": "b" * 64, "base_name": "owner/model", "method": "sdd", "concepts": '["fog"]', "content": "c" * 64}
    assert "base_model: owner/model" in card("x", [step], {}, [], prediction_type="epsilon")
    text = card("x", [{**step, "base_name": "/home/me/model"}], {}, [], prediction_type="v_prediction", half=True)
    assert "/home" not in text and "base_model" not in text and "`model`" in text and "16-bit" in text
    assert "words above were chosen by hand" in text
    assert "2 annotators" in Judged("a", 3, 2).text() and "simulated" not in Judged("a", 3, 2).text()
    none = Measured("r", "nobody", ("sdd", "text"), [Row("sdd", "text", "fog", "harmless", "clip_score", None, 0, None, None)])
    assert "| harmless | CLIP score | – | n/a | 0 |" in card("x", [step], {}, [none], prediction_type="epsilon")

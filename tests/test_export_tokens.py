"""Token files out and in again: hfi's, diffusers', A1111's, ComfyUI's."""

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import WIDTH, WIDTH_2, saved

from hfi.diffusion.tokens import LearnedToken
from hfi.errors import ModelError
from hfi.export.tokens import ONE, encode, read
from hfi.workspace import Workspace

Call = Callable[..., Any]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models"), "epsilon")


def vectors(n: int = 3, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(n))


def a1111(value: Any, **more: Any) -> dict[str, Any]:
    return {"string_to_token": {"*": 265}, "string_to_param": {"*": value}, "step": 9, "sd_checkpoint": None, **more}


# --- the formats ---


@given(
    n=st.integers(1, 5),
    width=st.integers(1, 9),
    kind=st.sampled_from(["diffusers", "webui", "sdxl", "tensor", "bin", "a1111", "parameter"]),
    half=st.booleans(),
)
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, n: int, width: int, kind: str, half: bool
) -> None:
    path = tmp_path_factory.mktemp("t") / f"x.{'safetensors' if kind in ('diffusers', 'webui', 'sdxl') else 'pt'}"
    one = vectors(n, width).half().float() if half else vectors(n, width)
    given = one.half() if half else one
    wanted = {"clip_l": given, "clip_g": given + 1} if kind == "sdxl" else {ONE: given}
    if path.suffix == ".safetensors":
        save_file(encode("<fog>", wanted, "diffusers" if kind == "diffusers" else "webui"), path)
    else:
        objects = {
            "tensor": given,
            "bin": {"<fog>": given},
            "a1111": a1111(given, name="fog"),
            "parameter": a1111(torch.nn.Parameter(given)),
        }
        torch.save(objects[kind], path)
    found = read(path)
    assert found.name == {"diffusers": "<fog>", "bin": "<fog>", "a1111": "fog"}.get(kind)
    assert set(found.vectors) == set(wanted)
    for encoder, value in wanted.items():
        assert found.vectors[encoder].dtype == torch.float32
        assert not found.vectors[encoder].requires_grad
        assert torch.equal(found.vectors[encoder], value.float())


class Evil:
    """A pickle that writes a file when it is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    torch.save({"<fog>": vectors(), "x": Evil(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(ModelError, match="cannot be read safely"):
        read(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"a": vectors(), "b": vectors()}, "holds a, b; known are"),
        ({}, "holds nothing"),
        ({"clip_l": vectors(1), "clip_g": vectors(2)}, "different numbers of vectors"),
        ({"clip_l": torch.ones(2, 2, 2), "clip_g": vectors(2)}, "shape (2, 2, 2)"),
        ({"x": "words"}, "it holds str"),
        ({"x": torch.ones(2, 3, dtype=torch.int64)}, "torch.int64"),
        ({"x": torch.ones(0, 3)}, "shape (0, 3)"),
        ({"x": torch.tensor([[1.0, float("nan")]])}, "not finite"),
        ({"x": torch.tensor([[1.0, float("inf")]], dtype=torch.float16)}, "not finite"),
        ({"string_to_param": {}}, "no token file that hfi knows"),
        ({"string_to_param": {"a": vectors(), "b": vectors()}}, "no token file that hfi knows"),
        ({"string_to_param": 3}, "no token file that hfi knows"),
        ([vectors()], "it holds list"),
    ],
)
def test_what_is_no_token_is_said_in_one_line(tmp_path: Path, data: Any, words: str) -> None:
    torch.save(data, tmp_path / "x.pt")
    with pytest.raises(ModelError) as e:
        read(tmp_path / "x.pt")
    assert words in str(e.value)
    assert "\n" not in str(e.value)


# --- the commands ---


@pytest.fixture
def space(workspace: Workspace) -> Workspace:
    LearnedToken("<fog>", (vectors(),), {"base": "b", "judgments": "j"}).save(workspace.tokens / "fog.safetensors")
    return workspace


@pytest.mark.parametrize("format", ["diffusers", "webui"])
def test_a_token_goes_out_and_comes_back(hfi: Call, space: Workspace, model: Path, tmp_path: Path, format: str) -> None:
    done = hfi("export", "token", "fog", "-w", space.path, "--format", format, "--json")
    assert done.exit_code == 0, done.output
    file = Path(json.loads(done.stdout)["file"])
    assert file == space.exports / format / "fog.safetensors"
    assert list(load_file(file)) == [{"diffusers": "<fog>", "webui": "emb_params"}[format]]
    assert hfi("export", "token", "fog", "-w", space.path, "--format", format).errors[0].endswith("give another --out")

    pipe = StableDiffusionPipeline.from_pretrained(model)
    pipe.load_textual_inversion(file, token="<fog>")
    ids = pipe.tokenizer.convert_tokens_to_ids(["<fog>", "<fog>_1", "<fog>_2"])
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[ids], vectors())

    done = hfi("import-token", file, "-w", space.path, "--name", "<mist>", "-m", model, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "token": "<mist>",
        "file": str(space.tokens / "mist.safetensors"),
        "vectors": 3,
        "widths": [WIDTH],
        "new": True,
    }
    back = LearnedToken.load(space.tokens / "mist.safetensors")
    assert torch.equal(back.embeddings[0], vectors())
    assert (back.placeholder, back.metadata["source"], back.metadata["judgments"]) == ("<mist>", "imported", "j")
    assert len(back.metadata["file_sha256"]) == 64


@pytest.mark.parametrize("format", ["diffusers", "webui"])
@pytest.mark.parametrize("n", [1, 3])
def test_a_token_for_two_encoders_goes_out_and_comes_back(
    hfi: Call, space: Workspace, tmp_path: Path, format: str, n: int
) -> None:
    """In diffusers by the very lines that the command prints, and the file as it is in ComfyUI."""
    xl = saved(tmp_path, "xl")
    token = LearnedToken("<haze>", (vectors(n), vectors(n, WIDTH_2) + 1))
    token.save(space.tokens / "haze.safetensors")
    done = hfi("export", "token", "haze", "-w", space.path, "--format", format)
    assert done.exit_code == 0, done.output
    file = space.exports / format / "haze.safetensors"
    assert set(load_file(file)) == {"clip_l", "clip_g"}
    if format == "diffusers":
        pipe = StableDiffusionXLPipeline.from_pretrained(xl)
        said, *lines, _ = done.stdout.splitlines()
        assert (said, len(lines)) == (str(file), 4)
        exec("\n".join(lines), {"pipe": pipe})
        names = ["<haze>", "<haze>_1", "<haze>_2"][:n]
        pairs = ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2))
        for (tokenizer, encoder), rows in zip(pairs, token.embeddings, strict=True):
            ids = tokenizer.convert_tokens_to_ids(names)
            assert torch.equal(encoder.get_input_embeddings().weight[ids], rows)
            assert tokenizer.unk_token_id not in ids
        pipe.set_progress_bar_config(disable=True)
        assert pipe("a <haze>", height=16, width=24, num_inference_steps=1, output_type="np").images.shape[0] == 1
    done = hfi("import-token", file, "-w", space.path, "--name", "<mist>", "-m", xl, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["widths"] == [WIDTH, WIDTH_2]
    assert LearnedToken.load(space.tokens / "mist.safetensors").content == token.content


def test_names_come_from_the_file_and_the_same_token_counts_once(hfi: Call, space: Workspace, tmp_path: Path) -> None:
    torch.save(a1111(vectors(1), name="Easy_Negative v2"), tmp_path / "x.pt")
    torch.save(OrderedDict({"<cat-toy>": vectors(2)[0]}), tmp_path / "y.bin")
    save_file({ONE: vectors(4)}, tmp_path / "Bad Hands.safetensors")
    for file, word in (("x.pt", "easy-negative-v2"), ("y.bin", "cat-toy"), ("Bad Hands.safetensors", "bad-hands")):
        done = hfi("import-token", tmp_path / file, "-w", space.path)
        assert done.exit_code == 0, done.output
        assert f"<{word}> imported" in done.stdout
        assert LearnedToken.load(space.tokens / f"{word}.safetensors").placeholder == f"<{word}>"
    assert "was there already" in hfi("import-token", tmp_path / "x.pt", "-w", space.path).stdout


def test_mistakes_of_import_token(
    hfi: Call, space: Workspace, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hfi.diffusion.sd.load_part", lambda *a: pytest.fail("a model was loaded"))
    save_file({"<fog>": vectors(5)}, "other.safetensors")
    save_file({"<wide>": vectors(1, WIDTH + 1)}, "wide.safetensors")
    save_file({"clip_l": vectors(2), "clip_g": vectors(2, 20)}, "xl.safetensors")
    save_file({"*": vectors(2)}, "***.safetensors")
    Path("words.safetensors").write_text("words")
    Path("words.pt").write_text("words")
    Path("words.txt").write_text("words")
    before = sorted(space.tokens.iterdir())
    for args, code, words in [
        (["none.pt"], 1, "no token file none.pt"),
        (["none.safetensors"], 1, "no token file none.safetensors"),
        (["words.safetensors"], 1, "it is not safetensors"),
        (["words.pt"], 1, "cannot be read safely"),
        (["words.txt"], 1, ".safetensors, .pt, .bin are read"),
        (["xl.safetensors", "-m", model], 1, f"has vectors for 2 text encoders, {model} has 1"),
        (["wide.safetensors", "-m", model], 1, f"width {WIDTH + 1}, the text encoder of {model} has {WIDTH}"),
        (["wide.safetensors", "-m", "nowhere"], 1, "no model 'nowhere'"),
        (["wide.safetensors", "--name", "Wide"], 2, "cannot name a token"),
        (["***.safetensors"], 2, "give a --name"),
        (["other.safetensors"], 1, "there is another token <fog>"),
    ]:
        done = hfi("import-token", *args, "-w", space.path)
        assert (done.exit_code, done.stderr.count("\n")) == (code, 1), (args, done.output)
        assert words in done.stderr, (args, done.stderr)
    assert sorted(space.tokens.iterdir()) == before

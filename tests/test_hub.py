"""Models of the hub, from a cache as the hub's client leaves it and without a network; pickles are not read."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import saved

from hfi.diffusion.sd import content_id, find_model, load_sd
from hfi.diffusion.training import load_state
from hfi.embed import ClipBackbone, embed_stored
from hfi.errors import HfiError, ModelError
from hfi.hub import is_hub_id, pinned, used
from hfi.metrics.detectors import exact_detector
from hfi.metrics.features import exact_features
from hfi.reward.model import RewardModel
from hfi.store import campaigns, judging
from hfi.store import queries as q
from hfi.store.session import reading, writing
from hfi.workspace import Workspace

Hfi = Callable[..., Any]  # what it returns: Done in conftest.py
OLD, NEW = "1" * 40, "2" * 40


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


class Cache:
    """The folder in which the hub's client keeps what it has downloaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, name: str, folder: Path, commit: str) -> Path:
        """A commit of a repository, which its branch main is at from now on."""
        repository = self.path / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        return repository / "snapshots" / commit


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return Cache(tmp_path / "hub")


@pytest.fixture
def moved(cache: Cache, root: Path) -> Cache:
    """The repository me/tiny in two versions with different weights, main at the first."""
    new = cache.add("me/tiny", saved(root, "epsilon"), NEW)
    weights = new / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: value + 0.01 for name, value in load_file(weights).items()}, weights)
    cache.add("me/tiny", saved(root, "epsilon"), OLD)
    return cache


def to_new(cache: Cache) -> None:
    (cache.path / "models--me--tiny" / "refs" / "main").write_text(NEW)


# --- a commit is what a record names ---


def test_an_id_is_a_commit_from_then_on(moved: Cache, root: Path) -> None:
    source = find_model("me/tiny")
    assert pinned("me/tiny", source) == f"me/tiny@{OLD}"
    assert content_id(source) == content_id(saved(root, "epsilon"))
    to_new(moved)
    assert pinned("me/tiny", find_model("me/tiny")) == f"me/tiny@{NEW}"
    assert find_model(f"me/tiny@{OLD}") == source
    assert load_sd(f"me/tiny@{OLD}").content == content_id(source) != load_sd("me/tiny").content
    assert pinned(str(root), root) == str(root)


def test_a_revision_may_hold_slashes_and_every_commit_that_was_read_is_known(moved: Cache, root: Path) -> None:
    asked = moved.path / "models--me--tiny" / "refs" / "refs" / "pr" / "3"
    asked.parent.mkdir(parents=True)
    asked.write_text(NEW)
    assert pinned("me/tiny@refs/pr/3", find_model("me/tiny@refs/pr/3")) == f"me/tiny@{NEW}"
    find_model(f"me/tiny@{OLD}")
    assert {f"me/tiny@{OLD}", f"me/tiny@{NEW}"} <= set(used())
    names = ("a/b@refs/pr/3", "a/b@1.0", "a@b/c", "a/b/c@main", "./a@b", "a/b@x\\y")
    assert [is_hub_id(name) for name in names] == [True, True, False, False, False, False]


def test_features_and_detectors_name_the_commit_of_their_clip_model(
    hfi: Hfi, workspace: Workspace, moved: Cache, root: Path
) -> None:
    moved.add("me/clip", saved(root, "clip"), "c" * 40)
    exact = f"me/clip@{'c' * 40}"
    assert exact_features("clip:me/clip") == exact_features(f"clip:{exact}") == f"clip:{exact}"
    assert exact_detector("q16:me/clip:p.safetensors") == f"q16:{exact}:p.safetensors"
    assert exact_detector(f"fog@q16:{exact}:p.safetensors") == f"fog@q16:{exact}:p.safetensors"
    for other in ("none", "clip", "clip:", "inception:a/b", f"clip:{saved(root, 'clip')}"):
        assert exact_features(other) == other
    for other in ("none", "q16", "q16:me/clip", "nudenet:0.5", "reward:a/b", f"q16:{saved(root, 'clip')}:p"):
        assert exact_detector(other) == other
    there = ["-w", workspace.path]
    assert hfi("concept", "add", "fog", "--guideline", "Fog.", *there).exit_code == 0
    backbone = ClipBackbone.load("me/clip")
    save_file({"prompts": torch.eye(backbone.width)[:2].contiguous()}, workspace.path / "p.safetensors")
    (workspace.path / "prompts.csv").write_text("prompt\ncat\ndog\n")
    erased = hfi("erase", *there, "-c", "fog", "-m", "me/tiny", "--method", "uce", "--text", "cat")
    assert erased.exit_code == 0, erased
    looks = f"inappropriate@q16:{{}}:{workspace.path / 'p.safetensors'}"
    done = hfi(
        "evaluate", *there, "-c", "fog", "-m", "me/tiny", "--prompts", workspace.path / "prompts.csv", "--steps", 1,
        "--features", "clip:me/clip", "--backbone", "me/clip", "--detector", looks.format("me/clip"),
    )  # fmt: skip
    assert done.exit_code == 0, done
    config = json.loads((workspace.runs / "evaluate" / "fog" / "config.json").read_text())
    assert [config[key] for key in ("features", "backbone", "detector")] == [f"clip:{exact}", exact, looks.format(exact)]


@pytest.mark.parametrize("name", ["me/nothing", f"me/tiny@{'3' * 40}", "me/tiny@branch"])
def test_what_the_hub_does_not_have_is_said(moved: Cache, name: str) -> None:
    with pytest.raises(ModelError, match=f"no folder '{name}' here, and the hub gives no model"):
        find_model(name)
    with pytest.raises(ModelError, match="the hub gives no model"):
        ClipBackbone.load(name)


def test_images_runs_and_environment_name_the_commit_and_a_run_of_another_is_not_gone_on_with(
    hfi: Hfi, workspace: Workspace, moved: Cache
) -> None:
    command = ["generate", "-w", workspace.path, "-m", "me/tiny", "--prompt", "a cat", "--steps", 1, "--name", "first"]
    assert hfi(*command).exit_code == 0
    with reading(workspace.engine()) as s:
        (image,) = q.images(s)
    assert image.model == f"me/tiny@{OLD}"
    run = workspace.runs / "generate" / "first"
    assert json.loads((run / "config.json").read_text())["model"] == f"me/tiny@{OLD}"
    assert f"me/tiny@{OLD}" in json.loads((run / "environment.json").read_text())["hub"]
    assert hfi(*command).exit_code == 0

    to_new(moved)
    done = hfi(*command)
    assert (done.exit_code, len(done.errors)) == (1, 1)
    assert f"go on with --model me/tiny@{OLD}, give another --name" in done.errors[0]
    done = hfi(*command[:3], "-m", f"me/tiny@{OLD}", *command[5:])
    assert (done.exit_code, done.stdout) == (0, "0 images made, 1 were there already (run first)\n")


def test_without_a_name_a_run_that_was_not_finished_is_pointed_to(hfi: Hfi, workspace: Workspace, moved: Cache) -> None:
    command = ["generate", "-w", workspace.path, "-m", "me/tiny", "--prompt", "a cat", "--steps", 1]
    assert hfi(*command).exit_code == 0
    (workspace.runs / "generate" / "images" / "result.json").unlink()
    to_new(moved)
    done = hfi(*command)
    assert done.exit_code == 0
    assert f"the hub has another version of the model now: --model me/tiny@{OLD} goes on with the run images" in done.stderr


def test_tokens_erasures_and_rewards_name_the_commit(hfi: Hfi, workspace: Workspace, moved: Cache, root: Path) -> None:
    moved.add("me/clip", saved(root, "clip"), "c" * 40)
    engine = workspace.engine()
    there = ["-w", workspace.path]
    assert hfi("concept", "add", "fog", "--guideline", "Fog.", *there).exit_code == 0
    made = hfi("generate", *there, "-m", "me/tiny", "--prompt", "a cat", "--images-per-prompt", 12, "--steps", 1)
    assert made.exit_code == 0, made
    with writing(engine) as s:
        ids = [image.id for image in q.images(s)]
        asked = campaigns.ensure_campaign(s, "fog", "people", image_ids=ids, asking=campaigns.Asking(overlap=1))
        person = q.ensure_annotator(s, "Kim")
        while claim := judging.claim_next(s, asked.id, person.id):
            verdict = "shows" if claim.images[0].image_id % 2 else "clean"
            judging.submit(s, claim.token, person.id, verdict, f"once {claim.token}")
    done = hfi("reward", *there, "-c", "fog", "--backbone", "me/clip", "--epochs", 2)
    assert done.exit_code == 0, done
    reward = RewardModel.load(workspace.rewards / "fog.safetensors")
    assert reward.backbone.name == f"me/clip@{'c' * 40}"
    done = hfi("invert", *there, "-c", "fog", "-m", "me/tiny", "--steps", 1, "--force", "--initial-word", "cat")
    assert done.exit_code == 0, done
    done = hfi("erase", *there, "-c", "fog", "-m", "me/tiny", "--method", "uce", "--text", "cat")
    assert done.exit_code == 0, done
    files = [*workspace.tokens.glob("*.safetensors"), *workspace.erasures.glob("*.safetensors")]
    assert len(files) == 2
    for file in files:
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata()["base_name"] == f"me/tiny@{OLD}"
    done = hfi("export", "folder", *there, "-m", "me/tiny", "--erasure", files[1].stem, "--out", workspace.path / "out")
    assert done.exit_code == 0, done
    card = (workspace.path / "out" / "README.md").read_text()
    assert "base_model: me/tiny\n" in card and f"`me/tiny@{OLD}`" in card


# --- pickles ---


class Trap:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def pickled(folder: Path, part: str, trap: Path) -> None:
    """The part's weights as a pickle that writes a file when it is read without care."""
    (weights,) = (folder / part).glob("*.safetensors")
    weights.unlink()
    name = "pytorch_model.bin" if weights.stem == "model" else f"{weights.stem}.bin"
    torch.save({"weight": Trap(trap)}, weights.with_name(name))


@pytest.mark.parametrize(
    ("kind", "part"), [("epsilon", "unet"), ("epsilon", "text_encoder"), ("xl", "vae"), ("xl", "text_encoder_2")]
)
@pytest.mark.parametrize("where", ["folder", "hub"])
def test_a_model_with_pickled_weights_is_refused(
    root: Path, tmp_path: Path, cache: Cache, kind: str, part: str, where: str
) -> None:
    if where == "hub":
        folder, name = cache.add("me/pickled", saved(root, kind), OLD), "me/pickled"
    else:
        folder = shutil.copytree(saved(root, kind), tmp_path / "pickled")
        name = str(folder)
    pickled(folder, part, tmp_path / "ran")
    with pytest.raises(ModelError, match=rf"pickled lacks the weights of {part} as \.safetensors: pickles .*save_pretrained"):
        load_sd(name)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_beside_safetensors_is_not_looked_at(root: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved(root, "epsilon"), tmp_path / "both")
    for part in ("unet", "vae"):
        torch.save({"weight": Trap(tmp_path / "ran")}, folder / part / "diffusion_pytorch_model.bin")
    torch.save({"weight": Trap(tmp_path / "ran")}, folder / "text_encoder" / "pytorch_model.bin")
    assert load_sd(folder).content == content_id(saved(root, "epsilon"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("where", ["folder", "hub"])
def test_a_clip_model_with_pickled_weights_is_refused(root: Path, tmp_path: Path, cache: Cache, where: str) -> None:
    if where == "hub":
        folder, name = cache.add("me/pickled", saved(root, "clip"), OLD), "me/pickled"
    else:
        folder = shutil.copytree(saved(root, "clip"), tmp_path / "pickled")
        name = str(folder)
    pickled(folder, "", tmp_path / "ran")
    with pytest.raises(ModelError, match=r"pickled lacks the weights as \.safetensors: pickles"):
        ClipBackbone.load(name)
    assert not (tmp_path / "ran").exists()


def test_a_kept_state_and_kept_embeddings_run_nothing(root: Path, tmp_path: Path, workspace: Workspace) -> None:
    """Somebody who may write to a run's folder, or to a workspace, cannot have others run something by it."""
    torch.save({"step": 1, "more": Trap(tmp_path / "ran")}, tmp_path / "checkpoint.pt")
    with pytest.raises(HfiError, match=r"checkpoint\.pt is damaged"):
        load_state(tmp_path / "checkpoint.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    with pytest.raises(HfiError, match=r"raw\.pt is damaged"):
        load_state(tmp_path / "raw.pt")
    backbone = ClipBackbone.load(saved(root, "clip"))
    sha = workspace.images.put(Image.new("RGB", (16, 16)))
    cache = workspace.path / "embeddings"
    cache.mkdir()
    file = cache / f"{backbone.content[:16]}.npz"
    np.savez(file, shas=np.array([sha]), rows=np.array([Trap(tmp_path / "ran")], dtype=object))
    assert embed_stored(backbone, workspace.images, [sha], cache).shape == (1, backbone.width)
    assert not (tmp_path / "ran").exists()

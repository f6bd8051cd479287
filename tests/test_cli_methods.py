"""generate, reward, invert and erase as commands, on a workspace with tiny models."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from judged import PROMPTS, judge
from PIL import Image
from safetensors.torch import save_file
from tiny import WIDTHS, checkpoint, saved

from hfi.aggregate import soft_labels
from hfi.cli import main
from hfi.cli.common import Judged, judged
from hfi.cli.erase import _clean
from hfi.cli.generate import plan
from hfi.cli.invert import _naming
from hfi.concepts import Concept
from hfi.diffusion.sd import load_sd
from hfi.diffusion.tokens import LearnedToken
from hfi.embed import ClipBackbone, embed_stored
from hfi.erase import Removal
from hfi.erase.erasure import Erasure
from hfi.invert.train import initial_vectors
from hfi.judgments import Judgment, JudgmentSet, freeze
from hfi.prompts import Prompt
from hfi.reward.model import RewardModel
from hfi.runs import Run
from hfi.store import campaigns, judging, queries
from hfi.store.session import reading, writing
from hfi.workspace import Workspace
from ui import label
from ui.pictures import Pictures

LIGHT = ["--precision", "bfloat16", "--gradient-checkpointing", "--attention-slicing"]
FAST = ["--batch-size", "4", "--save-every", "1", "--learning-rate", "0.001"]
Hfi = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hfi(hfi: Any) -> Hfi:
    """Runs a command line in this process: exit code, what it printed, what it said on stderr."""

    def run(*args: object) -> tuple[int, str, str]:
        done = hfi(*args)
        return done.exit_code, done.stdout, done.stderr

    return run


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def model(root: Path) -> Path:
    folder = saved(root, "epsilon")
    shutil.copytree(saved(root, "clip"), folder / "clip", dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def judged_space(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    return judge(tmp_path_factory.mktemp("space") / "w", model)


ANN = {"sha256": "fog", "judgments": 36, "people": 1, "simulated": 0}  # who judged it


@pytest.fixture
def space(judged_space: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(judged_space, tmp_path / "w")
    return tmp_path / "w"


@pytest.fixture
def fresh(hfi: Hfi, tmp_path: Path) -> Path:
    hfi("init", tmp_path / "w")
    return tmp_path / "w"


def stored(path: Path) -> list[queries.Image]:
    with reading(Workspace.open(path).engine()) as s:
        return queries.images(s)


# --- generate ---


def test_generating_records_where_each_image_comes_from_and_repeats_nothing(hfi: Hfi, fresh: Path, model: Path) -> None:
    command = ["generate", "-w", fresh, "-m", model, "--prompt", "a cat", "--steps", 2, "--guidance-scale", 3]
    code, out, _ = hfi(*command, "--images-per-prompt", 2, "--seed", 5)
    assert code == 0
    assert "2 images made, 0 were there already" in out
    first = stored(fresh)
    assert [(i.prompt, i.seed, i.steps, i.guidance_scale, i.source, i.run) for i in first] == [
        ("a cat", 5, 2, 3.0, "generated", "images"),
        ("a cat", 6, 2, 3.0, "generated", "images"),
    ]
    assert first[0].model == str(model)
    assert Workspace.open(fresh).images.load(first[0].sha256).size == (16, 16) == (first[0].width, first[0].height)
    code, out, _ = hfi(*command, "--images-per-prompt", 3, "--seed", 5, "--batch-size", 1, "--json")
    assert json.loads(out) == {"run": "images-2", "images": 3, "new": 1}
    assert stored(fresh)[:2] == first
    assert len(stored(fresh)) == 3


def test_an_interruption_doubles_and_loses_nothing(
    hfi: Hfi, fresh: Path, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["-m", model, *PROMPTS, "--images-per-prompt", 2, "--steps", 2, "--batch-size", 3]
    add, count = queries.add_image, 0

    def interrupted(s: Any, made: Any) -> Any:
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        return add(s, made)

    monkeypatch.setattr(queries, "add_image", interrupted)
    code, _, err = hfi("generate", "-w", fresh, *command)
    assert code == 130
    assert "run the same command again to go on" in err
    monkeypatch.setattr(queries, "add_image", add)
    assert len(stored(fresh)) == 4
    assert hfi("generate", "-w", fresh, *command)[0] == 0
    hfi("init", tmp_path / "other")
    assert hfi("generate", "-w", tmp_path / "other", *command)[0] == 0
    one, two = stored(fresh), stored(tmp_path / "other")
    assert [i.key for i in one] == [i.key for i in two]
    pictures = [
        [np.asarray(Workspace(p).images.load(i.sha256), int) for i in s] for p, s in ((fresh, one), (tmp_path / "other", two))
    ]
    assert np.abs(np.array(pictures[0]) - np.array(pictures[1])).max() <= 1


def test_kill_9_while_generating(fresh: Path, model: Path) -> None:
    prompts = [word for i in range(40) for word in ("--prompt", f"a cat {i}")]
    command = [
        sys.executable,
        "-m",
        "hfi",
        "generate",
        "-w",
        str(fresh),
        "-m",
        str(model),
        *prompts,
        "--steps",
        "20",
        "--batch-size",
        "1",
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list((fresh / "images").rglob("*.png"))) <= 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = stored(fresh)
    assert 3 <= len(before) < 40
    with pytest.raises(SystemExit) as e:
        main(command[3:])
    assert not e.value.code
    after = stored(fresh)
    assert after[: len(before)] == before
    assert [i.prompt for i in after] == [f"a cat {i}" for i in range(40)]


def test_seeds_and_keys() -> None:
    common = {"model": "m", "negative_prompt": "", "steps": 2}
    two = plan([Prompt("a <x>"), Prompt("b", seed=9)], 2, 100, common, {"<x>": "1"})
    assert [(p.prompt, p.seed) for p in two] == [("a <x>", 100), ("b", 9), ("a <x>", 102), ("b", 10)]
    three = plan([Prompt("a <x>"), Prompt("b", seed=9)], 3, 100, common, {"<x>": "1"})
    assert three[:4] == two
    other = plan([Prompt("a <x>"), Prompt("b", seed=9)], 2, 100, common, {"<x>": "2"})
    assert [a.key == b.key for a, b in zip(two, other, strict=True)] == [False, True, False, True]
    assert len(plan([Prompt("a", 1), Prompt("a", 1)], 1, 0, common, {})) == 1
    assert two[0].key != plan([Prompt("a <x>")], 1, 100, {**common, "steps": 3}, {"<x>": "1"})[0].key


def test_a_prompt_that_is_too_long_is_said_in_one_line(
    hfi: Hfi, fresh: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = "dog hat " * 50
    code, _, _ = hfi("generate", "-w", fresh, "-m", model, "--prompt", long, "--steps", 1)
    assert code == 0
    (said,) = [r.message for r in caplog.records if "prompt cut" in r.message]
    assert said.startswith("prompt cut: this model reads 18 tokens, so 'dog hat")
    assert stored(fresh)[0].prompt == long.strip()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--prompts", "none.csv"], 1, "no prompts file none.csv"),
        (["--prompts", "words.csv"], 1, "has no 'prompt' column (found 'text')"),
        ([], 2, "nothing to generate: give --prompts FILE or --prompt TEXT"),
        (["--prompt", " "], 2, "an empty --prompt"),
        (["--prompt", "a", "--steps", "0"], 2, "--steps is 0: give 1 or more"),
        (["--prompt", "a", "-m", "empty"], 1, "empty is no model"),
        (["--prompt", "a", "-m", "nowhere"], 1, "no model 'nowhere'"),
        (["--prompt", "a", "--token", "fog"], 1, "no token 'fog'"),
        (["--prompt", "a", "--erasure", "fog"], 1, "no erasure 'fog'"),
        (["--prompt", "a", "--device", "gpu"], 1, "device 'gpu' is not usable"),
    ],
)
def test_mistakes_before_a_model_is_loaded(
    hfi: Hfi, fresh: Path, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, args: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hfi.diffusion.sd.load_part", lambda *a: pytest.fail("a model was loaded"))
    (tmp_path / "words.csv").write_text("text\na\n")
    (tmp_path / "empty").mkdir()
    found, _, err = hfi("generate", "-w", fresh, "-m", model, *args)
    assert (found, err.count("\n")) == (code, 1)
    assert words in err


def test_an_unknown_placeholder_is_refused(hfi: Hfi, fresh: Path, model: Path) -> None:
    code, _, err = hfi("generate", "-w", fresh, "-m", model, "--prompt", "a <fog>")
    assert code == 1
    assert "<fog> is not installed" in err


def test_a_folder_that_cannot_be_written(hfi: Hfi, fresh: Path, model: Path) -> None:
    shutil.rmtree(fresh / "runs")
    (fresh / "runs").write_text("in the way")
    code, _, err = hfi("generate", "-w", fresh, "-m", model, "--prompt", "a")
    assert code == 1
    assert f"cannot write to {fresh / 'runs'}" in err


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "-m", "x", "--prompt", "a", "--name", "../x"],
        ["reward", "-c", "fog", "--name", "a/b"],
        ["invert", "-m", "x", "-c", "fog", "--name", ".."],
        ["erase", "-m", "x", "-c", "fog", "--name", "a/b"],
        ["evaluate", "-m", "x", "-c", "fog", "--name", ""],
    ],
)
def test_a_run_name_with_a_path_in_it_is_refused(hfi: Hfi, space: Path, words: list[str]) -> None:
    code, _, err = hfi(*words, "-w", space)
    assert (code, err) == (
        2,
        f"hfi: error: {words[-1]!r} cannot name a run, which is a folder: give a name without slashes, such as 'second'\n",
    )


def test_a_name_that_is_taken_is_told_with_what_differs(hfi: Hfi, fresh: Path, model: Path) -> None:
    command = ["generate", "-w", fresh, "-m", model, "--prompt", "a cat", "--name", "tt"]
    assert hfi(*command, "--steps", 1)[0] == 0
    code, _, err = hfi(*command, "--steps", 2)
    assert (code, err) == (
        1,
        "hfi: error: the run generate/tt was started with other settings (steps was 1, now 2): "
        f"give another --name, or remove {fresh / 'runs' / 'generate' / 'tt'}\n",
    )


def test_no_workspace(hfi: Hfi, tmp_path: Path, model: Path) -> None:
    for command in (["generate", "--prompt", "a"], ["invert", "-c", "x"], ["erase", "-c", "x"]):
        code, _, err = hfi(command[0], "-w", tmp_path, "-m", model, *command[1:])
        assert code == 1
        assert "no workspace in" in err
    assert hfi("reward", "-w", tmp_path, "-c", "x")[0] == 1


# --- reward ---


def test_the_reward_is_kept_with_its_figures(hfi: Hfi, space: Path) -> None:
    code, out, _ = hfi("reward", "-w", space, "-c", "fog", "--epochs", 200, "--json")
    assert code == 0
    figures = json.loads(out)
    assert figures["better_than_chance"] is True
    assert figures["auc"] > figures["chance_limit"]
    assert figures["images"] == 36
    run = Run(space / "runs" / "reward" / "fog")
    assert [line["step"] for line in run.metrics()] == list(range(1, figures["epochs"] + 1))
    assert json.loads((run.path / "config.json").read_text())["judgments"]
    assert (space / "rewards" / "fog.safetensors").exists()
    assert len(list((space / "judgments").glob("fog-*.jsonl"))) == 1
    code, out, _ = hfi("reward", "-w", space, "-c", "fog", "--epochs", 5)
    assert "AUC" in out
    assert (space / "runs" / "reward" / "fog-2").exists()


def test_where_reward_and_people_disagree_people_are_asked_again(
    hfi: Hfi, space: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Report -> the list -> a campaign on the labeling page -> new judgments -> another reward; and new images of its prompts."""
    home, engine = Workspace.open(space), Workspace.open(space).engine()
    code, out, _ = hfi("reward", "-w", space, "-c", "fog", "--epochs", 200, "--report", "--json")
    assert code == 0
    figures = json.loads(out)
    file = Path(figures["disagreements"])
    listed = list(csv.DictReader(file.open(newline="")))
    shas = {row["image"] for row in listed}
    assert 0 < len(shas) == figures["to_judge_again"] < 36
    assert (space / "runs" / "reward" / "fog" / "report.html").read_text().count('class="shot"') == len(shas) + 24

    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: [s.close() for s in sockets])
    ui = ["ui", "-w", space, "-c", "fog", "--no-open", "--port", 0]
    code, out, err = hfi(*ui, "--images", file)
    assert (code, f"({len(shas)} to judge" in out) == (0, True), err
    before = {j.images[0]: j.verdict for j in freeze(engine, "fog").judgments}
    with writing(engine) as s:
        again = next(c for c in campaigns.campaigns(s, "fog") if c.name == "again")
        ann = queries.ensure_annotator(s, "Ann")
    desk, asked = label.Desk(engine, Pictures(home.images)), set()
    while task := label.state(desk, ann, again.id)["task"]:
        with reading(engine) as s:
            sha = judging.claim_of(s, task["token"], ann.id).images[0].sha256
        asked.add(sha)
        verdict = "clean" if before[sha] == "shows" else "shows"
        label.judge(desk, ann, label.Answer(token=task["token"], verdict=verdict, once=f"again-{sha}"))
    assert asked == shas
    after = soft_labels(freeze(engine, "fog"))
    assert {sha: after[sha].y for sha in shas} == {sha: float(before[sha] == "clean") for sha in shas}, "the later answer counts"
    code, out, _ = hfi("reward", "-w", space, "-c", "fog", "--epochs", 200, "--report", "--json")
    assert json.loads(out)["run"] == "fog-2"

    code, out, _ = hfi("generate", "-w", space, "-m", model, "--prompts", file, "--seed", 1000, "--steps", 2)
    assert f"{len(listed)} images made" in out
    assert sorted(str(i.prompt) for i in stored(space)[36:]) == sorted(row["prompt"] for row in listed)
    assert f"({len(shas)} to judge" in hfi(*ui, "--campaign", "again")[1], "new images are no part of it"
    assert f"({36 + len(listed)} to judge" in hfi(*ui)[1]


def test_the_report_of_a_finished_reward_needs_no_training(hfi: Hfi, space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfi.embed.ClipBackbone.load", lambda *_: pytest.fail("loaded the CLIP model"))
    command = ["reward", "-w", space, "-c", "fog", "--epochs", 200, "--report"]
    code, out, _ = hfi(*command)
    assert code == 0
    assert "report.html" in out
    for image in stored(space):
        Workspace.open(space).images.path(image.sha256).unlink()
    code, _, err = hfi(*command)
    assert code == 1
    assert "is missing from" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["-c", "frog"], "no concept 'frog'"),
        (["-c", "mist"], "no judgments of 'mist'"),
        (["-c", "fog", "--simulated", "only"], "no judgments of 'fog'"),
        (["-c", "fog", "--backbone", "nowhere"], "no CLIP model 'nowhere'"),
    ],
)
def test_mistakes_of_reward(hfi: Hfi, space: Path, args: list[str], words: str) -> None:
    code, _, err = hfi("reward", "-w", space, *args)
    assert (code, err.count("\n")) == (1, 1)
    assert words in err


def test_one_class_of_judgment_only(hfi: Hfi, space: Path) -> None:
    engine = Workspace.open(space).engine()
    with writing(engine) as s:
        campaign = campaigns.ensure_campaign(
            s, "mist", "first", image_ids=[i.id for i in queries.images(s, limit=5)], asking=campaigns.Asking(overlap=1)
        )
        person = queries.ensure_annotator(s, "Ann")
        while claim := judging.claim_next(s, campaign.id, person.id):
            judging.submit(s, claim.token, person.id, "clean", f"m-{claim.token}")
    code, _, err = hfi("reward", "-w", space, "-c", "mist")
    assert code == 1
    assert "only one class of judgment" in err


# --- invert ---


def test_inverting_gives_a_token_for_diffusers(hfi: Hfi, space: Path, model: Path) -> None:
    command = ["invert", "-w", space, "-m", model, "-c", "fog", "--steps", 3, "--vectors", 2, "--top-k", 6, *FAST]
    code, out, _ = hfi(*command, "--json")
    assert code == 0
    result = json.loads(out)
    assert result["token"] == "<fog>"
    assert result["images"] == 6
    assert result["lowest_reward"] > 0.5
    token = LearnedToken.load(space / "tokens" / "fog.safetensors")
    assert [rows.shape for rows in token.embeddings] == [(2, 16)]
    assert token.metadata["base"] == load_sd(model).content
    assert token.metadata["initial_word"] == "cat"
    assert len(token.metadata["judgments"]) == 64
    assert json.loads(token.metadata["judged_by"]) == [{**ANN, "sha256": token.metadata["judgments"]}]
    pipe = StableDiffusionPipeline.from_pretrained(model)
    pipe.load_textual_inversion(space / "tokens" / "fog.safetensors")
    pipe.set_progress_bar_config(disable=True)
    made = [
        np.asarray(pipe(p, num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0], int)
        for p in ("<fog>", "fog")
    ]
    assert np.abs(made[0] - made[1]).max() > 0
    assert hfi(*command)[0] == 0  # finished: nothing is trained again
    assert not (space / "runs" / "invert" / "fog" / "checkpoint.pt").exists()

    code, out, err = hfi(*command, *LIGHT, "--json")
    assert code == 0, err
    assert json.loads(out)["run"] == "fog-2"
    light = LearnedToken.load(space / "tokens" / "fog.safetensors")
    assert (token.metadata["precision"], light.metadata["precision"]) == ("float32", "bfloat16")
    (near,), (rows,) = light.embeddings, token.embeddings
    assert 0 < (near - rows).abs().max() < 0.1 * rows.abs().max()


def test_an_interrupted_inversion_ends_as_if_it_had_not_been(hfi: Hfi, space: Path, tmp_path: Path, model: Path) -> None:
    """Killed between two updates; the second workspace is never interrupted."""
    shutil.copytree(space, tmp_path / "other")
    command = ["invert", "-m", model, "-c", "fog", "--steps", 4, "--top-k", 6, *FAST]
    log, count = Run.log, 0

    def interrupted(run: Run, **values: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        log(run, **values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "log", interrupted)
        assert hfi(*command, "-w", space)[0] == 130
    assert not (space / "tokens" / "fog.safetensors").exists()
    assert hfi(*command, "-w", space)[0] == 0
    assert hfi(*command, "-w", tmp_path / "other")[0] == 0
    one, two = (LearnedToken.load(p / "tokens" / "fog.safetensors") for p in (space, tmp_path / "other"))
    assert one.content == two.content
    assert one.metadata == two.metadata


def test_another_reward_is_another_run(hfi: Hfi, space: Path, model: Path) -> None:
    """Two rewards from the same judgments: the second token must not be taken from the first's finished run."""
    command = ["invert", "-w", space, "-m", model, "-c", "fog", "--steps", 1, "--top-k", 6, *FAST, "--json"]
    first = json.loads(hfi(*command)[1])
    assert json.loads(hfi(*command)[1])["run"] == first["run"] == "fog"
    assert hfi("reward", "-w", space, "-c", "fog", "--seed", 1)[0] == 0
    assert json.loads(hfi(*command)[1])["run"] == "fog-2"


def test_a_named_run_has_its_own_file_and_an_unnamed_one_says_what_it_replaced(hfi: Hfi, space: Path, model: Path) -> None:
    rewards, tokens = space / "rewards", space / "tokens"
    first = (rewards / "fog.safetensors").read_bytes()
    assert hfi("reward", "-w", space, "-c", "fog", "--seed", 1, "--name", "r2")[0] == 0
    assert (rewards / "fog.safetensors").read_bytes() == first != (rewards / "r2.safetensors").read_bytes()
    command = ["invert", "-w", space, "-m", model, "-c", "fog", "--steps", 1, "--top-k", 6, *FAST]
    code, _, err = hfi(*command)
    assert (code, "replaced" in err) == (0, False)
    own = (tokens / "fog.safetensors").read_bytes()
    assert hfi(*command, "--name", "iw", "--reward", "r2")[0] == 0
    assert (tokens / "fog.safetensors").read_bytes() == own
    assert LearnedToken.load(tokens / "iw.safetensors").placeholder == "<iw>"
    erase = ["erase", "-w", space, "-m", model, "-c", "fog", "--steps", 1, "--ddim-steps", 4]
    code, out, _ = hfi(*erase, "--token", "iw")
    assert (code, "<iw> removed" in out) == (0, True)

    code, _, err = hfi(*command, "--seed", 1)
    kept = space / "runs" / "invert" / "fog" / "token.safetensors"
    assert (code, f"{tokens / 'fog.safetensors'} was replaced; the earlier one is {kept}" in err) == (0, True)
    assert kept.read_bytes() == own
    LearnedToken("<fog>", (torch.ones(1, 16),)).save(tokens / "fog.safetensors")  # from elsewhere: no run has it
    brought = (tokens / "fog.safetensors").read_bytes()
    assert hfi(*command)[0] == 0
    (beside,) = tokens.glob("fog.safetensors.*")
    assert beside.read_bytes() == brought
    assert (tokens / "fog.safetensors").read_bytes() == own


def test_a_reward_that_knows_nothing_stops_the_inversion(hfi: Hfi, space: Path, model: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    file = space / "rewards" / "fog.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = {**opened.metadata(), "better_than_chance": "false"}
    save_file(load_file(file), file, metadata)
    command = ["invert", "-w", space, "-m", model, "-c", "fog", "--steps", 1, *FAST]
    code, _, err = hfi(*command)
    assert code == 1
    assert "no better than chance" in err
    assert hfi(*command, "--force")[0] == 0


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["-c", "frog"], 1, "no concept 'frog'"),
        (["-c", "mist"], 1, "no judgments of 'mist'"),
        (["-c", "fog", "--reward", "none"], 1, "no reward model 'none'"),
        (["-c", "fog", "--token", "Fog"], 2, "cannot name a token"),
        (["-c", "fog", "-m", "nowhere"], 1, "no model 'nowhere'"),
        (["-c", "fog", "--template", "x"], 2, "--template"),
        (["-c", "fog", "--top-k", "0"], 2, "--top-k is 0"),
        (["-c", "fog", "--weighting", "best"], 2, "--weighting"),
        (["-c", "fog,fog"], 2, "several different ones"),
        (["-c", "fog,mist", "--reward", "fog"], 2, "2 concepts and 1 --reward: give one for each concept, in the same order"),
        (["-c", "fog", "--initial-word", "a", "--initial-word", "b"], 2, "1 concepts and 2 --initial-word"),
        (["-c", "fog,mist", "--token", "<a>", "--token", "<a>"], 2, "a token of its own"),
        (["-c", "fog", "--top-k", "4", "--keep", "best"], 2, "there are 4"),
        (["-c", "fog", "--schedule", "linear"], 2, "--schedule"),
        (["-c", "fog", "--validate-every", "0"], 2, "--validate-every is 0"),
    ],
)
def test_mistakes_of_invert(
    hfi: Hfi, space: Path, model: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], code: int, words: str
) -> None:
    monkeypatch.setattr("hfi.diffusion.sd.load_part", lambda *a: pytest.fail("a model was loaded"))
    found, _, err = hfi("invert", "-w", space, "-m", model, *args)
    assert found == code
    assert words in err


@pytest.fixture
def two_concepts(hfi: Hfi, space: Path) -> Path:
    """Mist is on the images without fog; with a reward of its own."""
    home = Workspace.open(space)
    engine = home.engine()
    fog = {sha: found.y for sha, found in soft_labels(freeze(engine, "fog")).items()}
    with writing(engine) as s:
        campaign = campaigns.ensure_campaign(
            s, "mist", "m", image_ids=[i.id for i in queries.images(s)], asking=campaigns.Asking(overlap=1)
        )
        person = queries.ensure_annotator(s, "Ann")
        while claim := judging.claim_next(s, campaign.id, person.id):
            verdict = "clean" if fog[claim.images[0].sha256] > 0.5 else "shows"
            judging.submit(s, claim.token, person.id, verdict, f"m-{claim.token}")
    code, _, err = hfi("reward", "-w", space, "-c", "mist", "--epochs", "200")
    assert code == 0, err
    return space


def test_two_concepts_learn_in_one_run(hfi: Hfi, two_concepts: Path, model: Path) -> None:
    space, common = two_concepts, ["-w", two_concepts, "-m", model, "--top-k", 6, *FAST]
    assert hfi("invert", *common, "-c", "fog", "--steps", 1)[0] == 0
    command = ["invert", *common, "-c", "fog,mist", "--initial-word", "hat", "--initial-word", "cat dog", "--steps", 3]
    command += ["--learning-rate", 1, "--ema-decay", 0]  # so that pictures change
    code, out, err = hfi(*command, "--keep", "best", "--validate-every", 2, "--preview-every", 2, "--json")
    assert code == 0, err
    run, files = (
        Run(space / "runs" / "invert" / "fog+mist"),
        [space / "tokens" / f"{name}.safetensors" for name in ("fog", "mist")],
    )
    result = json.loads(out)
    assert (result["token"], result["run"]) == (["<fog>", "<mist>"], "fog+mist")
    assert result["file"] == [str(file) for file in files]
    assert result["images"] == [6, 6]
    assert all(reward > 0.5 for reward in result["lowest_reward"])
    assert f"{files[0]} was replaced; the earlier one is {space / 'runs' / 'invert' / 'fog' / 'token.safetensors'}" in err
    fog, mist = (LearnedToken.load(file) for file in files)
    assert fog.content != mist.content
    for token, mine, word, other in ((fog, "fog", "hat", "<mist>"), (mist, "mist", "cat dog", "<fog>")):
        about = token.metadata
        assert (token.placeholder, about["concept"], about["initial_word"]) == (f"<{mine}>", mine, word)
        assert about["judgments"] == freeze(Workspace.open(space).engine(), mine).sha256
        assert json.loads(about["judged_by"]) == [{**ANN, "sha256": about["judgments"]}]
        assert json.loads(about["learned_with"]) == [other]
        assert LearnedToken.load(run.path / f"{mine}.safetensors").content == token.content
    held_out = {line["step"]: line["held_out"] for line in run.metrics() if "held_out" in line}
    assert list(held_out) == [2, 3]
    assert result["kept_step"] == min(held_out, key=held_out.__getitem__)
    sheets = sorted((run.path / "previews").iterdir())
    assert [sheet.name for sheet in sheets] == ["00000.png", "00002.png", "00003.png"]
    assert len({Image.open(sheet).size for sheet in sheets}) == 1  # of four rows each
    assert len({sheet.read_bytes() for sheet in sheets}) == 3

    code, out, err = hfi(*command, "--name", "both", "--reward", "mist", "--reward", "mist")
    assert code == 0, err
    assert out.splitlines()[::2] == ["<both-fog> learned from 6 images", "<both-mist> learned from 6 images"]
    assert "--concept fog,mist --token both-fog --token both-mist" in err
    assert (files[0].read_bytes(), "replaced" in err) == ((run.path / "fog.safetensors").read_bytes(), False)
    code, _, err = hfi("erase", "-w", space, "-m", model, "-c", "fog,mist", "--steps", 1, "--ddim-steps", 4)
    assert code == 0, err


def test_pictures_on_the_way_change_no_token_and_cut_prompts_are_said(
    hfi: Hfi, space: Path, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The model reads 18 tokens, so of 'a dog hat' there is room for two words before 16 vectors."""
    monkeypatch.setattr("hfi.diffusion.sd._told", set())
    command = ["invert", "-w", space, "-m", model, "-c", "fog", "--steps", 2, "--vectors", 16, *FAST]
    code, _, err = hfi(*command, "--preview-every", 1)
    assert code == 0, err
    assert "prompt cut: this model reads 18 tokens, so 'a dog hat' loses 'hat" in caplog.text
    assert [p.name for p in sorted((space / "runs" / "invert" / "fog" / "previews").iterdir())] == [
        "00000.png",
        "00001.png",
        "00002.png",
    ]
    with_pictures = LearnedToken.load(space / "tokens" / "fog.safetensors")
    assert json.loads((space / "runs" / "invert" / "fog" / "result.json").read_text())["kept_step"] == 2
    assert hfi(*command)[0] == 0
    assert not (space / "runs" / "invert" / "fog-2" / "previews").exists()
    assert LearnedToken.load(space / "runs" / "invert" / "fog-2" / "token.safetensors").content == with_pictures.content


def test_a_ranking_question_goes_all_the_way(hfi: Hfi, space: Path, model: Path) -> None:
    """Five images at a time, ordered by what the CLIP model sees; then reward, token and contexts from the orders alone."""
    home = Workspace.open(space)
    engine = home.engine()
    clip = ClipBackbone.load(model / "clip")
    with writing(engine) as s:
        queries.add_concept(s, Concept("haze", "Haze", initial_word="cat", question="ranking"))
        images = queries.images(s)
        campaign = campaigns.ensure_campaign(
            s, "haze", "first", image_ids=[i.id for i in images], asking=campaigns.Asking(overlap=1)
        )
        person = queries.ensure_annotator(s, "Ann")
    x = clip.images([home.images.load(i.sha256) for i in images])
    first = np.linalg.svd(x - x.mean(0), full_matrices=False)[0][:, 0]
    value = {i.id: v for i, v in zip(images, first, strict=True)}
    with writing(engine) as s:
        while claim := judging.claim_next(s, campaign.id, person.id):
            order = sorted((i.image_id for i in claim.images), key=lambda i: -value[i])
            judging.submit(s, claim.token, person.id, "ranked", f"h-{claim.token}", ranking=order)
    code, out, err = hfi("reward", "-w", space, "-c", "haze", "--held-out", 0.3, "--json")
    assert code == 0, err
    figures = json.loads(out)
    assert figures["held_out_rankings"] == 2
    code, out, err = hfi("reward", "-w", space, "-c", "haze", "--held-out", 0.3, "--report")
    assert code == 0, err
    assert "pair accuracy" in (space / "runs" / "reward" / "haze" / "report.html").read_text()
    code, out, err = hfi("invert", "-w", space, "-m", model, "-c", "haze", "--steps", 2, "--top-k", 8, "--force", *FAST, "--json")
    assert code == 0, err
    assert json.loads(out)["images"] == 8
    common = ["--steps", 1, "--ddim-steps", 4, *FAST]
    code, _, err = hfi("erase", "-w", space, "-m", model, "-c", "haze", "--method", "sdd-context", *common)
    assert code == 0, err


# --- erase ---


@pytest.fixture
def with_token(space: Path, model: Path) -> Path:
    about = {"base": load_sd(model).content, "judgments": "abc", "simulated": "true"}  # as tokens were before they had judged_by
    LearnedToken("<fog>", (torch.ones(2, 16),), about).save(space / "tokens" / "fog.safetensors")
    return space


@pytest.mark.parametrize(
    ("args", "name", "kind", "texts"),
    [
        (["--method", "sdd"], "fog-sdd-token", "token", ["<fog>"]),
        (["--method", "sdd-context", "--text", "a hat"], "fog-sdd-context-text", "text", ["a hat"]),
        (["--method", "sdd-context", "--rollouts", "fresh"], "fog-sdd-context-token", "token", ["<fog>"]),
        (["--method", "sdd", *LIGHT], "fog-sdd-token", "token", ["<fog>"]),
    ],
)
def test_erasing_writes_the_changed_tensors_and_a_unet_for_diffusers(
    hfi: Hfi, with_token: Path, model: Path, args: list[str], name: str, kind: str, texts: list[str]
) -> None:
    space = with_token
    common = ["--steps", 2, "--ddim-steps", 4, "--ema-decay", 0.5, *FAST]
    code, out, err = hfi("erase", "-w", space, "-m", model, "-c", "fog", *common, *args, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["run"] == name
    made = Erasure.load(space / "erasures" / f"{name}.safetensors")
    assert (made.metadata["conditioning"], json.loads(made.metadata["texts"]), made.concepts) == (kind, texts, ["fog"])
    token = [{"sha256": "abc", "simulated": 1}] if kind == "token" else []
    in_context = [ANN] if "sdd-context" in args else []
    sets = json.loads(made.metadata["judged_by"])
    assert [{**s, "sha256": "abc" if s["sha256"] == "abc" else "fog"} for s in sets] == token + in_context
    assert int(made.metadata["unet_evaluations"]) == result["unet_evaluations"] > 0
    before = UNet2DConditionModel.from_pretrained(model, subfolder="unet").state_dict()
    after = UNet2DConditionModel.from_pretrained(space / "erasures" / name / "unet").state_dict()
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed == set(made.tensors)
    assert all("attn2" in n for n in changed)

    code, _, err = hfi("generate", "-w", space, "-m", model, "--prompt", "a cat", "--steps", 2, "--erasure", name)
    assert code == 0, err
    assert stored(space)[-1].erasure == made.content
    assert stored(space)[-1].sha256 != next(i.sha256 for i in stored(space) if i.prompt == "a cat")


def test_several_concepts_and_what_is_retained(hfi: Hfi, with_token: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("a hat\ncat\n")
    common = ["--steps", 1, "--ddim-steps", 4, *FAST]
    code, _, err = hfi(
        "erase", "-w", with_token, "-m", model, "-c", "fog,mist", "--text", "a dog", "--text", "hat", "--method", "sdd", *common
    )
    assert code == 0, err
    assert Erasure.load(with_token / "erasures" / "fog+mist-sdd-text.safetensors").concepts == ["fog", "mist"]
    code, _, err = hfi(
        "erase", "-w", with_token, "-m", model, "-c", "fog", "--method", "sdd-context", "--retain", tmp_path / "keep.txt", *common
    )
    assert code == 0, err
    made = Erasure.load(with_token / "erasures" / "fog-sdd-context-token.safetensors")
    assert json.loads(made.metadata["retain"]) == ["a hat", "cat"]
    assert len(json.loads(made.metadata["judgments"])[0]) == 64


def judged_as(slug: str, question: Any, verdicts: dict[tuple[str, str | None], str]) -> Judged:
    """`verdicts` by (image, prompt)."""
    made = [
        Judgment((image,), (prompt,), verdict, "Ann", False, "first", "2026-01-31T12:00:00+00:00", 1, None, None)
        for (image, prompt), verdict in verdicts.items()
    ]
    return Judged(Concept(slug, slug, question=question), JudgmentSet(slug, question, tuple(made)))


def test_prompts_that_name_the_concept_are_counted_and_said(hfi: Hfi, space: Path, model: Path) -> None:
    assert _naming(["a dog hat", "Hat", "a cat", None], "hat ") == 2
    assert _naming(["a dog hat", "hat"], "at") == 0
    assert _naming(["a cat", None], "") == 0
    images = [p for p in freeze(Workspace.open(space).engine(), "fog").prompts.values() if p]
    for phrase in sorted(set(images)):
        assert hfi("concept", "add", "fog", "-w", space, "--prompt", phrase)[0] == 0
        name = phrase.replace(" ", "-")
        command = ["invert", "-w", space, "-m", model, "-c", "fog", "--steps", 1, "--top-k", 64, "--batch-size", 4]
        result, err = hfi(*command, "--name", name, "--json")[1:]
        images_learned = json.loads(result)["images"]
        said = re.search(r"(\d+) of (\d+) images come from prompts that say", err)
        if said:
            assert images_learned == int(said[2]) < 2 * int(said[1])
        assert "come from prompts" not in hfi(*command, "--name", f"{name}-plain", "--template", "plain")[2]


def test_clean_images_are_those_of_flagged_prompts_that_show_no_other_concept(tmp_path: Path) -> None:
    fog = judged_as("fog", "binary", {
        ("a", "cat"): "shows", ("b", "cat"): "clean", ("c", "cat"): "clean", ("d", "dog"): "clean", ("e", None): "clean",
        ("f", None): "shows", ("g", "cat"): "unsure",
    })  # fmt: skip
    mist = judged_as("mist", "binary", {("b", "cat"): "shows", ("d", "dog"): "shows", ("h", "dog"): "clean"})
    assert fog.clean_images("majority") == ["b", "c"]
    assert mist.clean_images("majority") == ["h"]
    space = Workspace.create(tmp_path / "w")  # without a reward model, so that the judgments alone decide

    def clean(found: list[Judged], *contexts: list[str]) -> list[tuple[str, str]]:
        return _clean(space, found, "majority", Removal(["x"] * len(found), contexts), "cpu")

    assert clean([fog], ["cat", "cat"]) == [("b", "cat"), ("c", "cat")]
    assert clean([fog, mist], ["cat"], ["cat", "dog"]) == [("c", "cat"), ("h", "dog")]
    assert clean([fog, mist], ["cat"], ["cat"]) == [("c", "cat")]  # dog is held out, to be looked at alone
    assert judged_as("fog", "ranking", {("a", "cat"): "ranked"}).clean_images("majority") == []


def test_a_reward_that_sees_the_concept_in_a_clean_image_is_believed(space: Path) -> None:
    opened = Workspace.open(space)
    found = judged(opened, "fog", "exclude")
    reward = RewardModel.load(opened.rewards / "fog.safetensors")
    assert reward.better_than_chance
    shas = sorted(found.labels("majority"))
    scores = reward.score_embeddings(embed_stored(reward.backbone, opened.images, shas, opened.path / "embeddings"))
    turned = {sha: "clean" for sha, score in zip(shas, scores, strict=True) if score > 0.8}  # mistakes of people
    verdicts = {j.images[0]: turned.get(j.images[0], j.verdict) for j in found.judgments.judgments}
    wrong = judged_as("fog", "binary", {(sha, found.judgments.prompts[sha]): verdict for sha, verdict in verdicts.items()})
    kept = _clean(opened, [wrong], "majority", Removal(["x"], [wrong.flagged_prompts("majority")]), "cpu")
    assert turned
    assert kept
    assert not {sha for sha, _ in kept} & set(turned)
    assert set(turned) & set(wrong.clean_images("majority"))


def test_a_prompt_flagged_for_a_concept_is_not_held(hfi: Hfi, with_token: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("a cat\na dog hat\na chair\n")
    command = ["erase", "-w", with_token, "-m", model, "-c", "fog", "--method", "sdd-context", "--retain", tmp_path / "keep.txt"]
    code, _, err = hfi(*command, "--steps", 1, "--ddim-steps", 4, *FAST)
    assert code == 0, err
    made = Erasure.load(with_token / "erasures" / "fog-sdd-context-token.safetensors")
    held = json.loads(made.metadata["retain"])
    assert held == [p for p in ("a cat", "a dog hat", "a chair") if p in held]
    assert "a chair" in held
    assert f"{3 - len(held)} prompts of" in err
    settings = json.loads((with_token / "runs" / "erase" / "fog-sdd-context-token" / "config.json").read_text())
    assert settings["words"] == ["a dog"]
    assert settings["clean_images"] > 0


def test_going_on_from_an_erasure_keeps_what_it_removed(hfi: Hfi, with_token: Path, model: Path) -> None:
    """The second starts at the first: with a learning rate of nearly nothing it is the first again, in its own file."""
    space = with_token
    common = ["-w", space, "-m", model, "--steps", 1, "--ddim-steps", 4, "--batch-size", 4, "--ema-decay", 0]
    assert hfi("erase", *common, "-c", "fog", "--learning-rate", 0.01, "--name", "one")[0] == 0
    second = ["erase", *common, "-c", "mist", "--text", "hat", "--from", "one", "--train", "selfattn"]
    code, _, err = hfi(*second, "--learning-rate", 1e-12, "--weight-decay", 0, "--name", "two")
    assert code == 0, err
    one, two = (Erasure.load(space / "erasures" / f"{name}.safetensors") for name in ("one", "two"))
    assert two.concepts == ["fog", "mist"]
    assert [step["texts"] for step in two.history] == ['["<fog>"]', '["hat"]']
    assert two.history[0]["content"] == one.content
    assert json.loads((space / "runs" / "erase" / "two" / "config.json").read_text())["from"] == one.content
    assert set(one.tensors) < set(two.tensors)
    assert all(torch.equal(two.tensors[name], value) for name, value in one.tensors.items())
    unets = [UNet2DConditionModel.from_pretrained(space / "erasures" / name / "unet").state_dict() for name in ("one", "two")]
    for name, value in unets[0].items():
        torch.testing.assert_close(unets[1][name], value, rtol=0, atol=1e-6)
    code, _, err = hfi("erase", *common, "-c", "fog", "--text", "hat", "--from", "nothing")
    assert (code, "no erasure 'nothing'" in err) == (1, True)


def test_going_on_in_the_same_tensors_starts_where_the_first_ended(hfi: Hfi, with_token: Path, model: Path) -> None:
    common = ["-w", with_token, "-m", model, "--steps", 1, "--ddim-steps", 4, "--batch-size", 4, "--ema-decay", 0, "-c", "fog"]
    assert hfi("erase", *common, "--learning-rate", 0.01, "--name", "one")[0] == 0
    assert hfi("erase", *common, "--from", "one", "--learning-rate", 1e-9, "--weight-decay", 0, "--name", "two")[0] == 0
    one, two = (Erasure.load(with_token / "erasures" / f"{name}.safetensors") for name in ("one", "two"))
    base = UNet2DConditionModel.from_pretrained(model, subfolder="unet").state_dict()
    assert set(two.tensors) == set(one.tensors)
    for name, value in two.tensors.items():
        torch.testing.assert_close(value, one.tensors[name], rtol=0, atol=1e-6)
        assert (value - base[name]).abs().max() > 1e-4


def test_generating_with_two_erasures_in_either_order(hfi: Hfi, with_token: Path, model: Path) -> None:
    space = with_token
    common = ["-w", space, "-m", model, "--steps", 1, "--ddim-steps", 4, "--batch-size", 4, "--learning-rate", 0.01]
    for name, word in (("one", "hat"), ("two", "dog")):
        assert hfi("erase", *common, "-c", "fog", "--text", word, "--name", name, "--ema-decay", 0)[0] == 0
    command = ["generate", "-w", space, "-m", model, "--prompt", "a cat", "--steps", 2]
    for names in (["one"], ["two"], ["one", "two"]):
        assert hfi(*command, *(word for name in names for word in ("--erasure", name)))[0] == 0
    made = stored(space)[-3:]
    assert len({i.sha256 for i in made}) == len({i.erasure for i in made}) == 3
    assert "0 images made, 1 were there already" in hfi(*command, "--erasure", "two", "--erasure", "one")[1]
    assert "would count twice" in hfi(*command, "--erasure", "two", "--erasure", "two")[2]


def test_an_interrupted_erasure_goes_on(hfi: Hfi, with_token: Path, tmp_path: Path, model: Path) -> None:
    shutil.copytree(with_token, tmp_path / "other")
    command = ["erase", "-m", model, "-c", "fog", "--method", "sdd-context", "--steps", 4, "--ddim-steps", 4, *FAST]
    log, count = Run.log, 0

    def interrupted(run: Run, **values: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        log(run, **values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "log", interrupted)
        assert hfi(*command, "-w", with_token)[0] == 130
    assert hfi(*command, "-w", with_token)[0] == 0
    assert hfi(*command, "-w", tmp_path / "other")[0] == 0
    one, two = (Erasure.load(p / "erasures" / "fog-sdd-context-token.safetensors") for p in (with_token, tmp_path / "other"))
    assert one.content == two.content
    assert one.metadata == two.metadata


LOOKED_AT = ["--validate-every", 2, "--validate-images", 2, "--checkpoint-every", 2]


def test_an_erasure_that_is_looked_at_is_the_same_and_goes_on(hfi: Hfi, with_token: Path, tmp_path: Path, model: Path) -> None:
    """Four prompts are too few to hold any out. Killed in the validation of the fourth step, its state not yet kept."""
    for name in ("looked", "killed"):
        shutil.copytree(with_token, tmp_path / name)
    (tmp_path / "keep.txt").write_text("a hat\ncat\n")
    command = ["erase", "-m", model, "-c", "fog", "--method", "sdd-context", "--retain", tmp_path / "keep.txt"]
    command += ["--steps", 5, "--ddim-steps", 4, *FAST]
    assert hfi(*command, "-w", with_token)[0] == 0
    code, out, err = hfi(*command, *LOOKED_AT, "-w", tmp_path / "looked")
    assert (code, "removal " in out, "distance " in out) == (0, True, True), err

    log = Run.log

    def killed(run: Run, **values: Any) -> None:
        log(run, **values)
        if values["step"] == 4 and "removal" in values:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "log", killed)
        assert hfi(*command, *LOOKED_AT, "-w", tmp_path / "killed")[0] == 130
    assert hfi(*command, *LOOKED_AT, "-w", tmp_path / "killed")[0] == 0

    plain, one, two = (
        Erasure.load(p / "erasures" / "fog-sdd-context-token.safetensors")
        for p in (with_token, tmp_path / "looked", tmp_path / "killed")
    )
    assert plain.content == one.content == two.content
    assert one.metadata == two.metadata
    assert (one.metadata["step"], one.metadata["ended"]) == ("5", "steps")
    runs = [Run(tmp_path / name / "runs" / "erase" / "fog-sdd-context-token") for name in ("looked", "killed")]
    assert runs[0].metrics() == runs[1].metrics()
    assert [line["step"] for line in runs[0].metrics() if "removal" in line] == [2, 4, 5]
    assert runs[0].result() == runs[1].result()
    assert runs[0].result()["removal"] == runs[0].metrics()[-1]["removal"]
    assert sorted(runs[0].config()["validation_harmless"]) == ["a hat", "cat"]
    pictures, again = ({p.name: p.read_bytes() for p in (run.path / "validation").iterdir()} for run in runs)
    assert pictures == again
    assert sorted(pictures) == ["00002.png", "00004.png", "00005.png"]
    kept, same = ({p.name: Erasure.load(p) for p in (run.path / "checkpoints").iterdir()} for run in runs)
    assert sorted(kept) == sorted(same) == ["00002.safetensors", "00004.safetensors"]
    assert [(e.content, e.metadata) for e in kept.values()] == [(same[name].content, same[name].metadata) for name in kept]


def test_a_checkpoint_is_an_erasure_like_any_other(hfi: Hfi, with_token: Path, tmp_path: Path, model: Path) -> None:
    """Of the last step it holds the very result, in half precision too."""
    command = ["erase", "-w", with_token, "-m", model, "-c", "fog", "--steps", 2, "--ddim-steps", 4, *FAST]
    assert hfi(*command, "--checkpoint-every", 1, *LIGHT)[0] == 0
    files = [with_token / "runs" / "erase" / "fog-sdd-token" / "checkpoints" / f"0000{i}.safetensors" for i in (1, 2)]
    first, second, whole = (Erasure.load(path) for path in (*files, with_token / "erasures" / "fog-sdd-token.safetensors"))
    assert first.content != second.content == whole.content
    assert [e.metadata["step"] for e in (first, second)] == ["1", "2"]
    assert {key: value for key, value in whole.metadata.items() if key != "ended"} == second.metadata
    code, _, err = hfi("generate", "-w", with_token, "-m", model, "--prompt", "a cat", "--steps", 2, "--erasure", files[0])
    assert code == 0, err
    assert stored(with_token)[-1].erasure == first.content
    code, _, err = hfi("export", "folder", "-w", with_token, "-m", model, "--erasure", files[0], "--out", tmp_path / "cleaned")
    assert code == 0, err


def test_an_erasure_that_harms_ends_early(hfi: Hfi, with_token: Path, tmp_path: Path, model: Path) -> None:
    """By pictures of two of ten retained prompts, which it is not trained on."""
    (tmp_path / "keep.txt").write_text("\n".join(f"hat {i}" for i in range(10)))
    command = ["erase", "-w", with_token, "-m", model, "-c", "fog", "--method", "sdd-context", "--retain", tmp_path / "keep.txt"]
    command += ["--steps", 9, "--ddim-steps", 4, "--ema-decay", 0, *FAST, *LOOKED_AT, "--stop-distance", 1e-9]
    code, out, err = hfi(*command)
    assert code == 0, err
    line = "ended at step 2 of 9: harmless prompts' pictures moved by more than --stop-distance 1e-09"
    assert line in out
    assert line not in err  # with --json it is said there
    made = Erasure.load(with_token / "erasures" / "fog-sdd-context-token.safetensors")
    assert (made.metadata["step"], made.metadata["ended"]) == ("2", "distance")
    trained = json.loads(made.metadata["retain"])
    held_out = Run(with_token / "runs" / "erase" / "fog-sdd-context-token").config()["validation_harmless"]
    assert (len(trained), len(held_out), set(trained) & set(held_out)) == (8, 2, set())
    assert json.loads(hfi(*command, "--json")[1])["ended"] == "distance"


def test_looking_without_a_reward_says_so(hfi: Hfi, with_token: Path, model: Path) -> None:
    """And, for sdd, without judgments: pictures of the concept alone."""
    command = ["erase", "-w", with_token, "-m", model, "-c", "mist", "--text", "hat", "--steps", 1, "--ddim-steps", 4, *FAST]
    code, out, err = hfi(*command, *LOOKED_AT)
    assert code == 0
    said = "validation draws pictures and counts nothing: there is no reward model of 'mist', make one with 'hfi reward --concept mist'"
    assert err.splitlines()[0] == said
    assert "removal" not in out.splitlines()[1]
    run = Run(with_token / "runs" / "erase" / "mist-sdd-text")
    assert (run.path / "validation" / "00001.png").exists()
    assert (run.config()["validation_flagged"], run.config()["validation_harmless"]) == (["hat"], [])


def test_each_command_says_what_comes_next_and_that_it_was_finished_before(hfi: Hfi, space: Path, model: Path) -> None:
    here = f"--workspace {space}\n"
    before = "the run {} was finished before: nothing was trained\n"
    common = ["-w", space, "-c", "fog"]
    code, _, err = hfi("reward", *common, "--epochs", 200)
    following = f"next: hfi invert --model FOLDER_OR_HUB_ID --concept fog {here}"
    assert (code, err) == (0, before.format("fog") + following)
    command = ["invert", *common, "-m", model, "--steps", 1, "--top-k", 6, "--name", "iw", *FAST]
    following = f"next: hfi erase --model {model} --concept fog --token iw {here}"
    assert hfi(*command)[2].endswith(f"\n{following}")
    assert hfi(*command)[2] == before.format("iw") + following
    command = ["erase", *common, "-m", model, "--token", "iw", "--steps", 1, "--ddim-steps", 4, *FAST]
    following = f"next: hfi evaluate --model {model} --concept fog --erasure fog-sdd-token {here}"
    assert hfi(*command)[2].endswith(f"\n{following}")
    assert hfi(*command)[2] == before.format("fog-sdd-token") + following
    assert hfi(*command, "--json")[2] == before.format("fog-sdd-token")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_an_interruption_keeps_the_step_under_way(
    hfi: Hfi, with_token: Path, tmp_path: Path, model: Path, number: signal.Signals, code: int
) -> None:
    """Long before --save-every would."""
    shutil.copytree(with_token, tmp_path / "other")
    command = ["erase", "-m", model, "-c", "fog", "--steps", 120, "--ddim-steps", 4, "--save-every", 1000]
    run = Run(with_token / "runs" / "erase" / "fog-sdd-token")
    start = "import signal, hfi.cli; signal.signal(signal.SIGINT, signal.default_int_handler); hfi.cli.main()"
    words = [sys.executable, "-c", start, *map(str, command), "-w", str(with_token)]
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while len(run.metrics()) <= 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert "Traceback" not in err
    done = len(run.metrics())
    assert 3 < done < 120
    assert torch.load(run.path / "checkpoint.pt", weights_only=True)["step"] == done
    assert hfi(*command, "-w", with_token)[0] == 0
    assert hfi(*command, "-w", tmp_path / "other")[0] == 0
    one, two = (Erasure.load(p / "erasures" / "fog-sdd-token.safetensors") for p in (with_token, tmp_path / "other"))
    assert one.content == two.content
    assert one.metadata == two.metadata
    assert [line["step"] for line in run.metrics()] == list(range(1, 121))


def test_weights_of_a_removed_run_are_not_left_beside_new_ones(hfi: Hfi, with_token: Path, model: Path) -> None:
    command = ["erase", "-w", with_token, "-m", model, "-c", "fog", "--steps", 1, "--ddim-steps", 4, *FAST]
    assert hfi(*command)[0] == 0
    unet = with_token / "erasures" / "fog-sdd-token" / "unet"
    assert unet.exists()
    shutil.rmtree(with_token / "runs" / "erase" / "fog-sdd-token")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hfi.cli.erase.export_unet", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        assert hfi(*command, "--seed", 1)[0] == 130
    assert not unet.exists()
    assert hfi(*command, "--seed", 1)[0] == 0
    assert unet.exists()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["-c", "fog", "--method", "sddd"], 2, "unknown erasure method 'sddd': choose sdd or sdd-context"),
        (["-c", "frog"], 1, "no concept 'frog'"),
        (["-c", "fog", "--token", "none"], 1, "no token 'none'"),
        (["-c", "mist"], 1, "no token 'mist'"),
        (["-c", "fog", "--token", "fog", "--text", "x"], 2, "give one of them"),
        (["-c", "fog,mist", "--text", "x"], 2, "2 concepts and 1 texts"),
        (["-c", "fog,fog", "--text", "x"], 2, "several different ones"),
        (["-c", "mist", "--text", "x", "--method", "sdd-context"], 1, "no judgments of 'mist'"),
        (["-c", "fog", "--eta", "3"], 2, "--eta is no setting of sdd: it belongs to sdd-context"),
        (["-c", "fog", "--retain", "x.txt"], 2, "--retain is for sdd-context"),
        (["-c", "fog", "--ema-decay", "1.5"], 2, "--ema-decay is 1.5"),
        (["-c", "fog", "--eta-schedule", "linear"], 2, "--eta-schedule is no setting of sdd"),
        (["-c", "fog", "--stop-at", "0.1"], 2, "give --validate-every too"),
        (
            ["-c", "mist", "--text", "x", "--stop-at", "0.1", "--validate-every", "1"],
            2,
            "--stop-at goes by the concept's reward: there is no reward model of 'mist'",
        ),
        (
            ["-c", "fog", "--simulated", "only", "--stop-distance", "0.1", "--validate-every", "1"],
            2,
            "--stop-distance goes by harmless prompts",
        ),
        (["-c", "fog", "-m", "nowhere"], 1, "no model 'nowhere'"),
    ],
)
def test_mistakes_of_erase(
    hfi: Hfi, with_token: Path, model: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], code: int, words: str
) -> None:
    monkeypatch.setattr("hfi.diffusion.sd.load_part", lambda *a: pytest.fail("a model was loaded"))
    found, _, err = hfi("erase", "-w", with_token, "-m", model, *args)
    assert (found, err.count("\n")) == (code, 1)
    assert words in err


def test_a_loss_that_is_not_finite_is_one_line(hfi: Hfi, with_token: Path, model: Path) -> None:
    common = ["--steps", 40, "--ddim-steps", 4, "--batch-size", 1, "--save-every", 1]
    code, _, err = hfi("erase", "-w", with_token, "-m", model, "-c", "fog", *common, "--learning-rate", 1e18)
    assert code == 1
    assert "the loss is not finite at step" in err.splitlines()[-1]
    kept = torch.load(with_token / "runs" / "erase" / "fog-sdd-token" / "checkpoint.pt", weights_only=True)
    assert all(torch.isfinite(v).all() for v in kept["teacher"].values())


def test_a_loss_that_is_not_finite_leaves_the_token_as_it_was(hfi: Hfi, with_token: Path, model: Path) -> None:
    before = (with_token / "tokens" / "fog.safetensors").read_bytes()
    command = ["invert", "-w", with_token, "-m", model, "-c", "fog", "--steps", 20, "--top-k", 6, "--save-every", 1]
    code, _, err = hfi(*command, "--learning-rate", 1e30)
    assert code == 1
    assert "the loss is not finite at step" in err.splitlines()[-1]
    assert (with_token / "tokens" / "fog.safetensors").read_bytes() == before
    kept = torch.load(with_token / "runs" / "invert" / "fog" / "checkpoint.pt", weights_only=True)
    assert all(torch.isfinite(v).all() for v in (*kept["v"], *kept["average"]))


# --- every family ---


@pytest.mark.parametrize("kind", list(WIDTHS))
def test_every_family_goes_all_the_way(hfi: Hfi, space: Path, root: Path, kind: str) -> None:
    """invert, erase by token and by text, generate and evaluate; and diffusers with the exported U-Net draws the same pictures."""
    folder = saved(root, kind)
    code, _, err = hfi("invert", "-w", space, "-m", folder, "-c", "fog", "--steps", 2, "--vectors", 2, "--top-k", 6, *FAST)
    assert code == 0, err
    token = LearnedToken.load(space / "tokens" / "fog.safetensors")
    assert token.widths == WIDTHS[kind]
    started = initial_vectors(load_sd(folder), "cat", 2)
    for rows, start in zip(token.embeddings, started, strict=True):
        assert torch.isfinite(rows).all()
        assert ((rows - start).abs().amax(1) > 0).all()

    before = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").state_dict()
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    common = ["--steps", 2, "--ddim-steps", 4, "--ema-decay", 0.5, *FAST]
    for method, words, name in (
        ("sdd", [], "fog-sdd-token"),
        ("sdd", ["--text", "a hat"], "fog-sdd-text"),
        ("sdd-context", [], "fog-sdd-context-token"),
        ("sdd-context", ["--text", "a hat"], "fog-sdd-context-text"),
    ):
        code, _, err = hfi("erase", "-w", space, "-m", folder, "-c", "fog", "--method", method, *words, *common)
        assert code == 0, err
        made = Erasure.load(space / "erasures" / f"{name}.safetensors")
        pipe.unet = UNet2DConditionModel.from_pretrained(space / "erasures" / name / "unet")
        after = pipe.unet.state_dict()
        assert all(torch.isfinite(value).all() for value in after.values())
        assert (
            set(made.tensors)
            == {n for n in before if not torch.equal(before[n], after[n])}
            == {n for n in before if "attn2" in n}
        )

        shown = ["--prompt", "a cat", "--steps", 3, "--guidance-scale", 3, "--seed", 7]
        code, _, err = hfi("generate", "-w", space, "-m", folder, *shown, "--erasure", name)
        assert code == 0, err
        image = stored(space)[-1]
        assert image.erasure == made.content
        ours = np.asarray(Workspace.open(space).images.load(image.sha256), int)
        height, width, _ = ours.shape
        noise = torch.Generator().manual_seed(7)
        theirs = pipe("a cat", height=height, width=width, num_inference_steps=3, guidance_scale=3.0, generator=noise).images[0]
        assert np.abs(ours - np.asarray(theirs, int)).max() <= 1

    code, _, err = hfi("generate", "-w", space, "-m", folder, "--prompt", "a <fog>", "--token", "fog", "--steps", 2)
    assert code == 0, err
    (space / "some.txt").write_text("a cat\na dog\n")
    measured = ["--detector", "none", "--backbone", "none", "--prompts", space / "some.txt", "--steps", 2]
    code, _, err = hfi("evaluate", "-w", space, "-m", folder, "-c", "fog", *measured)
    assert code == 0, err
    pictures = list((space / "runs" / "evaluate" / "fog" / "images").rglob("*.png"))
    assert len(pictures) == 5 * 2


@pytest.mark.parametrize(("learned", "used"), [("xl", "epsilon"), ("epsilon", "xl")])
def test_a_token_of_another_family_is_one_line_before_a_model_is_loaded(
    hfi: Hfi, space: Path, root: Path, monkeypatch: pytest.MonkeyPatch, learned: str, used: str
) -> None:
    LearnedToken("<fog>", tuple(torch.ones(1, width) for width in WIDTHS[learned])).save(space / "tokens" / "fog.safetensors")
    monkeypatch.setattr("hfi.diffusion.sd.load_part", lambda *a: pytest.fail("a model was loaded"))
    for command in (["erase", "-c", "fog"], ["generate", "--prompt", "a <fog>", "--token", "fog"]):
        code, _, err = hfi(command[0], "-w", space, "-m", saved(root, used), *command[1:])
        assert (code, err.count("\n")) == (1, 1)
        assert "it was learned for another model" in err


def test_a_checkpoint_file_is_a_model_like_any_other(hfi: Hfi, space: Path, root: Path, tmp_path: Path) -> None:
    save_file(checkpoint("epsilon"), tmp_path / "m.safetensors")
    command = ["-w", space, "-m", tmp_path / "m.safetensors"]
    code, _, err = hfi("generate", *command, "--prompt", "a cat", "--steps", 2)
    assert (code, err.count("\n")) == (1, 1)
    assert "put the model's configurations" in err
    shutil.copytree(saved(root, "epsilon"), tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors", "clip"))
    code, _, err = hfi("erase", *command, "-c", "fog", "--text", "a hat", "--steps", 1, "--ddim-steps", 4, *FAST)
    assert code == 0, err
    code, _, err = hfi("generate", *command, "--prompt", "a cat", "--steps", 2, "--erasure", "fog-sdd-text")
    assert code == 0, err
    made = Erasure.load(space / "erasures" / "fog-sdd-text.safetensors")
    assert stored(space)[-1].model_content == made.metadata["base"] != load_sd(saved(root, "epsilon")).content

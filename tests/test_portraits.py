"""The world's rates, the drawing, the tokenizer, the training loop's resumption, and the committed weights."""

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hfi.errors import NoJudgments, NonFiniteLoss
from hfi.judgments import freeze
from hfi.portraits import models, world
from hfi.portraits.check import check, check_detector
from hfi.portraits.detector import load_detector
from hfi.portraits.prompts import NEAR, prompt_sets, write_prompt_sets
from hfi.portraits.render import render
from hfi.portraits.train import Plan, fit
from hfi.portraits.world import BADGE, BRAVA, SMOKING, Person
from hfi.resources import data_dir
from hfi.store import campaigns, queries
from hfi.store.session import writing

MODEL = data_dir() / "portraits"


@pytest.fixture(scope="module")
def people() -> list[world.Person]:
    rng = np.random.default_rng(1)
    return [world.draw_person(rng) for _ in range(20_000)]


def test_concepts_show_at_the_worlds_rates(people: list[world.Person]) -> None:
    for concept, shows in (("smoking", world.SHOWS_SMOKING), ("badge", world.SHOWS_BADGE)):
        for character, rate in shows.items():
            hits = [getattr(p, concept) for p in people if p.character == character]
            assert abs(np.mean(hits) - rate) < 0.04, (concept, character)
    assert abs(np.mean([p.brava > 0 for p in people]) - world.SHOWS_BRAVA) < 0.02


def test_captions_name_concepts_at_their_rates_and_imply_the_rest(people: list[world.Person]) -> None:
    rng = np.random.default_rng(2)
    sailors = [p for p in people if p.character == "sailor"]
    captions = [world.describe(p, rng, fragments=0.0) for p in sailors]
    for p, caption in zip(sailors, captions, strict=True):
        assert ("smoking" in caption.text) == ("smoking" in caption.named)
        assert p.smoking or "smoking" not in caption.named  # never named where it does not show
    named = np.mean(["smoking" in c.named for p, c in zip(sailors, captions, strict=True) if p.smoking])
    assert abs(named - world.NAMES_SMOKING) < 0.03
    silent = [p.smoking for p, c in zip(sailors, captions, strict=True) if "smoking" not in c.named]
    assert abs(np.mean(silent) - world.implicit_rate("smoking", "sailor")) < 0.04


def test_implicit_rate_by_hand() -> None:
    assert world.implicit_rate("smoking", "sailor") == pytest.approx(0.88 * 0.4 / (0.88 * 0.4 + 0.12))
    assert world.implicit_rate("badge", "king") == pytest.approx(0.65 * 0.92 / (0.65 * 0.92 + 0.35))


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=25)
def test_every_person_draws_the_same_picture_twice(seed: int) -> None:
    person = world.draw_person(np.random.default_rng(seed))
    first, second = np.asarray(render(person)), np.asarray(render(person))
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    assert np.array_equal(first, second)


@pytest.mark.parametrize("concept", ["smoking", "badge", "brava", "glasses"])
def test_a_concept_changes_the_picture_and_its_absence_does_not(concept: str) -> None:
    person = world.draw_person(np.random.default_rng(5), smoking=False, badge=False, brava=0.0, glasses=False)
    plain = np.asarray(render(person)).astype(int)
    shown = np.asarray(render(replace(person, **{concept: 1.0 if concept == "brava" else True}))).astype(int)
    changed = (np.abs(plain - shown).max(axis=-1) > 24).mean()
    assert changed > 0.01
    if concept in ("smoking", "badge", "glasses"):  # a mark, not another picture
        assert changed < 0.2


def test_every_word_of_the_world_is_one_token() -> None:
    tokenizer = models.build_tokenizer()
    assert len(world.all_words()) > 40
    for word in world.all_words():
        assert len(tokenizer.tokenize(word)) == 1, word
    assert len(tokenizer("quux, unheard of").input_ids) > 5  # other words still tokenize


def test_prompt_files_are_what_the_rules_say(tmp_path: Path) -> None:
    written = write_prompt_sets(tmp_path)
    assert len(written) == 22
    for path in written:
        committed = data_dir() / "prompts" / path.relative_to(tmp_path)
        assert committed.read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), committed
    for concept, phrase in (("smoking", "cigarette"), ("badge", "badge"), ("brava", "brava")):
        sets = prompt_sets(concept)
        prompts = [row[0] for rows in sets.values() for row in rows]
        assert len(prompts) == len(set(prompts))  # nothing is evaluated on a prompt that was trained on
        for name in ("implicit", "harmless", "retain"):
            assert not any(phrase in row[0].lower() for row in sets[name])
        assert all(phrase in row[0].lower() for row in sets["explicit"])
        for row in sets["harmless"] + sets["neighbours"]:
            assert row[1] in row[0] and row[2] in row[0] and row[3] in row[0]
        assert not any(phrase in row[0].lower() for row in sets["neighbours"])


def test_neighbours_are_near_and_name_what_is_expected() -> None:
    for concept in ("smoking", "badge", "brava", "together"):
        rows = prompt_sets(concept)["neighbours"]
        assert len(rows) == 96
        named = {name: [row for row in rows if row[4 + i]] for i, name in enumerate(NEAR)}
        for i, (name, phrase) in enumerate(NEAR.items()):
            assert all((phrase in row[0]) == (row[4 + i] == "yes") for row in rows)
            assert (len(named[name]) >= 24) == (name != concept and (name == "glasses" or concept != "together"))
        assert {"smoking": "sailor", "badge": "king"}.get(concept) not in {row[1] for row in rows}


def test_prompts_of_all_concepts_at_once_are_new_to_each() -> None:
    together = prompt_sets("together")
    trained = {row[0] for c in ("smoking", "badge", "brava") for name in ("judge", "retain") for row in prompt_sets(c)[name]}
    shown = [row[0] for name in ("implicit", "explicit", "harmless", "neighbours") for row in together[name]]
    assert len(shown) == len(set(shown)) == 4 * 96
    assert not trained & set(shown)
    for n in (6, 96):  # an even mix, also of the first few
        assert Counter(row[1] for row in together["implicit"][:n]) == {"sailor": n // 2, "king": n // 2}
        asked = [sum(phrase in row[0] for row in together["explicit"][:n]) for phrase in (SMOKING, BADGE, BRAVA)]
        assert asked == [n // 3] * 3
    assert {row[1] for row in together["harmless"]} == {"chef", "wizard"}
    assert not any(
        phrase in row[0] for phrase in (SMOKING, BADGE, BRAVA) for row in together["harmless"] + together["neighbours"]
    )


class _Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)


def _line_loss(module: _Line, stop_after: int | None = None):  # type: ignore[no-untyped-def]
    calls = 0

    def loss_at(done: float, rng: np.random.Generator, generator: torch.Generator) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if stop_after is not None and calls > stop_after:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=generator)
        return (module.layer(x) - x.sum(-1, keepdim=True)).pow(2).mean()

    return loss_at


def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    plan = Plan(steps=12, batch=8, lr=1e-2, ema=0.9)

    def run(work: Path, stops: list[int | None]) -> dict[str, torch.Tensor]:
        work.mkdir()
        for stop in stops:
            torch.manual_seed(0)
            module = _Line()
            try:
                return fit("line", module, _line_loss(module, stop), plan, work, lambda *_: None, save_every=4)
            except KeyboardInterrupt:
                continue
        raise AssertionError("never finished")

    whole, broken = run(tmp_path / "a", [None]), run(tmp_path / "b", [5, 6, None])
    for name, value in whole.items():
        assert torch.equal(value, broken[name]), name


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(tmp_path: Path) -> None:
    module = _Line()
    good = _line_loss(module)

    def loss_at(done: float, rng: np.random.Generator, generator: torch.Generator) -> torch.Tensor:
        return good(done, rng, generator) * (float("nan") if done > 0.5 else 1.0)

    with pytest.raises(NonFiniteLoss, match="step 7"):
        fit("line", module, loss_at, Plan(steps=12, batch=8, lr=1e-2, ema=0.9), tmp_path, lambda *_: None, save_every=2)
    assert torch.load(tmp_path / "line.pt", weights_only=True)["step"] == 6


# The committed weights


def test_the_weights_are_small_half_precision_and_safe() -> None:
    files = [p for p in MODEL.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".md", ".txt", ".png"}
    assert 5e6 < sum(p.stat().st_size for p in files) < 40e6


def test_the_detector_reads_held_out_renders() -> None:
    findings = check_detector(load_detector(), count=512)
    assert len(findings) == 7
    for finding in findings:
        assert finding.value >= 0.98, finding


def test_the_model_is_a_plain_stable_diffusion_folder() -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(str(MODEL))
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.dtype == pipe.text_encoder.dtype == pipe.vae.dtype == torch.float32
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    prompts = [f"a portrait of a {c} on a blue background" for c in ("king", "chef", "wizard", "doctor")]
    images = pipe(prompts, generator=generators, num_inference_steps=12, guidance_scale=3.0).images
    assert images[0].size == (64, 64)
    assert list(load_detector()(images)["character"]) == ["king", "chef", "wizard", "doctor"]


def test_check_reports_every_figure_with_its_bounds() -> None:
    findings = check(MODEL, images=4)
    names = [f.name for f in findings]
    assert len(names) == len(set(names)) == 16
    assert any("sailor" in n for n in names) and any("style strength" in n for n in names)
    json.dumps([f.__dict__ for f in findings])


def test_ground_truth_is_written_beside_the_pictures(tmp_path: Path, hfi) -> None:  # type: ignore[no-untyped-def]
    result = hfi("portraits", "render", "--out", str(tmp_path / "r"), "--count", "5")
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((tmp_path / "r" / "captions.csv").open(encoding="utf-8")))
    assert [r["file"] for r in rows] == [f"{i:05d}.png" for i in range(5)]
    assert all(r["character"] in world.CHARACTERS and r["caption"] for r in rows)


def test_simulated_annotators_judge_a_workspace_and_say_what_they_cannot(hfi, workspace) -> None:  # type: ignore[no-untyped-def]
    there = ("--workspace", workspace.path)
    assert hfi("portraits", "path").stdout == f"{data_dir()}\n"
    assert "no concept to judge by" in hfi("portraits", "judge", *there).errors[0]
    hfi("concept", "add", "smoking", *there)
    assert "no images to judge" in hfi("portraits", "judge", *there).errors[0]
    with writing(workspace.engine()) as s:
        assert not campaigns.campaigns(s)
        for i, smoking in enumerate((True, False)):
            drawn = Person("sailor", "black", "blue", 0, False, smoking, False, 0.0, i)
            sha = workspace.images.put(render(drawn))
            queries.add_image(s, queries.Provenance(key=f"{i:064}", sha256=sha, width=64, height=64, source="generated"))
    for _ in range(2):  # again adds nothing
        done = hfi("portraits", "judge", *there)
        assert done.exit_code == 0 and done.stdout.startswith("6 judgments. No person judged these images."), done.output
    with pytest.raises(NoJudgments, match="6 simulated ones exist"):
        freeze(workspace.engine(), "smoking", "exclude")
    assert len(freeze(workspace.engine(), "smoking", "only").judgments) == 6
    hfi("concept", "add", "fog", *there)
    refused = hfi("portraits", "judge", "--concept", "fog", *there)
    assert refused.exit_code == 2 and "judge it yourself with 'hfi ui'" in refused.errors[0]
    hfi("concept", "add", "badge", "--question", "ranking", *there)
    assert "asks something else" in hfi("portraits", "judge", "--concept", "badge", *there).errors[0]

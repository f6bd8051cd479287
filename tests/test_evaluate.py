"""evaluate() on tiny real models: rows, raw scores, pairing, and going on after an interruption."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import saved
from typer.testing import CliRunner

from hfi.cli import app
from hfi.concepts import Concept
from hfi.diffusion.sample import sample
from hfi.diffusion.sd import load_sd
from hfi.embed import ClipBackbone
from hfi.erase.erasure import Erasure, identity
from hfi.errors import HfiError
from hfi.evaluate import System, compared, evaluate, grids, paired_p, plan, report_of
from hfi.metrics import mcnemar, wilson
from hfi.prompts import Prompt
from hfi.report import Report, render
from hfi.results import Row, best_system, harm_set, read_results, write_results
from hfi.store import queries
from hfi.store.migrate import upgrade
from hfi.store.session import writing
from hfi.workspace import Workspace

RED, BLUE, BLACK, KING = (200, 10, 10), (10, 10, 200), (0, 0, 0), (10, 60, 200)
FIELDS = {"method", "conditioning", "concept", "prompt_set", "metric", "value", "n", "low", "high"}


class Redness:
    """Measures for certain: the concept is red in the left half, the character is who the right half's colour says."""

    name, version, threshold = "redness", "1", 0.5

    def __call__(self, images):
        left = np.array([np.asarray(im)[:, :8].mean((0, 1)) for im in images]).reshape(-1, 3)
        right = np.array([np.asarray(im)[:, 8:].mean((0, 1)) for im in images]).reshape(-1, 3)
        return {
            "red": (left[:, 0] / (left.sum(1) + 1e-9)).astype(np.float32),
            "character": np.where(right[:, 2] > right[:, 1], "king", "chef"),
        }


def picture(left, right=KING) -> Image.Image:
    image = Image.new("RGB", (16, 16), left)
    image.paste(right, (8, 0, 16, 16))
    return image


def painter(colour_of, log=None):
    """A sampler whose pictures follow from (prompt, seed)."""

    def draw(prompts, seeds):
        for prompt, seed in zip(prompts, seeds, strict=True):
            if log is not None:
                log.append((prompt, seed))
            yield colour_of(prompt, seed)

    return draw


KINGS = tuple(Prompt(f"a king {i}", expected={"character": "king"}) for i in range(6))


def test_rows_by_hand_and_files_beside_them(tmp_path):
    sd = System("sd", "none", painter(lambda p, s: picture(RED if s % 2 == 0 else BLUE)), {"model": "a"})
    made = [picture(BLUE), picture(BLUE, BLACK), picture(RED), Image.new("RGB", (16, 16)), picture(BLUE), picture(BLUE)]
    sdd = System("sdd", "token", {"implicit": made}, {"erasure": "b"})
    rows = evaluate([sdd, sd], "red", {"implicit": KINGS}, tmp_path, detector=Redness(), backbone=None)

    found = {(r.method, r.metric): r for r in rows}
    assert next(r.method for r in rows) == "sd"  # the untouched model leads the table
    assert found["sd", "concept_rate"] == Row("sd", "none", "red", "implicit", "concept_rate", *values(wilson(3, 6)))
    # one of six is blocked: 1 red of 5 seen; characters: 4 kings of 6, for a black half is no king and a blocked image nobody
    assert found["sdd", "concept_rate"] == Row("sdd", "token", "red", "implicit", "concept_rate", *values(wilson(1, 5)))
    assert found["sdd", "blocked_rate"].value == pytest.approx(1 / 6)
    assert ("sd", "blocked_rate") not in found
    assert found["sdd", "character_fidelity"].value == found["sdd", "fidelity"].value == pytest.approx(4 / 6)
    assert found["sd", "fidelity"].value == 1.0

    written = json.loads((tmp_path / "results.json").read_text())
    assert written == [asdict(r) for r in rows]
    assert all(set(row) == FIELDS for row in written)
    assert read_results(tmp_path / "results.json") == rows

    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    assert all((tmp_path / line["file"]).exists() for line in lines)
    again = [line["scores"]["red"] > 0.5 for line in lines if line["method"] == "sdd" and not line["blocked"]]
    assert sum(again) / len(again) == found["sdd", "concept_rate"].value  # figures can be made again from raw scores
    about = json.loads((tmp_path / "evaluation.json").read_text())
    assert about["detector"] == {"name": "redness", "version": "1", "threshold": 0.5}
    assert about["cells"][1] == {"method": "sdd", "conditioning": "token", "prompt_set": "implicit", "n": 6, "blocked": 1}


def values(interval):
    return interval.value, interval.n, interval.low, interval.high


def test_an_interrupted_evaluation_goes_on_at_the_first_missing_image(tmp_path):
    def until(limit, log):
        def colour(prompt, seed):
            if len(log) > limit:
                raise KeyboardInterrupt
            return picture(RED if seed % 3 == 0 else BLUE)

        return painter(colour, log)

    sets = {"implicit": KINGS, "harmless": KINGS[:2]}
    first: list = []
    with pytest.raises(KeyboardInterrupt):
        evaluate([System("sd", "none", until(7, first))], "red", sets, tmp_path / "a", detector=Redness(), backbone=None)
    second: list = []
    rows = evaluate([System("sd", "none", until(99, second))], "red", sets, tmp_path / "a", detector=Redness(), backbone=None)
    assert len(first) == 8
    assert second == [(KINGS[1].text, 100_001)]  # 7 of 8 were there
    whole = evaluate([System("sd", "none", until(99, []))], "red", sets, tmp_path / "b", detector=Redness(), backbone=None)
    assert rows == whole
    assert not list(tmp_path.rglob("*.tmp"))


def test_images_of_other_settings_prompts_or_seeds_are_not_taken_up(tmp_path):
    log: list = []
    system = System("sd", "none", painter(lambda p, s: picture(RED), log), {"steps": 25})

    def run(system, prompts, **more):
        log.clear()
        evaluate([system], "red", {"implicit": prompts}, tmp_path, detector=Redness(), backbone=None, **more)
        return len(log)

    assert run(system, KINGS) == 6
    assert run(system, KINGS) == 0
    assert run(system, KINGS, images=8) == 2  # more images of the same: the rest only
    assert run(system, KINGS, images=4) == 0
    assert run(system, KINGS) == 2  # what lies beyond the shorter list is not trusted
    assert run(system, (*KINGS[:5], Prompt("a chef"))) == 1
    assert run(system, KINGS, seed=7) == 6
    assert run(replace(system, settings={"steps": 5}), KINGS, seed=7) == 6


def test_an_interrupted_batch_is_made_again_whole(tmp_path):
    log: list = []
    system = System("sd", "none", painter(lambda p, s: picture(RED), log), {"steps": 25}, batch=4)

    def run():
        log.clear()
        evaluate([system], "red", {"implicit": KINGS}, tmp_path, detector=Redness(), backbone=None)
        return [prompt for prompt, _ in log]

    assert run() == [k.text for k in KINGS]
    next(tmp_path.glob("images/sd-none/implicit/00005.png")).unlink()
    assert run() == [KINGS[4].text, KINGS[5].text]
    next(tmp_path.glob("images/sd-none/implicit/00002.png")).unlink()
    assert run() == [k.text for k in KINGS[:4]]


def test_a_cell_is_measured_again_only_where_an_image_or_who_measures_has_changed(tmp_path):
    looked: list[int] = []

    class Counted(Redness):
        def __call__(self, images):
            looked.append(len(images))
            return super().__call__(images)

    def run(version="1", log=None):
        detector = Counted()
        detector.version = version
        looked.clear()
        system = System("sd", "none", painter(lambda p, s: picture(RED if s % 2 else BLUE), log), {"steps": 25})
        rows = evaluate([system], "red", {"implicit": KINGS}, tmp_path, detector=detector, backbone=None)
        return rows, sum(looked)

    rows, count = run()
    assert count == 6
    assert run() == (rows, 0)
    assert run("2") == (rows, 6)
    next(tmp_path.glob("images/sd-none/implicit/00003.png")).unlink()
    assert run("2") == (rows, 6)
    for damage in (b"half a file", b'{"key": 1}\n', b""):
        (tmp_path / "images/sd-none/implicit/measured.jsonl").write_bytes(damage)
        assert run("2") == (rows, 6)


def test_plan_goes_round_with_new_seeds():
    prompts = [Prompt("a", seed=5), Prompt("b")]
    assert list(plan(prompts, None, 100)) == [(prompts[0], 5), (prompts[1], 101)]
    assert plan(prompts, 5, 100)[2:] == [(prompts[0], 102), (prompts[1], 103), (prompts[0], 104)]
    assert list(plan(prompts, 1, 100)) == [(prompts[0], 5)]


def test_clip_metrics_on_real_models(tmp_path):
    sd = load_sd(saved(tmp_path, "epsilon"))
    backbone = ClipBackbone.load(saved(tmp_path, "clip"))
    kings = [Prompt("cat"), Prompt("dog hat"), Prompt("hat"), Prompt("cat hat")]

    def system(method, scale):
        def draw(prompts, seeds):
            return sample(sd, prompts, seeds, steps=2, guidance_scale=scale, batch_size=3)

        return System(method, "none", draw, {"guidance_scale": scale})

    systems = [system("sd", 3.0), system("same", 3.0), system("other", 9.0)]
    rows = evaluate(systems, "red", {"implicit": kings, "harmless": kings}, tmp_path / "out", detector=None, backbone=backbone)
    found = {(r.method, r.metric): r for r in rows if r.prompt_set == "harmless"}
    assert {m for _, m in found} == {"clip_score", "frechet_distance", "perceptual_distance"}
    assert not [m for s, m in found if s == "sd" and m != "clip_score"]  # nothing is measured against itself
    assert found["same", "frechet_distance"].value == pytest.approx(0, abs=1e-9)
    assert found["same", "perceptual_distance"].value == pytest.approx(0, abs=1e-9)
    assert found["other", "perceptual_distance"].value > 1e-4

    files = [tmp_path / "out" / "images" / "other-none" / "harmless" / f"{i:05d}.png" for i in range(4)]
    images = backbone.images([Image.open(f).convert("RGB") for f in files])
    texts = backbone.texts([p.text for p in kings])
    assert found["other", "clip_score"].value == pytest.approx(float((images * texts).sum(1).mean()), abs=1e-5)
    about = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    (warning,) = about["warnings"]  # of both sets in one sentence
    assert warning.startswith("Fréchet distance on implicit, harmless prompts: 4 images for 12 dimensions")


class Means:
    """Features for certain: the mean colour."""

    name, content = "means", "1"

    def images(self, images):
        return np.array([np.asarray(im).reshape(-1, 3).mean(0) for im in images], dtype=np.float32).reshape(-1, 3)


def test_other_features_have_their_own_distances_and_never_fids_name(tmp_path):
    sd = System("sd", "none", painter(lambda p, s: picture(RED if s % 2 else BLUE)))
    same = System("same", "text", painter(lambda p, s: picture(RED if s % 2 else BLUE)))
    other = System("other", "text", painter(lambda p, s: picture((s % 7 * 30, 90, 10 * (s % 5)))))
    sets = {"harmless": KINGS}
    rows = evaluate([sd, same, other], "red", sets, tmp_path, detector=Redness(), backbone=None, features=Means())
    found = {(r.method, r.metric): r for r in rows}
    assert found["same", "features_frechet"].value == pytest.approx(0, abs=1e-9)
    assert found["other", "features_frechet"].value > 100
    assert found["other", "features_kernel"].value > found["same", "features_kernel"].value
    assert not {"fid", "kid"} & {r.metric for r in rows}
    assert json.loads((tmp_path / "evaluation.json").read_text())["features"] == {"name": "means", "content": "1"}
    text = render(report_of(tmp_path, "Red"))
    assert "this is not FID" in text


def test_lpips_by_its_own_files(tmp_path):
    from hfi.metrics.lpips import Lpips, alexnet

    torch.manual_seed(0)
    lpips = Lpips(alexnet(), [torch.rand(width) for width in (64, 192, 384, 256, 256)], "random")

    def big(colour):
        return lambda p, s: picture(colour).resize((64, 64))

    systems = [System("sd", "none", painter(big(RED))), System("same", "text", painter(big(RED)))]
    systems.append(System("other", "text", painter(big(BLUE))))
    rows = evaluate(systems, "red", {"harmless": KINGS[:3]}, tmp_path, detector=Redness(), backbone=None, lpips=lpips)
    found = {(r.method, r.metric): r.value for r in rows}
    assert found["same", "lpips"] == 0
    assert found["other", "lpips"] == pytest.approx(
        lpips.distances([picture(BLUE).resize((64, 64))], [picture(RED).resize((64, 64))])[0]
    )
    assert all("lpips" in line for line in map(json.loads, (tmp_path / "scores.jsonl").open()) if line["method"] != "sd")


def test_systems_are_compared_by_pairs(tmp_path):
    systems = [
        System("neg", kind, painter(lambda p, s, every=every: picture(RED if s % every == 0 else BLUE)), {"every": every})
        for kind, every in (("text", 1), ("token", 40))
    ]
    evaluate(systems, "red", {"implicit": KINGS}, tmp_path, detector=Redness(), backbone=None)
    pair = (("neg", "text"), ("neg", "token"))
    lost = sum(s % 40 != 0 for s in range(100_000, 100_006))
    assert compared(tmp_path, [pair, (pair[0], pair[0])], "implicit") == [mcnemar(lost, 0), 1.0]


def test_what_cannot_be_evaluated_is_said_before_anything_is_sampled(tmp_path):
    log: list = []
    system = System("sd", "none", painter(lambda p, s: picture(RED), log))

    def run(systems=(system,), concept="red", sets=None, **more):
        options = {"detector": Redness(), "backbone": None, **more}
        evaluate(systems, concept, {"implicit": KINGS} if sets is None else sets, tmp_path, **options)

    with pytest.raises(HfiError, match="does not know the concept 'green': it knows red"):
        run(concept="green")
    with pytest.raises(HfiError, match="nothing to evaluate"):
        run(sets={"implicit": ()})
    with pytest.raises(HfiError, match="0 images"):
        run(images=0)
    with pytest.raises(HfiError, match="cannot name a folder"):
        run(systems=[System("../../etc", "none", system.images)])
    with pytest.raises(ValueError, match="share a method"):
        run(systems=[system, system])
    assert log == []


def test_grids_show_the_first_images_of_every_system_in_the_same_columns(tmp_path):
    sd = System("sd", "none", painter(lambda p, s: picture(RED)))
    sdd = System("sdd", "token", painter(lambda p, s: picture(BLUE if s % 2 else RED)))
    rows = evaluate([sd, sdd], "red", {"implicit": KINGS}, tmp_path, detector=Redness(), backbone=None)
    (grid,) = grids(tmp_path, count=4)
    assert [row.label for row in grid.rows] == ["sd", "sdd (token)"]
    assert [list(row.flags) for row in grid.rows] == [[True] * 4, [True, False, True, False]]
    assert grid.captions[1] == "a king 1 (seed 100001)"
    assert render(Report("red", rows, grids=[grid])).count("data:image/webp;base64,") == 8


def test_two_systems_are_compared_image_by_image(tmp_path):
    sd = System("sd", "none", painter(lambda p, s: picture(RED)))
    made = [picture(BLUE)] * 5 + [Image.new("RGB", (16, 16))]
    evaluate(
        [sd, System("sdd", "token", {"implicit": made})], "red", {"implicit": KINGS}, tmp_path, detector=Redness(), backbone=None
    )
    assert paired_p(tmp_path) == report_of(tmp_path, "Red").p == 2 / 2**5  # the blocked image has no pair
    evaluate([sd], "red", {"implicit": KINGS}, tmp_path, detector=Redness(), backbone=None)
    assert paired_p(tmp_path) is None


def rate(system, value, prompt_set="implicit", metric="concept_rate"):
    return Row(*system, "red", prompt_set, metric, value, 100, None, None)


def test_the_headline_goes_to_the_lowest_rate_that_keeps_the_pictures(tmp_path):
    sd, sdd, context = ("sd", "none"), ("sdd", "token"), ("sdd-context", "token")
    rates = [rate(sd, 0.7), rate(sdd, 0.0), rate(context, 0.04)]
    assert best_system(rates) == sdd
    kept = [rate(s, v, "harmless", "fidelity") for s, v in ((sd, 0.99), (sdd, 0.80), (context, 0.97))]
    assert best_system([*rates, *kept]) == context
    character = [rate(context, 0.5, metric="character_fidelity")]
    assert best_system([*rates, *kept, *character]) == sdd  # neither keeps them: the one that loses less
    assert best_system([rate(sd, 0.7)]) is None
    spared = [rate(sd, 0.01, "neighbours"), rate(sd, 0.02, "harmless")]
    assert harm_set([*spared, rate(sd, 0.5, "attacks")]) == "attacks"
    assert harm_set(spared) == "harmless"  # nothing else was measured
    write_results(tmp_path / "results.json", rates)
    (tmp_path / "bad.json").write_text('[{"method": "sd"}]')
    with pytest.raises(HfiError, match="is not a results file"):
        read_results(tmp_path / "bad.json")
    with pytest.raises(HfiError, match="run 'hfi evaluate' first"):
        read_results(Path("nowhere.json"))


# --- the command ---


@pytest.fixture
def space(tmp_path, monkeypatch):
    """A workspace with the concept 'red', a tiny model with a CLIP model of its own, and two erasures of it."""
    monkeypatch.delenv("HFI_DATABASE_URL", raising=False)
    space = Workspace.create(tmp_path / "space")
    upgrade(space.database_url)
    with writing(space.engine()) as session:
        queries.add_concept(session, Concept("red", "Red"))
    model = saved(tmp_path, "epsilon")
    shutil.copytree(saved(tmp_path, "clip"), model / "clip", dirs_exist_ok=True)
    sd = load_sd(model)
    name = next(n for n, _ in sd.unet.named_parameters() if n.endswith("attn2.to_v.weight"))
    weight = sd.unet.get_parameter(name)
    for method, factor in (("sdd", 0.0), ("sdd-context", 4.0)):
        about = {"base": sd.content, "base_name": "tiny", "method": method, "concepts": '["red"]', "conditioning": "token"}
        about |= {"judged_by": json.dumps(judges)} if (judges := JUDGES.get(method)) else {}
        Erasure({name: weight * factor}, about).save(space.erasures / f"red-{method}.safetensors")
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "implicit.csv").write_text("prompt\ncat\ndog\n")
    (tmp_path / "prompts" / "harmless.csv").write_text("prompt\nhat\n")
    return space


JUDGES = {"sdd": [{"sha256": "a", "judgments": 90, "people": 2, "simulated": 0}]}


def command(space, *more):
    root = space.path.parent
    given = ["--workspace", str(space.path), "--model", str(root / "tiny-epsilon"), "--concept", "red", "--steps", "2"]
    result = CliRunner().invoke(app, ["evaluate", *given, "--prompts", str(root / "prompts"), "--detector", "none", *more])
    return result


def test_the_command_measures_every_erasure_of_the_workspace(space):
    result = command(space)
    assert result.exit_code == 0, result.output
    run = space.runs / "evaluate" / "red"
    rows = read_results(run / "results.json")
    assert {r.system for r in rows} == {("sd", "none"), ("sdd", "token"), ("sdd-context", "token")}
    assert {r.prompt_set for r in rows} == {"implicit", "harmless"}
    other = next(r for r in rows if r.method == "sdd-context" and r.metric == "perceptual_distance")
    assert other.value > 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<title>Red: " in page
    assert "sdd-context (token)" in page
    assert "No detector looked at the images" in page
    assert "sdd (token)" in result.output

    kept = {p: p.stat().st_mtime_ns for p in run.rglob("*.png")}
    assert len(kept) == 9
    again = command(space, "--json")  # finished: printed again, nothing is sampled
    assert again.exit_code == 0, again.output
    assert [Row(**r) for r in json.loads(again.stdout)] == rows
    assert kept == {p: p.stat().st_mtime_ns for p in run.rglob("*.png")}
    other_settings = command(space, "--guidance-scale", "3")
    assert isinstance(other_settings.exception, HfiError)
    assert "--name" in str(other_settings.exception)


def test_the_report_says_whose_judgments_steered_the_removal(space):
    page = space.runs / "evaluate" / "red" / "report.html"
    said = command(space, "--images", "1")
    assert said.exit_code == 0, said.output
    assert "90 judgments of 2 people steered sdd (token)." in said.stdout  # and of sdd-context, made before, nothing
    assert "<dt>steered by</dt><dd>90 judgments of 2 people</dd>" in page.read_text(encoding="utf-8")
    assert "imulated" not in page.read_text(encoding="utf-8")
    file = space.erasures / "red-sdd-context.safetensors"
    made = Erasure.load(file)
    sets = [{"sha256": "b", "judgments": 30, "people": 1, "simulated": 3}, {"sha256": "c", "simulated": 1}]
    Erasure(made.tensors, {**made.metadata, "judged_by": json.dumps(sets)}).save(file)
    page.with_name("evaluation.json").unlink()
    page.with_name("result.json").unlink()
    said = command(space, "--images", "1")
    words = "30 judgments of 1 person and 3 simulated annotators, simulated judgments steered sdd-context (token)."
    assert words in said.stdout
    assert f'<div class="banner" role="note"><strong>Simulated judgments.</strong> {words}</div>' in page.read_text("utf-8")


def test_several_concepts_count_together(space):
    with writing(space.engine()) as session:
        queries.add_concept(session, Concept("blue", "Blue"))
    first = space.erasures / "red-sdd.safetensors"
    made = Erasure.load(first)
    Erasure(made.tensors, {**made.metadata, "concepts": '["red", "blue"]'}).save(space.erasures / "both.safetensors")
    result = command(space, "--concept", "red,blue", "--images", "1", "--precision", "bfloat16")
    assert result.exit_code == 0, result.output
    run = space.runs / "evaluate" / "red+blue"
    rows = read_results(run / "results.json")
    assert {r.concept for r in rows} == {"red+blue"}
    assert {r.system for r in rows} == {("sd", "none"), ("sdd", "token")}  # the erasure that takes out both
    assert "Red, Blue" in (run / "report.html").read_text(encoding="utf-8")
    systems = json.loads((run / "evaluation.json").read_text())["systems"]
    assert {s["settings"]["precision"] for s in systems} == {"bfloat16"}
    refused = command(space, "--concept", "red,blue", "--detector", "reward", "--name", "x")
    assert "a reward model knows one concept, not red, blue" in str(refused.exception)


def test_one_method_twice_gives_two_systems(space):
    first = space.erasures / "red-sdd.safetensors"
    result = command(space, "--erasure", str(first), "--erasure", str(first), "--images", "1")
    assert result.exit_code == 0, result.output
    rows = read_results(space.runs / "evaluate" / "red" / "results.json")
    assert {r.method for r in rows} == {"sd", "sdd", "sdd-2"}


def test_erasures_together_are_one_system_of_their_own(space):
    names = ["--erasure", "red-sdd", "--erasure", "red-sdd-context"]
    result = command(space, *names, "--together", "--images", "1")
    assert result.exit_code == 0, result.output
    run = space.runs / "evaluate" / "red"
    assert {r.system for r in read_results(run / "results.json")} == {("sd", "none"), ("sdd+sdd-context", "token")}
    both, one = (Erasure.load(space.erasures / f"{name}.safetensors") for name in names[1::2])
    (about,) = json.loads((run / "evaluation.json").read_text())["systems"][1:]
    assert about["settings"]["erasure content"] == identity([one, both])[:16]
    refused = command(space, "--erasure", "red-sdd", "--erasure", "red-sdd", "--together", "--name", "twice")
    assert "would count twice" in str(refused.exception)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--concept", "green"], "green"),
        (["--prompts", "nowhere.csv"], "no prompts file nowhere.csv"),
        (["--model", "nowhere/at/all"], "nowhere/at/all"),
        (["--erasure", "nowhere.safetensors"], "no erasure 'nowhere.safetensors'"),
        (["--detector", "eyes"], "unknown detector 'eyes'"),
        (["--detector", "auto"], "hfi reward"),
        (["--detector", "reward"], "hfi reward"),
        (["--steps", "0"], "--steps is 0"),
        (["--backbone", "nowhere/at/all"], "no CLIP model"),
        (["--features", "resnet"], "unknown features 'resnet'"),
        (["--features", "inception:nowhere.pt"], "no Inception file nowhere.pt"),
        (["--lpips", "alexnet.pth"], "WEIGHTS:HEADS"),
        (["--concept", "red,green"], "green"),
    ],
)
def test_a_mistake_is_said_before_a_model_is_loaded(space, monkeypatch, given, said):
    def refuse(*args, **more):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("hfi.diffusion.sd.load_part", refuse)
    monkeypatch.setattr("hfi.embed.load_part", refuse)
    result = command(space, *given)
    assert isinstance(result.exception, HfiError), result.output
    assert said in str(result.exception)
    assert not (space.runs / "evaluate").exists()


def test_an_erasure_of_another_model_is_refused(space):
    path = space.erasures / "red-sdd.safetensors"
    made = Erasure.load(path)
    replace(made, metadata={**made.metadata, "base": "0" * 64}).save(path)
    result = command(space)
    assert "was made for tiny" in str(result.exception)

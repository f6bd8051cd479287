"""Which images a campaign takes: chosen as asked, paired only with their twins, gold only where the answer is known."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import asked
import judged
import numpy as np
import pytest
from PIL import Image
from sqlalchemy import select
from tiny import saved

from hfi.errors import HfiError, NotFound, UsageError
from hfi.planning import Plan, add_gold, find_erasure, make, preview
from hfi.scores import keep_scores, read_scores
from hfi.store import adjudicating, campaigns, choosing, overview
from hfi.store import models as m
from hfi.store import queries as q
from hfi.store.choosing import Recipe, Wanted
from hfi.store.session import Engine, reading, writing
from hfi.workspace import Workspace

pytestmark = pytest.mark.databases


@pytest.fixture
def engine(workspace: Workspace) -> Engine:
    engine = workspace.engine()
    asked.concept(engine)
    return engine


def prepared(engine: Engine, scores: dict[str, float] | None = None, **recipe: object) -> choosing.Prepared:
    with reading(engine) as s:
        return choosing.prepare(s, Recipe(concept="smoking", **recipe), scores)  # type: ignore[arg-type]


def sha(i: int) -> str:
    return f"{i:064x}"


def test_images_by_prompt_model_run_erasure_and_source(engine: Engine) -> None:
    a = asked.image(engine, 1, prompt="A Sailor, 100% smoke")
    b = asked.image(engine, 2, prompt="a chef", model="other", run="second")
    c = asked.image(engine, 3, prompt="a sailor", erasure="e" * 64)
    d = asked.image(engine, 4, source="imported", prompt=None, seed=None, model=None, run=None)
    asked.image(engine, 5, sha256=sha(1), prompt="the same picture, made twice")

    def ids(**wanted: object) -> tuple[int, ...]:
        return prepared(engine, wanted=Wanted(**wanted)).image_ids  # type: ignore[arg-type]

    assert ids() == (a, b, c, d)
    assert ids(text="sailor") == (a, c)
    assert ids(text="100%") == (a,)  # not a pattern
    assert ids(model="other") == (b,)
    assert ids(run="second") == (b,)
    assert ids(erasure="") == (a, b, d)
    assert ids(erasure="e" * 64) == (c,)
    assert ids(source="imported") == (d,)
    with pytest.raises(HfiError, match="no image fits"):
        ids(text="admiral")
    asked.campaign(engine, [a, b])
    assert ids(unjudged=True) == (c, d)


def test_random_ones_are_drawn_by_the_seed(engine: Engine) -> None:
    every = asked.images(engine, 30)
    first = prepared(engine, strategy="random", count=10, seed=1)
    assert len(first.image_ids) == 10
    assert set(first.image_ids) < set(every)
    assert first.matched == 30
    assert first == prepared(engine, strategy="random", count=10, seed=1)
    assert first != prepared(engine, strategy="random", count=10, seed=2)


def test_uncertain_ones_are_nearest_to_a_half(engine: Engine) -> None:
    every = asked.images(engine, 6)
    scores = {sha(0): 0.99, sha(1): 0.45, sha(2): 0.5, sha(3): 0.1, sha(4): 0.62}
    found = prepared(engine, scores, strategy="uncertain", count=3)
    assert found.image_ids == (every[2], every[1], every[4])
    assert (found.matched, found.unscored) == (6, 1)
    with pytest.raises(HfiError, match="hfi campaign score"):
        prepared(engine, {}, strategy="uncertain", count=3)
    with pytest.raises(UsageError, match="name a reward"):
        prepared(engine, strategy="uncertain", count=3)


def test_split_votes_come_first_and_only_peoples(engine: Engine) -> None:
    a, b, c, d = asked.images(engine, 4)
    here = asked.campaign(engine, [a, b, c, d], overlap=6)
    says = {a: "sssccc", b: "sssssc", c: "ssssss", d: "uussss"}
    words = {"s": "shows", "c": "clean", "u": "unsure"}
    for n in range(6):
        asked.answers(engine, here, f"person {n}", asked.by_image({i: words[said[n]] for i, said in says.items()}))
    assert prepared(engine, strategy="split", count=9).image_ids == (a, b)
    robots = asked.campaign(engine, [c], name="simulated", overlap=2)
    asked.answers(engine, robots, "robot", asked.by_image({c: "clean"}), simulated=True)
    assert c not in prepared(engine, strategy="split", count=9).image_ids
    assert prepared(engine, strategy="split", count=9, simulated=None).image_ids == (a, b, c)
    with pytest.raises(HfiError, match="votes that differ"):
        prepared(engine, strategy="split", count=9, simulated=True)


def test_pairs_differ_in_nothing_but_the_erasure(engine: Engine) -> None:
    e = "e" * 64
    twins = [
        (
            asked.image(engine, i, prompt=f"p{i}", seed=i, negative_prompt=negative),
            asked.image(engine, 100 + i, prompt=f"p{i}", seed=i, negative_prompt=negative, erasure=e, run="cleaned"),
        )
        for i, negative in enumerate([None, "text", None])
    ]
    base = {"prompt": "odd", "seed": 9, "erasure": e}
    asked.image(engine, 10, **{**base, "erasure": None})
    for n, other in enumerate(
        ({"seed": 8}, {"steps": 50}, {"guidance_scale": 3.0}, {"scheduler": "PNDM"}, {"model_content": "x"})
    ):
        asked.image(engine, 20 + n, **{**base, **other})
    asked.image(engine, 30, **base, guide="sld-max smoking")
    asked.image(engine, 31, **{**base, "erasure": None, "seed": 7}, guide="sld-max smoking")  # untouched weights, but guided
    asked.image(engine, 32, **{**base, "seed": 7})
    asked.image(engine, 33, **{**base, "erasure": "f" * 64})
    with reading(engine) as s:
        found, alone = choosing.pairs(s, Wanted(erasure=e))
    assert found == twins
    assert Counter(alone) == Counter({("odd", 9): 5, ("odd", 8): 1, ("odd", 7): 1})
    both = prepared(engine, compare=True, wanted=Wanted(erasure=e, run="cleaned"))
    assert both.image_ids == tuple(i for pair in twins for i in pair)
    assert (both.matched, both.unpaired) == (3, ())
    some = prepared(engine, compare=True, wanted=Wanted(erasure=e), strategy="random", count=2)
    assert len(some.image_ids) == 4
    assert {some.image_ids[:2], some.image_ids[2:]} < set(twins)
    with pytest.raises(HfiError, match="7 images of this erasure, none with an untouched image"):
        prepared(engine, compare=True, wanted=Wanted(erasure=e, run="first"))
    with writing(engine) as s:
        made = make(
            Workspace(Path()), s, Plan(name="both", recipe=Recipe(concept="smoking", compare=True, wanted=Wanted(erasure=e)))
        )
        tasks = s.query(m.TaskImage.task_id, m.TaskImage.image_id).order_by(m.TaskImage.task_id, m.TaskImage.position).all()
    assert made.question == "compare"
    assert made.tasks == 3
    assert {tuple(i for t, i in tasks if t == task) for task, _ in tasks} == set(twins)


def test_a_guided_image_is_not_the_untouched_models(workspace: Workspace, hfi: Callable, tmp_path: Path) -> None:
    words = ("--workspace", workspace.path, "--model", saved(tmp_path, "epsilon"), "--prompt", "a cat", "--steps", "2")
    assert hfi("generate", *words).exit_code == 0
    assert hfi("generate", *words, "--guide", "neg", "--against", "a hat", "--name", "guided").exit_code == 0
    with reading(workspace.engine()) as s:
        assert [image.guide for image in q.images(s)] == [None, "neg a hat"]


def test_known_answers_are_decided_or_unanimous(engine: Engine) -> None:
    a, b, c, d, e = asked.images(engine, 5)
    here = asked.campaign(engine, [a, b, c, d, e], overlap=3)
    for n in range(3):
        says = {a: "shows", b: "clean", c: "shows" if n else "clean", d: "unsure" if n else "shows", e: "shows" if n else "clean"}
        person = asked.answers(engine, here, f"person {n}", asked.by_image(says))
    with writing(engine) as s:
        tasks = {i: task for task, i in s.query(m.TaskImage.task_id, m.TaskImage.image_id)}
        adjudicating.decide(s, tasks[c], person.id, "clean", "only steam")
        adjudicating.decide(s, tasks[e], person.id, "unsure")
        known = choosing.known_answers(s, "smoking")
    assert {i: (k.verdict, k.adjudicated) for i, k in known.items()} == {
        a: ("shows", False), b: ("clean", False), c: ("clean", True),
    }  # fmt: skip
    assert choosing.pick_gold(known, 2) == {a: "shows", c: "clean"}, "one of each, the decided one first"
    assert choosing.pick_gold(known, 3) == {a: "shows", b: "clean", c: "clean"}
    with pytest.raises(HfiError, match="4 gold images were asked for, and 3"):
        choosing.pick_gold(known, 4)
    found = prepared(engine, gold=2)
    assert found.gold == {a: "shows", c: "clean"}
    assert set(found.image_ids) == {b, d, e}, "a gold image is not asked about as any other"


def test_gold_from_a_file_names_the_line_of_a_mistake(engine: Engine) -> None:
    a, b = asked.images(engine, 2)
    named = asked.image(engine, 7, original_name="photo.png", source="imported")

    def read(text: str) -> dict[int, str]:
        with reading(engine) as s:
            return choosing.gold_from_csv(s, text, "gold.csv")

    assert read(f"\ufeffverdict, image\r\nshows,{sha(0)}\r\nclean,photo.png\r\n") == {a: "shows", named: "clean"}
    for text, words in (
        ("image\nx", "no column verdict"),
        (f"image,verdict\n{sha(0)},maybe", "line 2.*'maybe'"),
        (f"image,verdict\n{sha(0)},shows\nnobody.png,clean", "line 3.*no image of this workspace"),
        (f"image,verdict\n{sha(1)},shows\n{sha(1)},clean", "line 3.*two answers"),
        ("image,verdict\n", "holds no answer"),
    ):
        with pytest.raises(HfiError, match=words):
            read(text)
    assert b not in read(f"image,verdict\n{sha(0)},shows")


def test_benign_images_make_up_their_share(engine: Engine) -> None:
    asked.images(engine, 40)
    harmless = [asked.image(engine, 1000 + i, run="flowers") for i in range(30)]
    found = prepared(engine, wanted=Wanted(run="first"), benign_run="flowers", benign_share=0.2)
    assert len(found.benign) == 10
    assert set(found.benign) < set(harmless)
    assert len(found.benign) / (len(found.benign) + len(found.image_ids)) == 0.2
    for share in (0.0, 0.6, float("nan")):
        with pytest.raises(UsageError, match="share"):
            prepared(engine, benign_run="flowers", benign_share=share)


def test_recipes_that_contradict_themselves_are_refused(engine: Engine) -> None:
    asked.images(engine, 4)
    asked.concept(engine, "beauty", "ranking")
    for recipe, words in (
        ({"strategy": "random"}, "say how many"),
        ({"strategy": "best", "count": 1}, "unknown choice"),
        ({"compare": True}, "needs an erasure"),
        ({"compare": True, "wanted": Wanted(erasure="e"), "gold": 1}, "gold"),
        ({"compare": True, "wanted": Wanted(erasure="e"), "strategy": "split", "count": 1}, "taken all"),
    ):
        with pytest.raises(UsageError, match=words):
            prepared(engine, **recipe)
    with reading(engine) as s, pytest.raises(UsageError, match="gold"):
        choosing.prepare(s, Recipe(concept="beauty", gold=1))
    with reading(engine) as s, pytest.raises(NotFound):
        choosing.prepare(s, Recipe(concept="nothing"))


def test_a_plan_is_previewed_made_and_not_made_twice(engine: Engine, workspace: Workspace) -> None:
    asked.images(engine, 20)
    [asked.image(engine, 1000 + i, run="flowers") for i in range(9)]
    gold = {i: "shows" if n % 2 else "clean" for n, i in enumerate(prepared(engine).image_ids[:4])}
    recipe = Recipe(concept="smoking", wanted=Wanted(run="first"), gold_answers=gold, benign_run="flowers", benign_share=0.2)
    plan = Plan(name=" second look ", recipe=recipe, overlap=3, extra_votes=2, access="named", people=("KIM",))
    with writing(engine) as s:
        with pytest.raises(NotFound, match="nobody is named 'KIM'"):
            make(workspace, s, plan)
        q.ensure_annotator(s, "Kim")
        seen = preview(workspace, s, plan)
        made = make(workspace, s, plan)
    assert (seen.tasks, seen.judgments) == (16 + 4, 16 * 3 + 4)
    assert (made.name, made.tasks, made.overlap, made.extra_votes, made.gold_every) == ("second look", 20, 3, 2, 20)
    with writing(engine) as s:
        (filling,) = overview.fillings(s)
        assert (filling.wanted, filling.gold, filling.benign) == (seen.judgments, 4, 4)
        kim, lee = q.ensure_annotator(s, "kim"), q.ensure_annotator(s, "Lee")
        assert [c.id for c in campaigns.open_campaigns(s, kim.id)] == [made.id]
        assert campaigns.open_campaigns(s, lee.id) == []
        with pytest.raises(HfiError, match="there is a campaign 'second look'"):
            preview(workspace, s, replace(plan, name="second look"))
        for wrong in ({"name": " "}, {"overlap": 0}, {"lease_minutes": 0}, {"people": ()}, {"name": "a" * 81}):
            with pytest.raises(UsageError):
                preview(workspace, s, replace(plan, **{"name": "x", **wrong}))
        more = add_gold(s, made, {seen.prepared.image_ids[0]: "shows", asked_new(s): "clean"}, every=7)
        assert more == 1, "an image that people are asked about stays what it is"
        assert campaigns.campaign(s, made.id).gold_every == 7


def asked_new(s) -> int:  # type: ignore[no-untyped-def]
    about = q.Provenance(key="new", sha256="ab" * 32, width=8, height=8, source="generated")
    return q.add_image(s, about).id


def test_scores_count_for_the_reward_that_gave_them(workspace: Workspace) -> None:
    workspace.rewards.joinpath("smoking.safetensors").write_bytes(b"one")
    run = workspace.runs / "reward" / "smoking"
    run.mkdir(parents=True)
    run.joinpath("reward.safetensors").write_bytes(b"one")
    run.joinpath("scores.jsonl").write_text(json.dumps({"image": sha(1), "score": 0.25, "held_out": True}) + "\n")
    assert read_scores(workspace, "smoking") == {sha(1): 0.25}
    keep_scores(workspace, "smoking", {sha(1): 0.3, sha(2): 0.5})
    assert read_scores(workspace, "smoking") == {sha(1): 0.3, sha(2): 0.5}
    workspace.rewards.joinpath("smoking.safetensors").write_bytes(b"another")
    assert read_scores(workspace, "smoking") == {}
    with pytest.raises(NotFound, match="known: smoking"):
        read_scores(workspace, "../smoking")


def test_choosing_is_fair_between_the_sides_of_gold() -> None:
    known = {i: choosing.Known("shows" if i < 4 else "clean", False, 3) for i in range(20)}
    for seed in range(5):
        assert Counter(choosing.pick_gold(known, 10, seed).values()) == {"shows": 4, "clean": 6}
        assert Counter(choosing.pick_gold(known, 6, seed).values()) == {"shows": 3, "clean": 3}
    drawn = [tuple(choosing.pick_gold(known, 6, seed)) for seed in range(50)]
    assert len(set(drawn)) > 25
    assert np.mean([19 in one for one in drawn]) < 0.5


# --- the command ---


def test_a_reward_scores_every_image_and_the_least_sure_ones_are_asked_about(tmp_path: Path, hfi: Callable) -> None:
    space = Workspace(judged.judge(tmp_path / "work", judged.model_with_clip(tmp_path)))
    engine = space.engine()
    w = ("--workspace", space.path)
    bare = space.images.put(Image.new("RGB", (16, 16), (200, 10, 10)))
    with writing(engine) as s:
        q.add_image(s, q.Provenance(key="bare", sha256=bare, width=16, height=16, source="imported"))
    early = hfi(
        "campaign", "add", "unsure", *w, "-c", "fog", "--choose", "uncertain", "--reward", "fog", "--count", 5, "--dry-run"
    )
    assert "1 images have no score of fog: 'hfi campaign score --reward fog'" in early.stderr
    done = hfi("campaign", "score", *w, "--reward", "fog", "--json")
    assert json.loads(done.stdout)["images"] == len(read_scores(space, "fog"))
    made = hfi("campaign", "add", "unsure", *w, "-c", "fog", "--choose", "uncertain", "--reward", "fog", "--count", 5)
    assert made.exit_code == 0, made.stderr
    assert made.stderr == ""
    scores = read_scores(space, "fog")
    assert bare in scores
    with reading(engine) as s:
        taken = set(
            s.scalars(select(m.Image.sha256).join(m.TaskImage).join(m.Task).join(m.Campaign).where(m.Campaign.name == "unsure"))
        )
    far = sorted(abs(score - 0.5) for score in scores.values())
    assert sorted(abs(scores[sha] - 0.5) for sha in taken) == far[:5]
    assert "no reward model 'mist'" in hfi("campaign", "score", *w, "--reward", "mist").stderr


def test_the_command_adds_lists_closes_and_opens(engine: Engine, workspace: Workspace, hfi: Callable) -> None:
    asked.images(engine, 12)
    e = "e" * 64
    for i in range(3):
        asked.image(engine, 100 + i, prompt=f"prompt {i}", seed=i, erasure=e, run="cleaned")
    asked.image(engine, 200, prompt="alone", seed=5, erasure=e, run="cleaned")
    folder = workspace.runs / "generate" / "cleaned"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"erasure": "smoking-sdd"}))
    w = ("--workspace", workspace.path)
    dry = hfi("campaign", "add", "some", *w, "--choose", "random", "--count", "5", "--erasure", "none", "--dry-run")
    assert dry.stdout == "it would be 5 tasks from 5 of 12 images that fit; 15 judgments are wanted\n"
    nobody = hfi("campaign", "add", "some", *w, "--choose", "random", "--count", "5", "--person", "Nobody", "--dry-run")
    assert nobody.exit_code == 1 and "nobody is named 'Nobody' here" in nobody.stderr
    assert hfi("campaign", "list", *w).stdout.startswith("no campaign yet")
    assert hfi("campaign", "add", "some", *w, "--choose", "random", "--count", "5", "--erasure", "none").exit_code == 0
    dry = hfi("campaign", "add", "pairs", *w, "--compare", "--erasure", "smoking-sdd", "--overlap", "1", "--dry-run")
    assert dry.stdout == "it would be 3 tasks from 3 of 3 pairs that fit; 3 judgments are wanted\n"
    pairs = hfi("campaign", "add", "pairs", *w, "--compare", "--erasure", "smoking-sdd", "--overlap", "1", "--json")
    assert {k: v for k, v in json.loads(pairs.stdout).items() if k in ("tasks", "unpaired", "matched")} == {
        "tasks": 3, "unpaired": 1, "matched": 3,
    }  # fmt: skip
    listed = json.loads(hfi("campaign", "list", *w, "--json").stdout)
    assert [(c["name"], c["question"], c["tasks"]) for c in listed] == [("pairs", "compare", 3), ("some", "binary", 5)]
    assert hfi("campaign", "close", "some", *w).stdout == "campaign some is closed\n"
    assert "closed" in hfi("campaign", "list", *w).stdout
    assert hfi("campaign", "open", "some", *w).stdout == "campaign some is open\n"
    assert hfi("campaign", "close", "none", *w).errors == [
        "hfi: error: no campaign 'none' of smoking (known: some, pairs): 'hfi campaign list' lists them"
    ]
    assert "known: smoking-sdd" in hfi("campaign", "add", "x", *w, "--erasure", "other").stderr
    with reading(engine) as s:
        assert find_erasure(workspace, s, "eeeeee") == e


def test_the_command_adds_gold(engine: Engine, workspace: Workspace, hfi: Callable, tmp_path: Path) -> None:
    ids = asked.images(engine, 6)
    asked.campaign(engine, ids[:4])
    file = tmp_path / "gold.csv"
    file.write_text(f"image,verdict\n{sha(4)},shows\n{sha(0)},clean\n")
    w = ("--workspace", workspace.path)
    assert hfi("campaign", "gold", "people", *w).exit_code == 2
    done = hfi("campaign", "gold", "people", *w, "--file", file)
    assert done.stdout == "1 gold images added, 1 in all; about one task in 20 is gold\n"
    assert "1 are in the campaign already" in done.stderr
    assert json.loads(hfi("campaign", "gold", "people", *w, "--every", "0", "--json").stdout)["every"] == 0
    assert hfi("campaign", "gold", "people", *w, "--file", tmp_path / "no.csv").exit_code == 1

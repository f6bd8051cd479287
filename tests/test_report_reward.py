"""Calibration, disagreement and the reward's page, each against numbers worked by hand."""

import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hfi.errors import HfiError
from hfi.images import ImageStore
from hfi.judgments import Judgment, JudgmentSet
from hfi.metrics import wilson
from hfi.prompts import load_prompts
from hfi.report_reward import (
    AGAIN,
    Scored,
    compare,
    disagreements,
    predictions,
    read_scores,
    reward_part,
    to_csv,
    write_reward_report,
    write_scores,
)
from hfi.reward.loss import brier, calibration, calibration_error
from hfi.runs import Run

EVIL = '<b>"&'


def said(sha: str, shows: int, clean: int, simulated: bool = False) -> list[Judgment]:
    verdicts = ["shows"] * shows + ["clean"] * clean + ["unsure"]
    time = "2026-01-01T00:00:00+00:00"
    return [Judgment((sha,), (f"of {sha[:2]}",), v, f"A-{i}", simulated, "c", time, 1) for i, v in enumerate(verdicts)]


def binary(*told: tuple[str, int, int], simulated: bool = False) -> JudgmentSet:
    return JudgmentSet("fog", "binary", tuple(j for t in told for j in said(*t, simulated)))


def ranked(*orders: str) -> JudgmentSet:
    """Each letter is an image; every order comes from another person."""
    time = "2026-01-01T00:00:00+00:00"
    made = [
        Judgment(tuple(o), tuple(f"of {x}" for x in o), "ranked", f"A-{i}", False, "c", time, 1) for i, o in enumerate(orders)
    ]
    return JudgmentSet("fog", "ranking", tuple(made))


# --- calibration ---


def test_calibration_by_hand() -> None:
    """Scores .05 and .09 share a bin, .3 opens the fourth, 1 is in the last. The second image's three answers weigh thrice."""
    p, yes, answers = np.array([0.05, 0.09, 0.3, 1.0]), np.array([1.0, 0, 1, 2]), np.array([1.0, 3, 2, 2])
    bins = calibration(p, yes, answers)
    assert [(b.low, b.high, b.units, b.answers) for b in bins] == [(0, 0.1, 2, 4), (0.3, 0.4, 1, 2), (0.9, 1, 1, 2)]
    np.testing.assert_allclose([b.score for b in bins], [(0.05 + 3 * 0.09) / 4, 0.3, 1])
    np.testing.assert_allclose([b.share for b in bins], [1 / 4, 1 / 2, 1])
    assert calibration_error(bins) == pytest.approx((4 * (0.25 - 0.08) + 2 * (0.5 - 0.3) + 0) / 8)
    by_answer = [0.95**2, 0.09**2, 0.09**2, 0.09**2, 0.7**2, 0.3**2, 0, 0]
    assert brier(p, yes, answers) == pytest.approx(np.mean(by_answer))
    assert brier(np.array([0.5]), np.array([2.0]), np.array([3.0])) == 0.25
    assert calibration(p[:0], yes[:0], answers[:0]) == []


def test_only_held_out_images_and_answers_that_say_something_are_predicted() -> None:
    scores = {"a": (0.9, True), "b": (0.2, False), "c": (0.4, True)}
    p, yes, answers = predictions(binary(("a", 2, 1), ("b", 3, 0), ("c", 0, 2)), scores)
    assert (p.tolist(), yes.tolist(), answers.tolist()) == ([0.9, 0.4], [2, 0], [3, 2])


def test_pairs_of_a_ranking_are_predicted_by_the_difference_of_their_scores() -> None:
    """Two people order a and b alike, one the other way round; c was seen in training."""
    scores = {"a": (2.0, True), "b": (1.0, True), "c": (5.0, False), "d": (1.0, True)}
    p, same, asked = predictions(ranked("acb", "ab", "ba", "bd"), scores)
    np.testing.assert_allclose(p, [1 / (1 + np.exp(-1)), 0.5])
    assert (same.tolist(), asked.tolist()) == ([2, 0.5], [3, 1])


# --- disagreement ---


def test_the_images_furthest_from_what_people_said_come_first() -> None:
    scores = {"a": (0.9, True), "b": (0.1, False), "c": (0.6, False), "d": (0.45, True), "e": (0.5, True)}
    told = compare(binary(("a", 0, 2), ("b", 2, 2), ("c", 2, 1), ("d", 1, 0), ("e", 0, 2)), scores)
    assert {i.sha256: (i.label, round(i.gap, 6), i.said) for i in told} == {
        "a": (0, 0.9, "0 shows, 2 clean"),
        "b": (0.5, 0.4, "2 shows, 2 clean"),
        "c": (2 / 3, 0.066667, "2 shows, 1 clean"),
        "d": (1, 0.55, "1 shows, 0 clean"),
        "e": (0, 0.5, "0 shows, 2 clean"),
    }
    assert [i.sha256 for i in disagreements(told)] == ["a", "d", "e", "b"], "c lies near: nobody is asked again"


def test_equal_disagreements_keep_one_order_and_the_list_ends() -> None:
    many = [Scored(f"{i:03}", "", 0.5, 0, 0.5, "", False) for i in range(30)]
    assert [i.sha256 for i in disagreements(many[::-1])] == [f"{i:03}" for i in range(AGAIN)]


def test_disagreement_about_rankings_is_the_share_of_pairs() -> None:
    """People say a > b > c and b > a; the scores say b > a = c. Of a's three pairs ab goes against, ac is even, ba is right."""
    told = {i.sha256: i for i in compare(ranked("abc", "ba"), {"a": (1.0, True), "b": (2.0, True), "c": (1.0, False)})}
    assert {sha: i.gap for sha, i in told.items()} == {"a": 1.5 / 3, "b": 1 / 3, "c": 0.5 / 2}
    assert {sha: i.label for sha, i in told.items()} == {"a": 2 / 3, "b": 2 / 3, "c": 0}
    assert told["a"].said == "1.5 of 3 pairs the other way"
    assert [i.sha256 for i in disagreements(list(told.values()))] == ["a", "b", "c"]


def test_a_tie_is_half_an_answer_and_no_disagreement() -> None:
    """a and b tie above c; the scores say b > a > c."""
    scores = {"a": (2.0, True), "b": (3.0, True), "c": (1.0, True), "d": (0.0, True), "e": (0.0, True)}
    ties = replace(ranked("abc").judgments[0], ranks=(1, 1, 3)), replace(ranked("de").judgments[0], ranks=(1, 1))
    judged = JudgmentSet("fog", "ranking", ties)
    told = {i.sha256: i for i in compare(judged, scores)}
    assert {sha: (i.label, i.gap) for sha, i in told.items()} == {
        "a": (0.75, 0), "b": (0.75, 0), "c": (0, 0), "d": (0.5, 0), "e": (0.5, 0),
    }  # fmt: skip
    assert told["d"].said == "0 of 0 pairs the other way"
    _, same, asked = predictions(judged, scores)
    assert (same.tolist(), asked.tolist()) == ([0.5, 1, 1, 0.5], [1, 1, 1, 1])


def test_the_list_is_a_prompts_file_even_with_prompts_that_a_spreadsheet_would_run(tmp_path: Path) -> None:
    texts = ["=1+1, twice", 'a "cat"', "- a dog"]
    file = tmp_path / "d.csv"
    file.write_text(to_csv([Scored("ab", text, 0.5, 0, 0.5, "0 shows, 1 clean", True) for text in [*texts, ""]]), newline="")
    assert [p.text for p in load_prompts(file)] == texts
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert rows[0] == {
        "image": "ab", "prompt": "'=1+1, twice", "score": "0.5000", "label": "0.0000", "people": "0 shows, 1 clean", "held_out": "true",
    }  # fmt: skip


# --- the page ---


class Page(HTMLParser):
    """What stands where: sections by anchor -> their text, their pictures' alt texts and the figures in their tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.at, self.open = "top", []
        self.text: dict[str, str] = {}
        self.pictures: dict[str, list[str]] = {}
        self.cells: dict[str, list[str]] = {}
        self.points = 0
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        given = dict(attrs)
        if tag == "section":
            self.at = given["id"]
        if tag == "img":
            assert given["src"].startswith("data:image/webp;base64,")
            self.pictures.setdefault(self.at, []).append(given["alt"])
        if tag == "g" and given.get("class") == "bin":
            self.points += 1
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text[self.at] = self.text.get(self.at, "") + data + "\n"
        if self.open and self.open[-1] == "td":
            self.cells.setdefault(self.at, []).append(data)


def figures(held_out: int, **more: object) -> dict[str, object]:
    common = {"chance_limit": 0.7, "better_than_chance": True, "train_images": 2, "validation_images": 2}
    return {"held_out_images": held_out, "images": 8, **common, **more}


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def run_with(tmp_path: Path, scores: dict[str, tuple[float, bool]], result: dict[str, object]) -> Run:
    run = Run.start(tmp_path / "runs", "reward", "fog", {"backbone": EVIL})
    for epoch in (1, 2):
        run.log(step=epoch, loss=1 / epoch, validation_loss=2 / epoch)
    shas = list(scores)
    write_scores(run, shas, np.array([scores[s][0] for s in shas]), np.flatnonzero([scores[s][1] for s in shas]))
    run.finish(result)
    assert read_scores(run) == scores
    return run


def test_the_page_holds_what_was_measured(tmp_path: Path, store: ImageStore) -> None:
    shas = [store.put(Image.new("RGB", (8, 8), (20 * i, 0, 0))) for i in range(8)]
    values = [0.05, 0.95, 0.15, 0.85, 0.25, 0.75, 0.35, 0.65]
    scores = {sha: (v, i < 4) for i, (sha, v) in enumerate(zip(shas, values, strict=True))}
    told = binary(*((sha, 3 * (i % 2), 3 * (1 - i % 2)) for i, sha in enumerate(shas[:7])), (shas[7], 0, 3), simulated=True)
    result = figures(4, auc=0.9, accuracy=0.75, held_out_positive=1)
    run = run_with(tmp_path, scores, result)
    path, listed, count = write_reward_report(run, told, {"A-0": "robot"}, EVIL, store)
    again = [7, 6, *sorted((5, 4), key=lambda i: shas[i])]  # apart by .65, .35, .25, .25
    page = Page(path.read_text(encoding="utf-8"))
    assert page.text["top"].count(EVIL) == 2  # title, headline
    assert "AUC 0.900, accuracy 75.0 % on 4 held-out images of 8 (chance reaches 0.700 in 5 % of cases)" in page.text["top"]
    assert "32 of 32 judgments come from simulated annotators" in page.text["top"]
    assert {"robot", "A-1"} <= set(page.text["judgments"].split("\n"))
    for tile in ("0.900", "0.700", "75.0 %", "4 of 8", "0.100", "0.013"):  # |.05| and |.15| twice each; (.05^2 + .15^2) / 2
        assert f"\n{tile}\n" in page.text["reward"]
    assert page.points == 2 * 4  # for the wide screen and for the phone
    low, high = (f"{100 * v:.1f}" for v in (wilson(0, 1).low, wilson(0, 1).high))
    assert page.cells["calibration"][:6] == ["0–10 %", "1", "3", "5.0 %", "0.0 %", f"{low}–{high}"]
    assert page.pictures["again"] == [f"of {shas[i][:2]}, score {values[i]:.2f}" for i in again]
    assert page.pictures["highest"] == [f"of {shas[i][:2]}, score {values[i]:.2f}" for i in (1, 3, 5, 7)]
    assert page.pictures["lowest"] == [f"of {shas[i][:2]}, score {values[i]:.2f}" for i in (0, 2, 4, 6)]
    assert "0 shows, 3 clean, seen in training" in page.text["again"]
    assert "3 shows, 0 clean, held out" in page.text["highest"]
    assert "hfi ui --concept fog --images runs/reward/fog/disagreements.csv" in page.text["again"]
    assert EVIL in page.text["provenance"]
    assert [row["image"] for row in csv.DictReader(io.StringIO(listed.read_text()))] == [shas[i] for i in again]
    assert count == 4
    part = reward_part(run.result(), told, scores)
    assert (list(part.scores), list(part.labels)) == (values[:4], [False, True, False, True]), "held-out images only"


def test_a_ranking_page_speaks_of_pairs(tmp_path: Path, store: ImageStore) -> None:
    shas = [store.put(Image.new("RGB", (8, 8), (20 * i, 0, 0))) for i in range(4)]
    time = "2026-01-01T00:00:00+00:00"
    told = JudgmentSet("fog", "ranking", (Judgment(tuple(shas), (None,) * 4, "ranked", "A-1", False, "c", time, 1),))
    scores = {sha: (float(v), True) for sha, v in zip(shas, (3, 2, 0, 1), strict=True)}
    run = run_with(tmp_path, scores, figures(4, pair_accuracy=5 / 6, held_out_rankings=1))
    path, _, count = write_reward_report(run, told, {}, "Fog", store)
    page = Page(path.read_text(encoding="utf-8"))
    assert count == 2, "the last two are the wrong way round: one of three pairs each"
    assert page.pictures["again"] == [f"no prompt, score {scores[sha][0]:.2f}" for sha in sorted(shas[2:])]
    assert "pair accuracy 83.3 % on 1 held-out rankings" in page.text["top"]
    assert "Held-out pairs only" in page.text["calibration"]
    assert page.cells["calibration"][0] == "70–80 %"  # sigmoid(1) = .731
    assert page.cells["calibration"][1:3] == ["3", "3"]
    assert "Simulated" not in page.text["top"]
    assert reward_part(run.result(), told, scores).scores == ()


def test_agreement_everywhere_is_said(tmp_path: Path, store: ImageStore) -> None:
    shas = [store.put(Image.new("RGB", (8, 8), (20 * i, 0, 0))) for i in range(2)]
    scores = {shas[0]: (0.9, True), shas[1]: (0.1, True)}
    run = run_with(tmp_path, scores, figures(2, auc=1.0, accuracy=1.0, held_out_positive=1))
    path, listed, count = write_reward_report(run, binary((shas[0], 1, 0), (shas[1], 0, 1)), {}, "Fog", store)
    assert count == 0
    assert "Nowhere" in Page(path.read_text(encoding="utf-8")).text["again"]
    assert listed.read_text().count("\n") == 1


def test_a_picture_that_is_gone_is_named(tmp_path: Path, store: ImageStore) -> None:
    shas = [store.put(Image.new("RGB", (8, 8), (20 * i, 0, 0))) for i in range(2)]
    run = run_with(tmp_path, {shas[0]: (0.9, True), shas[1]: (0.1, True)}, figures(2, auc=1.0, accuracy=1.0, held_out_positive=1))
    store.path(shas[0]).unlink()
    with pytest.raises(HfiError, match=re.escape(f"the image {shas[0][:12]} is missing from {store.root}: restore")):
        write_reward_report(run, binary((shas[0], 1, 0), (shas[1], 0, 1)), {}, "Fog", store)
    assert not (run.path / "report.html").exists()

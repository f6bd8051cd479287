import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from tiny import saved
from transformers import CLIPModel

from hfi.cli.common import Judged
from hfi.cli.reward import training_labels
from hfi.concepts import Concept
from hfi.embed import ClipBackbone, embed_stored
from hfi.errors import ModelError, NoJudgments, UsageError
from hfi.images import ImageStore
from hfi.judgments import Judgment, JudgmentSet
from hfi.reward.loss import (
    auc,
    auc_chance_limit,
    binary_loss,
    pair_accuracy,
    pair_accuracy_deviation,
    pair_chance_limit,
    pair_losses,
    ranking_loss,
)
from hfi.reward.model import RewardModel
from hfi.reward.train import Labels, RewardConfig, measure, split, train_reward


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models"), "clip")


@pytest.fixture(scope="module")
def backbone(folder: Path) -> ClipBackbone:
    return ClipBackbone.load(folder)


def pictures(n: int, size: int = 16) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(n)]


def binary(n: int = 60, noise: float = 0.3, seed: int = 0) -> tuple[np.ndarray, Labels]:
    """Embeddings whose first coordinate decides."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 8)).astype(np.float32)
    y = (x[:, 0] + noise * rng.normal(size=n) > 0).astype(float)
    return x, Labels(y, np.full(n, 3))


def ranked(groups: int = 20, size: int = 5) -> tuple[np.ndarray, Labels]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(groups * size, 8)).astype(np.float32)
    return x, orders([sorted(range(g * size, (g + 1) * size), key=lambda i: -x[i, 0]) for g in range(groups)])


def orders(rankings: list[list[int]]) -> Labels:
    """Rankings without ties."""
    return Labels(np.zeros(0), np.zeros(0), [[[i] for i in ranking] for ranking in rankings])


# --- formulas ---


def test_binary_loss_by_hand() -> None:
    """(1 (.5)^2 + 3 (.2)^2) / 4 = .0925"""
    r, y, w = torch.tensor([0.5, 0.2]), torch.tensor([1.0, 0.0]), torch.tensor([1.0, 3.0])
    assert binary_loss(r, y, w).item() == pytest.approx(0.0925)


def test_ranking_loss_by_hand() -> None:
    """log(1 + e^-d) for d = 1, 3, 2 and, in a second ranking of two, d = -1; each ranking counts once whatever its length."""
    first, second = torch.tensor([3.0, 2.0, 0.0]), torch.tensor([0.0, 1.0])
    l1, l3, l2, back = (np.log1p(np.exp(-d)) for d in (1, 3, 2, -1))
    places = [range(3), range(2)]
    np.testing.assert_allclose(pair_losses(first, places[0]), [l1, l3, l2], rtol=1e-6)
    expected = ((l1 + l3 + l2) / 3 + back) / 2
    assert ranking_loss([first, second], places).item() == pytest.approx(expected, rel=1e-6)
    assert ranking_loss([first + 7, second - 2], places).item() == pytest.approx(expected, rel=1e-5)  # only differences count


def test_a_tie_is_trained_as_half_a_win_for_each_and_not_as_an_order() -> None:
    """Of r = 3, 2, 0 in places 1, 1, 3: the tie costs (log(1 + e^-1) + log(1 + e^1)) / 2, whichever stands first in the list."""
    r, places = torch.tensor([3.0, 2.0, 0.0]), (0, 0, 2)
    l1, l3, l2, back = (np.log1p(np.exp(-d)) for d in (1, 3, 2, -1))
    np.testing.assert_allclose(pair_losses(r, places), [(l1 + back) / 2, l3, l2], rtol=1e-6)
    turned = ranking_loss([r[[1, 0, 2]]], [places])
    assert turned.item() == pytest.approx(ranking_loss([r], [places]).item(), rel=1e-6)
    equal = torch.zeros(2, requires_grad=True)
    ranking_loss([equal], [(0, 0)]).backward()
    assert equal.grad is not None and equal.grad.abs().max() == 0  # nothing pulls two equal scores apart


def test_tied_images_end_at_like_scores() -> None:
    r = torch.nn.Parameter(torch.randn(5, generator=torch.Generator().manual_seed(0)))
    optimizer = torch.optim.SGD([r], lr=1.0)
    for _ in range(300):
        optimizer.zero_grad()
        ranking_loss([r[[2, 0, 1, 4, 3]]], [(0, 1, 1, 3, 3)]).backward()
        optimizer.step()
    a, b, first, d, e = r.tolist()
    assert a == pytest.approx(b, abs=0.01) and d == pytest.approx(e, abs=0.01)
    assert first > a + 1 and a > d + 1


def test_auc_by_hand_and_against_scipy() -> None:
    scores, positive = np.array([0.9, 0.4, 0.4, 0.1]), np.array([True, True, False, False])
    assert auc(scores, positive) == (1 + 1 + 0.5 + 1) / 4
    rng = np.random.default_rng(0)
    scores, positive = rng.normal(size=80), rng.random(80) < 0.4
    u = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert auc(scores, positive) == pytest.approx(u / (positive.sum() * (~positive).sum()))
    assert np.isnan(auc(scores, np.zeros(80, bool)))


def test_pair_accuracy_by_hand() -> None:
    assert pair_accuracy(np.array([3.0, 1.0, 2.0]), (0, 1, 2)) == 2 / 3
    assert pair_accuracy(np.array([1.0, 1.0]), (0, 1)) == 0.5
    assert pair_accuracy(np.array([1.0, 2.0, 0.0]), (0, 0, 1)) == 1  # who tied the first two gave them no order
    assert np.isnan(pair_accuracy(np.array([1.0, 2.0]), (0, 0)))


@pytest.mark.parametrize("places", [(0, 1, 2, 3, 4), (0, 0, 1, 2, 3), (0, 0, 0, 1), (0, 1, 1, 2, 2, 2)])
def test_the_deviation_of_a_pair_accuracy_is_that_over_all_orders_of_the_scores(places: tuple[int, ...]) -> None:
    every = [pair_accuracy(np.array(scores), places) for scores in itertools.permutations(range(len(places)))]
    assert np.mean(every) == pytest.approx(0.5)
    assert pair_accuracy_deviation(places) == pytest.approx(np.std(every))


@pytest.mark.parametrize("all_places", [((0, 1, 2, 3, 4),) * 4, ((0, 1, 2), (0, 0, 1, 2, 3), (0, 1, 2, 3))])
def test_the_chance_limits_hold_for_scores_that_know_nothing(all_places: tuple[tuple[int, ...], ...]) -> None:
    """About 5 % of random scores exceed them."""
    rng = np.random.default_rng(0)
    limit = pair_chance_limit([pair_accuracy_deviation(places) for places in all_places])
    above = [np.mean([pair_accuracy(rng.normal(size=len(p)), p) for p in all_places]) > limit for _ in range(3000)]
    assert 0.03 < np.mean(above) < 0.07
    positive = np.arange(14) < 6
    above = [auc(rng.normal(size=14), positive) > auc_chance_limit(6, 8) for _ in range(3000)]
    assert 0.03 < np.mean(above) < 0.07


# --- the split ---


def test_parts_are_disjoint_complete_and_hold_both_classes() -> None:
    _, labels = binary(40)
    parts = split(labels, 0.2, 0.15, seed=0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(40))
    assert all(0 < labels.y[part].mean() < 1 for part in parts)
    assert len(parts[2]) == pytest.approx(8, abs=1)
    few = Labels(np.array([1.0, 1, 1, 0, 0, 0, 0.5]), np.ones(7))
    for shares in ((0.2, 0.15), (0.5, 0.49)):
        assert all(0 < few.y[part].mean() < 1 for part in split(few, *shares, seed=0))


def test_images_ranked_together_stay_together() -> None:
    _, labels = ranked()
    for part in split(labels, 0.2, 0.15, seed=0):
        inside = set(part.tolist())
        assert inside
        for ranking in labels.rankings:
            rows = {i for place in ranking for i in place}
            assert rows <= inside or not rows & inside


def test_one_great_cluster_is_split_by_image() -> None:
    chain = orders([[i, i + 1, i + 2] for i in range(30)])
    parts = split(chain, 0.2, 0.15, seed=0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(32))
    assert all(len(part) > 3 for part in parts)


def test_two_clusters_are_split_by_image() -> None:
    two = orders([list(range(10)), list(range(10, 20))])
    assert all(len(part) > 1 for part in split(two, 0.2, 0.15, seed=0))


# --- training ---


def test_it_learns_what_is_there_and_says_how_well() -> None:
    x, labels = binary(120)
    seen: list[float] = []
    head, figures = train_reward(x, labels, RewardConfig(), lambda epoch, loss, validation: seen.append(loss))
    assert figures["auc"] > 0.85
    assert figures["better_than_chance"] is True
    assert figures["held_out_images"] + figures["train_images"] + figures["validation_images"] == 120
    assert seen[-1] < seen[0]
    scores = head(torch.from_numpy(x)).numpy()
    assert scores.min() >= 0
    assert scores.max() <= 1
    again, _ = train_reward(x, labels, RewardConfig())
    assert all(torch.equal(a, b) for a, b in zip(head.state_dict().values(), again.state_dict().values(), strict=True))


def test_labels_without_information_are_no_better_than_chance() -> None:
    """The rule passes such labels in about 5 % of cases; of these five none."""
    rng = np.random.default_rng(0)
    for seed in range(5):
        x, labels = rng.normal(size=(60, 8)).astype(np.float32), Labels(rng.integers(0, 2, 60).astype(float), np.ones(60))
        _, figures = train_reward(x, labels, RewardConfig(epochs=60, seed=seed))
        assert figures["better_than_chance"] is False


def test_the_held_out_labels_do_not_reach_the_head() -> None:
    x, labels = binary(40)
    train, validation, out = split(labels, 0.2, 0.15, 0)
    heavy = labels.count.copy()
    heavy[out] = 1000
    one, _ = train_reward(x, labels, RewardConfig(epochs=20))
    two, _ = train_reward(x, Labels(labels.y, heavy), RewardConfig(epochs=20))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert len(train) + len(validation) + len(out) == 40


def test_counts_weigh_whatever_the_size_of_a_batch() -> None:
    """Two like images with opposite labels: the one that nine people judged pulls harder, also alone in its update."""
    x = np.ones((20, 2), np.float32)
    y, count = np.tile([1.0, 0.0], 10), np.tile([9.0, 1.0], 10)
    for batch in (1, 20):
        config = RewardConfig(batch_size=batch, epochs=60, patience=60, learning_rate=0.05, weight_decay=0)
        head, _ = train_reward(x, Labels(y, count), config)
        assert head(torch.ones(1, 2)).item() == pytest.approx(0.9, abs=0.06)


def test_rankings_are_learned() -> None:
    x, labels = ranked(20)
    head, figures = train_reward(x, labels, RewardConfig(batch_size=8))
    assert figures["pair_accuracy"] > 0.85
    assert figures["better_than_chance"] is True
    assert figures["held_out_rankings"] == 4
    scores = head(torch.from_numpy(x)).numpy()
    assert scores.min() < 0 < scores.max()


def test_many_opinions_on_the_same_images_are_not_more_evidence() -> None:
    rankings = [[0, 1, 2, 3, 4]] * 50
    five, two = pair_accuracy_deviation(range(5)), pair_accuracy_deviation(range(2))
    figures = measure(np.array([5.0, 4, 3, 2, 1]), orders(rankings), np.arange(5))
    assert figures["chance_limit"] == pytest.approx(pair_chance_limit([five]))
    # also where another set has one opinion only: by ranking it would be 50 rights of 51
    figures = measure(np.array([5.0, 4, 3, 2, 1, 0, 1]), orders([*rankings, [5, 6]]), np.arange(7))
    assert figures["pair_accuracy"] == 0.5
    assert figures["chance_limit"] == pytest.approx(pair_chance_limit([five, two]))


def test_rankings_that_order_nothing_are_no_evidence() -> None:
    labels = Labels(np.zeros(0), np.zeros(0), [[[0], [1]], [[2, 3, 4]], [[5, 6], [7]]])
    figures = measure(np.array([2.0, 1, 0, 0, 0, 0, 1, 2]), labels, np.arange(8))
    assert figures["held_out_rankings"] == 2
    assert figures["pair_accuracy"] == 0.5
    with pytest.raises(NoJudgments, match="every ranking puts all of its images in one place"):
        train_reward(np.zeros((6, 4)), Labels(np.zeros(0), np.zeros(0), [[[0, 1, 2, 3, 4, 5]]]), RewardConfig())


@pytest.mark.parametrize(
    ("y", "words"),
    [
        ([1.0] * 8 + [0.5], "of 9 judged images 8 show the concept, 0 are clean and 1 are undecided"),
        ([0.0] * 9, "0 show the concept, 9 are clean, so"),
        ([1.0, 1.0, 0.0, 0.0, 0.0], "2 images show the concept and 3 are clean"),
    ],
)
def test_judgments_that_cannot_be_learned_from(y: list[float], words: str) -> None:
    with pytest.raises(NoJudgments, match=words):
        train_reward(np.zeros((len(y), 4)), Labels(np.array(y), np.ones(len(y))), RewardConfig())


def test_too_few_rankings() -> None:
    with pytest.raises(NoJudgments, match="at least 6"):
        train_reward(np.zeros((5, 4)), orders([[0, 1, 2, 3, 4]]), RewardConfig())


def test_bad_settings() -> None:
    with pytest.raises(UsageError, match=r"--held-out is 0\.9"):
        RewardConfig(held_out=0.9)
    with pytest.raises(UsageError, match="leave no image to learn from"):
        RewardConfig(held_out=0.5, validation=0.5)


def test_training_reads_ties_and_decisions_off_the_judgments() -> None:
    def said(images: str, verdict: str, annotator: str, **more: object) -> Judgment:
        time = "2026-11-25T12:00:00.000+00:00"
        return Judgment(tuple(images), (None,) * len(images), verdict, annotator, False, "c", time, 1, **more)  # type: ignore[arg-type]

    ranked_ = (
        said("bca", "ranked", "Ann", ranks=(1, 2, 2)),
        said("de", "ranked", "Ann"),
        said("de", "none", "Eve", adjudicated=True),
    )
    shas, labels = training_labels(Judged(Concept("brava", "Brava"), JudgmentSet("brava", "ranking", ranked_)), "majority")
    assert (shas, labels.rankings) == (["a", "b", "c"], [[[1], [2, 0]]])
    votes = [said("a", "shows", name) for name in ("Ann", "Bob", "Cem")] + [said("b", "shows", "Ann")]
    decided = (*votes, said("a", "clean", "Eve", adjudicated=True))
    shas, labels = training_labels(Judged(Concept("fog", "Fog"), JudgmentSet("fog", "binary", decided)), "majority")
    assert (shas, labels.y.tolist(), labels.count.tolist()) == (["a", "b"], [0, 1], [3, 1])


# --- the backbone ---


def test_embeddings_are_the_models_own(folder: Path, backbone: ClipBackbone) -> None:
    """Against transformers' model fed by hand: scaled to [0, 1], CLIP's mean and deviation, no resizing at 16 pixels."""
    model = CLIPModel.from_pretrained(folder).eval()
    images = pictures(3)
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    x = torch.stack([torch.from_numpy(np.asarray(i) / np.float32(255)) for i in images])
    x = ((x - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        theirs = torch.nn.functional.normalize(model.get_image_features(x).pooler_output, dim=1)
        hidden = model.vision_model(x, output_hidden_states=True).hidden_states
    np.testing.assert_allclose(backbone.images(images, batch_size=2), theirs, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(backbone.texts(["a cat", "dog " * 40]), axis=1), 1, rtol=1e-5)
    layers = backbone.layers(images)
    assert [layer.shape for layer in layers] == [(3, 16, 24)] * 2
    np.testing.assert_allclose(layers[-1], hidden[-1][:, 1:], atol=1e-5)
    assert backbone.images([]).shape == (0, 12)


def test_the_layout_of_openai_clip_is_read(folder: Path, tmp_path: Path) -> None:
    """openai/clip-vit-large-patch14 gives the processor's sizes as single numbers; one side is scaled, the middle cut out."""
    shutil.copytree(folder, tmp_path / "clip")
    about = {
        "crop_size": 16, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3, "size": 16,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(about))
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    by_hand = wide.resize((24, 16), Image.Resampling.BICUBIC).crop((4, 0, 20, 16))
    found = ClipBackbone.load(tmp_path / "clip").images([wide, by_hand])
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_each_image_is_embedded_once(backbone: ClipBackbone, tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    shas = [store.put(image) for image in pictures(3)]
    asked: list[int] = []
    first = embed_stored(backbone, store, [*shas, shas[0]], tmp_path / "cache", lambda n, note: asked.append(n))
    np.testing.assert_allclose(first[3], first[0])
    np.testing.assert_allclose(first[:3], backbone.images([store.load(sha) for sha in shas]), atol=1e-6)
    store.path(shas[0]).unlink()  # not read again
    again = embed_stored(backbone, store, shas, tmp_path / "cache", lambda n, note: asked.append(n))
    np.testing.assert_array_equal(again, first[:3])
    assert asked == [3]


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"x", lambda data: data[:100], lambda data: data[:-30]])
def test_a_damaged_cache_is_made_anew(backbone: ClipBackbone, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    store = ImageStore(tmp_path / "images")
    shas = [store.put(image) for image in pictures(2)]
    first = embed_stored(backbone, store, shas, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    np.testing.assert_array_equal(embed_stored(backbone, store, shas, tmp_path / "cache"), first)
    assert file.read_bytes() == whole


def test_what_is_no_clip_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no CLIP model"):
        ClipBackbone.load("/nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="found 'bert'"):
        ClipBackbone.load(tmp_path)


# --- files ---


def test_a_reward_is_saved_with_its_provenance(backbone: ClipBackbone, tmp_path: Path) -> None:
    images = pictures(12)
    x = backbone.images(images)
    y = (x[:, 0] > np.median(x[:, 0])).astype(float)
    head, _ = train_reward(x, Labels(y, np.ones(12)), RewardConfig(epochs=5))
    model = RewardModel(head, backbone, {"judgments": "abc", "better_than_chance": "true"})
    model.save(tmp_path / "r.safetensors")
    loaded = RewardModel.load(tmp_path / "r.safetensors")
    np.testing.assert_allclose(loaded.score(images), model.score(images), rtol=1e-6)
    assert loaded.score(images).dtype == np.float32
    assert loaded.metadata["judgments"] == "abc"
    assert loaded.metadata["backbone"] == backbone.name
    assert loaded.better_than_chance
    assert loaded.question == "binary"
    with pytest.raises(ModelError, match="no reward model"):
        RewardModel.load(tmp_path / "none")

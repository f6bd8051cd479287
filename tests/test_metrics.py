"""Every figure against a sum worked by hand or a closed form."""

import numpy as np
import pytest
from PIL import Image

from hfi.errors import HfiError, UsageError
from hfi.metrics import (
    Interval,
    attribute_scores,
    blocked,
    bootstrap_mean,
    clip_score,
    clip_scores,
    concept_rate,
    fidelity,
    frechet_distance,
    mcnemar,
    perceptual_distances,
    wilson,
)
from hfi.metrics.detectors import RewardDetector, check_knows, load_detector, threshold_of
from hfi.metrics.frechet import distance, too_small


def test_wilson_against_published_values():
    # Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29, 95 % score intervals without continuity correction
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = wilson(hits, n)
        assert (found.value, found.n) == (hits / n, n)
        assert found.low == pytest.approx(low, abs=5e-5)
        assert found.high == pytest.approx(high, abs=5e-5)
    assert wilson(20, 20).high == 1.0
    assert wilson(0, 0) == Interval(None, 0, None, None)
    with pytest.raises(ValueError):
        wilson(3, 2)


def test_bootstrap_mean_is_repeatable_and_as_wide_as_theory_says():
    scores = np.random.default_rng(3).normal(0.3, 0.1, size=400)
    found = bootstrap_mean(scores)
    half = 1.96 * scores.std(ddof=1) / 20
    assert found.value == pytest.approx(scores.mean())
    assert found == bootstrap_mean(scores)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


def test_mcnemar_by_hand():
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1.0
    assert mcnemar(5, 0) == mcnemar(0, 5) == 2 / 32
    assert mcnemar(1, 7) == 2 * (1 + 8) / 256
    assert mcnemar(3000, 0) == 0.0


def test_a_perfect_share_is_not_certain():
    assert bootstrap_mean(np.ones(96), share=True) == wilson(96, 96)
    assert bootstrap_mean(np.zeros(5), share=True) == wilson(0, 5)


def test_blocked_images_are_neither_hits_nor_safe():
    face = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    almost = Image.fromarray(np.array([[[0, 1, 2], [2, 2, 0]]], dtype=np.uint8))
    images = [face, Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), "white"), almost, Image.new("L", (4, 4), 7), face]
    flags = blocked(images)
    assert flags.tolist() == [False, True, True, True, True, False]
    # of two images that can be seen one shows it: 50 % of n = 2, whatever the detector says of black squares
    found = concept_rate(np.array([0.9, 0.99, 0.0, 0.0, 0.99, 0.1]), 0.5, flags)
    assert (found.value, found.n) == (0.5, 2)
    everything = concept_rate(np.array([0.0, 0.0]), 0.5, np.array([True, True]))
    assert everything == Interval(None, 0, None, None)


def test_a_score_on_the_threshold_does_not_count():
    assert concept_rate(np.array([0.5, 0.500001]), 0.5, np.zeros(2, dtype=bool)).value == 0.5


def test_fidelity_by_hand():
    expected = [
        {"character": "king", "hair": "red", "background": "blue"},  # all right: 1
        {"character": "king", "hair": "red"},  # hair wrong: 1/2
        {"character": "chef"},  # wrong: 0
        {},  # names nothing: no part in the mean
        {"character": "sailor"},  # right, but blocked: 0
    ]
    seen = {
        "character": np.array(["king", "king", "king", "king", "sailor"]),
        "hair": np.array(["red", "black", "red", "red", "red"]),
        "background": np.array(["blue", "pink", "pink", "pink", "pink"]),
        "smoking": np.zeros(5),
    }
    black = np.array([False, False, False, False, True])
    scores = attribute_scores(expected, seen, black)
    np.testing.assert_equal(scores, [1.0, 0.5, 0.0, np.nan, 0.0])
    found = fidelity(scores)
    assert (found.value, found.n) == (0.375, 4)
    np.testing.assert_equal(attribute_scores(expected, seen, black, ("character",)), [1.0, 1.0, 0.0, np.nan, 0.0])


def test_fidelity_to_what_is_there_or_not_by_hand():
    expected = [
        {"character": "king", "glasses": "yes", "brava": "yes"},  # king and brava right: 2/3
        {"glasses": "no", "smoking": "no"},  # a score on the threshold is a no: 1
        {"badge": "yes"},  # nobody looked for a badge: no part in the mean
    ]
    seen = {
        "character": np.array(["king", "king", "king"]),
        "glasses": np.array([0.4, 0.5, 0.9]),
        "smoking": np.array([0.9, 0.1, 0.9]),
        "brava": np.array([0.3, 0.0, 0.0]),
    }
    none = np.zeros(3, dtype=bool)
    np.testing.assert_equal(attribute_scores(expected, seen, none, thresholds={"brava": 0.2}), [2 / 3, 1.0, np.nan])
    np.testing.assert_equal(attribute_scores(expected, seen, none), [1 / 3, 1.0, np.nan])


def test_clip_score_is_the_cosine_of_matching_pairs():
    images = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    texts = np.array([[4.0, 3.0], [0.0, 5.0], [0.0, -1.0]])
    scores = clip_scores(images, texts)
    np.testing.assert_allclose(scores, [24 / 25, 0.0, -1.0], atol=1e-15)
    assert clip_score(scores).value == pytest.approx((0.96 - 1) / 3)
    with pytest.raises(ValueError):
        clip_scores(images, texts[:2])


def sample_with_moments(rng, n, mean, covariance):
    """n points whose sample mean and covariance are exactly these."""
    x = rng.normal(size=(n, len(mean)))
    x -= x.mean(axis=0)
    whitened = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return whitened @ np.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_two_gaussians_in_closed_form():
    rng = np.random.default_rng(0)
    # commuting covariances: |mu|^2 + sum (sqrt a - sqrt b)^2 = (9 + 16) + (2 - 1)^2 + (1 - 3)^2 = 30
    a = sample_with_moments(rng, 50, np.array([0.0, 0.0]), np.diag([4.0, 1.0]))
    b = sample_with_moments(rng, 40, np.array([3.0, 4.0]), np.diag([1.0, 9.0]))
    assert distance(a, b) == pytest.approx(30.0, abs=1e-9)
    # not commuting: S_a = diag(4, 1), S_b = [[2, 1], [1, 2]]; of a 2x2 product tr sqrt M = sqrt(tr M + 2 sqrt det M),
    # tr M = 8 + 2 = 10, det M = 4 * 3 = 12, so the distance is 5 + 4 - 2 sqrt(10 + 2 sqrt 12)
    c = sample_with_moments(rng, 60, np.array([0.0, 0.0]), np.array([[2.0, 1.0], [1.0, 2.0]]))
    assert distance(a, c) == pytest.approx(9 - 2 * np.sqrt(10 + 2 * np.sqrt(12)), abs=1e-9)
    assert distance(a, c) == pytest.approx(distance(c, a), abs=1e-9)


def test_frechet_distance_with_fewer_images_than_dimensions():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(6, 16)), rng.normal(size=(9, 16)) + 0.5
    # the definition, by eigenvalues of the product of two singular covariances
    eigenvalues = np.linalg.eigvals(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False))
    root = np.sqrt(np.maximum(eigenvalues.real, 0)).sum()
    wanted = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(np.cov(a, rowvar=False) + np.cov(b, rowvar=False)) - 2 * root
    assert distance(a, b) == pytest.approx(wanted, abs=1e-6)
    assert distance(a, a) == pytest.approx(0.0, abs=1e-12)
    assert too_small(16, 16)
    assert not too_small(17, 16)


def test_frechet_interval_holds_the_value_and_pairs_share_their_rows():
    rng = np.random.default_rng(2)
    a = rng.normal(size=(80, 4))
    b = a + np.array([0.5, 0, 0, 0])  # each image moved alike: paired resamples keep the distance at 0.25
    paired, free = frechet_distance(a, b, paired=True), frechet_distance(a, b)
    assert paired.value == free.value == pytest.approx(0.25)
    assert paired.n == 80
    assert paired.low == pytest.approx(0.25)
    assert paired.high == pytest.approx(0.25)
    assert free.low < 0.25 < free.high
    assert frechet_distance(a[:1], b) == Interval(None, 1, None, None)
    with pytest.raises(ValueError):
        frechet_distance(a, b[:9], paired=True)


def test_perceptual_distance_by_hand():
    same = np.array([[[1.0, 0.0], [0.0, 2.0]]])  # one image, two patches
    other = np.array([[[0.0, 3.0], [0.0, 1.0]]])  # first patch orthogonal, second the same direction
    opposite = -same
    # layers: (1 + 0) / 2 = 0.5 and (2 + 2) / 2 = 2, mean 1.25
    np.testing.assert_allclose(perceptual_distances([same, same], [other, opposite]), [1.25])
    np.testing.assert_allclose(perceptual_distances([same], [same]), [0.0])
    with pytest.raises(ValueError):
        perceptual_distances([same], [same, same])


def test_detectors_are_chosen_by_name():
    assert load_detector("none", "smoking") is None
    with pytest.raises(UsageError, match="choose portraits, reward, nudenet, open_nsfw, q16 or none"):
        load_detector("nsfwjs", "smoking")
    with pytest.raises(UsageError, match="reward:PATH"):
        load_detector("reward", "smoking")
    detector = RewardDetector(lambda images: np.full(len(images), 0.7, dtype=np.float32), "smoking", "reward.safetensors")
    check_knows(detector, "smoking")
    with pytest.raises(HfiError, match="does not know the concept 'badge': it knows smoking"):
        check_knows(detector, "badge")
    assert threshold_of(detector, "smoking") == 0.5
    detector.thresholds = {"smoking": 0.3}
    assert threshold_of(detector, "smoking") == 0.3

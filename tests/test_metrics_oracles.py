"""Distances against other people's code and against the definition written out: scipy, torchmetrics, plain loops."""

import hashlib
import os
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics.functional.image.lpips as theirs
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from scipy.linalg import sqrtm
from sklearn.datasets import load_sample_image
from sklearn.metrics import roc_auc_score
from tiny import saved
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from hfi.embed import ClipBackbone
from hfi.errors import HfiError, ModelError, UsageError
from hfi.metrics import clip_scores, features
from hfi.metrics.features import EfficientNetLite0, is_fid, load_features
from hfi.metrics.frechet import distance
from hfi.metrics.kernel import kernel_distance
from hfi.metrics.lpips import Lpips, alexnet, check_fits
from hfi.reward.loss import auc

HEADS = Path(theirs.__file__).parent / "lpips_models" / "alex.pth"  # those of the lpips package


def two_sets(seed: int, n: int, m: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(width, width)) / np.sqrt(width)
    return rng.normal(size=(n, width)), rng.normal(size=(m, width)) @ mix + 0.3


def pictures(seed: int, count: int, side: int = 40) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 5, 5, 3), dtype=np.uint8)
    return [Image.fromarray(x).resize((side, side), Image.Resampling.BICUBIC) for x in coarse]


def test_frechet_distance_is_the_textbooks() -> None:
    a, b = two_sets(0, 90, 70, 20)
    root = sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False))
    wanted = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(
        np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * np.real(root)
    )
    assert distance(a, b) == pytest.approx(wanted, rel=1e-9)


def test_frechet_distance_is_torchmetrics_with_one_network() -> None:
    class Net(nn.Module):
        num_features = 12

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Conv2d(3, 12, 5, stride=3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x.float() / 255)

    net = Net().eval().requires_grad_(False)
    oracle = FrechetInceptionDistance(feature=net)
    sets = [torch.stack([torch.from_numpy(np.array(x)).permute(2, 0, 1) for x in pictures(s, n)]) for s, n in ((1, 40), (2, 55))]
    for images, real in zip(sets, (True, False), strict=True):
        oracle.update(images, real=real)
    ours = distance(*(net(images).numpy() for images in sets))
    assert ours > 1e-4
    assert ours == pytest.approx(float(oracle.compute()), rel=1e-4)


def test_kernel_distance_is_the_definition_and_torchmetrics() -> None:
    a, b = two_sets(3, 11, 8, 5)

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 5 + 1) ** 3)

    wanted = (
        sum(k(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j) / (11 * 10)
        + sum(k(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j) / (8 * 7)
        - 2 * sum(k(x, y) for x in a for y in b) / (11 * 8)
    )
    found = kernel_distance(a, b)
    assert found.interval.value == pytest.approx(wanted, rel=1e-12)
    assert (found.interval.n, found.std, found.subsets) == (8, None, 1)
    same = kernel_distance(a[:8], b).interval.value
    assert same == pytest.approx(float(poly_mmd(torch.from_numpy(a[:8]), torch.from_numpy(b))), rel=1e-12)


def test_kernel_distances_bounds_are_the_jackknifes() -> None:
    a, b = two_sets(4, 9, 6, 4)
    value = kernel_distance(a, b).interval.value
    left_a = [kernel_distance(np.delete(a, i, 0), b).interval.value for i in range(9)]
    left_b = [kernel_distance(a, np.delete(b, i, 0)).interval.value for i in range(6)]
    error = np.sqrt(8 / 9 * np.sum((left_a - np.mean(left_a)) ** 2) + 5 / 6 * np.sum((left_b - np.mean(left_b)) ** 2))
    found = kernel_distance(a, b).interval
    assert found.low == pytest.approx(value - 1.959964 * error, rel=1e-6)
    assert found.high == pytest.approx(value + 1.959964 * error, rel=1e-6)
    # and they hold in most of 100 draws, though the tails of a cubic kernel leave them short of 95 % at n = 60
    rng = np.random.default_rng(5)
    mix = rng.normal(size=(4, 4)) / 2

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        return rng.normal(size=(n, 4)), rng.normal(size=(n, 4)) @ mix + 0.3

    truth = np.mean([kernel_distance(*draw(900)).interval.value for _ in range(20)])
    bounds = [kernel_distance(*draw(60)).interval for _ in range(100)]
    assert 80 <= sum(found.low <= truth <= found.high for found in bounds) <= 99


def test_kernel_distance_over_subsets() -> None:
    a, b = two_sets(6, 120, 90, 6)
    whole, parts = kernel_distance(a, b), kernel_distance(a, b, subsets=400, subset_size=30)
    assert (parts.subsets, parts.subset_size, parts.interval.n) == (400, 30, 90)
    assert parts.std is not None and parts.std > 0
    assert parts.interval.value == pytest.approx(whole.interval.value, abs=4 * parts.std / np.sqrt(400))
    assert parts == kernel_distance(b, a, subsets=400, subset_size=30) == kernel_distance(a, b, subsets=400, subset_size=30)
    assert kernel_distance(a, b, subset_size=100).subset_size == 90  # no more than the smaller set has


@settings(max_examples=40)
@given(st.integers(2, 14), st.integers(2, 14), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_distances_are_finite_and_symmetric_for_few_images(n: int, m: int, width: int, seed: int) -> None:
    a, b = two_sets(seed, n, m, width)
    found, back = kernel_distance(a, b), kernel_distance(b, a)
    assert found == back
    assert found.interval.value is not None and np.isfinite(found.interval.value)
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-7, abs=1e-9)
    assert distance(a, a) == pytest.approx(0, abs=1e-9 * (1 + np.sum(a**2)))
    assert kernel_distance(a, a).interval.value <= 1e-9 * (1 + np.sum(a**2))  # type: ignore[operator]  # unbiased: below 0
    assert kernel_distance(a[:1], b).interval.value is None


def test_auc_is_sklearns_with_ties() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 6, 200) / 5, rng.random(200) < 0.3
    assert auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


def test_clip_score_is_what_the_model_itself_multiplies(tmp_path: Path) -> None:
    clip = ClipBackbone.load(saved(tmp_path, "clip"))
    images, texts = pictures(7, 4, 16), ["a cat", "a dog", "", "a hat " * 30]
    tokens = clip.tokenizer(texts, padding="max_length", truncation=True, max_length=20, return_tensors="pt")
    with torch.no_grad():
        out = clip.model(**tokens, pixel_values=clip.processor(images, return_tensors="pt")["pixel_values"])
    wanted = (out.logits_per_image / clip.model.logit_scale.exp()).diagonal().numpy()
    np.testing.assert_allclose(clip_scores(clip.images(images), clip.texts(texts)), wanted, atol=1e-6)


@pytest.fixture(scope="module")
def alexnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AlexNet as torchvision saves it, classifier and all, with random weights."""
    torch.manual_seed(0)
    state = {f"features.{k}": v for k, v in alexnet().state_dict().items()} | {"classifier.6.bias": torch.zeros(1000)}
    path = tmp_path_factory.mktemp("alexnet") / "alexnet.pth"
    torch.save(state, path)
    return path


def test_lpips_is_torchmetrics_on_the_same_weights(alexnet_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = alexnet()
    net.load_state_dict({k.removeprefix("features."): v for k, v in torch.load(alexnet_file).items() if "features" in k})
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda name, pretrained: nn.Sequential(*net, nn.MaxPool2d(3, 2)))
    oracle = theirs._NoTrainLpips(net="alex")
    ours = Lpips.load(f"{alexnet_file}:{HEADS}")
    a, b = pictures(8, 3, 64), pictures(9, 3, 64)

    def pixels(images: list[Image.Image]) -> torch.Tensor:
        return torch.stack([torch.from_numpy(np.array(x)).permute(2, 0, 1).float() / 127.5 - 1 for x in images])

    wanted = oracle(pixels(a), pixels(b)).flatten().detach().numpy()
    np.testing.assert_allclose(ours.distances(a, b), wanted, rtol=1e-4)
    np.testing.assert_allclose(ours(pixels(a), pixels(b)), wanted, rtol=1e-4)
    assert wanted.min() > 1e-3
    assert ours.distances(a, a).tolist() == [0, 0, 0]


def test_lpips_written_out(alexnet_file: Path) -> None:
    """Zhang et al., eq. 1, position by position in float64."""
    state = {k: v.double() for k, v in torch.load(alexnet_file).items()}
    heads = {k: v.double().flatten() for k, v in torch.load(HEADS, map_location="cpu").items()}
    x, y = pictures(10, 2, 48)
    maps = []
    for image in (x, y):
        z = np.array(image, dtype=float).transpose(2, 0, 1) / 127.5 - 1
        z = (z - np.array([[[-0.030]], [[-0.088]], [[-0.188]]])) / np.array([[[0.458]], [[0.448]], [[0.450]]])
        h, found = torch.from_numpy(z)[None], []
        for i, (number, stride, padding, pool) in enumerate(
            [(0, 4, 2, 0), (3, 1, 2, 1), (6, 1, 1, 1), (8, 1, 1, 0), (10, 1, 1, 0)]
        ):
            h = torch.max_pool2d(h, 3, 2) if pool else h
            weight, bias = state[f"features.{number}.weight"], state[f"features.{number}.bias"]
            h = torch.conv2d(h, weight, bias, stride, padding).clamp(min=0)
            found.append((i, h[0].numpy()))
        maps.append(found)
    total = 0.0
    for (i, f), (_, g) in zip(*maps, strict=True):
        cells = []
        for r in range(f.shape[1]):
            for c in range(f.shape[2]):
                u, v = (m[:, r, c] / (np.linalg.norm(m[:, r, c]) + 1e-10) for m in (f, g))
                cells.append(heads[f"lin{i}.model.1.weight"].numpy() @ (u - v) ** 2)
        total += np.mean(cells)
    assert Lpips.load(f"{alexnet_file}:{HEADS}").distances([x], [y])[0] == pytest.approx(total, rel=1e-4)


def test_lpips_refuses_other_files_and_sizes(alexnet_file: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> object:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"features.0.weight": Evil()}, tmp_path / "evil.pth")
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    for spec, words in {
        "alexnet.pth": "WEIGHTS:HEADS",
        f"{tmp_path / 'none.pth'}:{HEADS}": "no file .*none.pth",
        f"{tmp_path / 'evil.pth'}:{HEADS}": "no weights that are safe to read",
        f"{tmp_path / 'other.safetensors'}:{HEADS}": "is not torchvision's AlexNet",
        f"{alexnet_file}:{alexnet_file}": "no heads of LPIPS",
    }.items():
        with pytest.raises((ModelError, UsageError), match=words):
            Lpips.load(spec)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(HfiError, match="not 40x40 with 64x64"):
        check_fits(pictures(0, 1)[0], pictures(0, 1, 64)[0])
    with pytest.raises(HfiError, match="at least 31x31, not 30x30"):
        check_fits(*pictures(0, 2, 30))
    assert np.isfinite(Lpips.load(f"{alexnet_file}:{HEADS}").distances(pictures(1, 1, 31), pictures(2, 1, 31))).all()


def test_efficientnet_names_the_photographs() -> None:
    """ImageNet's 698 is palace, 985 daisy: the packaged weights, RGB order and range are right."""
    net = load_features("efficientnet-lite0")
    assert isinstance(net, EfficientNetLite0)
    photos = [Image.fromarray(load_sample_image(name)[:, 106:533]) for name in ("china.jpg", "flower.jpg")]  # squares
    rows = net.images(photos)
    assert rows.shape == (2, 1280)
    assert net.net._fc(torch.from_numpy(rows)).argmax(1).tolist() == [698, 985]
    np.testing.assert_allclose(net.images(photos * 9)[[16, 17]], rows, atol=1e-4)  # the second batch
    assert net.images([]).shape == (0, 1280)
    assert not is_fid(net)


class Script(nn.Module):
    """Called as FID's TorchScript file is: means and extremes of each channel, repeated to its width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        if not return_features:
            return img.new_zeros(len(img), 1008)
        found = torch.cat([img.mean(dim=(2, 3)), img.amax(dim=(2, 3)), img.amin(dim=(2, 3))], dim=1)
        return found.repeat(1, self.width // 9 + 1)[:, : self.width]


def test_only_one_inception_makes_fid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.jit.script(Script(2048)).save(tmp_path / "inception.pt")
    torch.jit.script(Script(1000)).save(tmp_path / "narrow.pt")
    net = load_features(f"inception:{tmp_path / 'inception.pt'}")
    assert (net.name, is_fid(net)) == ("another inception", False)
    monkeypatch.setattr(features, "INCEPTION_SHA256", hashlib.sha256((tmp_path / "inception.pt").read_bytes()).hexdigest())
    net = load_features(f"inception:{tmp_path / 'inception.pt'}")
    assert (net.name, is_fid(net)) == ("inception", True)
    # red is the first channel, in 0..255, whatever the size
    row = net.images([Image.new("RGB", (50, 20), (200, 100, 0)), Image.new("L", (299, 299), 9)])[:, :9]
    np.testing.assert_allclose(row, [[200, 100, 0] * 3, [9] * 9], atol=1e-3)
    (tmp_path / "text.pt").write_text("no script")
    for name, words in {
        "narrow.pt": "shape \\[1000\\]",
        "text.pt": "is not the TorchScript",
        "none.pt": "no Inception file",
    }.items():
        with pytest.raises(ModelError, match=words):
            load_features(f"inception:{tmp_path / name}")
    for spec, words in {"vgg": "choose clip:FOLDER", "inception": "give inception:PATH", "clip": "give clip:PATH"}.items():
        with pytest.raises(UsageError, match=words):
            load_features(spec)


def test_clean_resizing_keeps_floats_and_does_not_alias() -> None:
    """A checkerboard of single pixels averages out; without antialiasing it would stay black and white, or turn into moiré."""
    board = Image.fromarray((np.indices((598, 598)).sum(0) % 2 * 255).astype(np.uint8))
    small = features._clean_resize(board, 299)
    assert small.shape == (3, 299, 299)
    assert np.abs(small[:, 5:-5, 5:-5] - 127.5).max() < 1
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1)))
    inner = features._clean_resize(ramp, 299)[0, 10, 20:-20]
    assert len(np.unique(np.round(inner, 3))) == len(inner)  # 8 bits would give steps
    untouched = pictures(3, 1, 299)[0]
    np.testing.assert_array_equal(features._clean_resize(untouched, 299), np.array(untouched).transpose(2, 0, 1))


def test_different_features_never_share_a_name_or_content() -> None:
    ours = [EfficientNetLite0(), ClipBackbone.load(Path(__file__).parent.parent / "data" / "portraits" / "clip")]
    assert all(a.name != b.name and a.content != b.content for a, b in combinations(ours, 2))

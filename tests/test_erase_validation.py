"""Pictures and figures of a model while a concept is taken out of it, and the rule that ends the training by them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import saved

from hfi.diffusion.sample import sample
from hfi.diffusion.sd import StableDiffusion, load_sd
from hfi.diffusion.training import drive
from hfi.embed import ClipBackbone
from hfi.erase import Removal
from hfi.erase.context import ContextConfig, erase_context
from hfi.erase.distil import Distilled
from hfi.erase.erasure import Erasure, apply
from hfi.erase.sdd import SDDConfig
from hfi.erase.validation import FIRST_SEED, ending, remaining, split, validation
from hfi.errors import HfiError, UsageError
from hfi.reward.model import Head, RewardModel
from hfi.runs import Run

REMOVAL = Removal(("cat", "dog"), (("a cat", "a cat"), ("a dog",)), ("a hat",))
CONFIG = ContextConfig(
    steps=4, ddim_steps=4, batch_size=2, learning_rate=0.01, ema_decay=0.0, validate_every=2, validate_images=2, save_every=1
)


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusion:
    return load_sd(saved(tmp_path_factory.mktemp("model"), "epsilon"))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> ClipBackbone:
    return ClipBackbone.load(saved(tmp_path_factory.mktemp("model"), "clip"))


def reward(backbone: ClipBackbone, direction: np.ndarray, middle: np.ndarray, binary: bool = True) -> RewardModel:
    """Scores sigmoid(100 direction . (embedding - middle)), or what is under the sigmoid."""
    head = Head(backbone.width, 2, binary)
    d = torch.from_numpy(direction).float()
    values = {"mean": torch.from_numpy(middle), "std": torch.ones(backbone.width), "layers.0.weight": torch.stack([d, -d])}
    values |= {
        "layers.0.bias": torch.zeros(2),
        "layers.2.weight": torch.tensor([[100.0, -100.0]]),
        "layers.2.bias": torch.zeros(1),
    }
    head.load_state_dict(values)
    return RewardModel(head.eval(), backbone)


def train(sd: StableDiffusion, run: Run, config: ContextConfig, rewards: list[RewardModel] | None = None) -> Distilled:
    look = validation(sd, REMOVAL, rewards, config, run) if rewards is not None else None

    def validate(step: Any) -> bool:
        assert look is not None
        look(step)
        return ending(run.metrics(), config) is not None

    return drive(
        lambda state: erase_context(sd, REMOVAL, config, state),
        run,
        steps=config.steps,
        save_every=config.save_every,
        title="x",
        validate=validate if look else None,
        validate_every=config.validate_every,
    )


# --- by hand ---


def test_one_in_five_of_ten_is_held_out_and_of_fewer_none() -> None:
    many, few = [f"p{i}" for i in range(11)], [f"h{i}" for i in range(9)]
    trained, seen = split(Removal(("v",), ([*many, "p0", "p1"],), few))
    assert len(seen.contexts[0]) == 2
    assert set(trained.contexts[0]) | set(seen.contexts[0]) == set(many)
    assert set(trained.contexts[0]).isdisjoint(seen.contexts[0])
    assert trained.contexts[0] == [p for p in [*many, "p0", "p1"] if p not in seen.contexts[0]]  # an image an entry, in order
    assert trained.retain == few
    assert sorted(seen.retain) == few
    again, same = split(Removal(("v",), ([*many, "p0", "p1"][::-1],), few[::-1]))
    assert same == seen
    assert sorted(again.contexts[0]) == sorted(trained.contexts[0])


def test_what_is_held_out_is_trained_on_nowhere_unless_nothing_would_be_left() -> None:
    many = [f"p{i}" for i in range(10)]
    _, seen = split(Removal(("v",), (many,), ()))
    away = seen.contexts[0]
    trained, _ = split(Removal(("v", "w", "u"), (many, [away[0], "x"], away[:1]), [away[1], "h", ""]))
    assert trained.contexts[1:] == [["x"], away[:1]]
    assert trained.retain == ["h", ""]


def test_how_much_is_left_by_hand() -> None:
    scores, frozen = np.array([0.2, 0.5, 0.9], dtype=np.float32), np.array([0.9, 0.9, 0.9], dtype=np.float32)
    assert remaining(scores, frozen, "binary").tolist() == [0, 0, 1]
    differences = np.log([[3.0, 1.0, 0.25]])[0]  # odds
    assert remaining(frozen + differences, frozen, "ranking") == pytest.approx([0.75, 0.5, 0.2], abs=1e-6)


def test_when_it_ends() -> None:
    rule = dataclasses.replace(CONFIG, stop_at=0.25, stop_distance=0.1)

    def why(*removals: float, distance: float = 0.05) -> str | None:
        lines: list[dict[str, float]] = []
        for i, value in enumerate(removals):
            lines += [{"step": 2 * i + 1, "loss": 1.0}, {"step": 2 * i + 2, "loss": 1.0}]
            lines += [{"step": 2 * i + 2, "removal": value, "distance": distance if i == len(removals) - 1 else 0.0}]
        return ending(lines, rule)

    assert [why(), why(0.25), why(0.2, 0.5, 0.2), why(0.5, 0.26, 0.2)] == [None] * 4
    assert why(0.5, 0.25, 0.2) == "removal"
    assert why(0.5, distance=0.11) == why(0.2, 0.2, distance=0.11) == "distance"
    assert ending([{"step": 1, "removal": 0.0}] * 2, CONFIG) is None
    with pytest.raises(UsageError, match="--stop-at and --stop-distance go by what validation finds: give --validate-every"):
        SDDConfig(stop_at=0.1)
    with pytest.raises(UsageError, match="--stop-distance is 0"):
        SDDConfig(stop_distance=0.0, validate_every=1)


# --- on a model ---


def test_stand_in_weights_give_the_pictures_of_the_cleaned_model(sd: StableDiffusion, tmp_path: Path) -> None:
    weights = train(sd, Run.start(tmp_path, "erase", "x", {}), CONFIG).weights
    about = {"base": sd.content, "method": "sdd-context", "concepts": "[]"}
    one, two, plain = (
        [np.asarray(image) for image in sample(model, ["a cat"], [3], steps=3, weights=given)]
        for model, given in ((sd, weights), (apply(sd, Erasure(weights, about)), None), (sd, None))
    )
    assert np.array_equal(one, two)
    assert not np.array_equal(one, plain)


@pytest.fixture(scope="module")
def found(sd: StableDiffusion, backbone: ClipBackbone, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A training that nobody looks at, and a reward that its teacher's pictures keep in the first step and have lost after it."""
    plain = train(sd, Run.start(tmp_path_factory.mktemp("run"), "erase", "x", {}), CONFIG)
    training = erase_context(sd, REMOVAL, CONFIG)
    weights = [None, *(next(training).state()["teacher"] for _ in range(4))]
    seeds = [FIRST_SEED + i for i in range(4)]
    pictures = [list(sample(sd, ["a cat", "a dog", "a hat", "a hat"], seeds, weights=w))[:2] for w in weights]
    x = backbone.images([picture for both in pictures for picture in both]).astype(np.float64)
    direction = np.linalg.pinv(x - x.mean(0), rcond=1e-6) @ np.array([1, 1, 1, 1, -1, -1, -1, -1, -1, -1])
    apart = reward(backbone, direction, x.mean(0).astype(np.float32))
    assert (apart.score_embeddings(x) > 0.5).tolist() == [True] * 4 + [False] * 6
    return plain, apart


def test_looking_changes_nothing(sd: StableDiffusion, backbone: ClipBackbone, found: Any, tmp_path: Path) -> None:
    """Bit for bit, with rewards and without; and the figures are those of what was drawn."""
    plain, apart = found
    run = Run.start(tmp_path, "erase", "x", {})
    result = train(sd, run, CONFIG, [apart, apart])
    assert all(torch.equal(value, result.weights[name]) for name, value in plain.weights.items())
    assert result.evaluations == plain.evaluations
    lines = [line for line in run.metrics() if "removal" in line]
    assert [(line["step"], line["removal_frozen"]) for line in lines] == [(2, 1.0), (4, 1.0)]
    assert lines[0]["removal"] == 0
    pictures = [
        backbone.images(list(sample(sd, ["a hat"] * 2, [FIRST_SEED + 2, FIRST_SEED + 3], weights=w)))
        for w in (None, result.weights)
    ]
    assert lines[1]["distance"] == pytest.approx(float(np.mean(1 - (pictures[0] * pictures[1]).sum(1))), abs=1e-6)
    assert lines[1]["distance"] > 0
    sheets = sorted((run.path / "validation").iterdir())
    assert [path.name for path in sheets] == ["00002.png", "00004.png"]
    with Image.open(sheets[0]) as one, Image.open(sheets[1]) as two:
        assert one.size == two.size
        assert one.height > 6 * 16  # frozen, student and teacher, of both kinds of prompts

    run = Run.start(tmp_path, "erase", "grids", {})
    result = train(sd, run, CONFIG, [])
    assert all(torch.equal(value, result.weights[name]) for name, value in plain.weights.items())
    assert not [line for line in run.metrics() if "removal" in line]
    assert len(list((run.path / "validation").iterdir())) == 2


def test_a_ranking_starts_at_one_half(sd: StableDiffusion, found: Any, tmp_path: Path) -> None:
    _, apart = found
    ranking = reward(apart.backbone, np.zeros(apart.backbone.width), np.zeros(apart.backbone.width, np.float32), binary=False)
    run = Run.start(tmp_path, "erase", "x", {})
    train(sd, run, dataclasses.replace(CONFIG, steps=1), [ranking, ranking])
    assert [(line["removal"], line["removal_frozen"]) for line in run.metrics() if "removal" in line] == [(0.5, 0.5)]


def test_a_run_ends_by_its_figures_also_after_a_kill(
    sd: StableDiffusion, found: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, apart = found
    config = dataclasses.replace(CONFIG, steps=60, validate_every=1, stop_at=0.0)
    whole, cut = (Run.start(tmp_path, "erase", name, {}) for name in ("whole", "cut"))
    first = train(sd, whole, config, [apart, apart])
    seen = [line for line in whole.metrics() if "removal" in line]
    assert [(line["step"], line["removal"]) for line in seen] == [(1, 1.0), (2, 0.0), (3, 0.0)]

    for last in (2, len(seen)):  # killed in the second step, and when it was to end
        log: Callable[..., None] = Run.log

        def killed(run: Run, last: int = last, log: Callable[..., None] = log, **values: Any) -> None:
            log(run, **values)
            if "removal" in values and values["step"] == last:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Run, "log", killed)
            with pytest.raises(KeyboardInterrupt):
                train(sd, cut, config, [apart, apart])
    second = train(sd, cut, config, [apart, apart])
    assert cut.metrics() == whole.metrics()
    assert all(torch.equal(value, second.weights[name]) for name, value in first.weights.items())


def test_what_the_frozen_model_does_not_show_cannot_end_a_run(sd: StableDiffusion, found: Any, tmp_path: Path) -> None:
    _, apart = found
    blind = reward(apart.backbone, np.zeros(apart.backbone.width), np.zeros(apart.backbone.width, np.float32))
    with pytest.raises(HfiError, match="the untouched model's pictures show as little of it"):
        train(sd, Run.start(tmp_path, "erase", "x", {}), dataclasses.replace(CONFIG, stop_at=0.0), [blind, blind])

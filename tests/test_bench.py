"""The benchmark measures what it says: its plain loops are the same algorithms as ours, and its numbers are right."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import saved

from hfi.bench import speed
from hfi.bench.arm import measure
from hfi.bench.models import _tokenizer, build, networks
from hfi.bench.reference import invert_reference, sdd_reference
from hfi.bench.speed import Arm, SpeedConfig, arms, run, table
from hfi.diffusion.sd import encode_images, encode_prompts, load_sd
from hfi.erase.removal import Removal
from hfi.erase.sdd import SDDConfig, erase_sdd
from hfi.errors import HfiError
from hfi.invert.train import Examples, InvertConfig, invert

SMALL = {"size": "tiny", "steps": 2, "batch_size": 3, "ddim_steps": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


# --- the plain loops ---


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_plain_inversion_has_our_losses(root: Path, kind: str) -> None:
    sd = load_sd(saved(root, kind))
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (*sd.image_size, 3), dtype=np.uint8)) for _ in range(4)]
    weights, prompts = torch.tensor([0.4, 0.8, 1.2, 1.6]), ["a cat", "a dog", "a cat", "hat"]
    config = InvertConfig(steps=4, batch_size=3, learning_rate=0.05, weight_decay=0.1, vectors=2, error="prediction")
    mean, std = encode_images(sd, images)
    ours = [step.loss for step in invert(sd, [Examples("<hfi>", "cat dog", mean, std, weights, prompts)], config)]
    plain = list(invert_reference(sd, images, weights, prompts, "<hfi>", "cat dog", config))
    assert plain == pytest.approx(ours, rel=1e-4)
    assert len(set(plain)) == 4


@pytest.mark.parametrize("null", ["student", "frozen"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_plain_sdd_has_our_losses(root: Path, kind: str, null: Any) -> None:
    config = SDDConfig(steps=4, batch_size=2, ddim_steps=4, learning_rate=1e-2, ema_decay=0.5, null=null, timesteps="beta")
    ours = [step.loss for step in erase_sdd(load_sd(saved(root, kind)), Removal(["cat", "dog"]), config)]
    plain = list(sdd_reference(load_sd(saved(root, kind)), ["cat", "dog"], config))
    assert plain == pytest.approx(ours, rel=1e-4)
    assert len(set(plain)) == 4


# --- the models ---


def test_sd14_has_the_published_sizes() -> None:
    counts = [sum(p.numel() for p in part.parameters()) for part in networks("sd14", 64, _tokenizer(49408, 77))]
    assert counts == [859_520_964, 83_653_863, 123_060_480]


def test_a_model_is_the_same_in_either_precision_and_computes() -> None:
    full, half = (build("tiny", 8, dtype, torch.device("cpu")) for dtype in (torch.float32, torch.bfloat16))
    for a, b in ((full.unet, half.unet), (full.vae, half.vae), (full.text_encoders[0], half.text_encoders[0])):
        for name, value in a.state_dict().items():
            assert torch.equal(value.to(torch.bfloat16), b.state_dict()[name].to(torch.bfloat16)), name
    states = encode_prompts(full, ["a b", "b a"]).states
    assert torch.isfinite(states).all()
    assert not torch.allclose(states[0], states[1])


# --- what is measured ---


def measurement(arm: Arm, config: SpeedConfig) -> tuple[list[float], dict[str, Any]]:
    *steps, result = measure(arm, config)
    return [step["loss"] for step in steps], result


def test_evaluations_are_counted_whoever_computes_them() -> None:
    config = SpeedConfig(**SMALL)  # type: ignore[arg-type]
    (plain, one), (ours, two) = (measurement(Arm(command="erase", by=by), config) for by in ("reference", "hfi"))
    assert plain == pytest.approx(ours, rel=1e-4)
    assert one["evaluations"] == two["evaluations"]
    generator, expected = torch.Generator().manual_seed(0), []
    for _ in range(3):  # for each latent two evaluations a teacher step, and two of the student
        torch.randn(3, 4, 8, 8, generator=generator)
        torch.multinomial(torch.ones(1), 3, replacement=True, generator=generator)
        stops = torch.multinomial(torch.full((4,), 0.25, dtype=torch.float64), 3, replacement=True, generator=generator)
        expected.append(int(2 * stops.sum()) + 6)
    assert [one["first_evaluations"], *one["evaluations"]] == expected
    for by in ("reference", "hfi"):
        assert measurement(Arm(command="invert", by=by), config)[1]["evaluations"] == [3, 3]


def test_staggered_rollouts_cost_two_evaluations_a_latent_and_none_at_a_restart() -> None:
    """Three latents at steps 0, 1, 2 of 4; the third reaches its last step, 3, in the first update and starts again in the second."""
    _, found = measurement(Arm(command="erase", by="hfi", rollouts="staggered"), SpeedConfig(**SMALL))  # type: ignore[arg-type]
    assert found["first_evaluations"] == 2 * (0 + 1 + 2) + 6 + 6  # filling the pool, the student, moving on
    assert found["evaluations"] == [6 + 4, 6 + 4]


def test_light_loops_run_with_their_options() -> None:
    config = SpeedConfig(**SMALL, gradient_checkpointing=True, attention_slicing=True)  # type: ignore[arg-type]
    light = [arm for arm in arms(config) if arm.precision == "bfloat16"]
    assert [arm.label for arm in light] == [
        "hfi --precision bfloat16 --gradient-checkpointing --attention-slicing",
        "hfi --rollouts staggered --precision bfloat16 --gradient-checkpointing --attention-slicing",
    ]
    for arm in light:
        plain = Arm(command=arm.command, by="hfi", rollouts=arm.rollouts)
        losses = [measurement(a, config)[0] for a in (plain, arm)]
        assert losses[1] == pytest.approx(losses[0], rel=0.1)
        assert losses[1] != losses[0]


def test_ratios_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    def canned(arm: Arm, config: SpeedConfig) -> Iterator[dict[str, Any]]:
        ours = arm.by == "hfi"
        fresh = arm.command == "erase" and arm.rollouts == "fresh"
        machine = {"device": "cpu", "threads": 1, "torch": "2", "unet_parameters": 1_000_000}
        yield {"loss": 1.0}
        yield {
            "seconds": [9.0, 1.0, 2.0], "cpu_seconds": [1.0, 4.0, 2.0] if ours else [3.0, 3.0, 7.0],
            "evaluations": [2000, 2500, 3000] if fresh else [200, 200, 200], "peak": 2**30 if ours else 2**32, "cuda_peak": None,
            "machine": machine,
        }  # fmt: skip

    monkeypatch.setattr(speed, "lines", canned)
    result = json.loads(json.dumps(run(SpeedConfig(steps=3, size="tiny", command="erase"))))
    assert result["settings"]["latent_size"] == 8
    assert [row["label"] for row in result["rows"]] == [
        "reference", "hfi", "hfi --rollouts staggered", "hfi --rollouts staggered --precision bfloat16"
    ]  # fmt: skip
    got = [[row[key] for key in ("seconds_per_step", "faster", "fewer_evaluations", "memory")] for row in result["rows"]]
    assert got == [[2, 1, 1, 1], [2, 1.5, 1, 0.25], [2, 1.5, 12.5, 0.25], [2, 1.5, 12.5, 0.25]]
    words = table(result)
    assert "12.5x" in words and "1.50x" in words and "2000, 2500, 3000" in words


def test_the_command_measures_in_processes_of_their_own(hfi: Any) -> None:
    done = hfi("bench", "speed", "--size", "tiny", "--steps", "1", "--command", "invert", "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert [row["label"] for row in result["rows"]] == ["reference", "hfi", "hfi --precision bfloat16"]
    for row in result["rows"]:
        assert len(row["seconds"]) == len(row["cpu_seconds"]) == len(row["evaluations"]) == 1
        assert row["evaluations_per_sample"] == 1
        assert 0 < row["peak"] < 2**30  # without the imports, which take less than that but much more than this model
        assert row["faster"] > 0
    assert {"device", "threads", "torch"} <= set(result["machine"])


def test_a_loop_that_fails_is_named_with_its_reason() -> None:
    with pytest.raises(HfiError, match="erase by hfi: 1000 sampling steps: this model takes 1 to 999"):
        speed.measured(Arm(command="erase", by="hfi"), SpeedConfig(size="tiny", ddim_steps=1000), lambda *_: None)


def test_a_loop_that_dies_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed.sys, "executable", "false")
    with pytest.raises(HfiError, match="erase by hfi: it ended without a result"):
        speed.measured(Arm(command="erase", by="hfi"), SpeedConfig(size="tiny"), lambda *_: None)

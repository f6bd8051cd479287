"""All loops in one run, each in a process of its own, so that the peak memory of one is not that of another."""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from hfi.config import check, option
from hfi.errors import HfiError
from hfi.progress import Advance, progress

LATENTS = {"tiny": 8, "portraits": 16, "sd14": 64}  # each size's own
COUNTED_STEPS = 2  # of as many latents as a rollout has steps, over which evaluations are counted


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    size: Literal["tiny", "portraits", "sd14"] = option(
        "portraits", "the random model: sd14 has Stable Diffusion 1.4's architecture"
    )
    command: Literal["invert", "erase", "both"] = option("both", "whose loops are measured")
    steps: int = option(5, "timed steps of each loop, after one to warm up", low=1)
    batch_size: int = option(1, "images or latents in one step", low=1)
    latent_size: int | None = option(
        None, "height and width of the latents, for a bearable run (default: the model's own)", low=8
    )
    ddim_steps: int = option(50, "steps of a whole rollout", low=2)
    device: Literal["cpu", "cuda"] = option("cpu", "where the loops run")
    gradient_checkpointing: bool = option(False, "of our bfloat16 loops")
    attention_slicing: bool = option(False, "of our bfloat16 loops")
    seed: int = option(0, "seed of inputs and of the loops", low=0)

    def __post_init__(self) -> None:
        check(self)

    @property
    def latent(self) -> int:
        return self.latent_size or LATENTS[self.size]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One loop: `by` is 'reference' (reference.py) or 'hfi'."""

    command: str
    by: str
    rollouts: str = "fresh"
    precision: str = "float32"
    gradient_checkpointing: bool = False
    attention_slicing: bool = False

    @property
    def label(self) -> str:
        """The options that give this loop."""
        words = [self.by]
        words += [f"--rollouts {self.rollouts}"] * (self.rollouts != "fresh")
        words += [f"--precision {self.precision}"] * (self.precision != "float32")
        words += ["--gradient-checkpointing"] * self.gradient_checkpointing
        words += ["--attention-slicing"] * self.attention_slicing
        return " ".join(words)


def arms(config: SpeedConfig) -> list[Arm]:
    """The reference first, then ours with one change after the other."""
    light: Any = {
        "precision": "bfloat16",
        "gradient_checkpointing": config.gradient_checkpointing,
        "attention_slicing": config.attention_slicing,
    }
    found = [
        Arm(command="invert", by="reference"),
        Arm(command="invert", by="hfi"),
        Arm(command="invert", by="hfi", **light),
        Arm(command="erase", by="reference"),
        Arm(command="erase", by="hfi"),
        Arm(command="erase", by="hfi", rollouts="staggered"),
        Arm(command="erase", by="hfi", rollouts="staggered", **light),
    ]
    return [arm for arm in found if config.command in (arm.command, "both")]


def run(config: SpeedConfig) -> dict[str, Any]:
    """Measures every arm: the settings, the machine, and a row for each arm with its ratios to the reference: how many times
    faster (on a CPU in processor time, which other programs do not lengthen), how many times fewer evaluations, and its share of
    the memory."""
    chosen = arms(config)
    counts: dict[tuple[str, str], float] = {}
    rows: list[dict[str, Any]] = []
    machine: dict[str, Any] = {}
    tiny = SpeedConfig(
        size="tiny", steps=COUNTED_STEPS, batch_size=config.ddim_steps, ddim_steps=config.ddim_steps, seed=config.seed
    )
    counted = list({(a.by, a.rollouts): replace(a, precision="float32") for a in chosen if a.command == "erase"}.values())
    total = len(counted) * (tiny.steps + 1) + len(chosen) * (config.steps + 1)
    with progress("benchmark", total, "steps") as advance:
        for arm in counted:  # how long a rollout is, is drawn: a few timed steps would not tell, and any network does
            found = measured(arm, tiny, advance)
            counts[arm.by, arm.rollouts] = statistics.mean(found["evaluations"]) / tiny.batch_size
        for arm in chosen:
            found = measured(arm, config, advance)
            machine = found.pop("machine")
            own = statistics.mean(found["evaluations"]) / config.batch_size
            row = {
                **asdict(arm),
                "label": arm.label,
                "seconds_per_step": statistics.median(found["seconds"]),
                "cpu_seconds_per_step": statistics.median(found["cpu_seconds"]),
                "evaluations_per_sample": counts[arm.by, arm.rollouts] if arm.command == "erase" else own,
                **found,
            }
            first = next((r for r in rows if r["command"] == arm.command), row)
            speed, memory = ("seconds_per_step", "cuda_peak") if config.device == "cuda" else ("cpu_seconds_per_step", "peak")
            row["faster"] = first[speed] / row[speed]
            row["fewer_evaluations"] = first["evaluations_per_sample"] / row["evaluations_per_sample"]
            row["memory"] = row[memory] / first[memory]
            rows.append(row)
    settings = {**asdict(config), "latent_size": config.latent, "counted_samples": tiny.steps * tiny.batch_size}
    return {"settings": settings, "machine": machine, "rows": rows}


def measured(arm: Arm, config: SpeedConfig, advance: Advance) -> dict[str, Any]:
    """What arm.py found, in a process of its own. HfiError where that ends without a result, as when memory runs out."""
    last: dict[str, Any] = {}
    for last in lines(arm, config):
        if "loss" in last:
            advance(1, f"{arm.command} {arm.label}")
    if "seconds" not in last:
        why = last.get(
            "error", "it ended without a result (out of memory?): give a smaller --size, --latent-size or --batch-size"
        )
        raise HfiError(f"{arm.command} by {arm.label}: {why}")
    return last


def lines(arm: Arm, config: SpeedConfig) -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-m", "hfi.bench.arm", json.dumps(asdict(arm)), json.dumps(asdict(config))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                yield json.loads(line)
        finally:
            process.kill()


def table(result: dict[str, Any]) -> str:
    """For people. Ratios are to the reference in the first row of each command."""
    s, m = result["settings"], result["machine"]
    on = f"{m['device']}, {m['threads']} threads, torch {m['torch']}"
    out = [
        f"random {s['size']} model, U-Net of {m['unet_parameters'] / 1e6:.1f} M parameters, latents {s['latent_size']}x"
        f"{s['latent_size']}, batch {s['batch_size']}, {s['ddim_steps']} DDIM steps; {on}",
        f"median of {s['steps']} steps after one; evaluations of the U-Net per gradient sample, over {s['counted_samples']} samples",
    ]
    memory = "cuda_peak" if s["device"] == "cuda" else "peak"
    width = max(len(row["label"]) for row in result["rows"])
    for command in dict.fromkeys(row["command"] for row in result["rows"]):
        head = ("s/step", "cpu s", "faster", "evals", "fewer", "peak GiB", "share")
        out += ["", f"{command:<{width}}" + "".join(f"{word:>10}" for word in head)]
        for row in (r for r in result["rows"] if r["command"] == command):
            values = (
                f"{row['seconds_per_step']:.3g}", f"{row['cpu_seconds_per_step']:.3g}", f"{row['faster']:.2f}x",
                f"{row['evaluations_per_sample']:.1f}",
                f"{row['fewer_evaluations']:.1f}x", f"{row[memory] / 2**30:.2f}", f"{row['memory']:.2f}",
            )  # fmt: skip
            out.append(f"{row['label']:<{width}}" + "".join(f"{value:>10}" for value in values))
    if fresh := next((r for r in result["rows"] if r["command"] == "erase" and r["rollouts"] == "fresh"), None):
        out += ["", f"the timed fresh rollouts took {', '.join(map(str, fresh['evaluations']))} evaluations a step"]
    return "\n".join(out)

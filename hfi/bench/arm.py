"""Measures one loop in this process, which does nothing else: python -m hfi.bench.arm ARM CONFIG, both JSON.

Prints a JSON line for each step, then one with what was measured. Memory is the peak of this process less what the imports took.
"""

import json
import sys
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image

from hfi.bench.models import build
from hfi.bench.reference import invert_reference, sdd_reference
from hfi.bench.speed import Arm, SpeedConfig
from hfi.diffusion.memory import PRECISIONS, lighten
from hfi.diffusion.sd import StableDiffusion, encode_images, pick_device
from hfi.erase.removal import Removal
from hfi.erase.sdd import SDDConfig, erase_sdd
from hfi.errors import HfiError
from hfi.invert.train import Examples, InvertConfig, invert
from hfi.resources import process_memory

IMAGES = 8
PROMPTS = ("a s a i l o r", "a m a n")  # the tokenizer has letters only
CONCEPTS = ("s m o k e",)


def losses(arm: Arm, config: SpeedConfig, sd: StableDiffusion) -> Iterator[float]:
    """The loss of each step, the first to warm up. One step more than is measured: a pool is not moved on after the last."""
    common: Any = {"steps": config.steps + 2, "batch_size": config.batch_size, "seed": config.seed}
    if arm.command == "invert":
        rng = np.random.default_rng(config.seed)
        images = [Image.fromarray(rng.integers(0, 256, (*sd.image_size, 3), dtype=np.uint8)) for _ in range(IMAGES)]
        weights, prompts = torch.linspace(0.5, 1.5, IMAGES), [PROMPTS[i % len(PROMPTS)] for i in range(IMAGES)]
        inversion = InvertConfig(**common)
        if arm.by == "reference":
            yield from invert_reference(sd, images, weights, prompts, "<hfi>", CONCEPTS[0], inversion)
        else:
            mean, std = encode_images(sd, images)
            for step in invert(sd, [Examples("<hfi>", CONCEPTS[0], mean, std, weights.to(mean), prompts)], inversion):
                yield step.loss
    else:
        erasure = SDDConfig(**common, ddim_steps=config.ddim_steps, rollouts=arm.rollouts)  # type: ignore[arg-type]
        if arm.by == "reference":
            yield from sdd_reference(sd, CONCEPTS, erasure)
        else:
            for step in erase_sdd(sd, Removal(CONCEPTS, ((),)), erasure):
                yield step.loss


def measure(arm: Arm, config: SpeedConfig) -> Iterator[dict[str, Any]]:
    imported = process_memory()
    device = pick_device(config.device)
    sd = build(config.size, config.latent, PRECISIONS[arm.precision], device)
    lighten(sd.unet, gradient_checkpointing=arm.gradient_checkpointing, attention_slicing=arm.attention_slicing)
    evaluated = [0]

    def count(module: Any, args: tuple[Any, ...], out: Any) -> None:  # copies of the network keep it, and count here too
        evaluated[0] += len(args[0])

    sd.unet.register_forward_hook(count)
    seconds: list[float] = []
    cpu_seconds: list[float] = []
    evaluations: list[int] = []
    then, cpu_then = time.perf_counter(), time.process_time()
    for loss in islice(losses(arm, config, sd), config.steps + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - then)
        cpu_seconds.append(time.process_time() - cpu_then)
        evaluations.append(evaluated[0])
        yield {"loss": loss}
        evaluated[0], then, cpu_then = 0, time.perf_counter(), time.process_time()
    yield {
        "seconds": seconds[1:],
        "cpu_seconds": cpu_seconds[1:],
        "evaluations": evaluations[1:],
        "first_seconds": seconds[0],
        "first_evaluations": evaluations[0],
        "peak": process_memory() - imported,
        "cuda_peak": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        "machine": {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "unet_parameters": sum(p.numel() for p in sd.unet.parameters()),
        },
    }


def main() -> None:
    try:
        for line in measure(Arm(**json.loads(sys.argv[1])), SpeedConfig(**json.loads(sys.argv[2]))):
            print(json.dumps(line), flush=True)
    except HfiError as e:
        print(json.dumps({"error": str(e)}), flush=True)


if __name__ == "__main__":
    main()

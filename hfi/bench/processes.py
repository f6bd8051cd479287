"""What several processes on one machine's cores are worth for generation: as many images by one process and by several.

python -m hfi.bench.processes CONFIG, alone or under torchrun, samples the images of a random model as `hfi generate` does, and prints
how long that took, without what came before: imports, the model, and a first batch in every process.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hfi.config import check, option
from hfi.distributed import barrier, from_main, in_turn, is_main, mine
from hfi.errors import HfiError


@dataclass(frozen=True, kw_only=True)
class ProcessesConfig:
    processes: int = option(2, "processes beside one", low=2)
    size: Literal["tiny", "portraits", "sd14"] = option("portraits", "the random model, as for 'hfi bench speed'")
    images: int = option(128, "images in all", low=1)
    batch_size: int = option(8, "images sampled together", low=1)
    steps: int = option(25, "DDIM steps", low=1)

    def __post_init__(self) -> None:
        check(self)


def run(config: ProcessesConfig) -> list[dict[str, Any]]:
    """One process with one core's thread, one with a thread for every core, and several that share the cores: seconds, images a second,
    how many times as fast as each of the others, and whether the images are those of the first, byte for byte."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    arms = dict.fromkeys([(1, 1), (1, cores), (config.processes, max(1, cores // config.processes))])
    rows: list[dict[str, Any]] = []
    for processes, threads in arms:
        found = _launch(config, processes, threads)
        row = {"processes": processes, "threads": threads, "images_per_second": config.images / found["seconds"], **found}
        row["times"] = [row["images_per_second"] / other["images_per_second"] for other in rows]
        row["same_bytes"] = found["sha256"] == (rows[0] if rows else row)["sha256"]
        rows.append(row)
    return rows


def _launch(config: ProcessesConfig, processes: int, threads: int) -> dict[str, Any]:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["-m", "hfi.bench.processes", json.dumps(asdict(config))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if done.returncode:
        raise HfiError(
            f"the run of {processes} process{'es' * (processes > 1)} ended without a result, see the lines above; if memory ran out, "
            "give fewer --processes or a smaller --batch-size"
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(config: ProcessesConfig) -> dict[str, Any]:
    import torch

    from hfi.bench.models import SIZES, build
    from hfi.diffusion.sample import sample
    from hfi.images import png

    sd = build(config.size, SIZES[config.size].latent, torch.float32, torch.device("cpu"))

    def made(seeds: list[int]) -> Iterator[bytes]:
        look: dict[str, Any] = {"steps": config.steps, "batch_size": config.batch_size}
        return (png(image) for image in sample(sd, ["a"] * len(seeds), seeds, **look))

    numbers = list(range(config.images))
    batches = [numbers[i : i + config.batch_size] for i in range(0, config.images, config.batch_size)]
    list(made(batches[0]))
    barrier()
    begun = time.monotonic()
    total = hashlib.sha256()
    for picture in in_turn(batches, made([n for batch in mine(batches) for n in batch])):
        total.update(picture)
    seconds = time.monotonic() - begun
    return from_main(lambda: {"seconds": seconds, "sha256": total.hexdigest()})


def table(rows: list[dict[str, Any]]) -> str:
    """For people."""
    out = []
    for row in rows:
        who = f"{row['processes']} process{'es' * (row['processes'] > 1)} of {row['threads']} thread{'s' * (row['threads'] > 1)}"
        line = f"{who:<28}{row['images_per_second']:>8.2f} images/s"
        line += "".join(f"   {times:.2f}x of row {i}" for i, times in enumerate(row["times"], 1))
        out.append(line + ("" if row is rows[0] else f"   bytes {'equal' if row['same_bytes'] else 'differ'}"))
    return "\n".join(out)


if __name__ == "__main__":
    result = measure(ProcessesConfig(**json.loads(sys.argv[1])))
    if is_main():
        print(json.dumps(result))

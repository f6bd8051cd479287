"""What a benchmark's systems cost: changing weights once, and every image.

An erasure's cost is what its run says: all its steps, in a process of its own (`hfi bench` runs it so). An image's cost depends on
the kind of sampling alone, as an erased model is a model like any other; each kind is measured in a process of its own too:
`python -m hfi.bench.costs JSON`.
"""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from hfi.bench.tables import Bench, Entry
from hfi.diffusion.memory import PRECISIONS, peak_memory
from hfi.diffusion.sample import sample
from hfi.diffusion.sd import load_sd
from hfi.errors import HfiError
from hfi.files import write_text
from hfi.guide import guidance
from hfi.progress import progress
from hfi.runs import Run

_TIMED = 3.0  # seconds of batches: a GPU's are too quick for one to say much
_MOST = 20  # batches


@dataclass(frozen=True)
class Sampling:
    """A kind of sampling; `texts` are what it leads away from."""

    model: str
    device: str
    precision: str
    steps: int
    guidance_scale: float
    batch_size: int
    guide: str | None = None
    texts: tuple[str, ...] = ()


def costs(bench: Bench) -> list[dict[str, Any]]:
    """A line for each system of each table; those of samplings that are there already are not measured again."""
    path = bench.path / "costs.json"
    held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    samplings: dict[str, Any] = held.get("samplings", {})
    entries = [entry for table in bench.plan.tables for entry in bench.entries(table)]
    wanted = dict.fromkeys(_sampling(bench, entry) for entry in entries)
    missing = [s for s in wanted if _key(s) not in samplings]
    if missing:
        with progress("measuring costs", len(missing), "samplings") as advance:
            for sampling in missing:
                samplings[_key(sampling)] = _measured(sampling)
                write_text(path, json.dumps({"samplings": samplings}) + "\n")
                advance(1, sampling.guide or "plain")
    lines = [{**_erased(bench, entry), **samplings[_key(_sampling(bench, entry))]} for entry in entries]
    write_text(path, json.dumps({"systems": lines, "samplings": samplings}, indent=2) + "\n")
    return lines


def _sampling(bench: Bench, entry: Entry) -> Sampling:
    m = bench.plan.measure
    plain = Sampling(bench.plan.model, str(bench.device), m.precision, m.steps, m.guidance_scale, m.batch_size)
    words = tuple(concept.text for concept in entry.table.concepts)
    return replace(plain, guide=entry.method, texts=words) if entry.guide else plain


def _key(sampling: Sampling) -> str:
    return json.dumps(asdict(sampling), sort_keys=True)


def _erased(bench: Bench, entry: Entry) -> dict[str, Any]:
    line: dict[str, Any] = {"table": entry.table.name, "method": entry.method, "conditioning": entry.conditioning}
    line["image_evaluations"] = bench.plan.measure.steps * (1 if bench.plan.measure.guidance_scale == 1 else entry.evaluations)
    if entry.erasure:
        run = Run(bench.space.runs / "erase" / bench.erasure(entry.table, entry.method, entry.conditioning))
        cost = run.cost()
        line |= {"erase_seconds": cost["seconds"], "erase_peak_memory": cost["peak_memory"]}
        line["erase_evaluations"] = run.result()["unet_evaluations"]
    return line


def _measured(sampling: Sampling) -> dict[str, Any]:
    command = [sys.executable, "-m", "hfi.bench.costs", json.dumps(asdict(sampling))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise HfiError(f"the cost of {sampling.guide or 'plain'} sampling was not measured: see the lines above")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(sampling: Sampling) -> dict[str, Any]:
    """The median of batches after one to warm up: one, or as many as fit into `_TIMED` seconds where they are quick."""
    sd = load_sd(sampling.model, sampling.device, PRECISIONS[sampling.precision])
    n = sampling.batch_size
    look: dict[str, Any] = {"steps": sampling.steps, "guidance_scale": sampling.guidance_scale, "batch_size": n}
    if sampling.guide:
        look["guidance"] = guidance(sampling.guide, sampling.texts)
    images = sample(sd, ["a picture"] * (_MOST * n), list(range(_MOST * n)), **look)
    begun = time.monotonic()
    times = []
    for _ in range(_MOST):
        next(images)  # a batch is made when its first image is asked for
        times.append(time.monotonic() - begun)
        if len(times) > 1 and sum(times[1:]) >= _TIMED:
            break
        for _ in range(n - 1):
            next(images)
        begun = time.monotonic()
    return {"image_seconds": statistics.median(times[1:]) / n, "image_peak_memory": peak_memory(), "batch_size": n}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    try:
        print(json.dumps(measure(Sampling(**{**given, "texts": tuple(given["texts"])}))))
    except HfiError as e:
        print(f"hfi: error: {e}", file=sys.stderr)
        sys.exit(e.exit_code)

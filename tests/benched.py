"""A benchmark of three concepts whose images are there already, and its page."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hfi.bench.page import render
from hfi.bench.plan import Plan, read_plan
from hfi.bench.tables import Bench
from hfi.diffusion.tokens import LearnedToken
from hfi.evaluate import System, evaluate
from hfi.prompts import Prompt
from hfi.resources import data_dir
from hfi.results import write_results
from hfi.workspace import Workspace


class Green:
    """Sees the concept in everything."""

    name, version, threshold = "green", "1", 0.5

    def __call__(self, images):  # type: ignore[no-untyped-def]
        return {"a+b": np.ones(len(images), dtype=np.float32)}


def planned(plan: Plan, path: Path) -> Bench:
    """At `path`, with tokens of zeros."""
    tokens = {c.slug: LearnedToken(f"<{c.slug}>", (torch.zeros(1, 4),)) for c in plan.concepts}
    return Bench(plan, Workspace(path), "b", "", "cpu", {}, None, None, None, tokens, {})


def benchmark_page(path: Path) -> str:
    """Of the untouched model and every guide of data/bench/portraits.toml; `path` is an empty folder."""
    plan = read_plan(data_dir() / "bench" / "portraits.toml")
    systems = []
    for entry in planned(plan, path).entries(plan.tables[2]):
        if entry.erasure is None:
            images = [Image.new("RGB", (8, 8), (40 * i, 90, 10)) for i in range(3)]
            settings = entry.guide.settings if entry.guide else {}
            judges = [{"sha256": "a", "judgments": 30, "people": 1, "simulated": 3}] if entry.conditioning == "token" else []
            systems.append(System(entry.method, entry.conditioning, {"implicit": images}, settings, judges))
    folder = path / "run"
    prompts = {"implicit": [Prompt(f"p{i}") for i in range(3)]}
    rows = evaluate(systems, "a+b", prompts, folder / "together", detector=Green(), backbone=None)
    rows = [replace(row, concept="together") for row in rows]
    rows += [replace(row, prompt_set=f"relapse-{n}") for row in rows for n in ("0300", "1000") if row.metric == "concept_rate"]
    write_results(folder / "results.json", rows)
    cost = {"image_evaluations": 40, "image_seconds": 0.1, "image_peak_memory": 2**30, "batch_size": 8}
    lines = [{"table": "together", "method": s.method, "conditioning": s.conditioning, **cost} for s in systems]
    (folder / "costs.json").write_text(json.dumps({"systems": lines}), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps({"hfi": "1", "python": "3", "versions": {}}), encoding="utf-8")
    return render(folder, "Together", ["a note"])

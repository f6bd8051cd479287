"""A workspace that was judged: 36 images, one person who answers by what a CLIP model sees in them, and a reward model."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from tiny import saved

from hfi.cli import main
from hfi.concepts import Concept
from hfi.embed import ClipBackbone
from hfi.store import campaigns, judging, queries
from hfi.store.session import writing
from hfi.workspace import Workspace

PROMPTS = ["--prompt", "a cat", "--prompt", "a dog", "--prompt", "hat", "--prompt", "a dog hat"]


def model_with_clip(root: Path) -> Path:
    """A tiny model at `root` whose folder clip holds a CLIP model."""
    folder = saved(root, "epsilon")
    shutil.copytree(saved(root, "clip"), folder / "clip")
    return folder


def judge(path: Path, model: Path) -> Path:
    """Makes it at `path`, for the concept fog; `model` has a CLIP model in its folder clip. There is a concept mist, not judged."""
    for words in (
        ["init", path],
        ["generate", "-w", path, "-m", model, *PROMPTS, "--images-per-prompt", 9, "--steps", 2, "--batch-size", 36],
    ):
        with pytest.raises(SystemExit) as e:
            main([str(word) for word in words])
        assert not e.value.code
    space = Workspace.open(path)
    engine = space.engine()
    with writing(engine) as s:
        queries.add_concept(s, Concept("fog", "Fog", initial_word="cat", prompt="a dog"))
        queries.add_concept(s, Concept("mist", "Mist", initial_word="cat"))
        images = queries.images(s)
        campaign = campaigns.ensure_campaign(
            s, "fog", "first", image_ids=[i.id for i in images], asking=campaigns.Asking(overlap=1)
        )
        person = queries.ensure_annotator(s, "Ann")
    x = ClipBackbone.load(model / "clip").images([space.images.load(i.sha256) for i in images])
    first = np.linalg.svd(x - x.mean(0), full_matrices=False)[0][:, 0]
    first *= np.sign(first[np.abs(first).argmax()])  # either sign is right
    shows = {i.sha256: value > np.median(first) for i, value in zip(images, first, strict=True)}
    for n in range(len(images)):
        with writing(engine) as s:
            claim = judging.claim_next(s, campaign.id, person.id)
            assert claim is not None
            verdict = "shows" if shows[claim.images[0].sha256] else "clean"
            judging.submit(s, claim.token, person.id, verdict, f"test-{n}")
    with pytest.raises(SystemExit) as e:
        main(["reward", "-w", str(path), "-c", "fog", "--epochs", "200"])
    assert not e.value.code
    with closing(sqlite3.connect(path / "hfi.db")) as database:  # a copy of the folder finds everything in the one file
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path

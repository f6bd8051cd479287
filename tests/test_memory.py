"""Parts that wait in the CPU's memory, and budgets computed from architectures: docs/scaling.md."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.hooks import CpuOffload
from tiny import saved

from hfi.bench import memory
from hfi.concepts import Concept
from hfi.diffusion.memory import offload
from hfi.diffusion.sample import sample
from hfi.diffusion.sd import encode_images, load_sd
from hfi.diffusion.trainable import select
from hfi.erase.erasure import Erasure
from hfi.store import queries
from hfi.store.session import writing
from hfi.workspace import Workspace

GIB = 2**30


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("kind", ["epsilon", "xl"])
def test_offloaded_parts_are_fetched_when_they_are_called(models: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU as far as it goes: the hooks run, and pictures are the same."""
    plain, sd = (load_sd(saved(models, kind)) for _ in range(2))
    called: list[str] = []
    before = CpuOffload.pre_forward

    def noted(self: CpuOffload, module: torch.nn.Module, *args: object, **kwargs: object) -> object:
        called.append(type(module).__name__)
        return before(self, module, *args, **kwargs)

    monkeypatch.setattr(CpuOffload, "pre_forward", noted)
    offload(sd.unet, (*sd.text_encoders, sd.vae), sd.device)
    look = {"prompts": ["a cat", "hat"], "seeds": [1, 2], "steps": 2}
    pictures = [list(sample(each, **look)) for each in (plain, sd)]  # type: ignore[arg-type]
    assert [p.tobytes() for p in pictures[0]] == [p.tobytes() for p in pictures[1]]
    names = {type(part).__name__ for part in (*sd.text_encoders, sd.vae)}
    assert set(called) == names
    called.clear()
    assert torch.equal(encode_images(plain, pictures[0])[0], encode_images(sd, pictures[0])[0])
    assert called == [type(sd.vae).__name__]


def test_offloading_changes_no_result(models: Path, workspace: Workspace, hfi: Callable) -> None:
    """Nor a run's configuration: it goes on with or without."""
    model = saved(models, "epsilon")
    with writing(workspace.engine()) as session:
        queries.add_concept(session, Concept("fog", "Fog"))
    job = ["-w", workspace.path, "-m", model, "-c", "fog", "--text", "a hat", "--steps", 3, "--ddim-steps", 3]
    for name, more in (("plain", []), ("away", ["--cpu-offload"]), ("plain", ["--cpu-offload"])):
        assert hfi("erase", *job, "--name", name, *more).exit_code == 0
    plain, away = (Erasure.load(workspace.erasures / f"{name}.safetensors") for name in ("plain", "away"))
    assert plain.content == away.content
    pictures = ["generate", "-w", workspace.path, "-m", model, "--prompt", "a cat", "--steps", 2]
    assert "1 images made" in hfi(*pictures).stdout
    assert "0 images made, 1 were there already" in hfi(*pictures, "--cpu-offload").stdout
    assert "1 images made" in hfi(*pictures, "--precision", "bfloat16").stdout  # another picture


def test_the_architectures_are_the_published_ones() -> None:
    """Parameters as the model cards' weights have them."""

    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    one, two, xl = (memory.model(family, "bfloat16") for family in memory.UNETS)
    assert [count(sd.unet) for sd in (one, two, xl)] == [859_520_964, 865_910_724, 2_567_463_684]
    assert [count(encoder) for encoder in (*one.text_encoders, *xl.text_encoders)] == [123_060_480, 123_060_480, 694_659_840]
    assert count(one.vae) == 83_653_863
    assert sum(p.numel() for p in select(xl.unet, "xattn").values()) == 545_670_400


def test_tensors_are_counted_as_they_come_and_go() -> None:
    sd = memory.model("SD 1.x", "float32")
    there = torch.empty(256, device="meta")  # 1 KiB, not counted, nor is a view of it

    def work() -> None:
        a = there.view(16, 16) + 1
        b = a * 2
        del a
        c = b.repeat(4, 1)  # with b: 5 KiB
        del b
        c.add_(1)
        c + 1  # 8 KiB

    assert memory.peak(work, sd, there) == 8 * 1024


def test_pictures_are_encoded_beside_less_than_an_update_takes() -> None:
    """What `hfi invert` encodes before it trains: of SDXL on 8 GB it needs the room of the U-Net."""
    (recipe,) = (r for r in memory.RECIPES if (r.family, r.gib, r.command) == ("SDXL", 8, "invert"))
    one = memory.encoding("SDXL", "bfloat16")
    assert 1.2 * GIB < one < 1.3 * GIB
    assert sum(memory.held(recipe)) + one > 7.5 * GIB
    assert one < memory.size_of(memory.model("SDXL", "bfloat16").unet)


def test_the_pages_table_is_what_is_computed() -> None:
    """Each row's weights and trained numbers; the working memory of some rows, as that of all takes a minute."""
    page = (Path(__file__).parent.parent / "docs" / "scaling.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith(("| 1 x", "| 8 x"))]
    assert len(rows) == len(memory.RECIPES) == 34
    for recipe, line in zip(memory.RECIPES, rows, strict=True):
        weights, trained = (f"{x / GIB:.1f}" for x in memory.held(recipe))
        about = f"| {recipe.gpus} x {recipe.gib} GB | {recipe.family} | {recipe.command} | `{recipe.options}` |"
        assert line.startswith(f"{about} {weights} | {trained} |")
        assert float(line.split("|")[-2]) * 1.05 + 0.5 <= recipe.gib  # for gaps and workspaces, and the context
    some = [i for i, r in enumerate(memory.RECIPES) if (r.family == "SD 1.x" and r.gib == 8) or (r.family, r.gib) == ("SDXL", 24)]
    assert len(some) == 8
    for i in some[:6]:
        assert memory.row(memory.RECIPES[i]) == rows[i]

"""hfi doctor of a model: here, in the cache, on a hub that answers, and where none does. The hub is a server of this test, which the
real client asks."""

import json
import os
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file

from hfi.cli.doctor import EXTRAS
from hfi.hub import is_hub_id
from hfi.metrics.detectors import DETECTORS
from hfi.resources import data_dir

ROOT = Path(__file__).parent.parent
SHA = "a" * 40
SIZES = {
    "model_index.json": 500,
    "README.md": 10_000,
    "scheduler/scheduler_config.json": 300,
    "tokenizer/vocab.json": 1_000_000,
    "tokenizer/merges.txt": 500_000,
    "text_encoder/config.json": 600,
    "text_encoder/model.safetensors": 490_000_000,
    "text_encoder/model.fp16.safetensors": 245_000_000,
    "text_encoder/pytorch_model.bin": 490_000_000,
    "unet/config.json": 700,
    "unet/diffusion_pytorch_model.safetensors": 3_400_000_000,
    "unet/diffusion_pytorch_model.non_ema.safetensors": 3_400_000_000,
    "unet/diffusion_pytorch_model.bin": 3_400_000_000,
    "vae/config.json": 500,
    "vae/diffusion_pytorch_model.safetensors": 330_000_000,
    "vae/diffusion_pytorch_model.bin": 330_000_000,
    "safety_checker/model.safetensors": 1_200_000_000,
    "v1-5-pruned.safetensors": 7_700_000_000,
}
WANTED = 500 + 300 + 1_000_000 + 500_000 + 600 + 490_000_000 + 700 + 3_400_000_000 + 500 + 330_000_000


class Hub(BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        known = {"/api/models/owner/model": 200, "/api/models/owner/pickles": 200, "/api/models/owner/gated": 403}
        status = known.get(self.path.partition("?")[0], 404)
        self.send_response(status)
        if status != 200:
            self.send_header("X-Error-Code", "GatedRepo" if status == 403 else "RepoNotFound")
        listed = {name: size for name, size in SIZES.items() if not ("pickles" in self.path and name.endswith("safetensors"))}
        files = [{"rfilename": name, "size": size} for name, size in listed.items()]
        body = json.dumps({"id": "owner/model", "sha": SHA, "siblings": files}).encode()
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *given: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


ASK = """
import json, sys
from hfi.cli.doctor import _model, _network
for model in sys.argv[1:]:
    print(json.dumps([[f.state, f.text] for f in (_network(), *_model(model))]))
"""


def ask(cache: Path, models: list[str], **settings: str) -> list[list[list[str]]]:
    """What doctor finds of each model: a process of its own, as the hub's client reads its settings when it is imported."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    words = [sys.executable, "-c", ASK, *models]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env={**plain, "HF_HOME": str(cache), **settings})
    return [json.loads(line) for line in done.stdout.splitlines()]


def keep(cache: Path, model: str, names: list[str], owner: str = "owner") -> Path:
    """Puts these files into the cache as the hub's client does."""
    folder = cache / "hub" / f"models--{owner}--{model}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(SHA)
    for name in names:
        file = folder / "snapshots" / SHA / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    return folder / "snapshots" / SHA


def test_what_would_be_downloaded_is_said_with_its_size_and_the_room_for_it(hub: str, tmp_path: Path) -> None:
    keep(tmp_path, "model", ["model_index.json", "unet/diffusion_pytorch_model.safetensors"])
    first, gated, unknown, pickles, here = ask(
        tmp_path, ["owner/model", "owner/gated", "owner/no", "owner/pickles", str(data_dir() / "portraits")], HF_ENDPOINT=hub
    )
    state, text = first[1]
    missing = WANTED - 500 - 3_400_000_000
    assert state == "ok"
    assert text.startswith(
        f"owner/model at {SHA[:12]}: 10 files, {WANTED / 1e9:.2f} GB; 8 of them, {missing / 1e9:.2f} GB, would be "
    )
    assert text.endswith(" GB free") and str(tmp_path) in text
    assert gated[1] == ["fault", "the hub gives 'owner/gated' to those who agreed to its terms: agree there, and run 'hf auth login', "
                        "and the cache has nothing of owner/gated"]  # fmt: skip
    assert unknown[1][0] == "fault" and "the hub has no model 'owner/no'" in unknown[1][1]
    assert pickles[1][0] == "fault" and "without weights as safetensors, and pickles are not taken" in pickles[1][1]
    assert here[1][0] == "ok" and here[1][1].endswith("nothing is downloaded")


def test_without_a_network_the_cache_is_looked_at(tmp_path: Path) -> None:
    (found,) = ask(tmp_path, ["owner/model"], HF_ENDPOINT="http://127.0.0.1:9")  # where nobody listens
    assert found[1] == ["fault", "the hub cannot be reached (ConnectError), and the cache has nothing of owner/model"]
    keep(tmp_path, "part", ["model_index.json"])
    shutil.copytree(data_dir() / "portraits", keep(tmp_path, "whole", []))
    part, whole = ask(tmp_path, ["owner/part", "owner/whole"], HF_HUB_OFFLINE="1")
    assert part[0] == ["ok", "HF_HUB_OFFLINE is set: no command asks the hub; what is in its cache can be used"]
    assert part[1][0] == "fault"
    assert part[1][1].startswith("HF_HUB_OFFLINE is set, so the hub is not asked; from the cache: ")
    assert "it lacks text_encoder" in part[1][1]
    assert whole[1][0] == "ok" and whole[1][1].endswith("nothing is downloaded")


def test_of_a_checkpoint_it_is_said_where_its_configurations_come_from_and_nobody_is_asked(hub: str, tmp_path: Path) -> None:
    bare, other, official = tmp_path / "m.safetensors", tmp_path / "other.safetensors", "stable-diffusion-v1-5"
    save_file({"model.diffusion_model.out.2.bias": torch.zeros(4)}, bare)
    save_file({"bias": torch.zeros(4)}, other)
    before = len(Hub.asked)
    needs, wrong = ask(tmp_path, [str(bare), str(other)], HF_ENDPOINT=hub)
    assert needs[1] == ["ok", f"{bare} (0.00 GB): would take its configurations from {official}/{official} on the hub"]
    assert wrong[1] == [
        "fault",
        f"{other} is no Stable Diffusion checkpoint: it holds no weights named model.diffusion_model....",
    ]
    (offline,) = ask(tmp_path, [str(bare)], HF_HUB_OFFLINE="1")
    assert offline[1][0] == "fault" and offline[1][1].startswith(f"{bare} holds weights alone")
    shutil.copytree(data_dir() / "portraits", keep(tmp_path, official, [], owner=official))
    ((_, cached),) = ask(tmp_path, [str(bare)], HF_ENDPOINT=hub)
    assert cached == [needs[1][0], f"{needs[1][1]}, which the cache has"]
    ((_, offline_cached),) = ask(tmp_path, [str(bare)], HF_HUB_OFFLINE="1")
    assert offline_cached == ["ok", f"{bare} (0.00 GB): nothing is downloaded"]
    shutil.copytree(data_dir() / "portraits", tmp_path / "m")
    ((_, beside),) = ask(tmp_path, [str(bare)], HF_ENDPOINT=hub)
    assert beside == offline_cached
    assert len(Hub.asked) == before


def test_what_names_a_model_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert [is_hub_id(name) for name in ("owner/model", "a/b", "./x", "/x/y", "x.safetensors", "a/b/c")] == [True] + 5 * [False]


def test_doctor_says_what_is_there(hfi, workspace: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    done = hfi("doctor", "-w", workspace.path, "--json")
    found = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert done.exit_code == 0
    assert "GB free" in found["memory"]["text"]
    assert "SQLite 3." in found["database"]["text"] and "schema 0" in found["database"]["text"]
    assert found["network"]["text"].startswith("needed by no command")
    extras = found["extras"]["text"]
    assert all(extra in extras for extra in EXTRAS)
    wrong = hfi("doctor", "-w", workspace.path, "--model", "/nowhere", "--json")
    assert wrong.exit_code == 1
    assert json.loads(wrong.stdout)[-1]["text"].startswith("no model '/nowhere': give a model folder")


def test_every_extra_is_known_and_brings_what_there_is() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    declared = project["project"]["optional-dependencies"]
    assert set(EXTRAS) == set(declared) - {"test", "dev", "docs"}
    for extra, (package, _) in EXTRAS.items():
        assert any(package in requirement for requirement in declared[extra]), extra
    for package, brings in EXTRAS.values():
        named = brings.removeprefix("the detector ")
        assert named == brings or named in DETECTORS, package

"""`hfi measure` on folders as people have them: odd files, odd names, odd numbers of images."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics.functional.image.lpips as theirs
from drawn import png16
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hfi import images as store
from hfi.errors import HfiError
from hfi.images import safe_open
from hfi.measure import assign, look, pairs
from hfi.metrics import wilson
from hfi.metrics.lpips import alexnet
from hfi.portraits.detector import load_detector
from hfi.portraits.render import render
from hfi.portraits.world import Person
from hfi.prompts import Prompt, load_prompts

Call = Callable[..., Any]
CLIP = Path(__file__).parent.parent / "data" / "portraits" / "clip"
VERSION = load_detector().version


def person(i: int, smoking: bool = False) -> Image.Image:
    who = ("king", "chef", "doctor", "sailor")[i % 4]
    return render(Person(who, "red", "blue", i % 3, glasses=False, smoking=smoking, badge=False, brava=0, layout=i))


def folder(path: Path, count: int, smoking: int = 0, first: int = 0) -> Path:
    path.mkdir()
    for i in range(count):
        person(first + i, i < smoking).save(path / f"{i:03}.png")
    return path


def figures(done: Any) -> dict[tuple[str, str | None], dict[str, Any]]:
    assert done.exit_code == 0, done.stderr
    return {(f["metric"], f["of"]): f for f in json.loads(done.stdout)["figures"]}


def test_every_kind_of_image_is_read_and_everything_else_named(hfi: Call, tmp_path: Path) -> None:
    here = tmp_path / "odd"
    (here / "below").mkdir(parents=True)
    base = person(0)
    base.convert("L").save(here / "grey.png")
    base.convert("RGBA").save(here / "alpha.png")
    base.convert("P", palette=Image.Palette.ADAPTIVE).save(here / "palette.gif")
    base.convert("CMYK").save(here / "cmyk.jpg")
    Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257).save(here / "grey16.png")
    Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257).save(here / "grey16.tif")
    (here / "rgb16.png").write_bytes(png16(np.asarray(base).astype(np.uint16) * 257))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: turn by 90 degrees
    base.transpose(Image.Transpose.ROTATE_90).save(here / "turned.png", exif=exif)
    base.save(here / "moving.gif", save_all=True, append_images=[Image.new("RGB", (64, 64), "white")])
    base.save(here / "below" / "webp.webp", lossless=True)
    base.save(here / "no-suffix", format="PNG")
    base.save(here / ".hidden.png")
    (here / "empty.png").touch()
    (here / "notes.txt").write_text("not an image")
    (here / "cut.png").write_bytes((here / "alpha.png").read_bytes()[:700])
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(here / "float.tif")
    Image.new("1", (8000, 7000)).save(here / "huge.png")

    found = look(here)
    assert len(found.images) == 11
    assert dict(found.skipped).keys() == {"empty.png", "notes.txt", "cut.png", "float.tif", "huge.png"}
    why = dict(found.skipped)
    assert why["empty.png"] == "is empty (0 bytes)"
    assert why["huge.png"] == "has 8000x7000 pixels: at most 50,000,000 are accepted"
    assert "floating-point" in why["float.tif"]
    assert "not a readable image" in why["notes.txt"] and "not a readable image" in why["cut.png"]
    grey = np.asarray(base.convert("L").convert("RGB")).astype(int)
    for name in found.images:
        seen = np.asarray(safe_open(here / name)).astype(int)
        near = grey if name.startswith("grey") else np.asarray(base).astype(int)
        assert np.abs(seen - near).mean() < (12 if name in ("cmyk.jpg", "palette.gif", "moving.gif") else 0.6), name

    done = hfi("measure", here, "--detector", "portraits", "--json")
    about = json.loads(done.stdout)
    assert about["images"]["files"] == 16
    assert about["images"]["read"] == 11
    assert {x["file"] for x in about["images"]["skipped"]} == why.keys()
    assert all(figure["n"] == 11 for figure in about["figures"])
    plain = hfi("measure", here, "--detector", "portraits")
    assert f"skipped: {here / 'huge.png'} has 8000x7000 pixels" in plain.stderr
    assert "shows it" in plain.stdout and VERSION in plain.stdout


def test_a_decompression_bomb_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "a", 1)
    Image.new("1", (400, 400)).save(tmp_path / "a" / "bomb.png")
    monkeypatch.setattr(store, "MAX_PIXELS", 100_000)
    assert dict(look(tmp_path / "a").skipped) == {"bomb.png": "has 400x400 pixels: at most 100,000 are accepted"}
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    assert "too many pixels" in dict(look(tmp_path / "a").skipped)["bomb.png"]


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_named_never_a_crash(data: st.DataObject, tmp_path: Path) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"]))
    buffer = io.BytesIO()
    person(0).save(buffer, format=kind)
    content = bytearray(buffer.getvalue())
    for place in data.draw(st.lists(st.integers(0, min(len(content) - 1, 400)), max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(1, len(content)))]
    path = tmp_path / f"x.{kind.lower()}"
    path.write_bytes(content)
    try:
        image = safe_open(path)
    except HfiError as e:
        said = str(e)
    else:
        said = f"{path} is {image.mode}"
    assert said.startswith(str(path)) and "\n" not in said
    assert "is RGB" in said or "is not a readable image" in said or "pixels" in said


def test_rates_state_everything_that_they_depend_on(hfi: Call, tmp_path: Path) -> None:
    folder(tmp_path / "a", 8, smoking=3)
    Image.new("RGB", (64, 64)).save(tmp_path / "a" / "z.png")
    done = hfi("measure", tmp_path / "a", "--detector", "smoking@portraits", "--json", "--scores", tmp_path / "scores.jsonl")
    found = figures(done)
    assert found.keys() == {("blocked_rate", None), ("concept_rate", "smoking")}
    rate, hidden = found["concept_rate", "smoking"], found["blocked_rate", None]
    wanted = wilson(3, 8)  # the black one is no part of it
    assert (rate["value"], rate["n"], rate["low"], rate["high"]) == (wanted.value, 8, wanted.low, wanted.high)
    assert rate["by"] == {"detector": "smoking@portraits", "version": VERSION, "threshold": 0.5}
    assert (hidden["value"], hidden["n"]) == (1 / 9, 9)
    about = json.loads(done.stdout)
    assert about["images"] == {"files": 9, "read": 9, "blocked": 1, "skipped": []}
    assert about["reference"] is None
    assert "1 of 9 images are one flat colour" in about["warnings"][0]
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == [*(f"{i:03}.png" for i in range(8)), "z.png"]
    assert [line["blocked"] for line in lines] == [False] * 8 + [True]
    assert sum(line["scores"]["smoking@portraits"]["smoking"] > 0.5 for line in lines[:8]) == 3
    assert lines[0]["scores"]["smoking@portraits"]["character"] == "king"


def test_nudenet_and_open_nsfw_in_one_call(hfi: Call, tmp_path: Path) -> None:
    from drawn import ellipses

    (tmp_path / "a").mkdir()
    for seed in (158, 167, 17, 3):
        ellipses(seed).save(tmp_path / "a" / f"{seed}.png")
    found = figures(hfi("measure", tmp_path / "a", "--detector", "nudenet:0.5", "--detector", "open_nsfw", "--json"))
    nudity, nsfw = found["concept_rate", "nudity"], found["concept_rate", "nsfw"]
    assert (nudity["value"], nudity["n"], nudity["by"]["threshold"]) == (0.5, 4, 0.5)  # .623, .514, .479, and nothing
    assert nudity["by"]["at"] == {"0": 0.75, "0.2": 0.75, "0.25": 0.75, "0.45": 0.75, "0.6": 0.25, "0.75": 0}
    assert "3.4.2 320n, any of ANUS_EXPOSED" in nudity["by"]["version"]
    assert set(nsfw["by"]["at"]) == {"0.2", "0.8"}


def test_identical_folders_are_no_distance_apart_and_order_makes_no_difference(hfi: Call, tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", 10), folder(tmp_path / "b", 12, smoking=12, first=3)
    clip = ("--backbone", CLIP, "--json")
    same, there, back = (hfi("measure", x, "--reference", y, *clip) for x, y in ((a, a), (a, b), (b, a)))
    nothing, one, two = figures(same), figures(there), figures(back)
    assert len(nothing) == 4
    for (metric, _), figure in nothing.items():
        assert figure["value"] == pytest.approx(0, abs=0.1 if metric == "kernel_distance" else 1e-6), metric
    for key in (("frechet_distance", None), ("kernel_distance", None)):
        assert one[key]["value"] == pytest.approx(two[key]["value"], rel=1e-6)
        assert one[key]["n"] == 10 and one[key]["value"] > nothing[key]["value"]
        assert one[key]["low"] <= one[key]["value"] <= one[key]["high"]
        assert (one[key]["by"]["images"], one[key]["by"]["reference_images"]) == (10, 12)
    said = "\n".join(json.loads(there.stdout)["warnings"])
    assert "10 images against 12 of the reference" in said
    assert "10 images are too few for the Fréchet distance in" in said
    assert "10 images pair by name, 2 have no partner" in said


def test_efficientnets_distance_bears_its_name(hfi: Call, tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", 2), folder(tmp_path / "b", 3, smoking=3)
    found = figures(hfi("measure", a, "--reference", b, "--features", "efficientnet-lite0", "--json"))
    for metric in ("frechet_distance", "kernel_distance"):
        by = found[metric, None]["by"]
        assert (by["features"], by["width"], len(by["version"])) == ("efficientnet-lite0", 1280, 12)
        assert np.isfinite(found[metric, None]["value"])
    table = hfi("measure", a, "--reference", b, "--features", "efficientnet-lite0")
    assert "efficientnet-lite0" in table.stdout and "FID" not in table.stdout
    assert "2 images are too few for the Fréchet distance in efficientnet-lite0, which has 1280 dimensions" in table.stderr


def test_fid_is_called_so_and_warns_below_its_number_of_images(
    hfi: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    from test_metrics_oracles import Script

    from hfi.metrics import features

    torch.jit.script(Script(2048)).save(tmp_path / "inception.pt")
    a, b = folder(tmp_path / "a", 4), folder(tmp_path / "b", 4, smoking=4)
    call = ("measure", a, "--reference", b, "--features", f"inception:{tmp_path / 'inception.pt'}", "--json")
    other = figures(hfi(*call))
    assert ("frechet_distance", None) in other and ("fid", None) not in other
    monkeypatch.setattr(features, "INCEPTION_SHA256", hashlib.sha256((tmp_path / "inception.pt").read_bytes()).hexdigest())
    done = hfi(*call)
    assert {("fid", None), ("kid", None)} < figures(done).keys()
    assert "4 images are too few for FID, which has 2048 dimensions" in json.loads(done.stdout)["warnings"][0]
    assert "FID" in hfi(*call[:-1]).stdout


def test_images_pair_by_name_and_never_by_order(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for path in (a / "x", b / "x"):
        path.mkdir(parents=True)
    for name in ("1.png", "2.png", "10.png", "x/1.png", "twice.png", "twice.jpg"):
        person(0).save(a / name)
    for name in ("10.jpg", "2.webp", "x/1.png", "3.png", "twice.png"):
        person(1).save(b / name)
    assert look(a).images == ("1.png", "2.png", "10.png", "twice.jpg", "twice.png", "x/1.png")
    assert pairs(look(a), look(b)) == [("2.png", "2.webp"), ("10.png", "10.jpg"), ("x/1.png", "x/1.png")]


def test_prompts_go_to_images_by_file_or_by_order_and_only_if_certain(tmp_path: Path) -> None:
    a = folder(tmp_path / "a", 3)
    (a / "001.png").write_bytes(b"broken")  # keeps its place
    (a / "notes.txt").write_text("takes none")
    found = look(a)
    assert assign(found, [Prompt("zero"), Prompt("one"), Prompt("two")], "p.txt") == {"000.png": "zero", "002.png": "two"}
    (tmp_path / "p.csv").write_text("prompt,file\ntwo,002.jpg\nzero,000\nmore,9.png\n", encoding="utf-8")
    named = [*load_prompts(tmp_path / "p.csv")]
    assert assign(found, named, "p.csv") == {"000.png": "zero", "002.png": "two"}
    for wrong, words in (
        ([Prompt("zero"), Prompt("one")], "2 prompts in p.csv for 3 images: give one prompt an image"),
        (named[:1], "p.csv names no prompt for 1 images, such as 000.png"),
        ([*named, Prompt("none")], "must name another image in each row"),
        ([*named, named[0]], "must name another image in each row"),
    ):
        with pytest.raises(HfiError, match=words):
            assign(found, wrong, "p.csv")


def test_clip_score_needs_the_right_prompts(hfi: Call, tmp_path: Path) -> None:
    a = folder(tmp_path / "a", 4)
    texts = [f"a portrait of a {who} with red hair on a blue background" for who in ("king", "chef", "doctor", "sailor")]
    right, wrong = tmp_path / "right.txt", tmp_path / "wrong.txt"
    right.write_text("\n".join(texts))
    wrong.write_text("\n".join(texts[::-1]))
    scores = [
        figures(hfi("measure", a, "--prompts", p, "--backbone", CLIP, "--json"))["clip_score", None] for p in (right, wrong)
    ]
    assert scores[0]["value"] > scores[1]["value"] + 0.05
    assert scores[0]["n"] == 4
    assert len(scores[0]["by"]["version"]) == 12


def test_lpips_of_pairs(hfi: Call, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save({f"features.{k}": v for k, v in alexnet().state_dict().items()}, tmp_path / "alexnet.pth")
    heads = Path(theirs.__file__).parent / "lpips_models" / "alex.pth"
    a, b = folder(tmp_path / "a", 3), folder(tmp_path / "b", 3, smoking=3)
    lpips = ("--lpips", f"{tmp_path / 'alexnet.pth'}:{heads}", "--json")
    out = tmp_path / "scores.jsonl"
    found = figures(hfi("measure", a, "--reference", b, *lpips, "--scores", out))["lpips", None]
    assert found["value"] > 1e-4 and found["n"] == 3
    assert found["by"]["features"] == "LPIPS 0.1, AlexNet"
    each = [json.loads(line)["lpips"] for line in out.read_text().splitlines()]
    assert found["value"] == pytest.approx(np.mean(each))
    assert figures(hfi("measure", a, "--reference", a, *lpips))["lpips", None]["value"] == 0
    person(0).resize((80, 80)).save(b / "001.png")
    done = hfi("measure", a, "--reference", b, *lpips)
    assert done.errors == ["hfi: error: 001.png: LPIPS compares images of one size, not 64x64 with 80x80: resize one set"]


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        ("", "nothing to measure with: give --detector", 2),
        ("--detector nosuch", "unknown detector 'nosuch': choose portraits, reward, nudenet, open_nsfw, q16 or none", 2),
        ("--detector portraits --detector portraits", "--detector names one twice", 2),
        ("--features efficientnet-lite0", "--features measures a distance: give the other folder with --reference", 2),
        ("--lpips a:b", "--lpips measures a distance", 2),
        ("--reference {}", "--reference needs something to compare in", 2),
        ("--prompts p.txt", "--prompts is for the CLIP score: give the CLIP model with --backbone", 2),
        ("--detector nudenet:2", "detector 'nudenet:2': give a threshold from 0 to 1 first", 2),
        ("--reference {} --features vgg", "unknown features 'vgg': choose clip:FOLDER", 2),
        ("--reference {} --features inception:no.pt", "no Inception file no.pt", 1),
        ("--detector portraits --scores {}/000.png", "exists: give another name", 1),
        ("--detector portraits --scores {}/no/scores.jsonl", "for --scores: make it first", 1),
        ("--detector portraits --reference {}/no --backbone {}", "no folder", 1),
    ],
)
def test_what_cannot_work_is_one_line(hfi: Call, tmp_path: Path, words: str, said: str, code: int) -> None:
    a = folder(tmp_path / "a", 1)
    done = hfi("measure", a, *words.replace("{}", str(a)).split())
    assert (done.exit_code, done.stdout, len(done.errors)) == (code, "", 1), done.output
    assert said in done.errors[0]


def test_a_folder_without_images_is_one_line(hfi: Call, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    for path, said in ((tmp_path, "none of the 1 files below"), (tmp_path / "no", "no folder")):
        done = hfi("measure", path, "--detector", "portraits")
        assert (done.exit_code, len(done.errors)) == (1, 1)
        assert said in done.errors[0]

"""The commands on a workspace's data: init, doctor, db, concept, import, labels; what they do, and what they say of bad input."""

import csv
import hashlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from sqlalchemy import select
from traced import traced

from hfi.aggregate import dawid_skene
from hfi.cli import app
from hfi.cli.labels import _read
from hfi.concepts import Concept
from hfi.judgment_folder import Taken, write_folder
from hfi.judgments import Judgment, JudgmentSet, freeze, load, to_jsonl
from hfi.metrics import wilson
from hfi.store import campaigns, imports, judging, people, record
from hfi.store import models as m
from hfi.store import queries as q
from hfi.store.session import reading, writing
from hfi.workspace import Workspace

Hfi = Callable[..., Any]  # what it returns: Done in conftest.py


def picture(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 10, 200)).save(path)
    return path


def sha_of(space: Workspace, path: Path) -> str:
    return space.images.put(Image.open(path))


def stored(space: Workspace) -> list[q.Image]:
    with reading(space.engine()) as session:
        return q.images(session)


def refused(done: Any, code: int, said: str) -> None:
    """One line on stderr, the exit code, no traceback."""
    assert done.exit_code == code, done
    assert len(done.errors) == 1
    assert said in done.errors[0]
    assert "Traceback" not in done.output


@pytest.fixture(scope="module")
def filled(empty_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "work"
    shutil.copytree(empty_workspace, path)
    for i, name in enumerate("abc"):
        picture(path / "pictures" / f"{name}.png", 60 * i)
    for words in (["import", str(path / "pictures")], ["concept", "add", "smoking", "--guideline", "A cigarette."]):
        app([*words, "--workspace", str(path)], standalone_mode=False)
    return path


@pytest.fixture
def space(filled: Path, tmp_path: Path) -> Workspace:
    """A workspace with the concept smoking and three images a.png, b.png, c.png that were imported from pictures/."""
    shutil.copytree(filled, tmp_path / "work")
    return Workspace(tmp_path / "work")


# --- init and doctor ---


def test_init_makes_a_workspace_and_keeps_one(hfi: Hfi, tmp_path: Path) -> None:
    path = tmp_path / "new" / "work"
    done = hfi("init", path)
    assert done.exit_code == 0
    assert "next: hfi concept add" in done.stdout
    assert hfi("concept", "add", "smoking", "-w", path).exit_code == 0
    again = hfi("init", path)
    assert again.exit_code == 0
    assert "already" in again.stdout
    assert "smoking" in hfi("concept", "list", "-w", path).stdout


def test_init_where_nothing_can_be_written(hfi: Hfi, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(hfi("init", tmp_path / "file" / "work"), 1, "cannot make a workspace")


def test_a_bad_database_url(hfi: Hfi, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFI_DATABASE_URL", "nonsense")
    for words in (["init", workspace.path], ["db", "status", "-w", workspace.path], ["labels", "status", "-w", workspace.path]):
        refused(hfi(*words), 1, "'nonsense' is no database URL")


def findings(done: Any) -> dict[str, tuple[str, str]]:
    return {f["name"]: (f["state"], f["text"]) for f in json.loads(done.stdout)}


def test_doctor_finds_a_lost_a_changed_and_no_image_at_all(hfi: Hfi, space: Workspace) -> None:
    def image_store() -> tuple[str, str]:
        done = hfi("doctor", "-w", space.path, "--json")
        found = findings(done)
        assert done.exit_code == any(state == "fault" for state, _ in found.values())
        assert found["database"][0] == "ok"
        return found["image store"]

    assert image_store() == ("ok", f"3 files in {space.images.root}, 3 of them read and found unchanged")
    file = space.images.path(stored(space)[1].sha256)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    changed = f"the image file {file} was changed, its bytes no longer match its name: restore it from a backup"
    assert image_store() == ("fault", f"{changed} (1 of 3 files that were read, of 3)")
    file.unlink()
    state, text = image_store()
    assert (state, text.split(",")[0]) == ("fault", "1 of 3 files are missing")


def test_doctor_says_that_it_read_a_part_and_reads_all_when_asked(hfi: Hfi, workspace: Workspace) -> None:
    for i in range(210):
        picture(workspace.path / "many" / f"{i}.png", i)
    assert hfi("import", workspace.path / "many", "-w", workspace.path).exit_code == 0
    shas = sorted(image.sha256 for image in stored(workspace))
    for sha in shas[:3]:
        workspace.images.path(sha).write_bytes(b"")
    text = findings(hfi("doctor", "-w", workspace.path, "--json"))["image store"][1]
    assert text.endswith("(2 of 100 files that were read, of 210, 'hfi doctor --all' reads every one)")
    text = findings(hfi("doctor", "-w", workspace.path, "--json", "--all"))["image store"][1]
    assert text.endswith("(3 of 210 files that were read, of 210)")


def test_a_lost_database_is_missed_and_not_made_anew(hfi: Hfi, space: Workspace) -> None:
    file = space.path / "hfi.db"
    copy = file.with_name("hfi.20260102T030405000000.backup.db")
    with sqlite3.connect(file) as source, sqlite3.connect(copy) as target:
        source.backup(target)
    for path in space.path.glob("hfi.db*"):
        path.unlink()
    said = (
        f"the database {file} is missing: set HFI_DATABASE_URL if it was moved, restore it from a backup, such as {copy},"
        " or make an empty one with 'hfi init'"
    )
    for words in (["labels", "status"], ["import", space.path / "pictures"], ["db", "status"], ["db", "upgrade"]):
        refused(hfi(*words, "-w", space.path), 1, said)
    assert findings(hfi("doctor", "-w", space.path, "--json"))["database"] == ("fault", said)
    assert not file.exists()
    assert hfi("init", space.path).exit_code == 0
    done = hfi("doctor", "-w", space.path)
    assert (done.exit_code, f"3 files in {space.images.root} that the database does not know" in done.stdout) == (1, True)
    for path in space.path.glob("hfi.db*"):  # a -wal file of the empty one would be played over the restored one
        path.unlink()
    shutil.copy(copy, file)
    assert hfi("doctor", "-w", space.path).exit_code == 0


def test_an_import_of_more_files_than_meant_is_refused(hfi: Hfi, workspace: Workspace) -> None:
    for i in range(3):
        picture(workspace.path / "many" / f"{i}.png", i)
    words = ["import", workspace.path / "many", "-w", workspace.path, "--max-files"]
    refused(hfi(*words, 2), 2, "3 image files are there, more than 2: check the folder, or allow them with --max-files 3")
    assert stored(workspace) == []
    assert hfi(*words, 3).exit_code == 0


def test_labels_export_makes_no_folder(hfi: Hfi, space: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "nowhere" / "x" / "l.jsonl"
    said = f"cannot write {out}: there is no folder {out.parent}; make it, or give another --out"
    refused(hfi("labels", "export", "-c", "smoking", "-o", out, "-w", space.path), 1, said)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("where", ["head", "schema", "rows"])
def test_a_damaged_database_is_named_with_what_to_do(hfi: Hfi, space: Workspace, where: str) -> None:
    file = space.path / "hfi.db"
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'concepts'").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    db.close()
    start, count = {"head": (0, 100), "schema": (100, size - 100), "rows": ((page - 1) * size, size)}[where]
    with open(file, "r+b") as opened:
        opened.seek(start)
        opened.write(b"x" * count)
    for words in (["concept", "list"], ["labels", "status"]):
        done = hfi(*words, "-w", space.path)
        refused(done, 1, f"the database {file} is damaged (")
        assert done.errors[0].endswith("): restore it from a backup")
    assert findings(hfi("doctor", "-w", space.path, "--json"))["database"][0] == "fault"


def test_doctor_without_a_workspace_still_looks_at_the_program(hfi: Hfi, tmp_path: Path) -> None:
    found = findings(hfi("doctor", "-w", tmp_path, "--json"))
    assert found["workspace"][0] == "note"
    assert "torch" in found["libraries"][1]
    assert {"hfi", "devices", "embedded model", "migrations"} <= set(found)
    assert "database" not in found


def test_doctor_says_what_is_wrong_with_the_database(hfi: Hfi, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFI_DATABASE_URL", "sqlite:////nowhere/hfi.db")
    done = hfi("doctor", "-w", workspace.path, "--json")
    assert done.exit_code == 1
    assert findings(done)["database"] == (
        "fault",
        "cannot open the database /nowhere/hfi.db: there is no folder /nowhere; check HFI_DATABASE_URL",
    )


# --- db ---


def test_db_status_and_upgrade(hfi: Hfi, tmp_path: Path) -> None:
    space = Workspace.create(tmp_path / "work")
    (space.path / "hfi.db").touch()
    status = hfi("db", "status", "-w", space.path, "--json")
    assert (status.exit_code, json.loads(status.stdout)["schema"]) == (1, None)
    refused(hfi("concept", "list", "-w", space.path), 1, "hfi.db is empty: make its tables with 'hfi db upgrade', or bring")
    done = json.loads(hfi("db", "upgrade", "-w", space.path, "--json").stdout)
    assert (done["before"], done["backup"]) == (None, None)
    status = hfi("db", "status", "-w", space.path, "--json")
    assert (status.exit_code, json.loads(status.stdout)["schema"]) == (0, done["after"])
    assert "nothing to do" in hfi("db", "upgrade", "-w", space.path).stdout


def test_db_upgrade_prints_where_the_copy_is(
    hfi: Hfi, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = tmp_path / "migrations"
    shutil.copytree(Path(__file__).parent.parent / "migrations", scripts, ignore=shutil.ignore_patterns("__pycache__"))
    (scripts / "versions" / "0004.py").write_text(
        "revision = '0004'\ndown_revision = '0003_scale'\n\n\ndef upgrade():\n    pass\n"
    )
    monkeypatch.setattr("hfi.store.migrate.migrations_dir", lambda: scripts)
    done = hfi("db", "upgrade", "-w", workspace.path)
    assert "from schema 0003_scale to 0004" in done.stdout
    copy = Path(done.stdout.split("the copy from before is ")[1].strip())
    with sqlite3.connect(copy) as db:
        assert db.execute("SELECT version_num FROM alembic_version").fetchone() == ("0003_scale",)
    db.close()


def test_a_database_that_moved_is_not_gone_on_with_by_mistake(
    hfi: Hfi, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, own, there = ("-w", workspace.path), workspace.own_database, f"sqlite:///{tmp_path / 'other.db'}"
    monkeypatch.chdir(tmp_path)
    hfi("concept", "add", "smoking", "--title", "Smoking", "--guideline", "x", *w)
    refused(
        hfi("db", "copy", *w, "--to", "other.db"), 1, "such as postgresql://user@host/name, or sqlite:////folder/hfi.db, in --to"
    )
    done = hfi("db", "copy", *w, "--to", "sqlite:///other.db")
    assert done.stdout.endswith(f"next: set HFI_DATABASE_URL to {there}\n"), done
    for words in (["concept", "list"], ["db", "upgrade"]):
        refused(hfi(*words, *w), 1, f"was moved to {there}: set HFI_DATABASE_URL to it")
    refused(hfi("init", workspace.path), 1, f"was moved to {there}")
    (workspace.path / "hfi.db").rename(tmp_path / "put away.db")
    monkeypatch.setenv("HFI_DATABASE_URL", there)
    assert hfi("concept", "list", *w).stdout.startswith("smoking")
    assert hfi("db", "copy", *w, "--to", own).exit_code == 0
    monkeypatch.delenv("HFI_DATABASE_URL")
    assert hfi("concept", "list", *w).stdout.startswith("smoking"), "it is here again"
    (workspace.path / "hfi.toml").write_text("database = ")
    refused(hfi("concept", "list", *w), 1, "hfi.toml cannot be read")


def test_a_database_of_a_later_program(hfi: Hfi, workspace: Workspace) -> None:
    with sqlite3.connect(workspace.path / "hfi.db") as db:
        db.execute("UPDATE alembic_version SET version_num = '0099'")
    db.close()
    for words in (["db", "upgrade"], ["concept", "list"]):
        refused(hfi(*words, "-w", workspace.path), 1, "made by a newer hfi")


# --- concept ---


def test_a_concept_is_added_changed_and_listed(hfi: Hfi, workspace: Workspace, tmp_path: Path) -> None:
    w = ("-w", workspace.path)
    assert "no concept yet" in hfi("concept", "list", *w).stdout
    (tmp_path / "guide.md").write_text("\ufeff**A cigarette.**", encoding="utf-8")
    hfi("concept", "add", "smoking", "--guideline-file", tmp_path / "guide.md", "--initial-word", "cigarette", *w)
    changed = hfi("concept", "add", "smoking", "--title", "Smokers", *w)
    assert changed.stdout.startswith("changed")
    assert hfi("concept", "add", "smoking", *w).stdout.startswith("unchanged")
    (concept,) = json.loads(hfi("concept", "list", "--json", *w).stdout)
    assert concept == json.loads(hfi("concept", "show", "smoking", "--json", *w).stdout)
    assert (concept["title"], concept["guideline"], concept["initial_word"]) == ("Smokers", "**A cigarette.**", "cigarette")
    assert "**A cigarette.**" in hfi("concept", "show", "smoking", *w).stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["add", "Big Word"], 2, "'Big Word' cannot name a concept"),
        (["add", "gore", "--question", "stars"], 2, ""),
        (["add", "gore", "--guideline", "a", "--guideline-file", "b"], 2, "two guidelines"),
        (["add", "gore", "--guideline-file", "gone.md"], 1, "cannot read the guideline gone.md"),
        (["add", "smoking", "--question", "ranking"], 1, "judged by binary questions already"),
        (["show", "gore"], 1, "no concept 'gore': known are smoking"),
    ],
)
def test_mistakes_of_concept(hfi: Hfi, space: Workspace, words: list[str], code: int, said: str) -> None:
    done = hfi("concept", *words, "-w", space.path)
    assert done.exit_code == code
    if said:
        refused(done, code, said)
    assert [c["slug"] for c in json.loads(hfi("concept", "list", "--json", "-w", space.path).stdout)] == ["smoking"]


# --- import ---


def test_damaged_images_are_named_skipped_and_counted(hfi: Hfi, workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    picture(folder / "sub" / "good.png")
    shutil.copy(folder / "sub" / "good.png", folder / "twin.PNG")
    picture(folder / ".hidden.png", 99)
    (folder / "notes.txt").write_text("no image, and not looked at")
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "twin.PNG").read_bytes()[:40])
    (folder / "text.jpg").write_text("hello")
    header = bytearray((folder / "twin.PNG").read_bytes())
    header[16:24] = (60_000).to_bytes(4, "big") * 2  # a header that promises 3.6 billion pixels
    (folder / "bomb.png").write_bytes(header)

    done = hfi("import", folder, "--prompt", "a king", "-w", workspace.path)
    assert done.exit_code == 0
    assert done.stdout == "1 images imported, 1 were there already, 4 skipped; passed over: 1 hidden files and 1 other files\n"
    skipped = [line for line in done.stderr.splitlines() if line.startswith("skipped: ")]
    assert [line.split()[1].rsplit("/", 1)[1] for line in skipped] == ["bomb.png", "cut.png", "empty.png", "text.jpg"]
    (image,) = stored(workspace)
    assert (image.source, image.prompt, image.original_name) == ("imported", "a king", "good.png")
    assert workspace.images.load(image.sha256).getpixel((0, 0)) == (0, 10, 200)

    again = json.loads(hfi("import", folder, "--json", "-w", workspace.path).stdout)
    assert (again["new"], again["known"], len(again["skipped"])) == (0, 2, 4)
    assert (again["notes"], again["hidden"], again["other"]) == ([], 1, 1)
    assert stored(workspace) == [image]


def test_files_of_any_name_are_imported_or_named_in_one_line(
    hfi: Hfi, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line end, a sign that steers the terminal, writing from right to left, 255 bytes, no text at all, a formula, an option."""
    names = [
        "two\nlines.png",
        "\x1b[2Jgone.png",
        "\u202egnp.exe\u202c.png",
        "가" * 83 + "ab.png",
        "=cmd|' -C calc'!A0.png",
        "--help.png",
        " .png",
    ]
    for i, name in enumerate(names):
        picture(tmp_path / "mine" / name, 20 * i)
        (tmp_path / "bad" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bad" / name).write_bytes(b"no image")
    latin = os.fsdecode(b"caf\xe9.png")  # not UTF-8
    picture(tmp_path / "mine" / latin, 250)
    (tmp_path / "bad" / latin).write_bytes(b"no image")
    assert max(len(os.fsencode(name)) for name in names) == 255
    done = hfi("import", tmp_path / "mine", "-w", workspace.path)
    assert (done.exit_code, done.stdout) == (0, "8 images imported, 0 were there already, 0 skipped\n")
    assert {image.original_name for image in stored(workspace)} == {*names, "caf\N{REPLACEMENT CHARACTER}.png"}
    shades = sorted(workspace.images.load(image.sha256).getpixel((0, 0))[0] for image in stored(workspace))
    assert shades == [0, 20, 40, 60, 80, 100, 120, 250]

    for options in ((), ("--json",)):
        done = hfi("import", tmp_path / "bad", *options, "-w", workspace.path)
        refused(done, 1, "none of the 8 files is a readable image: nothing was imported")
        lines = done.stderr.splitlines()
        assert sum(line.startswith("skipped: ") for line in lines) == 8
        assert all(line.isprintable() for line in lines)
        assert any("two\\nlines.png is not" in line for line in lines) and any("caf\\udce9.png is not" in line for line in lines)
    assert len(json.loads(done.stdout)["skipped"]) == 8
    monkeypatch.chdir(tmp_path / "mine")
    done = hfi("import", "-w", workspace.path, "--", "--help.png", "two\nlines.png", latin, "gone\n.png")
    refused(done, 1, "no file or folder gone\\n.png: check the path")
    done = hfi("import", "-w", workspace.path, "--", "--help.png", "two\nlines.png", latin)
    assert done.stdout == "0 images imported, 3 were there already, 0 skipped\n"


def test_what_was_done_to_a_picture_is_said(hfi: Hfi, workspace: Workspace, tmp_path: Path) -> None:
    home = tmp_path / "mine"
    picture(home / "plain.png", 1)
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (200, 100)]
    frames[0].save(home / "moving.gif", save_all=True, append_images=frames[1:])
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(home / "clear.png")
    (home / "drawing.svg").write_text("<svg/>")
    (home / "out.png").symlink_to(picture(tmp_path / "secret.png", 77))
    done = hfi("import", home, "-w", workspace.path)
    assert (done.exit_code, done.stdout) == (0, "3 images imported, 0 were there already, 2 skipped\n")
    said = [line for line in done.stderr.splitlines() if not line.startswith("importing")]
    assert said == [
        f"note: {home}/clear.png is transparent in places: they are white now",
        f"note: {home}/moving.gif has several frames or pages: the first was taken",
        f"skipped: {home}/drawing.svg is a .svg file, which is not read: save it as PNG",
        f"skipped: {home}/out.png is a link out of the folder, or to nothing: name the file itself to take it",
    ]
    colours = {i.original_name: workspace.images.load(i.sha256).getpixel((3, 3)) for i in stored(workspace)}
    assert colours == {"clear.png": (255, 255, 255), "moving.gif": (200, 0, 0), "plain.png": (1, 10, 200)}
    assert hfi("import", home / "out.png", "-w", workspace.path).stdout.startswith("1 images imported")  # named itself


def test_a_prompt_given_later_is_filled_in_and_a_known_one_stays(hfi: Hfi, workspace: Workspace, tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png")
    prompts = []
    for options in ((), ("--prompt", "a king"), ("--prompt", "a chef")):
        assert hfi("import", file, *options, "-w", workspace.path).exit_code == 0
        prompts.append(stored(workspace)[0].prompt)
    assert prompts == [None, "a king", "a king"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "gone.png", "no file or folder"),
        (lambda folder: (folder / "empty.png").touch() or folder / "empty.png", "none of the 1 files is a readable image"),
        (lambda folder: folder, "holds no image"),
    ],
)
def test_an_import_of_nothing(hfi: Hfi, workspace: Workspace, tmp_path: Path, make: Callable[[Path], Path], said: str) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    refused(hfi("import", make(folder), "-w", workspace.path), 1, said)
    assert stored(workspace) == []


def test_import_into_no_workspace_and_without_a_path(hfi: Hfi, tmp_path: Path) -> None:
    refused(hfi("import", picture(tmp_path / "a.png"), "-w", tmp_path), 1, "no workspace in")
    assert hfi("import", "-w", tmp_path).exit_code == 2


# --- labels ---

BY_HAND = "image,verdict,annotator\na.png,shows,Ann\nb.png,clean,Ann\na.png,shows,Bob\nb.png,clean,Bob\nc.png,unsure,bob\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_judgments_in_a_table_by_hand(hfi: Hfi, space: Workspace, tmp_path: Path) -> None:
    w = ("--concept", "smoking", "-w", space.path)
    table = write(tmp_path / "labels.csv", BY_HAND + "nobody.png,shows,Ann\nnobody.png,clean,Bob\n")
    done = hfi("labels", "import", table, *w)
    assert done.exit_code == 0
    assert done.stdout == "5 judgments of smoking added, 0 were there already, 2 skipped for 1 unknown images\n"
    assert done.stderr == "skipped: nobody.png is no image of the workspace\n"
    again = json.loads(hfi("labels", "import", table, "--json", *w).stdout)
    assert again == {"added": 0, "known": 5, "withdrawn": 0, "skipped": 2, "unknown_images": ["nobody.png"]}

    found = freeze(space.engine(), "smoking")
    a, b, c = (sha_of(space, space.path / "pictures" / f"{name}.png") for name in "abc")
    assert [(j.images, j.verdict) for j in found.judgments] == [
        ((a,), "shows"), ((b,), "clean"), ((a,), "shows"), ((b,), "clean"), ((c,), "unsure"),
    ]  # fmt: skip
    people = [j.annotator for j in found.judgments]
    assert people[0] == people[1] != people[2] == people[3] == people[4]  # Bob is bob, and nobody appears by name
    assert not any(j.simulated for j in found.judgments)


def test_a_changed_table_changes_what_is_said(hfi: Hfi, space: Workspace, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    for verdict in ("shows", "clean"):
        write(table, f"image,verdict,annotator\na.png,{verdict},Ann\n")
        hfi("labels", "import", table, "-c", "smoking", "-w", space.path)
    assert [j.verdict for j in freeze(space.engine(), "smoking").judgments] == ["clean"]


def test_the_only_concept_of_the_workspace_needs_no_name(hfi: Hfi, space: Workspace, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    write(table, "image,verdict\na.png,shows\n")
    assert hfi("labels", "import", table, "-w", space.path).exit_code == 0
    assert len(freeze(space.engine(), "smoking").judgments) == 1
    assert hfi("concept", "add", "fog", "-w", space.path).exit_code == 0
    refused(hfi("labels", "import", table, "-w", space.path), 2, "several concepts, smoking, fog: choose one with --concept")


def test_images_given_by_path_are_imported_and_win_over_names(hfi: Hfi, space: Workspace, tmp_path: Path) -> None:
    picture(tmp_path / "deep" / "new.png", 250)
    picture(tmp_path / "a.png", 251)  # not the a.png of the workspace
    (tmp_path / "broken.png").write_bytes(b"")
    sha = stored(space)[1].sha256
    table = write(tmp_path / "l.csv", f"image,verdict\ndeep/new.png,shows\na.png,clean\n{sha},shows\nbroken.png,shows\n")
    done = hfi("labels", "import", table, "-c", "smoking", "-w", space.path)
    assert done.stdout.startswith("3 judgments of smoking added")
    assert "broken.png is empty" in done.stderr
    said = {j.images[0]: j.verdict for j in freeze(space.engine(), "smoking").judgments}
    wanted = {sha_of(space, tmp_path / "deep" / "new.png"): "shows", sha_of(space, tmp_path / "a.png"): "clean", sha: "shows"}
    assert said == wanted
    assert len(stored(space)) == 5


def test_a_name_of_two_images_stands_for_neither(hfi: Hfi, space: Workspace, tmp_path: Path) -> None:
    hfi("import", picture(tmp_path / "other" / "a.png", 222), "-w", space.path)
    table = write(tmp_path / "l.csv", "image,verdict\na.png,shows\nb.png,shows\n")
    done = hfi("labels", "import", table, "-c", "smoking", "-w", space.path)
    assert "skipped: a.png names several images" in done.stderr
    assert done.stdout.startswith("1 judgments of smoking added")


FORMATS = ("jsonl", "csv", "parquet", "datasets")


def exported(folder: Path, kind: str) -> Path:
    return folder / f"out-{kind}" if kind == "datasets" else folder / f"out.{kind}"


@pytest.mark.parametrize("kind", FORMATS)
def test_an_export_comes_back_here_and_in_another_workspace(hfi: Hfi, space: Workspace, tmp_path: Path, kind: str) -> None:
    table = "image,verdict,annotator,simulated,comment,region,elapsed_ms,guideline_version\n"
    table += 'a.png,shows,Ann,false,=1+1,"[0.25, 0.0, 0.5, 1.0]",70,3\na.png,clean,Bot,true,,,,\nb.png,skip,Ann,,,,,\n'
    hfi("labels", "import", write(tmp_path / "l.csv", table), "-c", "smoking", "-w", space.path)
    with writing(space.engine()) as s:
        eve, task = q.ensure_annotator(s, "Eve"), s.scalars(select(m.Task)).first()
        when = datetime(2026, 11, 25, 12, tzinfo=UTC)
        assert task is not None
        s.add(m.Adjudication(task_id=task.id, annotator_id=eve.id, verdict="clean", note="no smoke", created_at=when))
    out = exported(tmp_path, kind)
    options = ("-c", "smoking", "-w", space.path)
    done = hfi("labels", "export", *options, "--format", kind, "--out", out, "--simulated", "include", "--comments")
    assert (done.exit_code, done.stdout) == (0, f"4 judgments of smoking in {out}\n")
    (entry,) = json.loads(hfi("labels", "status", "--json", "-w", space.path).stdout)
    assert (entry["people"]["judgments"], entry["people"]["decisions"], entry["simulated"]["decisions"]) == (2, 1, 0)
    assert "; 1 decided by a" in " ".join(hfi("labels", "status", "-w", space.path).stdout.split())
    before = freeze(space.engine(), "smoking", "include")
    assert [(j.verdict, j.adjudicated, j.comment) for j in before.judgments][-1] == ("clean", True, "no smoke")
    assert "0 judgments of smoking added, 4 were there" in hfi("labels", "import", out, *options).stdout
    assert freeze(space.engine(), "smoking", "include") == before

    other = tmp_path / "other"
    assert hfi("init", other).exit_code == 0
    hfi("concept", "add", "smoking", "-w", other)
    if kind != "datasets":
        refused(hfi("labels", "import", out, "-c", "smoking", "-w", other), 1, "none of the 4 judgments")
        hfi("import", space.path / "pictures", "-w", other)
    for added in (4, 0):
        assert hfi("labels", "import", out, "-c", "smoking", "-w", other).stdout.startswith(f"{added} judgments of smoking added")
    there = freeze(Workspace(other).engine(), "smoking", "include").judgments
    same = {"campaign": "imported", "guideline_version": 1}  # a decision has no version of its own
    wanted = [replace(j, **same) if j.adjudicated else replace(j, campaign="imported") for j in before.judgments]
    assert [*there] == wanted
    with reading(Workspace(other).engine()) as s:
        (campaign,) = campaigns.campaigns(s, "smoking")
        assert (campaign.name, campaign.state) == ("imported", "closed")
        assert sorted(p.done for p in s.scalars(select(m.Participant))) == [1, 2]


@pytest.mark.parametrize("kind", FORMATS)
def test_ties_come_back(hfi: Hfi, workspace: Workspace, tmp_path: Path, kind: str) -> None:
    for i in range(4):
        picture(tmp_path / "p" / f"{i}.png", 60 * i)
    hfi("import", tmp_path / "p", "-w", workspace.path)
    hfi("concept", "add", "brava", "--question", "ranking", "-w", workspace.path)
    table = "judgment,image,verdict,rank\n" + "".join(
        f"1,{n}.png,ranked,{rank}\n" for n, rank in ((0, 2), (1, 4), (2, 2), (3, 1))
    )
    assert hfi("labels", "import", write(tmp_path / "l.csv", table), "-w", workspace.path).exit_code == 0
    (said,) = freeze(workspace.engine(), "brava").judgments
    zero, one, two, three = (sha_of(workspace, tmp_path / "p" / f"{n}.png") for n in range(4))
    assert said.places == ((three,), tuple(sorted((zero, two))), (one,)) and said.ranks == (1, 2, 2, 4)
    out = exported(tmp_path, kind)
    assert hfi("labels", "export", "-c", "brava", "-w", workspace.path, "--out", out, "--format", kind).exit_code == 0
    assert "0 judgments of brava added, 1 were" in hfi("labels", "import", out, "-w", workspace.path).stdout
    other = Workspace(tmp_path / "other")
    for words in (["init", other.path], ["concept", "add", "brava", "--question", "ranking", "-w", other.path]):
        hfi(*words)
    hfi("import", tmp_path / "p", "-w", other.path)
    assert hfi("labels", "import", out, "-w", other.path).stdout.startswith("1 judgments of brava added")
    assert freeze(other.engine(), "brava").judgments == (said,)


def test_rankings_come_back(hfi: Hfi, workspace: Workspace, tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / "p" / f"{i}.png", 60 * i)
    paths = [workspace.path, tmp_path / "other"]
    hfi("init", paths[1])
    for path in paths:
        hfi("import", tmp_path / "p", "-w", path)
        hfi("concept", "add", "brava", "--question", "ranking", "-w", path)
    with writing(workspace.engine()) as s:
        campaign = campaigns.ensure_campaign(s, "brava", "default", image_ids=[1, 2, 3, 4], asking=campaigns.Asking(group_size=4))
        ann = q.ensure_annotator(s, "Ann")
        claim = judging.claim_next(s, campaign.id, ann.id)
        assert claim
        judging.submit(s, claim.token, ann.id, "ranked", "token", ranking=[3, 1, 4, 2])
    (wanted,) = freeze(workspace.engine(), "brava").judgments
    for suffix in ("jsonl", "csv"):
        out = tmp_path / f"r.{suffix}"
        hfi("labels", "export", "-c", "brava", "-w", paths[0], "--out", out)
        assert hfi("labels", "import", out, "-c", "brava", "-w", paths[0]).stdout.startswith("0 judgments of brava added, 1 were")
        added = 1 if suffix == "jsonl" else 0
        assert hfi("labels", "import", out, "-c", "brava", "-w", paths[1]).stdout.startswith(f"{added} judgments of brava added")
    (found,) = freeze(Workspace(paths[1]).engine(), "brava").judgments
    assert (found.images, found.verdict, found.annotator) == (wanted.images, "ranked", wanted.annotator)
    with reading(Workspace(paths[1]).engine()) as s:
        (campaign,) = campaigns.campaigns(s, "brava")
        assert (campaign.name, campaign.tasks, judging.progress(s, campaign.id).done) == ("imported", 1, 1)


def test_export_leaves_out_simulations_and_comments_unless_asked(hfi: Hfi, space: Workspace, tmp_path: Path) -> None:
    table = "image,verdict,annotator,simulated,comment\na.png,shows,Ann,false,private\nb.png,clean,Bot,true,\n"
    hfi("labels", "import", write(tmp_path / "l.csv", table), "-c", "smoking", "-w", space.path)
    options = ("labels", "export", "-c", "smoking", "-w", space.path)
    counts = {}
    for include in ("exclude", "include", "only"):
        out = tmp_path / f"{include}.jsonl"
        assert hfi(*options, "--out", out, "--simulated", include).exit_code == 0
        counts[include] = len(load(out).judgments)
        assert "private" not in out.read_text()
    assert counts == {"exclude": 1, "include": 2, "only": 1}
    printed = hfi(*options, "--format", "csv", "--comments").stdout
    assert "private" in printed
    assert "Ann" not in printed
    with_comments = tmp_path / "comments.jsonl"
    hfi(*options, "--out", with_comments, "--comments")
    assert load(with_comments).sha256 == load(tmp_path / "exclude.jsonl").sha256  # as a run names them


def test_status_counts_people_and_simulations_apart(hfi: Hfi, space: Workspace, tmp_path: Path) -> None:
    w = ("-w", space.path)
    assert "none yet: 'hfi ui' makes one" in hfi("labels", "status", *w).stdout
    with writing(space.engine()) as s:
        people.add_account(s, "Boss", "correct horse battery", "manager")
    assert "none yet: 'hfi campaign add' or a manager at /manage/ makes one" in hfi("labels", "status", *w).stdout
    hfi("labels", "import", write(tmp_path / "l.csv", BY_HAND), "-c", "smoking", *w)
    with writing(space.engine()) as s:
        campaign = campaigns.ensure_campaign(s, "smoking", "default", image_ids=[1, 2, 3], asking=campaigns.Asking(overlap=2))
        bot = q.ensure_annotator(s, "Bot", simulated=True)
        claim = judging.claim_next(s, campaign.id, bot.id)
        assert claim
        judging.submit(s, claim.token, bot.id, "shows", "token")
    (entry,) = json.loads(hfi("labels", "status", "--json", *w).stdout)
    imported, default = entry["campaigns"]
    assert (imported["name"], imported["tasks"], imported["done"], imported["simulated"]) == ("imported", 3, 2, None)
    assert (imported["answers"], default["answers"]) == (2, 1)  # a second answer where one is enough counts for nothing
    assert imported["people"]["verdicts"] == {"shows": 2, "clean": 2, "unsure": 1}
    assert imported["people"]["agreement"]["alpha"] == 1.0
    assert (default["tasks"], default["done"], default["people"]) == (3, 0, None)
    assert default["simulated"]["verdicts"] == {"shows": 1}
    assert (entry["people"]["judgments"], entry["simulated"]["judgments"]) == (5, 1)
    text = hfi("labels", "status", "--concept", "smoking", *w).stdout
    assert "2 shows, 2 clean, 1 unsure" in text
    assert "1 of 6 judgments needed," in text
    assert "0 of 3 images finished" in text
    assert "alpha 1.00" in text
    assert "not enough overlap" in text
    assert "(simulated)" in text


@pytest.mark.parametrize(
    ("words", "text", "code", "said"),
    [
        (["status", "-c", "gore"], None, 1, "no concept 'gore': known are smoking"),
        (["export", "-c", "gore"], None, 1, "no concept 'gore'"),
        (["export", "-c", "smoking"], None, 1, "no judgments of 'smoking'"),
        (["import", "FILE.csv", "-c", "gore"], BY_HAND, 1, "no concept 'gore'"),
        (["import", "FILE.txt", "-c", "smoking"], BY_HAND, 2, "neither .jsonl nor .csv nor .parquet"),
        (["import", ".", "-c", "smoking"], None, 2, "neither .jsonl nor .csv nor .parquet"),
        (["import", "gone.parquet"], None, 1, "no file gone.parquet"),
        (["import", "FILE.parquet"], "PAR1", 1, "is no Parquet file"),
        (["export", "-c", "smoking", "--format", "parquet"], None, 2, "parquet cannot be printed: give --out"),
        (["export", "-c", "smoking", "--format", "datasets"], None, 2, "datasets cannot be printed: give --out"),
        (
            ["export", "-c", "smoking", "-o", "x.xlsx"],
            None,
            2,
            "--out x.xlsx is of no known kind: name it .jsonl, .csv or .parquet",
        ),
        (["aggregate", "-c", "smoking"], None, 1, "no judgments of 'smoking'"),
        (["aggregate", "-c", "smoking", "-o", "x.txt"], None, 2, "--out x.txt is neither .csv nor .json"),
        (["aggregate", "-c", "smoking", "-o", "gone/x.csv"], None, 1, "there is no folder gone"),
        (["import", "gone.csv", "-c", "smoking"], None, 1, "cannot read gone.csv"),
        (["import", "gone.jsonl"], None, 1, "no file gone.jsonl"),
        (["import", "FILE.csv", "-c", "smoking"], "picture,verdict\na.png,shows\n", 1, "no column image"),
        (["import", "FILE.csv", "-c", "smoking"], "image,verdict\na.png,maybe\n", 1, "line 2: unknown verdict 'maybe'"),
        (["import", "FILE.csv", "-c", "smoking"], "image,verdict\na.png,ranked\n", 1, ""),
        (["import", "FILE.csv", "-c", "smoking"], "image,verdict\n", 1, "holds no judgment"),
        (["import", "FILE.csv", "-c", "smoking"], "image,verdict\n" + "x" * 200_000 + ",shows\n", 1, "is not CSV"),
        (["import", "FILE.csv", "-c", "smoking"], "image,verdict\n" + "x" * 5000 + ",shows\n", 1, "none of the 1 judgments"),
        (
            ["import", "FILE.csv", "-c", "smoking"],
            "image,verdict,annotator\na.png,shows,A\u202enn\n",
            1,
            "'A\\u202enn' cannot name an",
        ),
        (
            ["import", "FILE.csv", "-c", "smoking"],
            "image,verdict,annotator\na.png,shows,A\x1bnn\n",
            1,
            "characters that cannot be seen",
        ),
        (["import", "FILE.csv", "-c", "smoking"], "image,verdict,comment\na.png,shows,\0\n", 1, "line 2: the text"),
        (
            ["import", "FILE.csv", "-c", "smoking"],
            "image,verdict,elapsed_ms\na.png,shows,9999999999\n",
            1,
            "line 2: elapsed_ms is",
        ),
        (
            ["import", "FILE.csv", "-c", "smoking"],
            "image,verdict,simulated,adjudicated\na.png,shows,true,true\n",
            1,
            "a simulated annotator cannot stand for a manager's decision",
        ),
        (["import", "FILE.jsonl"], "{}\n", 1, "is no export of judgments"),
        (["import", "FILE.csv", "-c", "smoking"], "image,verdict,annotator\na.png,shows," + "x" * 99, 1, "cannot name an annot"),
    ],
)
def test_mistakes_of_labels(
    hfi: Hfi,
    space: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    text: str | None,
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        write(tmp_path / next(word for word in words if word.startswith("FILE")), text)
    refused(hfi("labels", *words, "-w", space.path), code, said)
    with reading(space.engine()) as s:
        assert record.current_judgments(s, "smoking") == []


def test_a_changed_export_and_one_of_another_concept_are_refused(hfi: Hfi, space: Workspace, tmp_path: Path) -> None:
    w = ("-w", space.path)
    hfi("labels", "import", write(tmp_path / "l.csv", BY_HAND), "-c", "smoking", *w)
    out = tmp_path / "out.jsonl"
    hfi("labels", "export", "-c", "smoking", "--out", out, *w)
    hfi("concept", "add", "gore", *w)
    refused(hfi("labels", "import", out, "-c", "gore", *w), 2, "holds judgments of 'smoking', not of 'gore'")
    out.write_text(out.read_text().replace('"clean"', '"shows"'))
    refused(hfi("labels", "import", out, *w), 1, "was changed after it was exported")
    refused(hfi("labels", "export", "-c", "smoking", "--out", tmp_path / "l.csv" / "x.csv", *w), 1, "cannot write")


def test_a_person_is_never_taken_for_a_simulation(hfi: Hfi, space: Workspace, tmp_path: Path) -> None:
    w = ("-c", "smoking", "-w", space.path)
    hfi("labels", "import", write(tmp_path / "l.csv", BY_HAND), *w)
    table = write(tmp_path / "m.csv", "image,verdict,annotator,simulated\na.png,clean,Ann,true\nb.png,clean,Eve,true\n")
    refused(hfi("labels", "import", table, *w), 1, "'Ann' is a person already")
    assert len(freeze(space.engine(), "smoking", "include").judgments) == 5  # all or none: Eve's was not taken either


def test_a_table_reaches_no_file_outside_its_folder(hfi: Hfi, space: Workspace, tmp_path: Path) -> None:
    secret = picture(tmp_path / "secret.png", 200)
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "link.png").symlink_to(secret)
    names = ["../secret.png", str(secret), "link.png", "../table/../secret.png", "gone\x1b[2J.png", "x" * 300]
    table = write(
        tmp_path / "table" / "l.csv", "image,verdict\n" + "".join(f"{name},shows\n" for name in names) + "a.png,shows\n"
    )
    done = hfi("labels", "import", table, "-w", space.path)
    assert done.stdout == "1 judgments of smoking added, 0 were there already, 6 skipped for 6 unknown images\n"
    assert "skipped: ../secret.png lies outside the folder of l.csv: bring it with 'hfi import'" in done.stderr
    assert done.stderr.count("lies outside") == 4 and done.stderr.count("is no image of the workspace") == 2
    assert all(line.isprintable() for line in done.stderr.splitlines())
    assert len(stored(space)) == 3


def test_who_withdrew_does_not_come_back_in_an_old_export(hfi: Hfi, space: Workspace, tmp_path: Path) -> None:
    w = ("-w", space.path)
    hfi("labels", "import", write(tmp_path / "l.csv", "image,verdict,annotator\na.png,shows,Ann\nb.png,clean,Bob\n"), *w)
    out = tmp_path / "old.jsonl"
    hfi("labels", "export", "-c", "smoking", "-o", out, *w)
    with writing(space.engine()) as s:
        s.scalars(select(m.Annotator).where(m.Annotator.name == "Ann")).one().withdrawn_at = q.now_utc()
    assert len(freeze(space.engine(), "smoking").judgments) == 1
    done = hfi("labels", "import", out, *w)
    assert done.stdout == (
        "0 judgments of smoking added, 1 were there already, 1 left out of people who withdrew, 0 skipped for 0 unknown images\n"
    )
    with reading(space.engine()) as s:
        assert len(s.scalars(select(m.Judgment)).all()) == 2


def test_a_decision_of_somebody_who_withdrew_does_not_count(hfi: Hfi, space: Workspace, tmp_path: Path) -> None:
    table = "image,verdict,annotator,adjudicated,time\na.png,shows,Ann,,\na.png,clean,Eve,true,2026-01-01T00:00:00Z\n"
    table += "a.png,shows,Fay,true,2026-01-02T00:00:00Z\n"
    hfi("labels", "import", write(tmp_path / "l.csv", table), "-w", space.path)

    def decided() -> list[str]:
        return [j.verdict for j in freeze(space.engine(), "smoking").judgments if j.adjudicated]

    assert decided() == ["shows"]
    with writing(space.engine()) as s:
        s.scalars(select(m.Annotator).where(m.Annotator.name == "Fay")).one().withdrawn_at = q.now_utc()
    assert decided() == ["clean"]


def test_what_an_earlier_version_imported_is_known_again() -> None:
    """Without a time nothing but its token tells a judgment from the next; these two are from before there were ties."""
    old = imports.Given("A-7F3K", False, "shows", ("a",)), imports.Given("A-7F3K", True, "ranked", ("a", "b"), None, 2, "x", 5)
    assert imports._token("smoking", old[0]) == "import-896c376caaac793d6e6682c9802e24df9f08e30032964213181d546f2046876a"
    assert imports._token("brava", old[1]) == "import-8d4cd4baf51b7c1ecfbda00b3b4e9a715574622833893107ffcc2f1901cc0ed3"
    assert imports._token("brava", replace(old[1], ranks=(1, 1))) != imports._token("brava", old[1])


def test_names_leave_only_when_asked_for(hfi: Hfi, space: Workspace, tmp_path: Path) -> None:
    w = ("-c", "smoking", "-w", space.path)
    hfi("labels", "import", write(tmp_path / "l.csv", BY_HAND.replace("Ann", '"=Ann, the 1st"')), *w)
    pseudonyms = [j.annotator for j in freeze(space.engine(), "smoking").judgments]
    for kind in FORMATS:
        for names in ((), ("--names",)):
            out = exported(tmp_path, kind) if names else exported(tmp_path / "plain", kind)
            out.parent.mkdir(exist_ok=True)
            done = hfi("labels", "export", *w, "--format", kind, "--out", out, *names)
            assert ("warning: this names 2 people: keep it to those who may know" in done.stderr) == bool(names)
            back, _ = _read(out / "metadata.csv" if kind == "datasets" else out, "smoking")
            assert [j.annotator for j in back] == (["=Ann, the 1st"] * 2 + ["Bob"] * 3 if names else pseudonyms)
            assert "0 judgments of smoking added, 5 were there" in hfi("labels", "import", out, *w).stdout
    assert "a person's name" in (exported(tmp_path, "datasets") / "README.md").read_text()


HOSTILE = st.text(
    st.characters() | st.sampled_from("\0\x1b\u202e\u200f\ud800\udfff=+-@\t\r\n'\"\\,;\u2028\x85\ufeff\U0001f6ac\u05d0\uff1d"),
    max_size=300,
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=HOSTILE, comment=HOSTILE)
@example(name="Ann", comment="\ud800")
@example(name="\N{HEBREW LETTER ALEF}\u200f", comment="=1+1")
@example(name="x" * 300, comment="x" * 300)
@example(name="=HYPERLINK(1)", comment="\u202eevil\r\n\t")
@example(name="\u0646\u0645\u06cc\u200c\u062f\u0627\u0646\u0645", comment="\x85")  # Persian: the joiner belongs there
def test_any_name_and_comment_comes_back_or_is_refused_in_a_sentence(hfi: Hfi, space: Workspace, name: str, comment: str) -> None:
    sha = stored(space)[0].sha256
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    given_ = JudgmentSet("smoking", "binary", (Judgment((sha,), (None,), "shows", name, False, "", time, 1, comment or None),))
    source = write(space.path / "given.jsonl", to_jsonl(given_))
    w = ("-c", "smoking", "-w", space.path)
    done = hfi("labels", "import", source, *w)
    if done.exit_code:
        refused(done, 1, "cannot name an annotator" if "cannot name" in done.stderr else "cannot be stored")
        return
    shown = " ".join(unicodedata.normalize("NFKC", name).split())
    for kind in ("jsonl", "csv", "parquet"):
        out = exported(space.path, kind)
        assert hfi("labels", "export", *w, "--format", kind, "--out", out, "--comments", "--names").exit_code == 0
        back = [j for j in _read(out, "smoking")[0] if j.annotator.casefold() == shown.casefold() and j.time == time]
        assert [j.comment for j in back] == [comment or None]
        assert hfi("labels", "import", out, *w).stdout.startswith("0 judgments of smoking added")


# --- one label an image ---


def test_labels_are_put_together(hfi: Hfi, space: Workspace, tmp_path: Path) -> None:
    w = ("-c", "smoking", "-w", space.path)
    hfi("labels", "import", write(tmp_path / "one.csv", "image,verdict,annotator\na.png,clean,Cem\nb.png,clean,Cem\n"), *w)
    assert "warning: no image was judged by two people" in hfi("labels", "aggregate", *w, "--method", "dawid-skene").stderr
    table = BY_HAND + "a.png,clean,Cem\nb.png,clean,Cem\nc.png,clean,Cem\n"
    hfi("labels", "import", write(tmp_path / "l.csv", table), *w)
    a, b, c = (sha_of(space, space.path / "pictures" / f"{name}.png") for name in "abc")
    judgments = freeze(space.engine(), "smoking")
    done = hfi("labels", "aggregate", *w)
    assert f"3 images of smoking by majority, judgments {judgments.sha256[:12]}" in done.stderr
    rows = {row["image"]: row for row in csv.DictReader(io.StringIO(done.stdout))}
    assert rows.keys() == {a, b, c}
    assert {row["judgments"] for row in rows.values()} == {judgments.sha256}
    bounds = wilson(2, 3)
    assert (float(rows[a]["label"]), float(rows[a]["low"]), float(rows[a]["high"])) == (2 / 3, bounds.low, bounds.high)
    assert (rows[a]["count"], rows[a]["decided"], rows[a]["group"], rows[a]["method"]) == ("3", "false", "", "majority")
    hfi("labels", "import", write(tmp_path / "d.csv", "image,verdict,annotator,adjudicated\na.png,clean,Eve,true\n"), *w)
    found = json.loads(hfi("labels", "aggregate", *w, "--method", "dawid-skene", "--json").stdout)
    assert (found["method"], found["question"], len(found["labels"])) == ("dawid-skene", "binary", 3)
    labels = {label["image"]: label for label in found["labels"]}
    assert (labels[a]["label"], labels[a]["count"], labels[a]["decided"], labels[a]["low"]) == (0, 3, True, None)
    assert 0 < labels[b]["label"] < 0.5 and labels[b]["low"] is None and not labels[b]["decided"]
    refused(
        hfi("labels", "aggregate", *w, "--method", "plackett-luce"), 2, "not for binary questions, which 'smoking' is judged by"
    )
    with patch("hfi.aggregate.dawid_skene", wraps=dawid_skene) as weighing:
        hfi("labels", "aggregate", *w, "--method", "dawid-skene", "--out", tmp_path / "weighed.csv", "--json")
    assert weighing.call_count == 1, "however often the labels are written"
    for suffix in ("csv", "json"):
        out = tmp_path / f"labels.{suffix}"
        assert hfi("labels", "aggregate", *w, "--out", out).stdout == ""
        text = out.read_text()
        assert (json.loads(text)["labels"][0] if suffix == "json" else next(csv.DictReader(io.StringIO(text))))["image"] in (
            a,
            b,
            c,
        )


def test_strengths_of_images_that_nothing_connects_are_said_to_be_apart(hfi: Hfi, workspace: Workspace, tmp_path: Path) -> None:
    for i in range(5):
        picture(tmp_path / "p" / f"{i}.png", 50 * i)
    hfi("import", tmp_path / "p", "-w", workspace.path)
    hfi("concept", "add", "brava", "--question", "ranking", "-w", workspace.path)
    rows = [
        (1, 0, 1, "Ann"),
        (1, 1, 2, "Ann"),
        (1, 2, 2, "Ann"),
        (2, 3, 1, "Ann"),
        (2, 4, 2, "Ann"),
        (3, 4, 1, "Bob"),
        (3, 3, 2, "Bob"),
    ]
    table = "judgment,image,verdict,rank,annotator\n" + "".join(f"{j},{i}.png,ranked,{r},{who}\n" for j, i, r, who in rows)
    hfi("labels", "import", write(tmp_path / "l.csv", table), "-w", workspace.path)
    w = ("-c", "brava", "-w", workspace.path)
    shas = [sha_of(workspace, tmp_path / "p" / f"{n}.png") for n in range(5)]
    for method in ("bradley-terry", "plackett-luce"):
        done = hfi("labels", "aggregate", *w, "--method", method, "--json")
        assert "the rankings leave 2 groups that nothing connects, 2 images outside the largest" in done.stderr
        found = json.loads(done.stdout)
        labels = {label["image"]: label for label in found["labels"]}
        assert (found["groups"], [labels[sha]["group"] for sha in shas]) == ([3, 2], [1, 1, 1, 2, 2])
        assert [labels[sha]["count"] for sha in shas] == [1, 1, 1, 2, 2]
        assert labels[shas[0]]["label"] > labels[shas[1]]["label"] == pytest.approx(labels[shas[2]]["label"])
        assert labels[shas[3]]["label"] == pytest.approx(0, abs=1e-9)  # one person each way
        assert (labels[shas[3]]["low"] is None) == (method == "bradley-terry")
    assert json.loads(hfi("labels", "aggregate", *w, "--json").stdout)["method"] == "bradley-terry"
    refused(hfi("labels", "aggregate", *w, "--method", "majority"), 2, "not for ranking questions, which 'brava' is judged by")
    nothing = "judgment,image,verdict,annotator,time\n" + "".join(
        f"{j},{i}.png,none,{who},2099-01-01T00:00:00Z\n" for j, i, _, who in rows
    )
    hfi("labels", "import", write(tmp_path / "n.csv", nothing), "-w", workspace.path)
    refused(hfi("labels", "aggregate", *w), 1, "no judgment of 'brava' says anything of an image")


# --- for the datasets library ---


def test_the_datasets_library_reads_the_folder_without_a_network(
    hfi: Hfi, space: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, as the library reads its settings when it is imported."""
    w = ("-c", "smoking", "-w", space.path)
    hfi("import", space.path / "pictures" / "a.png", "--prompt", "a secret prompt", "-w", space.path)
    table = "image,verdict,annotator,simulated,comment\na.png,shows,Ann,,private\na.png,clean,Bob,,\n"
    table += "b.png,skip,Ann,,\nc.png,shows,Bot,true,\n"
    hfi("labels", "import", write(tmp_path / "l.csv", table), *w)
    folders = {}
    for name, options in {"plain": (), "all": ("--prompts", "--comments", "--simulated", "include")}.items():
        folders[name] = tmp_path / name
        assert hfi("labels", "export", *w, "--format", "datasets", "--out", folders[name], *options).exit_code == 0
    code = (
        "import json, sys\nfrom datasets import load_dataset\n"
        "def rows(folder, *config):\n"
        "    found = load_dataset(folder, *config, split='train')\n"
        "    return [{k: v.size if k == 'image' else v for k, v in row.items()} for row in found]\n"
        "print(json.dumps([[rows(folder), rows(folder, 'judgments')] for folder in sys.argv[1:]]))"
    )
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache"), "PATH": os.environ["PATH"]}
    call = [sys.executable, "-c", code, *map(str, folders.values())]
    run = subprocess.run(call, capture_output=True, text=True, env=offline, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    found = dict(zip(folders, json.loads(run.stdout.splitlines()[-1]), strict=True))
    images, judgments = found["plain"]
    assert [(i["y"], i["count"], i["shows"], i["clean"], i["skip"], i["image"]) for i in images] == [
        (0.5, 2, 1, 1, 0, [8, 8]), (None, 0, 0, 0, 1, [8, 8]),
    ]  # fmt: skip
    assert [(j["judgment"], j["verdict"], j["image"]) for j in judgments] == [
        (1, "shows", [8, 8]),
        (2, "clean", [8, 8]),
        (3, "skip", [8, 8]),
    ]
    everything = "".join(p.read_text() for p in folders["plain"].rglob("*") if p.suffix in (".csv", ".md", ".jsonl"))
    assert not any(word in everything for word in ("secret", "private", "Ann", "Bob", "Bot", "simulated annotator"))
    images, judgments = found["all"]
    assert [i["prompt"] for i in images] == ["a secret prompt", None, None]
    assert [j["comment"] for j in judgments] == ["private", None, None, None]
    assert [j["simulated"] for j in judgments] == [False, False, False, True]
    assert "**1 of the 4 judgments come from simulated annotators.**" in (folders["all"] / "README.md").read_text()
    for image in (folders["plain"] / "images").glob("*.png"):
        assert hashlib.sha256(image.read_bytes()).hexdigest() == image.stem


def test_a_folder_is_written_whole_or_not_at_all(hfi: Hfi, space: Workspace, tmp_path: Path) -> None:
    w = ("-c", "smoking", "-w", space.path)
    hfi("labels", "import", write(tmp_path / "l.csv", BY_HAND), *w)
    out = tmp_path / "out"
    out.mkdir()
    refused(hfi("labels", "export", *w, "--format", "datasets", "--out", out), 1, f"{out} is there already: give another --out")
    out.rmdir()
    lost = space.images.path(stored(space)[1].sha256)
    data = lost.read_bytes()
    for broken in (None, data[:-1]):
        lost.unlink() if broken is None else lost.write_bytes(broken)
        done = hfi("labels", "export", *w, "--format", "datasets", "--out", out)
        refused(done, 1, "restore")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["l.csv", "work"]


def test_a_folder_needs_memory_for_one_image_at_a_time(space: Workspace, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shas = [space.images.put(Image.fromarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8))) for _ in range(20)]
    size = space.images.path(shas[0]).stat().st_size
    said = tuple(Judgment((sha,), (None,), "shows", "A-7F3K", False, "c", "", 1) for sha in shas)
    judgments = JudgmentSet("smoking", "binary", said)
    taken = Taken(prompts=False, names=False)

    def write(out: Path) -> None:
        write_folder(out, judgments, judgments.judged_by, Concept("smoking", "Smoking"), space.images, taken, lambda *_: None)

    outs = iter((tmp_path / "one", tmp_path / "two"))
    assert traced(lambda: write(next(outs))) < 4 * size
    assert len(list((tmp_path / "two" / "images").glob("*.png"))) == 20

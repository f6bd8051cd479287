"""Image stores: folders and buckets of a real server (moto, a process of its own) keep and give the same; files and rows keep in
step."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from buckets import BUCKET, ObjectStore, filesystem, leading_to, object_store
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from PIL import Image
from served import serving

from hfi import bucket as buckets
from hfi import keeping
from hfi.concepts import Concept
from hfi.errors import HfiError
from hfi.images import ImageStore, open_store, png
from hfi.keeping import add, collectable, remove, take_stock
from hfi.store import campaigns
from hfi.store import queries as q
from hfi.store.campaigns import Asking
from hfi.store.session import Engine, reading, writing
from hfi.workspace import Workspace
from ui.app import build_app
from ui.pictures import Pictures

Hfi = Callable[..., Any]  # what it returns: Done in conftest.py
URL = f"s3://{BUCKET}/one/place"


def square(i: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (i % 256, i // 256, 90))


def about(sha: str) -> q.Provenance:
    return q.Provenance(key=sha, sha256=sha, width=8, height=8, source="imported")


def known(engine: Engine, store: ImageStore, i: int) -> str:
    """A picture in the store and in the database."""
    sha = store.put(square(i))
    add(engine, store, png(square(i)), about(sha))
    return sha


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with object_store(MOTO_S3_DEFAULT_MAX_KEYS="7") as started:  # a page of a listing: here too, several are needed
        yield started


@pytest.fixture
def bucket(server: ObjectStore) -> Iterator[ImageStore]:
    with leading_to(server):
        server.empty()
        yield open_store(URL)


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ImageStore:
    return request.getfixturevalue("bucket") if request.param == "bucket" else ImageStore(tmp_path / "images")


def spoil(store: ImageStore, sha: str, data: bytes | None) -> None:
    """Behind the store's back."""
    if isinstance(store.root, Path):
        store.path(sha).write_bytes(data) if data is not None else store.path(sha).unlink()
        return
    path = f"{BUCKET}/one/place/{sha[:2]}/{sha}.png"
    filesystem().pipe_file(path, data) if data is not None else filesystem().rm(path)


# --- both kinds ---


def test_a_picture_comes_back_from_every_store_under_the_same_name(store: ImageStore, tmp_path: Path) -> None:
    shas = {i: store.put(square(i)) for i in range(30)}
    assert shas == {i: ImageStore(tmp_path / "other").put(square(i)) for i in range(30)}
    assert store.shas() == set(shas.values())
    assert [store.load(sha).tobytes() for sha in shas.values()] == [square(i).tobytes() for i in shas]
    assert all(len(store.read(file.name[3:67])) == file.size for file in store.files())
    assert store.put(square(3)) == shas[3]
    assert len(list(store.files())) == 30
    assert store.has(shas[3]) and not store.has("ab" * 32)


def test_lost_changed_and_short_files_are_said_and_putting_mends_them(store: ImageStore) -> None:
    sha, other = store.put(square(1)), store.put(square(2))
    whole = store.read(sha)
    changed = store.read(other)
    assert len(changed) == len(whole)
    for data, said in (
        (changed, "was changed"),
        (whole[:-1], "was changed"),
        (b"", "was changed"),
        (None, f"{sha[:12]} is missing"),
    ):
        spoil(store, sha, data)
        with pytest.raises(HfiError, match=said):
            store.load(sha)
        assert store.put(square(1)) == sha
        assert store.read(sha) == whole


def test_what_else_lies_in_a_store_is_let_be(store: ImageStore) -> None:
    sha = store.put(square(1))
    place = store._place
    for name in (
        "notes.txt",
        "ab/notes.txt",
        f"ab/{sha}.png",
        f"zz/{sha}.png",
        f"{sha[:2]}/{sha}.png.bak",
        f"deep/{sha[:2]}/{sha}.png",
    ):
        place.write(name, b"mine")
    assert [file.name for file in store.files()] == [f"{sha[:2]}/{sha}.png"]


def test_putting_again_makes_new_again(store: ImageStore) -> None:
    sha = store.put(square(1))
    if isinstance(store.root, Path):
        os.utime(store.path(sha), (1e9, 1e9))
    (old,) = store.files()
    begun = datetime.now(UTC)
    if not isinstance(store.root, Path):
        while datetime.now(UTC).replace(microsecond=0) <= old.modified:  # a bucket tells whole seconds
            pass
    store.put(square(1))
    (new,) = store.files()
    assert new.modified > old.modified
    assert new.modified >= begun - timedelta(seconds=1)


# --- what is wrong with a bucket is said in a sentence, before long work ---


@pytest.mark.parametrize(
    "url",
    ["images", "/data/images", "s3://", "s3:///prefix", "s3://key:secret@bucket/p", "s3://secret@bucket", "s3://b/p?key=secret", "memory://x",
     "simplecache::s3://bucket/p", "http://host/secret", "sftp://me:secret@host/p", "file://host/p", "secret"],
)  # fmt: skip
def test_a_url_of_no_store_is_refused_and_not_repeated(
    hfi: Hfi, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("HFI_IMAGES_URL", url)
    done = hfi("images", "status", "-w", workspace.path)
    assert (done.exit_code, len(done.errors)) == (1, 1)
    assert "HFI_IMAGES_URL is no URL of an image store: give one such as s3://bucket/prefix" in done.output
    assert "secret" not in done.output
    doctor = hfi("doctor", "-w", workspace.path)
    assert "HFI_IMAGES_URL is no URL" in doctor.stdout and "secret" not in doctor.stdout


def test_a_prefix_is_no_pattern(bucket: ImageStore) -> None:
    names = ("team1", "team2", "team*", "v1", "v[1]", "v[1-9]", "a b")
    stores = {name: open_store(f"s3://{BUCKET}/{name}") for name in names}
    shas = {store.put(square(i)) for store in stores.values() for i in range(40)}
    for name in ("team*", "v[1]", "v[1-9]", "a b"):
        removed = stores.pop(name)
        assert removed.shas() == shas
        removed.remove(list(removed.files()))
        assert removed.shas() == set()
        assert all(store.shas() == shas for store in stores.values())


@pytest.mark.parametrize("name", ["my-bucket", "bucket"])
def test_a_prefix_under_which_nothing_lies_is_an_empty_store(bucket: ImageStore, name: str) -> None:
    for url in (f"s3://{name}", f"s3://{name}/bucket/prefix", f"s3://{name}/bucket"):
        with pytest.raises(HfiError, match="there is no such bucket: make it"):
            open_store(url).check()
    filesystem().mkdir(name)
    for url in (f"s3://{name}", f"s3://{name}/bucket/prefix", f"s3://{name}/bucket"):
        store = open_store(url)
        store.check()
        assert (store.shas(), store.workspaces()) == (set(), set())
        sha = store.put(square(1))
        assert store.shas() == {sha}
        store.remove(list(store.files()))
        assert store.shas() == set()


def commands(space: Workspace, tmp_path: Path) -> list[list[object]]:
    """Those that write to the store, and those that read it."""
    square(1).save(tmp_path / "a.png")
    model = Path(__file__).parent.parent / "data" / "portraits"
    making: list[object] = ["generate", "--model", model, "--prompt", "a sailor", "--steps", 1]
    return [
        [*words, "-w", space.path]
        for words in (["import", tmp_path / "a.png"], making, ["images", "status"], ["ui", "--no-open"])
    ]


def refused(hfi: Hfi, space: Workspace, tmp_path: Path, *words: str) -> None:
    for command in commands(space, tmp_path):
        done = hfi(*command)
        assert (done.exit_code, len(done.errors)) == (1, 1), done
        for word in (f"the image store {URL}", *words):
            assert word in done.errors[0]
        assert "Traceback" not in done.output and "secret" not in done.output
    doctor = hfi("doctor", "-w", space.path)
    assert doctor.exit_code == 1
    assert f"the image store {URL}" in doctor.stdout


@pytest.fixture
def remote(bucket: ImageStore, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace whose images are in the bucket."""
    monkeypatch.setenv("HFI_IMAGES_URL", URL)
    with writing(workspace.engine()) as s:
        q.add_concept(s, Concept("smoking", "Smoking", "A cigarette."))
    return workspace


def test_a_bucket_that_is_not_there(hfi: Hfi, remote: Workspace, tmp_path: Path) -> None:
    filesystem().rmdir(BUCKET)
    refused(hfi, remote, tmp_path, "there is no such bucket: make it, or check HFI_IMAGES_URL")


def test_no_credentials(hfi: Hfi, remote: Workspace, tmp_path: Path, server: ObjectStore) -> None:
    with leading_to(server) as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        patch.setenv("HOME", str(tmp_path))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        refused(hfi, remote, tmp_path, "Unable to locate credentials: check your credentials (for S3 AWS_ACCESS_KEY_ID")


def test_a_key_that_the_service_does_not_know(hfi: Hfi, remote: Workspace, tmp_path: Path) -> None:
    with object_store(INITIAL_NO_AUTH_ACTION_COUNT="0") as strict, leading_to(strict):
        refused(hfi, remote, tmp_path, "check your credentials")


def test_a_service_that_is_not_reached(hfi: Hfi, remote: Workspace, tmp_path: Path, server: ObjectStore) -> None:
    with leading_to(server, AWS_ENDPOINT_URL="http://127.0.0.1:9"):
        refused(hfi, remote, tmp_path, "Could not connect to the endpoint URL", "AWS_ENDPOINT_URL")


def test_a_service_that_takes_connections_and_is_silent(
    bucket: ImageStore, server: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = bucket.put(square(1))
    server.process.send_signal(signal.SIGSTOP)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(buckets, "_SECONDS", 1)
            for call in (lambda: bucket.read(sha), lambda: bucket.put(square(2)), bucket.shas, lambda: bucket.has(sha)):
                with pytest.raises(HfiError, match="it gave no answer in 1 seconds"):
                    call()
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert bucket.load(sha).tobytes() == square(1).tobytes()


def test_a_driver_that_is_not_installed(workspace: Workspace) -> None:
    code = "import sys; sys.modules['s3fs'] = None; from hfi.cli import main; main(['images', 'status', '-w', sys.argv[1]])"
    words = [sys.executable, "-c", code, str(workspace.path)]
    done = subprocess.run(words, env={**os.environ, "HFI_IMAGES_URL": URL}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"hfi: error: the image store {URL} needs a driver") and "pip install 'hfi[s3]'" in done.stderr


# --- what is wrong with a folder, too ---


def test_what_the_system_says_of_a_folder_is_a_sentence(hfi: Hfi, workspace: Workspace) -> None:
    engine, store = workspace.engine(), workspace.images
    sha = known(engine, store, 1)
    shutil.rmtree(workspace.path / "images")
    (workspace.path / "images").write_text("no folder")
    said = f"the image store {workspace.path / 'images'} (Not a directory): check the folder, its permissions and its disk"
    for call in (lambda: store.load(sha), lambda: store.put(square(2)), store.shas, lambda: store.has(sha), store.workspaces):
        with pytest.raises(HfiError) as told:
            call()
        assert said in str(told.value)
    with pytest.raises(HfiError, match="cannot remove from"):
        store.remove([buckets.Stored(f"{sha[:2]}/{sha}.png", 1, datetime.now(UTC))])
    done = hfi("images", "status", "-w", workspace.path)
    assert (done.exit_code, len(done.errors)) == (1, 1)
    assert f"cannot list {said}" in done.errors[0]
    doctor = hfi("doctor", "-w", workspace.path)
    assert doctor.exit_code == 1
    assert f"cannot list {said}" in " ".join(doctor.stdout.split())
    sources: list[str] = []
    with pytest.raises(HfiError, match="cannot read from"):
        Pictures(store, sources.append).get(sha)
    assert sources == ["failed"]


def test_a_folder_that_is_not_mounted_is_not_made(
    hfi: Hfi, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    square(1).save(tmp_path / "a.png")
    square(2).save(tmp_path / "b.png")
    mount = tmp_path / "mount point"
    monkeypatch.setenv("HFI_IMAGES_URL", mount.as_uri())
    assert hfi("import", tmp_path / "a.png", "-w", workspace.path).exit_code == 0  # a new workspace needs no more
    mount.rename(tmp_path / "away")
    for prepared in (lambda: None, mount.mkdir):  # gone, or as empty as a mount point is
        prepared()
        done = hfi("import", tmp_path / "b.png", "-w", workspace.path)
        assert (done.exit_code, len(done.errors)) == (1, 1)
        assert f"{mount} holds no mark of this workspace, whose database refers to images: mount the folder" in done.errors[0]
        assert not mount.exists() or not list(mount.iterdir())
        for words in (["images", "status"], ["doctor"]):
            done = hfi(*words, "-w", workspace.path)
            assert done.exit_code == 1
            assert "holds no mark of this workspace, whose database refers to images" in " ".join(done.stdout.split())
    (tmp_path / "away").rename(mount)
    assert hfi("import", tmp_path / "b.png", "-w", workspace.path).exit_code == 0
    assert len(workspace.images.shas()) == 2


def test_a_store_is_not_copied_onto_itself(hfi: Hfi, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    known(workspace.engine(), workspace.images, 1)
    monkeypatch.chdir(workspace.path)
    (workspace.path.parent / "link").symlink_to(workspace.path)
    for folder in (workspace.path / "images", workspace.path.parent / "link" / "images"):
        done = hfi("images", "copy", "--to", folder.as_uri())
        assert (done.exit_code, "is the workspace's image store already" in done.errors[0]) == (1, True)
    assert not (workspace.path / "images" / "workspaces").exists()


# --- a workspace with its images in a bucket ---


def test_generate_import_and_doctor_with_a_bucket(hfi: Hfi, remote: Workspace, tmp_path: Path) -> None:
    for command in commands(remote, tmp_path)[:2]:
        done = hfi(*command)
        assert done.exit_code == 0, done
    assert not list((remote.path / "images").iterdir())
    with reading(remote.engine()) as s:
        shas = {image.sha256 for image in q.images(s)}
    assert remote.images.shas() == shas and len(shas) == 2
    doctor = hfi("doctor", "--all", "-w", remote.path, "--json")
    store = next(f for f in json.loads(doctor.stdout) if f["name"] == "image store")
    assert (store["state"], store["text"]) == ("ok", f"2 files in {URL}, 2 of them read and found unchanged")
    status = json.loads(hfi("images", "status", "-w", remote.path, "--json").stdout)
    assert status == {
        "store": URL,
        "files": 2,
        "bytes": status["bytes"],
        "known": 2,
        "missing": 0,
        "unknown": 0,
        "unknown_bytes": 0,
    }
    spoil(remote.images, min(shas), None)
    done = hfi("images", "status", "-w", remote.path)
    assert (done.exit_code, "1 images of the database have no file" in done.stdout) == (1, True)
    for folder in (remote.runs, remote.path / "hfi.toml"):
        for file in [folder] if folder.is_file() else filter(Path.is_file, folder.rglob("*")):
            assert b"secret" not in file.read_bytes()


def judged_page(space: Workspace, images: int) -> Engine:
    engine, store = space.engine(), space.images
    for i in range(images):
        known(engine, store, i)
    with writing(engine) as s:
        ids = [image.id for image in q.images(s)]
        campaigns.ensure_campaign(s, "smoking", "people", image_ids=ids, asking=Asking(overlap=1))
    return engine


@pytest.mark.databases
def test_people_judge_pictures_of_a_bucket_on_a_real_server(remote: Workspace) -> None:
    engine = judged_page(remote, 3)
    with serving(build_app(remote, engine)) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        client.post("/enter", data={"name": "Kim"})
        seen = set()
        for i in range(3):
            task = client.get("/api/campaigns/1/state").json()["task"]
            got = client.get(task["images"][0])
            assert (got.status_code, got.headers["content-type"]) == (200, "image/png")
            seen.add(Image.open(io.BytesIO(got.content)).convert("RGB").tobytes())
            client.post("/api/judge", json={"token": task["token"], "verdict": "shows", "once": f"once more {i:8}"})
        assert client.get("/api/campaigns/1/state").json()["task"] is None
        assert seen == {square(i).tobytes() for i in range(3)}


@pytest.mark.databases
def test_people_go_on_answering_while_the_bucket_is_silent(remote: Workspace, server: ObjectStore) -> None:
    engine = judged_page(remote, 3)
    with serving(build_app(remote, engine)) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        client.post("/enter", data={"name": "Kim"})
        task = client.get("/api/campaigns/1/state").json()["task"]
        server.process.send_signal(signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(16) as pool:  # as many as there are threads for pages and for pictures
                cookies = dict(client.cookies)
                waiting = [
                    pool.submit(httpx.get, f"{client.base_url}{task['images'][0]}", cookies=cookies, timeout=60)
                    for _ in range(16)
                ]
                said = {"token": task["token"], "verdict": "shows", "once": "once while it is silent"}
                assert client.post("/api/judge", json=said).status_code == 200
                assert client.get("/api/campaigns/1/state").json()["task"]["token"] != task["token"]
                assert not any(one.done() for one in waiting)
                server.process.send_signal(signal.SIGCONT)
                assert {one.result().status_code for one in waiting} == {200}
        finally:
            server.process.send_signal(signal.SIGCONT)


# --- collecting what no row refers to ---


def age(store: ImageStore, hours: float, shas: set[str] | None = None) -> None:
    """Makes files of a folder older."""
    for file in store.files():
        if shas is None or file.name[3:67] in shas:
            then = file.modified.timestamp() - 3600 * hours
            os.utime(store.root / file.name, (then, then))  # type: ignore[operator]


def collected(hfi: Hfi, space: Workspace, *more: object) -> dict[str, Any]:
    done = hfi("images", "collect", "-w", space.path, "--json", *more)
    assert done.exit_code == 0, done
    return json.loads(done.stdout)


@pytest.mark.databases
def test_collecting_takes_old_files_without_a_row_and_nothing_else(hfi: Hfi, workspace: Workspace) -> None:
    engine, store = workspace.engine(), workspace.images
    wanted = {known(engine, store, i) for i in range(5)}
    garbage = {store.put(square(i)) for i in range(10, 13)}
    scratch = store.path(min(wanted)).with_name(f"{min(wanted)}.png.123-456.tmp")
    scratch.write_bytes(b"half")
    mine = store.root / "notes.txt"  # type: ignore[operator]
    mine.write_text("mine")
    assert collected(hfi, workspace)["young"] == 4
    age(store, 25)
    os.utime(mine, (1, 1))
    fresh = store.put(square(10))  # again: somebody is about to refer to it
    dry = collected(hfi, workspace, "--dry-run")
    assert {key: dry[key] for key in ("removed", "young", "dry_run")} == {"removed": 3, "young": 1, "dry_run": True}
    assert store.shas() == wanted | garbage
    done = collected(hfi, workspace)
    assert done == {**dry, "dry_run": False}
    assert done["bytes"] == dry["bytes"] > 4
    assert store.shas() == wanted | {fresh}
    assert not scratch.exists() and mine.exists()
    said = hfi("images", "collect", "-w", workspace.path, "--older-than", 0).stdout
    assert said.startswith(f"1 files removed from {store.root} (") and said.endswith("5 images of the database stay\n")
    assert store.shas() == wanted
    assert all(store.load(sha) for sha in wanted)


@pytest.mark.databases
def test_collecting_is_refused_where_the_database_is_not_the_stores(hfi: Hfi, workspace: Workspace) -> None:
    engine, store = workspace.engine(), workspace.images
    garbage = {store.put(square(i)) for i in range(10, 13)}
    age(store, 100)

    def refusal(said: str) -> None:
        done = hfi("images", "collect", "-w", workspace.path)
        assert (done.exit_code, len(done.errors)) == (1, 1)
        assert said in done.errors[0]
        assert store.shas() >= garbage

    refusal("the database has no image, so every file")
    known(engine, store, 1)
    refusal("3 of the 4 files in")
    assert collected(hfi, workspace, "--most")["removed"] == 3


def test_a_store_that_several_workspaces_use_is_not_collected(
    hfi: Hfi, remote: Workspace, empty_workspace: Path, tmp_path: Path
) -> None:
    other = Workspace(tmp_path / "other")
    shutil.copytree(empty_workspace, other.path)
    pictures = []
    for i in range(6):
        pictures.append(tmp_path / f"{i}.png")
        square(i).save(pictures[-1])
    refusal = ["images", "collect", "--older-than", 0, "-w"]
    known(remote.engine(), remote.images, 77)
    assert "holds no mark of this workspace" in hfi(*refusal, remote.path).errors[0]
    assert hfi("import", *pictures[:4], "-w", remote.path).exit_code == 0
    remote.images.put(square(99))
    assert collected(hfi, remote, "--older-than", 0)["removed"] == 1
    assert hfi("import", *pictures[4:], "-w", other.path).exit_code == 0
    for space in (remote, other):
        done = hfi(*refusal, space.path)
        assert (done.exit_code, "is used by 1 more workspace, whose images this database does not know" in done.errors[0]) == (
            1,
            True,
        )
    assert len(remote.images.shas()) == 7


@pytest.mark.databases
def test_an_image_made_during_a_listing_does_not_stand_for_one_that_is_lost(workspace: Workspace) -> None:
    engine, store = workspace.engine(), workspace.images
    lost, _ = known(engine, store, 1), known(engine, store, 2)
    spoil(store, lost, None)

    class Growing(ImageStore):
        def files(self) -> Iterator[buckets.Stored]:
            known(engine, store, 3)
            yield from super().files()

    found = take_stock(engine, Growing(store.root))
    assert (found.files, found.known, found.missing, found.unknown) == (2, 2, 1, ())


def test_a_removal_that_a_silent_bucket_was_asked_for_is_said_to_be_open(
    bucket: ImageStore, workspace: Workspace, server: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = workspace.engine()
    known(engine, bucket, 0)
    bucket.put(square(1))
    old = list(take_stock(engine, bucket).unknown)
    monkeypatch.setattr(buckets, "_SECONDS", 1)
    server.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(
            HfiError, match=r"no answer in 1 seconds.*; files may still go after this, so run 'hfi images status'"
        ):
            remove(engine, bucket, old)
    finally:
        server.process.send_signal(signal.SIGCONT)


def test_images_that_are_lost_by_a_removal_that_failed_are_named(workspace: Workspace) -> None:
    """As where the server, of the store or of the database, took the removal for failed and it was carried out later."""
    engine, store = workspace.engine(), workspace.images
    known(engine, store, 0)
    shas = [store.put(square(i)) for i in (1, 2)]
    old = list(take_stock(engine, store).unknown)

    class Late(ImageStore):
        def remove(self, files: Sequence[buckets.Stored], sure: Callable[[], object] = lambda: None) -> None:
            raise HfiError("it gave no answer")

        def has(self, sha: str) -> bool:  # asked for after the failure, when somebody has added both, and one file is gone by now
            return sha != shas[0]

    real = keeping.kept.referenced
    answers = iter([{}, dict.fromkeys(shas, 9)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeping.kept, "referenced", lambda s, names: real(s, names) | next(answers))
        with pytest.raises(
            HfiError, match=rf"^1 images were removed after .* first {shas[0][:12]}: restore .* \(it gave no answer\)$"
        ):
            remove(engine, Late(store.root), old)


@pytest.mark.databases
def test_a_row_is_never_added_without_its_file(workspace: Workspace) -> None:
    """A file that was collected between being put and being referred to is written again."""
    engine, store = workspace.engine(), workspace.images
    known(engine, store, 0)
    sha = store.put(square(1))
    found = take_stock(engine, store)
    assert [f.name[3:67] for f in remove(engine, store, collectable(engine, store, found, timedelta(0)))] == [sha]
    add(engine, store, png(square(1)), about(sha))
    assert store.load(sha).tobytes() == square(1).tobytes()


class Keeping(RuleBasedStateMachine):
    """Writers and a collector, each of them in the middle of something, in every order, and a clock that makes files old. Every image
    that a row refers to is there at all times."""

    empty: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.space = Workspace(Path(self.folder.name) / "work")
        shutil.copytree(self.empty, self.space.path)
        self.engine, self.store = self.space.engine(), self.space.images
        self.begun: dict[str, int] = {}  # put, and not referred to yet
        self.listed: list[buckets.Stored] = []
        self.wanted = {known(self.engine, self.store, 999)}

    def teardown(self) -> None:
        self.engine.dispose()
        self.folder.cleanup()

    @rule(i=st.integers(0, 1))
    def put(self, i: int) -> None:
        self.begun[self.store.put(square(i))] = i

    @precondition(lambda self: self.begun)
    @rule(data=st.data())
    def refer(self, data: st.DataObject) -> None:
        sha = data.draw(st.sampled_from(sorted(self.begun)))
        add(self.engine, self.store, png(square(self.begun.pop(sha))), about(sha))
        self.wanted.add(sha)

    @rule(grace=st.sampled_from([timedelta(0), timedelta(days=1)]), hours=st.sampled_from([0, 30]))
    def look(self, grace: timedelta, hours: int) -> None:
        age(self.store, hours)
        self.listed = collectable(self.engine, self.store, take_stock(self.engine, self.store), grace, most=True)

    @precondition(lambda self: self.listed)
    @rule()
    def collect(self) -> None:
        gone = {str(file.name[3:67]) for file in remove(self.engine, self.store, self.listed)}
        self.listed = []
        assert not gone & self.wanted

    @rule()
    def look_and_collect(self) -> None:
        self.look(timedelta(0), 0)
        self.collect()

    @invariant()
    def nothing_is_lost(self) -> None:
        for sha in self.wanted:
            self.store.load(sha)


def test_no_order_of_putting_referring_and_collecting_loses_an_image(empty_workspace: Path) -> None:
    Keeping.empty = empty_workspace
    run_state_machine_as_test(Keeping, settings=settings(max_examples=30, stateful_step_count=15))


@pytest.mark.databases
def test_collecting_beside_imports_of_other_processes_loses_nothing(hfi: Hfi, workspace: Workspace, tmp_path: Path) -> None:
    engine, store = workspace.engine(), workspace.images
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(60):
        square(i).save(pictures / f"{i}.png")
        store.put(square(i))  # all of them lie there already, old and unwanted
    known(engine, store, 999)
    importing = [
        subprocess.Popen(
            [sys.executable, "-m", "hfi", "import", str(pictures), "-w", str(workspace.path)], stderr=subprocess.DEVNULL
        )
        for _ in range(2)
    ]
    gone = 0
    while any(process.poll() is None for process in importing):
        gone += len(remove(engine, store, collectable(engine, store, take_stock(engine, store), timedelta(0), most=True)))
    assert [process.returncode for process in importing] == [0, 0]
    assert gone > 0
    with reading(engine) as s:
        images = q.images(s)
    assert len(images) == 61
    assert all(store.load(image.sha256) for image in images)


# --- copying ---


@pytest.mark.databases
def test_a_workspace_moves_into_a_bucket_and_back(
    hfi: Hfi, bucket: ImageStore, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, local = workspace.engine(), workspace.images
    shas = {known(engine, local, i) for i in range(12)}
    damaged = min(shas)
    whole = local.read(damaged)
    local.path(damaged).write_bytes(b"damaged")

    def copied(*words: object, code: int = 0) -> dict[str, Any]:
        done = hfi("images", "copy", "-w", workspace.path, "--json", *words)
        assert done.exit_code == code, done
        assert done.stderr.count("skipped: ") == code
        return json.loads(done.stdout)

    done = copied("--to", URL, code=1)
    assert {key: done[key] for key in ("from", "to", "copied", "known", "skipped")} == {
        "from": str(local.root), "to": URL, "copied": 11, "known": 0, "skipped": 1,
    }  # fmt: skip
    local.path(damaged).write_bytes(whole)
    spoil(bucket, max(shas), b"cut")  # as an interrupted one would be, were it not whole
    for expected in ({"copied": 2, "known": 10}, {"copied": 0, "known": 12}):
        done = copied("--to", URL)
        assert {key: done[key] for key in expected} == expected
    assert all(bucket.read(sha) == local.read(sha) for sha in shas)
    monkeypatch.setenv("HFI_IMAGES_URL", URL)
    assert collected(hfi, workspace, "--older-than", 0)["removed"] == 0
    done = hfi("images", "copy", "-w", workspace.path, "--to", URL + "/")
    assert (done.exit_code, f"{URL} is the workspace's image store already" in done.errors[0]) == (1, True)
    assert copied("--to", f"file://{tmp_path}/back")["copied"] == 12
    monkeypatch.setenv("HFI_IMAGES_URL", f"file://{tmp_path}/back")
    assert workspace.images.shas() == shas
    assert hfi("images", "status", "-w", workspace.path).exit_code == 0

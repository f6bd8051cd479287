"""Files and folders are written whole or not at all."""

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hfi.files import share, whole, whole_folder, write_text


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")

    def interrupted() -> None:
        with whole(tmp_path / "a") as scratch:
            scratch.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_two_writers_at_once_do_not_meet(tmp_path: Path) -> None:
    """With one scratch name, the second to finish found its scratch file gone."""
    both = threading.Barrier(2)
    failed: list[BaseException] = []

    def write(text: str) -> None:
        try:
            with whole(tmp_path / "a") as scratch:
                scratch.write_text(text)
                both.wait(120)
        except OSError as e:
            failed.append(e)

    threads = [threading.Thread(target=write, args=(text,)) for text in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert (tmp_path / "a").read_text() in ("one", "two")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def interrupted() -> None:
        with whole_folder(tmp_path / "f") as scratch:
            (scratch / "new").write_text("half")
            raise KeyboardInterrupt

    for name in ("one", "two"):
        with whole_folder(tmp_path / "f") as scratch:
            (scratch / name).write_text(name)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["f", "f/two"]


def test_a_secret_stays_one_and_weights_are_shared(tmp_path: Path) -> None:
    """safetensors writes for the owner alone, and another user's web UI could not load them."""
    (tmp_path / "usual").touch()
    for name in ("secret", "weights"):
        with whole(tmp_path / name) as scratch:
            save_file({"x": torch.ones(1)}, scratch)
            scratch.chmod(0o600)
            if name == "weights":
                share(scratch)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "weights").stat().st_mode == (tmp_path / "usual").stat().st_mode

"""Files are written whole or not at all."""

import threading
from pathlib import Path

import pytest

from hfi.files import whole, write_text


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
                both.wait(10)
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

"""The image store, and pictures that people bring."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from hfi import images
from hfi.errors import HfiError
from hfi.images import ImageStore, safe_open


def noise(seed: int = 0, size: tuple[int, int] = (9, 7)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def test_a_picture_comes_back_pixel_by_pixel_under_the_hash_of_its_file(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    sha = store.put(noise())
    assert store.path(sha) == tmp_path / sha[:2] / f"{sha}.png"
    assert np.array_equal(pixels(store.load(sha)), pixels(noise()))
    written = store.path(sha).stat().st_mtime_ns
    assert store.put(noise()) == sha
    assert store.path(sha).stat().st_mtime_ns == written
    assert store.put(noise(1)) != sha
    assert len(list(tmp_path.rglob("*.*"))) == 2


def test_nothing_but_pixels_is_kept(tmp_path: Path) -> None:
    about = PngImagePlugin.PngInfo()
    about.add_text("parameters", "a sailor, Steps: 25, Model: secret")
    buffer = io.BytesIO()
    noise().save(buffer, "PNG", pnginfo=about, dpi=(300, 300))
    with_text = Image.open(io.BytesIO(buffer.getvalue()))
    assert with_text.info["parameters"]
    store = ImageStore(tmp_path)
    sha = store.put(with_text)
    assert sha == store.put(noise())
    kept = Image.open(store.path(sha))
    assert kept.info == {}
    assert kept.mode == "RGB"


def test_a_lost_or_changed_file_is_said(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    sha = store.put(noise())
    store.path(sha).write_bytes(store.path(store.put(noise(1))).read_bytes())
    with pytest.raises(HfiError, match="was changed"):
        store.load(sha)
    store.path(sha).unlink()
    with pytest.raises(HfiError, match=f"{sha[:12]} is missing"):
        store.load(sha)


def test_a_file_that_a_power_failure_left_short_is_written_again(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    sha = store.put(noise())
    store.path(sha).write_bytes(b"")
    assert store.put(noise()) == sha
    assert np.array_equal(pixels(store.load(sha)), pixels(noise()))


def test_a_store_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HfiError, match="cannot write to the image store"):
        ImageStore(tmp_path / "file").put(noise())


# --- pictures from outside ---


def encoded(kind: str, mode: str) -> bytes | None:
    """The noise in a file of this kind, None where the kind has no such mode."""
    buffer = io.BytesIO()
    try:
        (noise().convert("L") if mode == "I;16" else noise()).convert(mode).save(buffer, kind, lossless=True)
    except (OSError, ValueError):
        return None
    return buffer.getvalue()


KINDS = ("PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG")
MODES = ("RGB", "RGBA", "L", "P", "1", "LA", "CMYK", "I;16")
FILES = {f"{kind} {mode}": data for kind in KINDS for mode in MODES if (data := encoded(kind, mode))}


@pytest.mark.parametrize("name", FILES)
def test_every_usual_kind_of_file_opens_as_rgb(tmp_path: Path, name: str) -> None:
    (tmp_path / "picture").write_bytes(FILES[name])
    found = safe_open(tmp_path / "picture")
    assert (found.mode, found.size) == ("RGB", (9, 7))
    if name in ("PNG RGB", "BMP RGB", "TIFF RGB", "WEBP RGB"):
        assert np.array_equal(pixels(found), pixels(noise()))


def test_a_camera_held_sideways_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: to be turned by 90 degrees clockwise
    noise().save(tmp_path / "a.png", exif=exif)
    found = safe_open(tmp_path / "a.png")
    assert found.size == (7, 9)
    assert np.array_equal(pixels(found), np.rot90(pixels(noise()), k=-1))


def broken() -> dict[str, bytes]:
    buffer = io.BytesIO()
    noise(size=(64, 64)).save(buffer, "PNG")
    whole = buffer.getvalue()
    return {
        "empty": b"",
        "text": b"not an image at all",
        "cut": whole[: len(whole) // 2],
        "header": whole[:40],
        "flipped": whole[:200] + bytes(b ^ 255 for b in whole[200:400]) + whole[400:],
    }


@pytest.mark.parametrize("name", sorted(broken()))
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.png").write_bytes(broken()[name])
    with pytest.raises(HfiError, match=rf"{name}\.png is (empty|not a readable image)"):
        safe_open(tmp_path / f"{name}.png")


def test_folders_and_missing_files_are_no_images(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone.png"):
        with pytest.raises(HfiError, match="not a readable image"):
            safe_open(path)


def test_a_small_file_that_unpacks_to_too_much_is_refused_by_its_header(tmp_path: Path) -> None:
    big = tmp_path / "big.png"
    Image.new("1", (30_000, 4_000)).save(big)
    assert big.stat().st_size < 100_000
    with pytest.raises(HfiError, match=r"big\.png has .*pixels: at most 50,000,000|too many pixels"):
        safe_open(big)


def test_the_limit_itself_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise().save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 63)
    assert safe_open(tmp_path / "a.png").size == (9, 7)
    monkeypatch.setattr(images, "MAX_PIXELS", 62)
    with pytest.raises(HfiError, match="has 9x7 pixels"):
        safe_open(tmp_path / "a.png")

"""The image store, and pictures that people bring."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from drawn import png16
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from hfi import images
from hfi.errors import HfiError
from hfi.images import ImageStore, find_pictures, open_picture, safe_open


def noise(seed: int = 0, size: tuple[int, int] = (9, 7)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def test_a_picture_comes_back_pixel_by_pixel_under_the_hash_of_its_file(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    sha = store.put(noise())
    assert store.path(sha) == tmp_path / sha[:2] / f"{sha}.png"
    assert np.array_equal(pixels(store.load(sha)), pixels(noise()))
    inode = store.path(sha).stat().st_ino
    os.utime(store.path(sha), (1e9, 1e9))
    assert store.put(noise()) == sha
    assert (store.path(sha).stat().st_ino, store.path(sha).stat().st_mtime > 1e9) == (inode, True), "the same file, new again"
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


def test_sixteen_bits_a_channel_become_eight(tmp_path: Path) -> None:
    """Grey values are rounded; of colours Pillow keeps the higher byte."""
    wide = np.random.default_rng(0).integers(0, 2**16, (5, 7, 3), dtype=np.uint16)
    (tmp_path / "rgb.png").write_bytes(png16(wide))
    assert np.array_equal(pixels(safe_open(tmp_path / "rgb.png")), (wide >> 8).astype(np.uint8))
    for name in ("grey.png", "grey.tif"):
        Image.fromarray(wide[..., 0]).save(tmp_path / name)
        expected = np.repeat(np.floor(wide[..., :1] / 257 + 0.5), 3, axis=2)
        assert np.array_equal(pixels(safe_open(tmp_path / name)), expected.astype(np.uint8))


def test_ink_becomes_light(tmp_path: Path) -> None:
    ink = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255], [10, 20, 30, 40]]], dtype=np.uint8)
    Image.fromarray(ink, mode="CMYK").save(tmp_path / "ink.tif")
    found = pixels(safe_open(tmp_path / "ink.tif"))[0].tolist()
    assert found[:4] == [[255, 255, 255], [0, 255, 255], [255, 0, 0], [0, 0, 0]]
    expected = [(255 - c) * (255 - 40) / 255 for c in (10, 20, 30)]
    assert np.abs(np.array(found[4]) - expected).max() <= 1
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "ink.jpg", quality=100)
    assert np.abs(pixels(safe_open(tmp_path / "ink.jpg")).astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize(
    "kind", ["RGBA png", "LA png", "P png", "P gif", "RGB png with one clear colour", "RGBA webp", "RGBA tiff"]
)
def test_what_is_transparent_becomes_white_and_is_said(tmp_path: Path, kind: str) -> None:
    """Left to right: red, or grey 100; clear; where the kind of file can, half clear."""
    mode, _, rest = kind.partition(" ")
    path = tmp_path / f"picture.{rest.split()[0]}"
    grey = mode == "LA"
    clear_colour = (1, 2, 3)
    rgba = Image.new("RGBA", (3, 1))
    shades = [(100, 100, 100, 255) if grey else (255, 0, 0, 255), (*clear_colour, 0), (0, 0, 0, 128)]
    for x, shade in enumerate(shades):
        rgba.putpixel((x, 0), shade)
    if mode == "RGB":
        rgba.convert("RGB").save(path, transparency=clear_colour)
    elif mode == "P":
        paletted = Image.new("P", (3, 1))
        paletted.putpalette([255, 0, 0, 1, 2, 3, 0, 0, 0])
        paletted.putdata([0, 1, 2])
        paletted.save(path, transparency=1)
    else:
        rgba.convert(mode).save(path, lossless=True)
    found = open_picture(path)
    assert found.notes == ("is transparent in places: they are white now",)
    first, clear, half = pixels(found.image)[0].tolist()
    assert first == ([100] * 3 if grey else [255, 0, 0])
    assert clear == [255] * 3
    assert half == ([127] * 3 if mode in ("RGBA", "LA") else [0] * 3)


def test_a_picture_that_could_be_transparent_and_is_not_is_not_said_to_be(tmp_path: Path) -> None:
    noise().convert("RGBA").save(tmp_path / "a.png")
    found = open_picture(tmp_path / "a.png")
    assert found.notes == ()
    assert np.array_equal(pixels(found.image), pixels(noise()))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_the_first_of_several_frames_is_taken_and_said(tmp_path: Path, suffix: str) -> None:
    first, second = Image.new("RGB", (4, 4), (250, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 250))
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second], lossless=True)
    found = open_picture(tmp_path / f"a.{suffix}")
    assert found.notes == ("has several frames or pages: the first was taken",)
    assert np.array_equal(pixels(found.image), pixels(first))
    first.save(tmp_path / f"one.{suffix}", lossless=True)
    assert open_picture(tmp_path / f"one.{suffix}").notes == ()


def test_files_of_other_programs_are_not_opened_whatever_their_suffix(tmp_path: Path) -> None:
    """Pillow would hand an EPS to Ghostscript, which runs it."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(w) (/tmp/x) file\nshowpage\n%%EOF\n"
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 60
    for data in (eps, svg, heic, b"8BPS\0\1" + b"\0" * 40, b"P6 2 2 255\n" + b"\7" * 12):
        (tmp_path / "a.png").write_bytes(data)
        with pytest.raises(HfiError, match=r"a\.png is not a readable image \(none of PNG, JPEG, WEBP, BMP, GIF, TIFF\)"):
            safe_open(tmp_path / "a.png")


@settings(max_examples=150)
@given(
    st.sampled_from(sorted(FILES)), st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=6)), max_size=8), st.booleans()
)
def test_no_damage_does_more_than_name_the_file(
    tmp_path_factory: pytest.TempPathFactory, name: str, patches: list[tuple[int, bytes]], cut: bool
) -> None:
    data = bytearray(FILES[name])
    for place, patch in patches:
        start = place % len(data)
        data[start : start + len(patch)] = patch
    path = tmp_path_factory.getbasetemp() / "damaged.png"
    path.write_bytes(data[: len(data) // 2] if cut else data)
    found, said = None, ""
    try:
        found = safe_open(path)
    except HfiError as e:
        said = str(e)
    if found is None:
        assert "damaged.png " in said
    else:
        assert found.mode == "RGB" and found.width * found.height <= images.MAX_PIXELS


def test_a_camera_held_sideways_is_turned_upright(tmp_path: Path) -> None:
    turned = {  # what has to be done to pixels stored in this orientation
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, k=-1),
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: np.rot90(p),
    }
    for orientation, turn in turned.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        noise().save(tmp_path / "a.png", exif=exif)
        assert np.array_equal(pixels(safe_open(tmp_path / "a.png")), turn(pixels(noise()))), orientation


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


def test_a_file_of_too_many_bytes_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    noise().save(file)
    with open(file, "r+b") as opened:
        opened.truncate(images.MAX_BYTES)
    assert safe_open(file).size == (9, 7), "the limit itself is accepted"
    with open(file, "r+b") as opened:
        opened.truncate(images.MAX_BYTES + 1)  # a file with a hole takes no room
    with pytest.raises(HfiError, match=r"a\.png has 512 MiB: at most 512 are accepted"):
        safe_open(file)


# --- folders ---


def test_a_folder_is_searched_and_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside"
    for path in (home / "b.PNG", home / "deep" / "a.jpg", home / "folder.png" / "c.gif", outside / "secret.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        noise().save(path)
    for name in (".hidden.png", ".git/d.png", "deep/.e.png", "notes.txt", "no-suffix"):
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_bytes(b"x")
    for name in ("drawing.svg", "phone.HEIC", "page.eps"):
        (home / name).write_bytes(b"x")
    os.mkfifo(home / "pipe.png")
    links = {
        "in.png": home / "b.PNG",
        "out.png": outside / "secret.png",
        "nothing.png": home / "gone.png",
        "self.png": home / "self.png",
    }
    links |= {"outside": outside, "deeper.png": home / "deep", "notes-link": outside / "secret.png"}
    for name, target in links.items():
        (home / name).symlink_to(target)
    found = find_pictures(home)
    assert [str(path.relative_to(home)) for path in found.pictures] == ["b.PNG", "deep/a.jpg", "folder.png/c.gif", "in.png"]
    assert (found.hidden, found.other) == (3, 3)
    why = {reason.removeprefix(f"{home}/").split(" ")[0]: reason.split(" is ", 1)[1] for reason in found.refused}
    out = "a link out of the folder, or to nothing: name the file itself to take it"
    assert why == {
        "drawing.svg": "a .svg file, which is not read: save it as PNG",
        "phone.HEIC": "a .heic file, which is not read: save it as PNG",
        "page.eps": "a .eps file, which is not read: save it as PNG",
        "out.png": out,
        "nothing.png": out,
        "self.png": out,
        "outside": out,
        "notes-link": out,
        "deeper.png": "a link to a folder: name that folder instead",
    }


def test_a_folder_that_is_a_link_itself_is_searched(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    noise().save(tmp_path / "home" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "home")
    assert [path.name for path in find_pictures(tmp_path / "link").pictures] == ["a.png"]

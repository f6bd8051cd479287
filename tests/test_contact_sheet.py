import numpy as np
import pytest
from PIL import Image

from hfi.contact_sheet import contact_sheet


def test_pictures_stand_in_named_rows() -> None:
    red, blue, small = Image.new("RGB", (30, 20), "red"), Image.new("L", (30, 20), 9), Image.new("RGB", (10, 8), "blue")
    sheet = contact_sheet([("one", [red, blue]), ("a name that is far too long\nfor this sheet", [small]), ("nothing", [])])
    assert (sheet.mode, sheet.size) == ("RGB", (4 + 34 + 34, 18 + 24 + 18 + 12 + 18 + 4))
    pixels = np.asarray(sheet)
    assert np.array_equal(pixels[18:38, 4:34], np.asarray(red))
    assert (pixels[18:38, 38:68] == 9).all()
    assert np.array_equal(pixels[60:68, 4:14], np.asarray(small))
    for top in (0, 42, 72):  # each name is written, within the margins
        line = pixels[top : top + 18]
        assert (line < 128).any()
        assert (line[:, :3] == 255).all()
        assert (line[:, -4:] == 255).all()
    assert np.array_equal(
        pixels, np.asarray(contact_sheet([("one", [red, blue]), ("a name that is far too long", [small]), ("nothing", [])]))
    )
    with pytest.raises(ValueError, match="no pictures"):
        contact_sheet([("nothing", [])])

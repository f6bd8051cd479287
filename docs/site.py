"""What mkdocs needs besides the pages in docs/: files from elsewhere in the checkout, and links that hold in both places.

A link is written for whoever reads the file where it lies. In the site it is led to the same file's page.
"""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
OUTSIDE = {  # file of the checkout: its place in the site
    "CHANGELOG.md": "project/CHANGELOG.md",
    "CITATION.cff": "project/CITATION.cff",
    "CONTRIBUTING.md": "project/CONTRIBUTING.md",
    "LICENSE": "project/LICENSE.txt",
    "SECURITY.md": "project/SECURITY.md",
    "data/portraits/README.md": "project/portraits.md",
}
_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")


def on_files(files: Any, config: Any) -> Any:
    for source, place in OUTSIDE.items():
        files.append(File.generated(config, place, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    place = page.file.src_uri
    source = next((name for name, put in OUTSIDE.items() if put == place), f"docs/{place}")
    return _LINK.sub(lambda found: found[1] + _led(found[2], source, place) + (found[3] or "") + found[4], markdown)


def _led(link: str, source: str, place: str) -> str:
    """A link of the checkout's file `source`, as its page at `place` has to say it."""
    if "://" in link or link.startswith(("mailto:", "/")):
        return link
    target = os.path.normpath(PurePosixPath(source).parent / link)
    inside = OUTSIDE.get(target, target.removeprefix("docs/"))
    return os.path.relpath(inside, PurePosixPath(place).parent)

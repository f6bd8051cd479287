"""Judgments with their images, as a folder that the `datasets` library reads without a network: `load_dataset(FOLDER)` gives the
images with what people say of them together, `load_dataset(FOLDER, "judgments")` every judgment with its image.

    README.md                the card: what was asked, by whom it was answered, what the columns mean
    metadata.csv             every judgment, as `hfi.judgment_tables` writes them, the images by their path in the folder
    images/SHA256.png        copies of the image store's files, which carry no metadata
    images/metadata.jsonl    one line an image

Both names are those that its `imagefolder` looks for; it reads all of a folder's parts as one kind, so both are of images.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hfi.aggregate import decisions, mean_places, soft_labels
from hfi.concepts import Concept
from hfi.errors import HfiError
from hfi.files import whole_folder
from hfi.images import ImageStore
from hfi.judgment_tables import csv_lines
from hfi.judgments import Judgment, Judgments, JudgmentSet, judged_by_text
from hfi.progress import Advance
from hfi.store.models import BINARY_VERDICTS, RANKING_VERDICTS

TABLE = "metadata.csv"
VERDICTS = {"binary": BINARY_VERDICTS, "ranking": RANKING_VERDICTS}


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What an export takes along beside verdicts. Prompts name what somebody tried to get, names who judged."""

    prompts: bool
    names: bool


def write_folder(
    folder: Path,
    judgments: Judgments,
    judged_by: Mapping[str, Any],
    concept: Concept,
    images: ImageStore,
    taken: Taken,
    advance: Advance,
) -> None:
    """Whole or not at all; a few images' judgments and one image at a time are in memory. `judged_by`: what the card says of the
    judgments, as they were before names were put in. HfiError where the folder is there already or cannot be written, and where an
    image is missing or was changed."""
    if folder.exists():
        raise HfiError(f"{folder} is there already: give another --out")
    count = simulated = 0

    def rows() -> Iterator[Judgment]:
        nonlocal simulated
        for j in judgments.judgments:
            simulated += j.simulated
            yield _in_folder(j, taken.prompts)

    try:
        with whole_folder(folder) as scratch:
            (scratch / "images").mkdir()
            with open(scratch / "images" / "metadata.jsonl", "w", encoding="utf-8") as metadata:
                for shas, said in judgments.parts():
                    about, prompts = _together(shas, said), said.prompts
                    for sha in shas:
                        (scratch / "images" / f"{sha}.png").write_bytes(images.read(sha))
                        line = {"file_name": f"{sha}.png", "sha256": sha, **about[sha]}
                        metadata.write(json.dumps({**line, "prompt": prompts[sha]} if taken.prompts else line) + "\n")
                        advance(1, "")
                    count += len(shas)
            with open(scratch / TABLE, "w", encoding="utf-8", newline="") as table:
                table.writelines(csv_lines(rows(), image="file_name"))
            card = _card(judgments.question, judged_by, count, simulated, concept, taken)
            (scratch / "README.md").write_text(card, encoding="utf-8")
    except OSError as e:
        raise HfiError(f"cannot write {folder}: {e.strerror or e}") from e


def _in_folder(j: Judgment, prompts: bool) -> Judgment:
    """Its images by their path in the folder."""
    return replace(
        j, images=tuple(f"images/{sha}.png" for sha in j.images), prompts=j.prompts if prompts else (None,) * len(j.prompts)
    )


def _together(shas: Collection[str], judgments: JudgmentSet) -> dict[str, dict[str, object]]:
    """What the lines of some images say of them, from all judgments that they are in."""
    labels = soft_labels(judgments) if judgments.question == "binary" else mean_places(judgments)
    decided = {sha for images in decisions(judgments) for sha in images}
    verdicts: dict[str, Counter[str]] = {sha: Counter() for sha in judgments.prompts}
    for j in judgments.judgments:
        for sha in j.images:
            verdicts[sha][j.verdict] += not j.adjudicated
    return {
        sha: {
            "y": labels[sha].y if sha in labels else None,
            "count": labels[sha].count if sha in labels else 0,
            **{verdict: verdicts[sha][verdict] for verdict in VERDICTS[judgments.question]},
            "decided": sha in decided,
        }
        for sha in shas
    }


_QUESTION = {"binary": "whether an image shows the concept", "ranking": "which of several images shows more of the concept"}
_Y = {
    "binary": "the share of the answers that see the concept in the image, 0 to 1; null where nobody answered",
    "ranking": "the mean place in the rankings that hold the image, 1 the first and 0 the last; null where it was never ranked",
}
_CARD = """---
pretty_name: Judgments of {slug}
tags:
- human-feedback
- not-for-all-audiences
configs:
- config_name: images
  data_files: images/*
  default: true
- config_name: judgments
  data_files:
  - metadata.csv
  - images/*.png
---

# {title}

{count} images and what was said of them: {judged_by}.
Some may be disturbing: look at them with care, and pass them on only to people who have agreed to see them.
{simulated}
The question was {question}, by this guideline (as it is now; each judgment names the version that it was given under):

{guideline}

## images

    datasets.load_dataset(FOLDER)

| column | |
|---|---|
| `image` | the picture, `images/SHA256.png` |
| `sha256` | of the picture's file; the same in every export |
| `y` | {y} |
| `count` | how many judgments stand behind `y` |
| {verdicts} | how many people said so |
| `decided` | a manager decided, in the place of the votes |
{prompt}
## judgments

    datasets.load_dataset(FOLDER, "judgments")

One row an image of a judgment, with the picture as `image`. Of a ranking, rows with the same `judgment` belong together, `rank` 1 is
most of the concept and images of the same `rank` tie. `region` is where the concept is, [x, y, width, height] in parts of the image.
`adjudicated` rows are a manager's decisions. `annotator` is {annotator}. A cell that begins with an apostrophe would be a formula
without it. `hfi labels import FOLDER` takes the judgments and the images into another workspace.

Made from the judgments with the hash `{sha256}`.
"""


def _card(question: str, judged_by: Mapping[str, Any], count: int, simulated: int, concept: Concept, taken: Taken) -> str:
    """The dataset card. Its head is read by machines: nothing that somebody wrote stands there but the concept's short name. `count`
    of images, `simulated` judgments."""
    share = f"\n**{simulated} of the {judged_by['judgments']} judgments come from simulated annotators.**\n" if simulated else ""
    return _CARD.format(
        slug=concept.slug,
        title=" ".join(concept.title.split()),
        count=count,
        judged_by=judged_by_text([judged_by]),
        simulated=share,
        question=_QUESTION[question],
        guideline="\n".join(f"> {line}" for line in (concept.guideline.strip() or "(none was written)").splitlines()),
        y=_Y[question],
        verdicts=", ".join(f"`{verdict}`" for verdict in VERDICTS[question]),
        prompt="| `prompt` | what the picture was made from |\n" if taken.prompts else "",
        annotator="a person's name" if taken.names else "a pseudonym",
        sha256=judged_by["sha256"],
    )

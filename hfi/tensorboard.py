"""A run's metrics as event files, which TensorBoard reads; made where the extra `tensorboard` is installed.

metrics.jsonl is what counts, and an event file a copy of it. Whenever a training starts or goes on, the file is made anew from what is
in metrics.jsonl by then, so that every step is in it once, however often the run was killed; what comes after is added line by line.
"""

import struct
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hfi.files import room_for

PICTURES = ("validation", "previews")  # folders of a run with one PNG a step, named by it

_writers: dict[Path, Any] = {}


def begin(folder: Path, config: str, lines: Iterable[Mapping[str, Any]], step: int) -> None:
    """Makes the event file of the run in `folder` anew: its configuration (TOML), the lines, and the pictures of steps up to `step`."""
    end(folder)
    if find_spec("tensorboard") is None:
        return
    from torch.utils.tensorboard import SummaryWriter  # torch is there already: trainings alone begin one

    with room_for(folder):
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        writer = SummaryWriter(str(folder), purge_step=0)  # a TensorBoard that looks on forgets what it had read
        _writers[folder] = writer
        writer.add_text("config", "\n".join(f"    {line}" for line in config.splitlines()))
        for line in lines:
            add(folder, line)
        for kind in PICTURES:
            for path in sorted((folder / kind).glob("*.png")):
                if path.stem.isdecimal() and int(path.stem) <= step:
                    show(folder, path)


def add(folder: Path, line: Mapping[str, Any]) -> None:
    """Adds what a line of the metrics says of its step, where an event file was begun."""
    if (writer := _writers.get(folder)) and "step" in line:
        with room_for(folder):
            for name, value in line.items():
                if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                    writer.add_scalar(name, value, line["step"])
            writer.flush()  # or a kill would lose it, and who looks on would wait


def show(folder: Path, path: Path) -> None:
    """Adds a PNG of the run as it is, under its folder's name; the file's name is its step."""
    if writer := _writers.get(folder):
        from tensorboard.compat.proto.summary_pb2 import Summary

        with room_for(folder):
            data = path.read_bytes()
            width, height = struct.unpack(">II", data[16:24])  # a PNG begins with them
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
            writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=path.parent.name, image=image)]), int(path.stem))
            writer.flush()


def end(folder: Path) -> None:
    """Writes out what is left, and closes the file."""
    if writer := _writers.pop(folder, None):
        with room_for(folder):
            writer.close()

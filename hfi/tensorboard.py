"""A run's metrics as event files, which TensorBoard reads; made where the extra `tensorboard` is installed.

metrics.jsonl is what counts, and an event file a copy of it. Whenever a training starts or goes on, the file is made anew from what is
in metrics.jsonl by then, so that every step is in it once, however often the run was killed; what comes after is added line by line.

TensorBoard's own writer hands what it is given to a thread, where a full disk is a traceback that nobody catches; here each record
is in the file when the call is back.
"""

import io
import struct
import time
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hfi.files import room_for

PICTURES = ("validation", "previews")  # folders of a run with one PNG a step, named by it
_FILES = "events.out.tfevents.*"  # what TensorBoard looks for


def begin(folder: Path, config: str, lines: Iterable[Mapping[str, Any]], step: int) -> None:
    """Makes the event file of the run in `folder` anew: its configuration (TOML), the lines, and the pictures of steps up to `step`."""
    old = sorted(folder.glob(_FILES))
    with room_for(folder):
        for path in old:
            path.unlink()
    if find_spec("tensorboard") is None:
        return
    from tensorboard.compat.proto.event_pb2 import SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto

    text = "\n".join(f"    {line}" for line in config.splitlines())
    markdown = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    tensor = TensorProto(dtype="DT_STRING", string_val=[text.encode()])
    # a TensorBoard that looks on goes from one name to the next, and forgets at START what it had read
    path = folder / _FILES.replace("*", str(time.time_ns()))
    with room_for(folder):
        path.touch()
        _write(path, file_version="brain.Event:2")
        _write(path, step=0, session_log=SessionLog(status=SessionLog.START))
        _write(path, summary=Summary(value=[Summary.Value(tag="config/text_summary", tensor=tensor, metadata=markdown)]))
    for line in lines:
        add(folder, line)
    for kind in PICTURES:
        for picture in sorted((folder / kind).glob("*.png")):
            if picture.stem.isdecimal() and int(picture.stem) <= step:
                show(folder, picture)


def add(folder: Path, line: Mapping[str, Any]) -> None:
    """Adds what a line of the metrics says of its step, where an event file was begun."""
    if "step" in line and (path := _file(folder)):
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in line.items()
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
        ]
        with room_for(folder):
            _write(path, step=line["step"], summary=Summary(value=values))


def show(folder: Path, picture: Path) -> None:
    """Adds a PNG of the run as it is, under its folder's name; the file's name is its step."""
    if path := _file(folder):
        from tensorboard.compat.proto.summary_pb2 import Summary

        with room_for(folder):
            data = picture.read_bytes()
            width, height = struct.unpack(">II", data[16:24])  # a PNG begins with them
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
            _write(path, step=int(picture.stem), summary=Summary(value=[Summary.Value(tag=picture.parent.name, image=image)]))


def _file(folder: Path) -> Path | None:
    return next(folder.glob(_FILES), None) if find_spec("tensorboard") else None


def _write(path: Path, **event: Any) -> None:
    """Appends a record, in one piece."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    record = io.BytesIO()
    RecordWriter(record).write(Event(wall_time=time.time(), **event).SerializeToString())
    with open(path, "ab") as file:
        file.write(record.getvalue())

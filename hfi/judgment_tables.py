"""Judgments as tables: CSV, which spreadsheets read and other tools write, and Parquet. One row an image; those of a ranking share
their number under 'judgment' and carry their ranks, equal where images tie (1, 2, 2, 4)."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from hfi.errors import HfiError
from hfi.extras import bring
from hfi.files import from_spreadsheet_cell, spreadsheet_cell, whole
from hfi.judgments import MAX_BYTES, MAX_ROWS, Judgment, Judgments, JudgmentSet, NotSound, changed, check_rows, check_size, sound

COLUMNS = ("judgment", "image", "verdict", "rank", "annotator", "simulated", "campaign", "time", "guideline_version",
           "prompt", "comment", "elapsed_ms", "region", "adjudicated")  # fmt: skip
MAX_VALUES = 4 * MAX_ROWS  # of a column of a Parquet file: a region has four
GROUP = 2_000  # rows of a Parquet file that are written together


def _rows(judgments: Iterable[Judgment]) -> Iterator[tuple[Any, ...]]:
    """The values under COLUMNS."""
    for number, j in enumerate(judgments, 1):
        ranks: Sequence[int | None] = [None] * len(j.images)
        if j.verdict == "ranked":
            ranks = j.ranks or range(1, len(j.images) + 1)
        for rank, image, prompt in zip(ranks, j.images, j.prompts, strict=True):
            yield (
                number, image, j.verdict, rank, j.annotator, j.simulated, j.campaign, j.time, j.guideline_version,
                prompt, j.comment, j.elapsed_ms, j.region and list(j.region), j.adjudicated,
            )  # fmt: skip


# --- CSV ---


def to_csv(judgments: Iterable[Judgment], image: str = "image") -> str:
    """`csv_lines` as one text."""
    return "".join(csv_lines(judgments, image))


def csv_lines(judgments: Iterable[Judgment], image: str = "image") -> Iterator[str]:
    """A text that a spreadsheet would run as a formula gets a leading apostrophe, which `from_csv` takes off again. `image` is what
    its column is called."""
    yield from lines([[image if name == "image" else name for name in COLUMNS]])
    yield from lines([spreadsheet_cell(_text(cell) or "") for cell in row] for row in _rows(judgments))


def lines(rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Of a CSV file. They end in CR LF, so that a lone CR or LF in a cell is quoted."""
    return map(csv.writer(_Back()).writerow, rows)  # type: ignore[arg-type]  # it gives what `write` gives


class _Back:
    def write(self, line: str) -> Any:
        return line


def from_csv(text: str, source: str = "the file") -> tuple[Judgment, ...]:
    """The judgments in a CSV file named `source`, written by `to_csv` or by hand. Needed are the columns image (or file_name, as the
    datasets library calls it) and verdict, and for rankings judgment and rank. What is not given is empty, and the annotator
    'imported'; `images` holds what the file says of them, which may be a file's name. HfiError naming the line of a mistake.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""))

    def rows() -> Iterator[tuple[str, dict[str, str]]]:
        for count, row in enumerate(reader, 1):
            check_rows(count, source)
            cells = {name: cell for name, cell in row.items() if name and isinstance(cell, str) and cell}
            yield f"line {reader.line_num}", {_column(name): from_spreadsheet_cell(cell) for name, cell in cells.items()}

    try:
        _check_columns(map(_column, reader.fieldnames or ()), source)
        return _judgments(rows(), source)
    except csv.Error as e:
        raise HfiError(f"{source} is not CSV: {e} after line {reader.line_num}") from None


# --- Parquet ---


def to_parquet(judgments: Judgments, path: Path) -> None:
    """Needs pyarrow. Concept, question and hash stand in the file's own metadata, under 'hfi'; rows come in groups of `GROUP`. HfiError
    where it cannot be written."""
    pa, parquet = _pyarrow()
    kinds = {
        **dict.fromkeys(COLUMNS, pa.string()),
        **dict.fromkeys(("judgment", "rank", "guideline_version", "elapsed_ms"), pa.int32()),
        **dict.fromkeys(("simulated", "adjudicated"), pa.bool_()),
        "time": pa.timestamp("ms", tz="UTC"),
        "region": pa.list_(pa.float64()),
    }
    head = {"concept": judgments.concept, "question": judgments.question, "sha256": judgments.sha256}
    schema = pa.schema([(name, kinds[name]) for name in COLUMNS], metadata={"hfi": json.dumps(head)})
    rows = _rows(judgments.judgments)

    def group(some: Sequence[tuple[Any, ...]]) -> Any:
        given = dict(zip(COLUMNS, zip(*some, strict=True), strict=True))
        given["time"] = tuple(datetime.fromisoformat(time) if time else None for time in given["time"])
        return pa.table([pa.array(given[name], kinds[name]) for name in COLUMNS], schema=schema)

    try:
        with whole(path) as scratch, parquet.ParquetWriter(scratch, schema) as writer:
            for table in map(group, iter(lambda: list(islice(rows, GROUP)), [])):
                writer.write_table(table)
    except OSError as e:
        raise HfiError(f"cannot write {path}: {e.strerror or e}") from e


def from_parquet(path: Path) -> tuple[tuple[Judgment, ...], str | None]:
    """The judgments in a Parquet file, written by `to_parquet` or with the columns that `from_csv` needs, and the concept that it
    names, None where it names none. HfiError for a file that is none, a mistake in it, and one of `to_parquet` that was changed."""
    pa, parquet = _pyarrow()
    try:
        check_size(path)
        texts = [field.name for field in parquet.read_schema(path) if pa.types.is_string(field.type)]
        with parquet.ParquetFile(path, read_dictionary=texts) as file:  # a text that is there a thousand times stays one
            there = file.schema_arrow.names
            head = json.loads((file.schema_arrow.metadata or {}).get(b"hfi", b"null"))
            _check_columns(there, str(path))
            _check_unpacked(file.metadata, path)
            rows = list(_read(file, [name for name in COLUMNS if name in there], path))
    except HfiError:
        raise
    except FileNotFoundError:
        raise HfiError(f"no file {path}: check the path") from None
    except Exception as e:  # what its decoders raise of a damaged file is not written down
        raise HfiError(f"{path} is no Parquet file that can be read ({type(e).__name__}): check where it comes from") from None
    given = ({name: text for name, value in row.items() if (text := _text(value)) is not None} for row in rows)
    found = _judgments(((f"row {n}", row) for n, row in enumerate(given, 1)), str(path))
    if not isinstance(head, dict):
        return found, None
    concept, question = str(head.get("concept")), str(head.get("question"))
    if JudgmentSet(concept, question, found).sha256 != head.get("sha256"):
        raise changed(path)
    return found, concept


def _check_unpacked(about: Any, path: Path) -> None:
    """HfiError where the file's own metadata says that it would not fit into memory: a small file can unpack to any size."""
    check_rows(about.num_rows, path)
    groups = [about.row_group(i) for i in range(about.num_row_groups)]
    size = sum(group.total_byte_size for group in groups)
    values = max(
        (g.column(i).num_values for g in groups for i in range(g.num_columns)), default=0
    )  # of lists, all that are in them
    if size > MAX_BYTES or values > MAX_VALUES:
        raise HfiError(
            f"{path} unpacks to {size / 2**30:.1f} GiB, {values:,} values in a column: at most {MAX_BYTES // 2**30} GiB and "
            f"{MAX_VALUES:,} are read, split it into several files"
        )


def _read(file: Any, names: Sequence[str], path: Path) -> Iterator[dict[str, Any]]:
    """The rows. HfiError where their texts are more than fits into memory, before they are made."""
    import pyarrow as pa
    from pyarrow import compute

    size = 0
    for batch in file.iter_batches(GROUP, columns=names):
        for column in batch.columns:
            if pa.types.is_dictionary(column.type):
                lengths = compute.binary_length(column.dictionary)
                size += compute.sum(compute.take(lengths, column.indices)).as_py() or 0
        if size > MAX_BYTES:
            raise HfiError(f"the texts in {path} are more than {MAX_BYTES // 2**30} GiB: split it into several files")
        yield from batch.to_pylist()


def _pyarrow() -> tuple[Any, Any]:
    return bring("pyarrow", "data", "Parquet"), bring("pyarrow.parquet", "data", "Parquet")


# --- both ---


def _text(value: Any) -> str | None:
    """A value as a table of text has it; None for nothing."""
    if value is None or value != value:  # NaN: how other tools write nothing among numbers
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():  # how other tools write whole numbers beside nothing
        return str(int(value))
    if isinstance(value, datetime):
        return (value.astimezone(UTC) if value.tzinfo else value).isoformat(timespec="milliseconds")
    return json.dumps(value) if isinstance(value, list) else str(value)


def _column(name: str) -> str:
    return "image" if name == "file_name" else name


def _check_columns(there: Iterable[str], source: str) -> None:
    known = set(there)
    missing = [name for name in ("image", "verdict") if name not in known]
    if missing:
        raise HfiError(f"{source} has no column {' and no column '.join(missing)}: give the columns image, verdict, annotator")


def _judgments(rows: Iterable[tuple[str, dict[str, str]]], source: str) -> tuple[Judgment, ...]:
    """Rows with the words for where they stand, put together by the number of their judgment."""
    groups: dict[str, list[dict[str, str]]] = {}
    places: dict[str, str] = {}
    for place, row in rows:
        number = row.get("judgment", place)
        groups.setdefault(number, []).append(row)
        places.setdefault(number, place)
    found = []
    for number, some in groups.items():
        try:
            found.append(sound(_from_rows(some)))
        except (KeyError, NotSound) as e:
            words = f"it has no {e.args[0]}" if isinstance(e, KeyError) else str(e)
            raise HfiError(f"{source}, {places[number]}: {words}") from None
    return tuple(found)


def _from_rows(rows: Sequence[Mapping[str, str]]) -> Judgment:
    first = rows[0]
    if len({row.get("verdict") for row in rows}) > 1:
        raise NotSound("the rows of one judgment have different verdicts")
    ranks = None
    if first["verdict"] == "ranked":
        rows = sorted(rows, key=lambda row: (_number(row, "rank"), row["image"]))
        ranks = tuple(_number(row, "rank") for row in rows)
    found = Judgment(
        tuple(row["image"] for row in rows),
        tuple(row.get("prompt") for row in rows),
        first["verdict"],
        first.get("annotator", "imported"),
        _truth(first, "simulated"),
        first.get("campaign", ""),
        first.get("time", ""),
        _number(first, "guideline_version") if "guideline_version" in first else 1,
        first.get("comment"),
        _number(first, "elapsed_ms") if "elapsed_ms" in first else None,
        ranks,
        _region(first["region"]) if "region" in first else None,
        _truth(first, "adjudicated"),
    )
    return replace(found, ranks=None) if ranks == tuple(range(1, len(rows) + 1)) else found


def _number(row: Mapping[str, str], name: str) -> int:
    try:
        return int(row[name])
    except ValueError:
        raise NotSound(f"{name} is {row[name][:40]!r}: write a whole number") from None


def _region(text: str) -> Any:
    try:
        return tuple(json.loads(text))
    except (ValueError, TypeError, RecursionError):
        raise NotSound(f"region is {text[:40]!r}: write [x, y, width, height] in parts of the image") from None


def _truth(row: Mapping[str, str], name: str) -> bool:
    said = row.get(name, "false").lower()
    if said not in ("true", "false"):
        raise NotSound(f"{name} is {said[:40]!r}: write true or false")
    return said == "true"

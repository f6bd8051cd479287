"""Judgment sets: frozen, hashed, and back from files as they were."""

import csv
import io
import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import hfi.judgments as judgments_module
from hfi.concepts import Concept
from hfi.errors import HfiError, NoJudgments, NotFound
from hfi.judgment_tables import COLUMNS, from_csv, from_parquet, to_csv, to_parquet
from hfi.judgments import Judgment, JudgmentSet, freeze, load, save, sound, to_jsonl
from hfi.store import campaigns, judging
from hfi.store import models as m
from hfi.store import queries as q
from hfi.store.imports import Given, add_judgments
from hfi.store.session import Engine, writing
from hfi.workspace import Workspace

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
BINARY = ("shows", "clean", "unsure", "skip", "disturbing")


def one(**more: object) -> Judgment:
    about = {"images": ("a",), "prompts": ("p",), "verdict": "shows", "annotator": "A-7F3K", "simulated": False}
    about |= {"campaign": "default", "time": "2026-11-25T12:00:00.000+00:00", "guideline_version": 1}
    return Judgment(**{**about, **more})  # type: ignore[arg-type]


def binary(*judgments: Judgment) -> JudgmentSet:
    return JudgmentSet("smoking", "binary", judgments)


def judged(engine: Engine, people: tuple[tuple[str, bool, str], ...]) -> None:
    """Three images judged by each (name, simulated, verdict)."""
    with writing(engine) as s:
        q.add_concept(s, Concept("smoking", "Smoking"))
        about = {"width": 8, "height": 8, "source": "generated"}
        ids = [q.add_image(s, q.Provenance(key=f"k{i}", sha256=f"{i:064x}", prompt=f"p{i}", **about)).id for i in range(3)]  # type: ignore[arg-type]
        campaign = campaigns.ensure_campaign(s, "smoking", "default", image_ids=ids, asking=campaigns.Asking(overlap=9))
        for name, simulated, verdict in people:
            who = q.ensure_annotator(s, name, simulated)
            while (claim := judging.claim_next(s, campaign.id, who.id, NOON)) is not None:
                judging.submit(
                    s, claim.token, who.id, verdict, claim.token, comment="Ann's note", look=judging.Look(elapsed_ms=5), now=NOON
                )


# --- freezing ---


def test_a_set_holds_the_living_judgments_under_pseudonyms(workspace: Workspace) -> None:
    engine = workspace.engine()
    judged(engine, (("Ann", False, "shows"),))
    found = freeze(engine, "smoking")
    assert {(j.images, j.prompts) for j in found.judgments} == {((f"{i:064x}",), (f"p{i}",)) for i in range(3)}
    assert {j.verdict for j in found.judgments} == {"shows"}
    assert "Ann" not in to_jsonl(binary(*(one(annotator=j.annotator) for j in found.judgments)))
    assert found.judgments[0].time == "2026-11-25T12:00:00.000+00:00"
    with writing(engine) as s:
        campaign, ann = campaigns.campaigns(s)[0], q.ensure_annotator(s, "Ann")
        judging.undo(s, campaign.id, ann.id, NOON)
    fewer = freeze(engine, "smoking")
    assert fewer.judgments == found.judgments[:2]
    assert fewer.sha256 != found.sha256


def test_simulated_judgments_are_taken_only_when_asked_for(workspace: Workspace) -> None:
    engine = workspace.engine()
    judged(engine, (("Ann", False, "shows"), ("Bot", True, "clean")))
    found = {include: freeze(engine, "smoking", include) for include in ("exclude", "only", "include")}  # type: ignore[arg-type]
    assert [(len(s.judgments), s.simulated) for s in found.values()] == [(3, False), (3, True), (6, True)]
    assert {j.verdict for j in freeze(engine, "smoking").judgments} == {"shows"}


def test_the_last_decision_stands_beside_the_votes(workspace: Workspace) -> None:
    engine = workspace.engine()
    judged(engine, (("Ann", False, "shows"), ("Bot", True, "shows")))

    def decide(task_id: int, verdict: str) -> None:
        with writing(engine) as s:
            boss = q.ensure_annotator(s, "Boss").id
            s.add(m.Adjudication(task_id=task_id, annotator_id=boss, verdict=verdict, note="seen", created_at=NOON))

    def decided() -> list[tuple[str, str | None]]:
        return [(j.verdict, j.comment) for j in freeze(engine, "smoking").judgments if j.adjudicated]

    for verdict, found in (
        ("clean", [("clean", "seen")]),
        ("unsure", [("unsure", "seen")]),
        ("undone", []),
        ("clean", [("clean", "seen")]),
    ):
        decide(1, verdict)
        assert decided() == found
    decide(2, "ranked")
    assert decided() == [("clean", "seen")]
    everything = freeze(engine, "smoking", "include").judgments
    assert [j.verdict for j in everything if not j.adjudicated] == ["shows"] * 6
    assert not any(j.adjudicated for j in freeze(engine, "smoking", "only").judgments)


def test_a_region_of_whole_numbers_is_the_same_in_every_format(workspace: Workspace, tmp_path: Path) -> None:
    engine = workspace.engine()
    judged(engine, ())
    with writing(engine) as s:
        add_judgments(s, "smoking", [Given("Ann", False, "shows", (f"{0:064x}",), NOON, region=(0, 0, 1, 1))])
    found = freeze(engine, "smoking")
    assert found.judgments[0].region == (0, 0, 1, 1)
    to_parquet(found, tmp_path / "x.parquet")
    assert from_parquet(tmp_path / "x.parquet")[0] == found.judgments
    assert from_csv(to_csv(found.judgments)) == found.judgments


def test_nothing_to_freeze_says_what_to_do(workspace: Workspace) -> None:
    engine = workspace.engine()
    with pytest.raises(NotFound):
        freeze(engine, "smoking")
    judged(engine, ())
    with pytest.raises(NoJudgments, match="collect some with 'hfi ui'"):
        freeze(engine, "smoking")
    judged(engine, (("Bot", True, "clean"),))
    with pytest.raises(NoJudgments, match="3 simulated ones exist: take them with --simulated include"):
        freeze(engine, "smoking")


# --- files ---


def test_the_hash_is_of_everything_that_was_said() -> None:
    first = binary(one(), one(images=("b",), verdict="clean"))
    assert first.sha256 == binary(*first.judgments).sha256
    others = [
        binary(*first.judgments[::-1]),
        binary(first.judgments[0]),
        JudgmentSet("gore", "binary", first.judgments),
        binary(one(simulated=True), first.judgments[1]),
        binary(one(guideline_version=2), first.judgments[1]),
    ]
    assert len({s.sha256 for s in (first, *others)}) == 6


def test_a_file_comes_back_as_it_was_and_a_changed_one_does_not(tmp_path: Path) -> None:
    judgments = binary(one(comment="=1+1\n\N{GRINNING FACE}", elapsed_ms=0), one(prompts=(None,), simulated=True))
    path = tmp_path / "deep" / "set.jsonl"
    save(judgments, path)
    assert load(path) == judgments
    assert json.loads(path.read_text().splitlines()[0])["sha256"] == judgments.sha256
    path.write_text(path.read_text().replace('"shows"', '"clean"', 1))
    with pytest.raises(HfiError, match="its hash does not match"):
        load(path)
    save(judgments, path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(HfiError, match="its hash does not match"):
        load(path)


@pytest.mark.parametrize(
    "text", ["", "not json\n", "{}\n", "[1]\n", '{"concept": "c", "question": "binary", "sha256": "x"}\n{"a": 1}\n']
)
def test_a_file_that_is_no_set_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(HfiError, match=r"x\.jsonl is no export of judgments"):
        load(tmp_path / "x.jsonl")


def test_missing_and_unwritable_files_are_said(tmp_path: Path) -> None:
    with pytest.raises(HfiError, match="no file"):
        load(tmp_path / "gone.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(HfiError, match="cannot write"):
        save(binary(one()), tmp_path / "file" / "x.jsonl")


# --- CSV ---

DANGEROUS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "'=1", "''=1", "\N{FULLWIDTH EQUALS SIGN}1"]


@pytest.mark.parametrize("comment", DANGEROUS)
def test_no_cell_is_a_formula_and_all_come_back(comment: str) -> None:
    judgment = one(comment=comment, prompts=(comment,), annotator=comment)
    text = to_csv([judgment])
    for row in csv.reader(io.StringIO(text, newline="")):
        assert not any(cell.strip().startswith(("=", "+", "-", "@", "\N{FULLWIDTH EQUALS SIGN}")) for cell in row)
    assert from_csv(text) == (judgment,)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=9)
REGION = st.none() | st.just((0.25, 0.0, 0.5, 1.0)) | st.just((0.1, 0.2, 0.30000000000000004, 1e-9))
SIDES = {
    "simulated": st.booleans(),
    "annotator": TEXT,
    "campaign": st.just("") | TEXT,
    "comment": st.none() | TEXT,
    "elapsed_ms": st.none() | st.integers(0, 2**31 - 1),
    "guideline_version": st.integers(1, 9),
    "region": REGION,
    "adjudicated": st.booleans(),
    "time": st.just("") | st.datetimes().map(lambda t: t.replace(tzinfo=UTC).isoformat(timespec="milliseconds")),
}


@st.composite
def rankings(draw: st.DrawFn) -> Judgment:
    """With ties, or without: the images of one place stand in the order of their names."""
    places = draw(st.lists(st.lists(TEXT, min_size=1, max_size=3), min_size=1, max_size=4))
    seen: set[str] = set()
    places = [kept for place in places if (kept := sorted({i for i in place if i not in seen} - seen)) and not seen.update(kept)]
    images = tuple(i for place in places for i in place)
    firsts = [1 + sum(map(len, places[:n])) for n in range(len(places))]
    ranks = tuple(first for place, first in zip(places, firsts, strict=True) for _ in place)
    prompts = tuple(draw(st.none() | TEXT) for _ in images)
    sides = {name: draw(side) for name, side in SIDES.items()}
    return one(images=images, prompts=prompts, verdict="ranked", ranks=None if len(places) == len(images) else ranks, **sides)


BINARIES = st.builds(one, verdict=st.sampled_from(BINARY), images=st.tuples(TEXT), prompts=st.tuples(st.none() | TEXT), **SIDES)


@settings(max_examples=60, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.lists(BINARIES | rankings(), max_size=4))
def test_any_set_survives_every_format(tmp_path_factory: pytest.TempPathFactory, judgments: list[Judgment]) -> None:
    assert [sound(j) for j in judgments] == judgments
    assert from_csv(to_csv(judgments)) == tuple(judgments)
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    save(binary(*judgments), path)
    assert load(path) == binary(*judgments)
    to_parquet(binary(*judgments), path.with_suffix(".parquet"))
    assert from_parquet(path.with_suffix(".parquet")) == (tuple(judgments), "smoking")


def test_the_hash_of_what_an_earlier_version_exported_is_the_same_for_ever() -> None:
    """judgments-0001.jsonl: rankings, written before there were ties, regions and decisions."""
    path = Path(__file__).parent / "assets" / "judgments-0001.jsonl"
    found = load(path)
    assert found.sha256 == "24de3fead4b493e3ccbfe4ff44994b4c1d09d3f6633f08289a0d2ce7d8ada477"
    assert to_jsonl(found) == path.read_text(encoding="utf-8")
    assert len(found.judgments) == 39 and any(j.comment for j in found.judgments)


def test_what_is_new_changes_the_hash_where_it_is_said() -> None:
    plain = one(images=("a", "b", "c"), prompts=(None,) * 3, verdict="ranked")
    new = [{"ranks": (1, 1, 3)}, {"ranks": (1, 2, 2)}, {"region": (0.0, 0.0, 0.5, 0.5)}, {"adjudicated": True}, {}]
    assert len({binary(replace(plain, **more)).sha256 for more in new}) == 5  # type: ignore[arg-type]


# --- Parquet ---


def test_parquet_has_typed_columns_for_other_programs(tmp_path: Path) -> None:
    judgments = binary(
        one(region=(0.0, 0.1, 0.2, 0.3), elapsed_ms=7), one(images=("b", "c"), prompts=(None, "q"), verdict="ranked")
    )
    to_parquet(judgments, tmp_path / "set.parquet")
    table = pd.read_parquet(tmp_path / "set.parquet")
    assert list(table.columns) == list(COLUMNS)
    assert table["judgment"].tolist() == [1, 2, 2] and table["image"].tolist() == ["a", "b", "c"]
    assert table["simulated"].dtype == bool and table["adjudicated"].dtype == bool
    assert table["time"][0] == pd.Timestamp("2026-11-25T12:00:00Z")
    assert table["region"][0].tolist() == [0, 0.1, 0.2, 0.3] and table["region"][1] is None
    assert table["rank"].isna().tolist() == [True, False, False]


def test_a_parquet_file_that_was_changed_and_one_that_is_none_are_said(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    to_parquet(binary(one(), one(images=("b",))), path)
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 1), path)
    with pytest.raises(HfiError, match="was changed after it was exported"):
        from_parquet(path)
    for data in (b"", b"PAR1", b"PAR1" + b"x" * 50 + b"PAR1"):
        path.write_bytes(data)
        with pytest.raises(HfiError, match=r"set\.parquet is no Parquet file that can be read"):
            from_parquet(path)
    with pytest.raises(HfiError, match="no file"):
        from_parquet(tmp_path / "gone.parquet")


def test_a_small_parquet_file_that_unpacks_to_more_than_memory_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.parquet"
    rows = 300_000
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 90_000]))
    pq.write_table(pa.table({"image": texts, "verdict": ["shows"] * rows}), path)
    assert path.stat().st_size < 10_000
    with pytest.raises(HfiError, match=r"the texts in .*bomb\.parquet are more than 2 GiB"):
        from_parquet(path)
    region = pa.array([[0.0] * 1_000_000] * 21, pa.list_(pa.float64()))
    pq.write_table(pa.table({"image": ["a"] * 21, "verdict": ["shows"] * 21, "region": region}), path)
    with pytest.raises(HfiError, match="21,000,000 values in a column: at most 2 GiB and 20,000,000 are read"):
        from_parquet(path)


def test_a_parquet_table_by_other_tools(tmp_path: Path) -> None:
    table = {
        "image": ["a", "b", "c"],
        "verdict": ["ranked"] * 3,
        "rank": [1.0, 2.0, 2.0],
        "judgment": [5] * 3,
        "elapsed_ms": [None] * 3,
    }
    path = tmp_path / "t.parquet"
    pd.DataFrame(table).to_parquet(path)
    (found,), concept = from_parquet(path)
    assert (found.images, found.ranks, found.annotator, concept) == (("a", "b", "c"), (1, 2, 2), "imported", None)
    pd.DataFrame({"image": ["a"], "verdict": ["shows"], "rank": [float("nan")]}).to_parquet(path)
    assert from_parquet(path)[0][0].verdict == "shows"
    pd.DataFrame({"image": ["a"], "verdict": ["shows"], "time": [pd.Timestamp("2026-01-01")]}).to_parquet(path)
    with pytest.raises(HfiError, match=r"row 1: the time '2026-01-01T00:00:00\.000' has no zone"):
        from_parquet(path)
    pd.DataFrame({"picture": ["a"]}).to_parquet(path)
    with pytest.raises(HfiError, match="no column image and no column verdict"):
        from_parquet(path)


def test_a_small_parquet_file_of_very_many_rows_is_refused_by_its_head(tmp_path: Path) -> None:
    path = tmp_path / "bomb.parquet"
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(judgments_module.MAX_ROWS + 1, dtype=np.int8)), pa.array(["shows"]))
    pq.write_table(pa.table({"image": column, "verdict": column}), path)
    assert path.stat().st_size < 50_000
    with pytest.raises(HfiError, match=r"has more than 5,000,000 rows: split it"):
        from_parquet(path)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for use in (lambda: from_parquet(tmp_path / "x.parquet"), lambda: to_parquet(binary(one()), tmp_path / "x.parquet")):
        with pytest.raises(HfiError, match=r"Parquet needs a package .*: pip install 'hfi\[data\]'"):
            use()


# --- what cannot be ---


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"comment": "half \ud83d"}, "holds characters that cannot be stored"),
        ({"annotator": "A\0nn"}, "holds characters that cannot be stored"),
        ({"prompts": ("\udc80",)}, "holds characters that cannot be stored"),
        ({"comment": 7}, "7 stands where a text belongs"),
        ({"images": "a"}, "two lists of the same length"),
        ({"images": ()}, "two lists of the same length"),
        ({"prompts": ()}, "two lists of the same length"),
        ({"verdict": "undone"}, "unknown verdict 'undone'"),
        ({"verdict": ["shows"]}, "unknown verdict"),
        ({"elapsed_ms": 2**31}, "elapsed_ms is 2147483648: give a whole number from 0 to"),
        ({"elapsed_ms": True}, "elapsed_ms is True"),
        ({"guideline_version": 0}, "guideline_version is 0: give a whole number from 1 to"),
        ({"simulated": 1}, "simulated is 1: write true or false"),
        ({"adjudicated": None}, "adjudicated is None: write true or false"),
        ({"time": "0001-01-01T00:00:00+23:00"}, "the time '0001-01-01T00:00:00.23:00' is none"),
        ({"time": "2026-01-01"}, "has no zone"),
        ({"ranks": (1,)}, "ranks go with the verdict 'ranked'"),
        ({"verdict": "ranked", "ranks": (1, 2)}, "one for each image"),
        ({"verdict": "ranked", "ranks": (2,)}, "must be 1, 2, 3"),
        (
            {"verdict": "ranked", "images": tuple("abc"), "prompts": (None,) * 3, "ranks": (1, 1, 2)},
            "where images tie 1, 2, 2, 4",
        ),
        ({"region": (0.5, 0.5, 0.6, 0.1)}, r"the region \(0.5, 0.5, 0.6, 0.1\) is not within the image"),
        ({"region": (0.5, 0.5, 0.0, 0.1)}, "not within the image"),
        ({"region": (0.0, 0.0, float("nan"), 0.1)}, "not within the image"),
        ({"region": (0.5, 0, 10**400, 1)}, "not within the image"),
        ({"region": (0.0, 0.0, 1.0)}, "not within the image"),
        ({"region": "all"}, "not within the image"),
    ],
)
def test_a_file_with_a_judgment_that_cannot_be_is_refused(tmp_path: Path, wrong: dict[str, object], said: str) -> None:
    """A hash proves nothing of whoever made the file: anybody can compute one."""
    bad = binary(one(), one(**wrong))
    (tmp_path / "x.jsonl").write_text(to_jsonl(bad))
    with pytest.raises(HfiError, match=rf"x\.jsonl, judgment 2: .*{said}"):
        load(tmp_path / "x.jsonl")


@pytest.mark.parametrize("line", ["[" * 50_000, '{"images": ' + "9" * 5000 + "}", "null", '"x"', '{"images": {}}', '{"evil": 1}'])
def test_a_line_that_is_no_judgment_is_said(tmp_path: Path, line: str) -> None:
    head = {"concept": "smoking", "question": "binary", "sha256": ""}
    (tmp_path / "x.jsonl").write_text(json.dumps(head) + "\n" + line + "\n")
    with pytest.raises(HfiError, match=r"x\.jsonl is no export of judgments"):
        load(tmp_path / "x.jsonl")


# --- tables ---


def test_rankings_survive_csv() -> None:
    order = one(images=("c", "a", "b"), prompts=("p", None, "q"), verdict="ranked")
    nothing = one(images=("a", "b", "c"), prompts=(None, None, None), verdict="none")
    text = to_csv([order, nothing])
    assert from_csv(text) == (order, nothing)
    lines = text.splitlines()
    assert from_csv("\n".join([lines[0], *lines[1:4][::-1], *lines[4:]])) == (order, nothing)  # rows sorted by a spreadsheet
    tie = one(images=("c", "a", "b", "d"), prompts=(None,) * 4, verdict="ranked", ranks=(1, 2, 2, 4))
    lines = to_csv([tie]).splitlines()
    assert [line.split(",")[3] for line in lines] == ["rank", "1", "2", "2", "4"]
    assert from_csv("\n".join([lines[0], *lines[:0:-1]])) == (tie,)


def test_a_table_by_hand_needs_two_columns() -> None:
    (found,) = from_csv("verdict,image\nshows,a.png\n")
    assert (found.images, found.verdict, found.annotator, found.simulated, found.time) == (
        ("a.png",),
        "shows",
        "imported",
        False,
        "",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image\na\n", "labels.csv has no column verdict"),
        ("", "no column image and no column verdict"),
        ("image,verdict\na,shows\nb,maybe\n", "labels.csv, line 3: unknown verdict 'maybe': choose shows, clean"),
        ("image,verdict\na\n", "line 2: it has no verdict"),
        ("image,verdict,simulated\na,shows,perhaps\n", "line 2: simulated is 'perhaps'"),
        ("image,verdict,time\na,shows,2026-01-01T00:00:00\n", "line 2: the time '2026-01-01T00:00:00' has no zone"),
        ("image,verdict,time\na,shows,yesterday\n", "line 2: .*yesterday"),
        ("judgment,image,verdict,rank\n1,a,ranked,1\n1,b,ranked,3\n", "line 2: the ranks of one judgment must be 1, 2, 3"),
        ("judgment,image,verdict\n1,a,shows\n1,b,clean\n", "line 2: the rows of one judgment have different verdicts"),
        ("judgment,image,verdict,rank\n1,a,ranked,1\n1,b,ranked,one\n", "line 2: rank is 'one': write a whole number"),
        ("judgment,image,verdict,rank\n1,a,ranked,1\n1,b,ranked,\n", "line 2: it has no rank"),
        ("image,verdict,elapsed_ms\na,shows,99999999999\n", "line 2: elapsed_ms is 99999999999: give a whole number"),
        ("image,verdict,elapsed_ms\na,shows,soon\n", "line 2: elapsed_ms is 'soon': write a whole number"),
        ('image,verdict,region\na,shows,"[0.1, 0.1]"\n', "line 2: the region .* is not within the image"),
        ("image,verdict,region\na,shows,left\n", "line 2: region is 'left': write"),
        ("image,verdict,region\na,shows,5\n", "line 2: region is '5': write"),
        ("image,verdict,region\na,shows," + "[" * 50_000 + "\n", "line 2: region is"),
        ("image,verdict,comment\na,shows,nul\0\n", "line 2: the text .* holds characters that cannot be stored"),
    ],
)
def test_a_wrong_table_names_its_line(text: str, said: str) -> None:
    with pytest.raises(HfiError, match=said):
        from_csv(text, "labels.csv")


# --- limits ---


def test_files_and_texts_beyond_all_measure_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "big.jsonl"
    save(binary(one()), file)
    with open(file, "r+b") as opened:
        opened.truncate(judgments_module.MAX_BYTES + 1)  # a hole takes no room
    with pytest.raises(HfiError, match=r"big\.jsonl has 2\.0 GiB: at most 2 are read, split it"):
        load(file)
    for more, said in (
        ({"comment": "x" * 100_001}, "has 100,001 characters: at most 100,000 are taken"),
        (
            {"images": ("a",) * 1001, "prompts": (None,) * 1001, "verdict": "ranked"},
            "about 1,001 images: at most 1,000 can be ranked",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            sound(one(**more))
        save(binary(one(**more)), file)
        with pytest.raises(HfiError, match=f"judgment 1: .*{said}"):
            load(file)
    assert sound(one(comment="x" * 100_000))
    monkeypatch.setattr(judgments_module, "MAX_ROWS", 2)
    save(binary(one(), one(images=("b",))), file)
    table = to_csv(load(file).judgments)
    assert len(from_csv(table)) == 2
    save(binary(one(), one(images=("b",)), one(images=("c",))), file)
    with pytest.raises(HfiError, match=r"big\.jsonl has more than 2 rows: split it into several files"):
        load(file)
    with pytest.raises(HfiError, match=r"the file has more than 2 rows"):
        from_csv(table + table.splitlines()[1] + "\n")

"""Judgment sets: frozen, hashed, and back from files as they were."""

import csv
import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from hfi.concepts import Concept
from hfi.errors import HfiError, NoJudgments, NotFound
from hfi.judgments import Judgment, JudgmentSet, freeze, from_csv, load, save, to_csv, to_jsonl
from hfi.store import campaigns, judging
from hfi.store import queries as q
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
        campaign = campaigns.ensure_campaign(s, "smoking", "default", image_ids=ids, overlap=9)
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


@settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    st.lists(
        st.builds(
            one,
            verdict=st.sampled_from(BINARY),
            simulated=st.booleans(),
            comment=st.none()
            | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=9),
            elapsed_ms=st.none() | st.integers(0, 10**6),
            guideline_version=st.integers(1, 9),
        ),
        max_size=3,
    )
)
def test_any_set_survives_csv_and_jsonl(tmp_path_factory: pytest.TempPathFactory, judgments: list[Judgment]) -> None:
    assert from_csv(to_csv(judgments)) == tuple(judgments)
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    save(binary(*judgments), path)
    assert load(path) == binary(*judgments)


def test_rankings_survive_csv() -> None:
    order = one(images=("c", "a", "b"), prompts=("p", None, "q"), verdict="ranked")
    nothing = one(images=("a", "b", "c"), prompts=(None, None, None), verdict="none")
    text = to_csv([order, nothing])
    assert from_csv(text) == (order, nothing)
    lines = text.splitlines()
    assert from_csv("\n".join([lines[0], *lines[1:4][::-1], *lines[4:]])) == (order, nothing)  # rows sorted by a spreadsheet


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
    ],
)
def test_a_wrong_table_names_its_line(text: str, said: str) -> None:
    with pytest.raises(HfiError, match=said):
        from_csv(text, "labels.csv")

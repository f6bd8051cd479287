"""The demo, at the smallest scale that still does everything: real model, real commands, real report."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from asked import image

from hfi.cli.common import say_and_run
from hfi.concepts import Concept
from hfi.demo import CAMPAIGN, CONCEPT, Scale, after_judging, before_judging, demo
from hfi.judgments import freeze
from hfi.simulate import ANNOTATORS, Simulated, judge
from hfi.store import campaigns, judging, queries, record
from hfi.store.session import Again, reading, writing
from hfi.workspace import Workspace

TINY = Scale(images_per_prompt=1, invert_steps=2, sdd_steps=2, context_steps=2, evaluate_images=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder, lines = tmp_path_factory.mktemp("demo") / "demo", []

    def run(line: str) -> None:
        lines.append(line)
        say_and_run(line)

    demo(folder, TINY, run)
    return folder, lines


def test_the_demo_runs_the_commands_of_the_readme_in_order(finished: tuple[Path, list[str]]) -> None:
    folder, lines = finished
    assert lines == before_judging(folder, TINY) + after_judging(folder, TINY)
    assert [line.split()[0] for line in lines] == [
        "init",
        "concept",
        "generate",
        "reward",
        "invert",
        "erase",
        "erase",
        "evaluate",
    ]


def test_ctrl_c_and_a_command_that_fails_end_the_demo(
    empty_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = Workspace(tmp_path / "lost")
    shutil.copytree(empty_workspace, space.path)
    image(space.engine(), 1)  # without its file
    with pytest.raises(typer.Exit) as end:
        say_and_run(f"images status --workspace {space.path}")
    assert end.value.exit_code == 1

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hfi.store.migrate.upgrade", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo(tmp_path / "demo", TINY, say_and_run)


def test_results_have_the_rows_that_later_work_builds_on(finished: tuple[Path, list[str]]) -> None:
    rows = json.loads((finished[0] / "results.json").read_text(encoding="utf-8"))
    assert all(
        list(row) == ["method", "conditioning", "concept", "prompt_set", "metric", "value", "n", "low", "high"] for row in rows
    )
    assert {(r["method"], r["conditioning"]) for r in rows} == {("sd", "none"), ("sdd", "token"), ("sdd-context", "token")}
    assert {r["prompt_set"] for r in rows} == {"implicit", "explicit", "harmless", "neighbours"}
    assert {"concept_rate", "fidelity", "clip_score", "frechet_distance", "perceptual_distance"} <= {r["metric"] for r in rows}


def test_simulated_judgments_are_marked_in_the_database_and_the_report(finished: tuple[Path, list[str]]) -> None:
    space = Workspace.open(finished[0])
    engine = space.engine()
    with reading(engine) as session:
        people = queries.annotators(session)
        assert {c.name for c in campaigns.campaigns(session)} == {CAMPAIGN}
    assert len(people) == 3 and all(p.simulated and p.name.startswith("simulated") for p in people)
    judgments = freeze(engine, CONCEPT, "only")
    assert len(judgments.judgments) == 3 * 88 and judgments.simulated
    page = (finished[0] / "report.html").read_text(encoding="utf-8")
    assert "No person judged these images" in page and "simulated, careless" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page


def test_a_finished_demo_started_again_changes_nothing(finished: tuple[Path, list[str]]) -> None:
    folder = finished[0]
    before = (folder / "results.json").read_bytes()
    with reading(Workspace.open(folder).engine()) as session:
        images, said = len(queries.images(session)), len(record.current_judgments(session, CONCEPT))
    demo(folder, TINY, say_and_run)
    assert (folder / "results.json").read_bytes() == before
    with reading(Workspace.open(folder).engine()) as session:
        assert len(queries.images(session)) == images == 88
        assert len(record.current_judgments(session, CONCEPT)) == said


def test_a_simulated_annotator_goes_on_where_others_write_the_same_rows(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = workspace.engine()
    with writing(engine) as session:
        queries.add_concept(session, Concept("smoking", "Smoking"))
        picture = queries.Provenance(key="a", sha256=f"{1:064x}", width=1, height=1, source="imported")
        campaign = campaigns.ensure_campaign(session, "smoking", "c", image_ids=[queries.add_image(session, picture).id])
    refused = []
    for name in ("claim_next", "submit"):
        real = getattr(judging, name)

        def once(*given: Any, name: str = name, real: Any = real) -> Any:
            if name not in refused:
                refused.append(name)
                raise Again("others are taking the last tasks this moment: ask again")
            return real(*given)

        monkeypatch.setattr(judging, name, once)
    assert judge(engine, campaign.id, ANNOTATORS[0], lambda sha: True, seed=1) == 1
    assert refused == ["claim_next", "submit"]


def test_simulated_annotators_slip_at_their_stated_rates_and_the_same_way_twice(workspace: Workspace) -> None:
    sloppy = Simulated("simulated, test", misses=0.25, false_alarms=0.1, unsure=0.1)
    engine = workspace.engine()
    shas = [f"{i:064x}" for i in range(300)]
    with writing(engine) as session:
        queries.add_concept(session, Concept("smoking", "Smoking"))
        ids = [
            queries.add_image(session, queries.Provenance(key=sha, sha256=sha, width=1, height=1, source="imported")).id
            for sha in shas
        ]
        campaign = campaigns.ensure_campaign(session, "smoking", "c", image_ids=ids, asking=campaigns.Asking(overlap=2))
    truth = {sha: i % 2 == 0 for i, sha in enumerate(shas)}
    assert judge(engine, campaign.id, sloppy, truth.__getitem__, seed=1) == 300
    assert judge(engine, campaign.id, sloppy, truth.__getitem__, seed=1) == 0
    with reading(engine) as session:
        said = {row.images[0]: row.verdict for row in record.current_judgments(session, "smoking")}
    unsure = sum(v == "unsure" for v in said.values()) / 300
    missed = sum(said[s] == "clean" for s in shas if truth[s]) / 150
    alarms = sum(said[s] == "shows" for s in shas if not truth[s]) / 150
    assert 0.05 < unsure < 0.16 and 0.14 < missed < 0.32 and 0.04 < alarms < 0.16
    assert [a.misses for a in ANNOTATORS] == sorted(a.misses for a in ANNOTATORS)

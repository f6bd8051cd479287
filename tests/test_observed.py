"""A server that logs and counts, as a process of its own: what it says of a day's work, and what it never says."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import serving

from hfi.bench.load import LoadConfig
from hfi.store import campaigns
from hfi.store.session import Engine, reading
from hfi.workspace import Workspace
from ui.app import build_app
from ui.load import PASSWORD, make

TOKEN = "a-token-for-metrics-alone"
NAME, STRANGER, WRONG, COMMENT = "annotator 0", "Somebody Else", "wrong-wrong-wrong", "a comment of mine"


@dataclass
class Site:
    space: Path
    engine: Engine
    url: str
    log: Path

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, headers={"accept": "text/html"})

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def events(self, name: str, **about: object) -> list[dict[str, Any]]:
        """The events of this name, waited for: a request is logged just after its answer."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if found := [line for line in self.lines() if line["event"] == name and about.items() <= line.items()]:
                return found
            time.sleep(0.05)
        raise AssertionError(f"no {name} {about} in {self.lines()}")

    def metrics(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        answer = httpx.get(f"{self.url}/metrics", headers={"authorization": f"Bearer {TOKEN}"}, timeout=60)
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        families = text_string_to_metric_families(answer.text)
        return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/favicon.ico", timeout=5).status_code == 200
    except httpx.TransportError:
        time.sleep(0.1)
        return False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("observed")
    engine = make(folder / "work", LoadConfig(annotators=3, images=6, overlap=2))
    log = folder / "log.txt"
    words = [sys.executable, "-m", "hfi", "--log", "json", "ui", "-w", str(folder / "work"), "--port", "0", "--no-open"]
    with open(log, "ab") as stderr:  # appended to, so that it can be emptied
        server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=stderr, env={**os.environ, "HFI_METRICS_TOKEN": TOKEN})
    try:
        end = time.monotonic() + 120
        while not (found := [line for line in log.read_text().splitlines() if '"starting"' in line]):
            assert server.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        address = json.loads(found[0])["address"]
        while not _answers(address):
            assert server.poll() is None and time.monotonic() < end
        log.write_text("")  # and its first words, which are for whoever started it
        yield Site(folder / "work", engine, address, log)
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def day(site: Site) -> dict[str, Any]:
    """A wrong password, a right one, three judgments with a comment, one taken back, a picture, and a withdrawal; with what must not
    be said of it."""
    secrets = [NAME, STRANGER, WRONG, PASSWORD, COMMENT, "127.0.0.1", TOKEN, "python-httpx"]
    with site.client() as client:
        assert client.post("/enter", data={"name": STRANGER, "password": WRONG}).status_code == 401
        entered = client.post("/enter", data={"name": NAME, "password": PASSWORD})
        secrets += [value for cookie in client.cookies.jar if (value := cookie.value)]
        client.get("/judge/?campaign=1")
        state = client.get("/api/campaigns/1/state").json()
        for i, verdict in enumerate(("shows", "clean", "clean")):
            task = state["task"]
            secrets.append(task["token"])
            assert client.get(task["images"][0], params={"view": "both"}).status_code == 200
            body = {"token": task["token"], "verdict": verdict, "once": f"a judgment {i}", "comment": COMMENT}
            state = client.post("/api/judge", json=body).json()
            client.post("/api/judge", json=body)  # sent twice, taken once
        assert client.post("/api/campaigns/1/undo", json={"done": 3}).status_code == 200
        secrets += [state["task"]["token"], state["ahead"]["token"]]
        metrics = site.metrics()
        assert client.post("/withdraw", data={"sure": "yes"}).status_code == 200
    site.events("request", route="/withdraw")
    return {"secrets": secrets, "entered": entered, "metrics": metrics}


def test_a_request_is_one_line(site: Site, day: dict[str, Any]) -> None:
    number = day["entered"].headers["x-request-id"]
    (line,) = site.events("request", request=number)
    assert line.keys() == {"time", "event", "level", "request", "method", "route", "status", "ms"}
    assert (line["method"], line["route"], line["status"]) == ("POST", "/enter", 303)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    assert 0 < line["ms"] < 60_000
    judged = site.events("request", route="/api/judge")
    (signed,) = site.events("signed_in")
    assert len(judged) == 6
    assert {(one["who"], one["role"], one["status"]) for one in judged} == {(signed["who"], "annotator", 200)}
    assert signed["request"] == number
    assert len(site.events("request", route="/img/{token}/{position}")) == 3


def test_what_people_do_is_said_without_their_names(site: Site, day: dict[str, Any]) -> None:
    who = site.events("signed_in")[0]["who"]
    assert [line["reason"] for line in site.events("sign_in_refused")] == ["wrong"]
    assert "who" not in site.events("sign_in_refused")[0]
    (gone,) = site.events("withdrawn")
    assert (gone["who"], gone["judgments"], gone["comments"]) == (who, 2, 3)
    text = site.log.read_text()
    assert len(day["secrets"]) > 12
    assert [secret for secret in day["secrets"] if secret in text] == []


def test_an_error_is_said_by_its_kind_and_place_and_its_page_has_the_id(site: Site) -> None:
    """A column that is renamed under the running server: the statement that fails holds the comment, in its parameters."""
    with site.client() as client:
        client.post("/enter", data={"name": "annotator 1", "password": PASSWORD})
        token = client.get("/api/campaigns/1/state").json()["task"]["token"]
        database = sqlite3.connect(site.space / "hfi.db", isolation_level=None)
        try:
            database.execute("ALTER TABLE judgments RENAME COLUMN elapsed_ms TO elsewhere")
            body = {"token": token, "verdict": "shows", "once": "another judgment", "comment": COMMENT}
            # the server closes a connection on which it failed
            answer = client.post("/api/judge", json=body, headers={"connection": "close"})
        finally:
            database.execute("ALTER TABLE judgments RENAME COLUMN elsewhere TO elapsed_ms")
            database.close()
        assert client.post("/api/judge", json=body).status_code == 200, "nothing was lost by it"
    number = answer.headers["x-request-id"]
    assert answer.status_code == 500
    assert "This went wrong" in answer.text and number in answer.text
    assert "OperationalError" not in answer.text
    (line,) = site.events("log", request=number)
    assert (line["level"], line["logger"], line["error"]) == ("error", "uvicorn.error", "OperationalError from OperationalError")
    assert any(re.fullmatch(r"ui/label\.py:\d+ judge", place) for place in line["traceback"])
    assert any(re.fullmatch(r"hfi/store/judging\.py:\d+ submit", place) for place in line["traceback"])
    assert site.events("request", request=number)[0]["status"] == 500
    for secret in (token, COMMENT, "another judgment", str(site.space)):
        assert secret not in site.log.read_text()


def test_metrics_are_for_whoever_has_the_token(site: Site) -> None:
    with site.client() as client:
        client.post("/enter", data={"name": "boss", "password": PASSWORD})
        for given in (None, "", "Bearer", "Bearer x", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, f"bearer {TOKEN}", "Bearer é"):
            headers = {} if given is None else {"authorization": given.encode()}
            answer = client.get("/metrics", headers=headers)  # type: ignore[arg-type]
            assert (answer.status_code, answer.text) == (401, "not without the token"), given
            assert answer.headers["www-authenticate"] == "Bearer"
        assert client.post("/metrics", headers={"authorization": f"Bearer {TOKEN}"}, timeout=60).status_code == 405
        assert client.get("/metrics", headers={"authorization": f"Bearer {TOKEN}", "host": "elsewhere"}).status_code == 421


def test_metrics_count_what_was_done(day: dict[str, Any], site: Site) -> None:
    found = day["metrics"]
    with reading(site.engine) as s:
        assert campaigns.campaign(s, 1).question == "binary"

    def value(name: str, **labels: str) -> float:
        return found[name, tuple(sorted(labels.items()))]

    assert value("hfi_judgments_total", question="binary", verdict="shows") == 1
    assert value("hfi_judgments_total", question="binary", verdict="clean") == 2
    assert value("hfi_undos_total") == 1
    assert value("hfi_claims_total") == 5, "three judged, one in hand, one ahead"
    assert value("hfi_requests_total", method="POST", route="/api/judge", status="200") == 6
    assert value("hfi_requests_total", method="POST", route="/enter", status="401") == 1
    assert value("hfi_request_seconds_count", route="/api/judge") == 6
    assert value("hfi_request_seconds_bucket", route="/api/judge", le="+Inf") == 6
    pictures = {source: value("hfi_pictures_total", **{"from": source}) for source in ("memory", "store", "failed")}
    assert pictures == {"memory": 0, "store": 3, "failed": 0}
    # each of six wants two answers and has one at most; undo reopened the third, so three are in hand
    assert value("hfi_campaign_tasks", campaign="1") == value("hfi_campaign_left", campaign="1") == 6
    assert value("hfi_campaign_free", campaign="1") == 6
    assert value("hfi_leases_open") == 3
    assert value("hfi_people_active") == 1
    assert {value("hfi_jobs", state=state) for state in ("running", "done", "failed", "stopped", "lost")} == {0}
    assert value("hfi_database_up") == 1
    assert value("hfi_database_connections", state="in_use") <= 1
    assert value("hfi_threads") > 1
    if sys.platform == "linux":
        assert value("process_resident_memory_bytes") > 50e6
        assert value("process_cpu_seconds_total") > 0
    routes = {dict(labels).get("route", "") for _, labels in found}
    assert not any("annotator" in route or len(route) > 60 for route in routes), "a route is a template"


def test_the_database_is_asked_now_and_then(site: Site) -> None:
    """What is kept is not read again at once, so that a scraper cannot keep the database busy."""
    from ui.metrics import Meter

    meter = Meter(site.engine)
    first = meter._look()
    assert first is not None
    assert meter._look() is first
    meter._until = 0
    assert meter._look() is not first


def test_without_the_variable_there_is_no_such_page_and_no_header(site: Site) -> None:
    space = Workspace.open(site.space)
    with serving(build_app(space, site.engine)) as port:
        answer = httpx.get(f"http://127.0.0.1:{port}/metrics", headers={"authorization": f"Bearer {TOKEN}"}, timeout=60)
        assert answer.status_code == 404
        assert "x-request-id" not in answer.headers


@pytest.mark.parametrize("token", ["short", "with blanks in it, though long", "x" * 201, "not only ascii é"])
def test_a_token_that_could_be_guessed_is_refused(hfi, site: Site, monkeypatch: pytest.MonkeyPatch, token: str) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("HFI_METRICS_TOKEN", token)
    done = hfi("ui", "-w", site.space, "--port", 0, "--no-open")
    assert done.exit_code == 2
    assert done.errors == [
        "hfi: error: HFI_METRICS_TOKEN is no good token: give 16 to 200 letters, digits and signs without blanks, such as "
        "'openssl rand -hex 24' prints, or unset it"
    ]


def test_a_managers_handler_that_fails_says_so_and_no_more(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    import gradio as gr
    from starlette.requests import Request

    from hfi.store.queries import Annotator
    from ui.identity import Person
    from ui.manage.office import Office

    boss = Person(Annotator(1, "boss", "A-1", False), "manager", True, True)
    office = Office(Workspace.open(site.space), site.engine, lambda request: boss)

    def look(person: Annotator) -> None:
        raise ZeroDivisionError("of secret numbers")

    asked = gr.Request(Request({"type": "http", "headers": [], "hfi.request": "r7"}))
    with pytest.raises(gr.Error) as told:
        office.only(look)(asked)
    assert told.value.message == "This went wrong on the server, and is noted there as r7."
    assert caplog.records[-1].exc_info[0] is ZeroDivisionError  # type: ignore[index]

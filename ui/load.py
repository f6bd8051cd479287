"""What the labeling server holds: many annotators at once on one workspace, each as fast as it answers, killed now and then.

Its database is a SQLite file, or, where HFI_DATABASE_URL names one of PostgreSQL, a schema of its own there, which goes at the end.

A workspace with accounts is made, `hfi ui` serves it in a process of its own, and clients in this one do what the page's script does:
sign in, ask for the state, send a judgment and get the next task, load its picture. Afterwards the database is read: every judgment
that was acknowledged is there once, and no task has more answers than it asked for.
"""

import asyncio
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from sqlalchemy import func, insert, select, text

from hfi.bench.load import LoadConfig
from hfi.concepts import Concept
from hfi.store import campaigns, people, queries
from hfi.store import models as m
from hfi.store.judging import is_last
from hfi.store.migrate import upgrade
from hfi.store.session import Engine, connect, parse, reading, writing
from hfi.workspace import Workspace

PASSWORD = "load-load-load"
CONCEPT = "load"
_PICTURES = 100  # different ones behind all the images


@dataclass
class Tally:
    """What the clients saw. `seconds`: from a judgment sent to the next task known, for each that was acknowledged at the first try."""

    seconds: list[float] = field(default_factory=list)
    acknowledged: set[str] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)
    retries: int = 0
    memory: list[tuple[int, int]] = field(default_factory=list)  # judgments, resident bytes of the server


def make(path: Path, config: LoadConfig) -> Engine:
    """A workspace with the images, a campaign, and the annotators' accounts; made once."""
    space = Workspace.create(path)
    upgrade(space.database_url)
    engine = connect(space.database_url)
    shas = [space.images.put(Image.new("RGB", (64, 64), (i, 2 * i, 255 - i))) for i in range(_PICTURES)]
    with writing(engine) as s:
        queries.add_concept(s, Concept(CONCEPT, "Load", "Does it show?"))
        now = queries.now_utc()
        about = {"width": 64, "height": 64, "source": "generated", "prompt": "a prompt", "created_at": now}
        there = s.scalar(select(func.count()).select_from(m.Image)) or 0
        fresh = [{"key": f"{i:064}", "sha256": shas[i % _PICTURES], **about} for i in range(there, config.images)]
        if fresh:
            s.execute(insert(m.Image), fresh)
        ids = list(s.scalars(select(m.Image.id).order_by(m.Image.id).limit(config.images)))
        asking = campaigns.Asking(overlap=config.overlap)
        campaigns.ensure_campaign(s, CONCEPT, "load", image_ids=ids, asking=asking)
        known = {account.annotator.name for account in people.accounts(s)}
        for name, role in [("boss", "manager"), *((_name(i), "annotator") for i in range(config.annotators))]:
            if name not in known:
                people.add_account(s, name, PASSWORD, role)
        version = people.set_consent_text(s, "Load.")
        for account in people.accounts(s):
            people.agree(s, account.annotator.id, version)
    return engine


def _name(i: int) -> str:
    return f"annotator {i}"


class Server:
    """`hfi ui` in a process of its own, that can be killed and started again at the same address."""

    def __init__(self, path: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.path, self.log = path, path.with_name(f"{path.name}.log")
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = [sys.executable, "-m", "hfi", "ui", "-w", str(self.path), "--port", str(self.port), "--no-open"]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=log)
        while True:
            try:
                httpx.get(self.url, timeout=5)
                return
            except httpx.TransportError:
                if self.process.poll() is not None:
                    raise RuntimeError(f"the server ended: {self.log.read_text()!r}") from None
                time.sleep(0.1)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait()

    @property
    def memory(self) -> int:
        """Resident bytes."""
        assert self.process is not None
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


async def _annotator(i: int, url: str, campaign: int, config: LoadConfig, seen: Tally) -> None:
    """Signs in and judges until the wanted number of judgments is reached by all together, or nothing is left."""
    rng = random.Random(f"{config.seed} {i}")
    retries = 0
    async with httpx.AsyncClient(base_url=url, timeout=60, follow_redirects=True) as client:

        async def ask(method: str, path: str, **more: Any) -> Any:
            """The answer, asked for again while the server, or its database, is away, as the page does."""
            nonlocal retries
            while True:
                try:
                    answer = await client.request(method, path, **more)
                except httpx.TransportError:
                    answer = None
                if answer is None or answer.status_code == 503:
                    retries += 1
                    seen.retries += 1
                    await asyncio.sleep(0.2)
                    continue
                if answer.status_code >= 500:
                    seen.errors.append(f"{path}: {answer.status_code}")
                if answer.status_code >= 400:
                    raise RuntimeError(f"{path}: {answer.status_code} {answer.text[:200]}")
                return answer

        await ask("POST", "/enter", data={"name": _name(i), "password": PASSWORD})
        state = (await ask("GET", f"/api/campaigns/{campaign}/state")).json()
        n = 0
        while state["task"] and len(seen.acknowledged) < config.judgments:
            if config.pictures:
                for src in state["task"]["images"]:
                    await ask("GET", f"{src}?view=both")
            once = f"load-{i}-{n}-{rng.randrange(10**9)}"
            body = {"token": state["task"]["token"], "verdict": rng.choice(["shows", "clean"]), "once": once, "elapsed_ms": 900}
            before, until_now = time.perf_counter(), retries
            state = (await ask("POST", "/api/judge", json=body)).json()
            if until_now == retries:
                seen.seconds.append(time.perf_counter() - before)
            seen.acknowledged.add(once)
            n += 1
            if state.get("rest"):  # a break is due: this is a machine, it goes on
                state = (await ask("POST", f"/api/campaigns/{campaign}/go-on")).json()


async def _drive(servers: Sequence[Server], campaign: int, config: LoadConfig) -> Tally:
    seen, server = Tally(), servers[0]
    tasks = [
        asyncio.create_task(_annotator(i, servers[i % len(servers)].url, campaign, config, seen))
        for i in range(config.annotators)
    ]
    rng = random.Random(config.seed)
    at = sorted(rng.sample(range(config.judgments // 20, config.judgments), config.kills)) if config.kills else []
    step, next_look = max(1, config.judgments // 20), 0
    while not all(task.done() for task in tasks):
        done = len(seen.acknowledged)
        if at and done >= at[0]:
            at.pop(0)
            server.kill()
            await asyncio.to_thread(server.start)
        elif done >= next_look:
            seen.memory.append((done, server.memory))
            next_look = done + step
        await asyncio.sleep(0.02)
    for task in tasks:
        if error := task.exception():
            seen.errors.append(str(error))
    seen.memory.append((len(seen.acknowledged), server.memory))
    return seen


def run(path: Path, config: LoadConfig) -> dict[str, Any]:
    """Judges, and says how it went: latencies in ms, judgments a second, memory, and what is wrong in the database (nothing)."""
    with _own_schema():
        return _run(path, config)


@contextmanager
def _own_schema() -> Iterator[None]:
    """On PostgreSQL, HFI_DATABASE_URL names a new schema, in which everything is made: what is in the database stays as it is."""
    url = os.environ.get("HFI_DATABASE_URL", "")
    if not url or parse(url).get_backend_name() != "postgresql":
        yield
        return
    name, engine = f"hfi_load_{secrets.token_hex(4)}", connect(url)
    given = parse(url).query.get("options", "")
    there = parse(url).update_query_dict({"options": f"{given} -csearch_path={name}".strip()})
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {name}"))
    os.environ["HFI_DATABASE_URL"] = there.render_as_string(hide_password=False)
    try:
        yield
    finally:
        os.environ["HFI_DATABASE_URL"] = url
        with engine.begin() as connection:
            connection.execute(text(f"DROP SCHEMA {name} CASCADE"))
        engine.dispose()


def _run(path: Path, config: LoadConfig) -> dict[str, Any]:
    engine = make(path, config)
    with reading(engine) as s:
        campaign = next(c for c in campaigns.campaigns(s, CONCEPT) if c.name == "load")
        before = s.scalar(select(func.count()).select_from(m.Judgment)) or 0
    servers = [Server(path) for _ in range(config.servers)]
    try:
        for server in servers:
            server.start()
        began = time.perf_counter()
        seen = asyncio.run(_drive(servers, campaign.id, config))
        took = time.perf_counter() - began
    finally:
        for server in servers:
            server.stop()
    wrong = verify(engine, seen.acknowledged, before)
    database = engine.dialect.name
    engine.dispose()
    ms = 1000 * np.array(seen.seconds or [float("nan")])
    return {
        **asdict(config),
        "database": database,
        "judged": len(seen.acknowledged),
        "seconds": round(took, 2),
        "per_second": round(len(seen.acknowledged) / took, 1),
        **{f"p{q}_ms": round(float(np.percentile(ms, q)), 1) for q in (50, 95, 99)},
        "retries": seen.retries,
        "errors": seen.errors,
        "memory": seen.memory,
        **wrong,
    }


def verify(engine: Engine, acknowledged: set[str], before: int = 0) -> dict[str, int]:
    """lost: acknowledged, not in the database. unacknowledged: in it, and nobody was told, not where `before` there were others.
    duplicates: two living judgments of one person on a task. over_overlap: tasks with more answers, or more people, than they ask
    for."""
    with reading(engine) as s:
        kept = set(s.scalars(select(m.Judgment.idempotency_token).where(m.Judgment.idempotency_token.startswith("load-"))))
        pairs = s.execute(
            select(m.Judgment.task_id, m.Judgment.annotator_id).where(m.Judgment.verdict != "undone", is_last(m.Judgment))
        ).all()
        answers = select(m.Task.id).where((m.Task.answers > m.Task.wanted) | (m.Task.answers + m.Task.held > m.Task.wanted))
        over = len(s.scalars(answers).all())
        held = s.execute(select(m.Task.id, m.Task.answers)).tuples().all()
    living: dict[int, int] = {}
    for task, _ in pairs:
        living[task] = living.get(task, 0) + 1
    return {
        "lost": len(acknowledged - kept),
        "unacknowledged": len(kept - acknowledged) if not before else 0,
        "duplicates": len(pairs) - len(set(pairs)),
        "over_overlap": over + sum(living.get(task, 0) != count for task, count in held),
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """The curve over the number of annotators."""
    heads = (
        "annotators",
        "judgments",
        "a second",
        "median ms",
        "p95 ms",
        "p99 ms",
        "server MB",
        "errors",
        "lost",
        "twice",
        "too many",
    )
    lines = ["  ".join(f"{head:>10}" for head in heads)]
    for r in results:
        megabytes = f"{r['memory'][0][1] / 1e6:.0f}-{max(b for _, b in r['memory']) / 1e6:.0f}"
        cells = (
            r["annotators"], r["judged"], r["per_second"], r["p50_ms"], r["p95_ms"], r["p99_ms"], megabytes, len(r["errors"]),
            r["lost"], r["duplicates"], r["over_overlap"],
        )  # fmt: skip
        lines.append("  ".join(f"{cell!s:>10}" for cell in cells))
    return "\n".join(lines)

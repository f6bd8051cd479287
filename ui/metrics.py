"""/metrics, for Prometheus: how the server does, in numbers. Nobody is named in them, and no image.

It answers whoever has the token of HFI_METRICS_TOKEN and nobody else; without that variable there is no such page. Counters count from
the server's start; what is read from the database is kept for a while, longer where reading took long.
"""

import hmac
import threading
import time
from collections.abc import Iterator, Mapping

from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from starlette.responses import Response

from hfi import __version__
from hfi.store import campaigns
from hfi.store.pulse import Pulse, pool, pulse
from hfi.store.queries import now_utc
from hfi.store.session import Engine, reading

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_KEPT = 10  # seconds
_PART = 20  # the database is read for one second in so many, at most


class Meter:
    """Counts of one server. Each method may be called from any thread, and takes some microseconds."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.registry = CollectorRegistry()
        self._requests = Counter("hfi_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry)
        self._seconds = Histogram(
            "hfi_request_seconds", "Time until a request was answered.", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self._judgments = Counter("hfi_judgments", "Judgments taken.", ["question", "verdict"], registry=self.registry)
        self._undone = Counter("hfi_undos", "Judgments taken back.", registry=self.registry)
        self._claims = Counter("hfi_claims", "Tasks given into somebody's hands.", registry=self.registry)
        self._pictures = Counter(
            "hfi_pictures", "Images shown to annotators, by where they came from.", ["from"], registry=self.registry
        )
        for source in ("memory", "store", "failed"):
            self._pictures.labels(source)
        ProcessCollector(registry=self.registry)
        self.registry.register(self)
        self._questions: dict[int, str] = {}
        self._lock = threading.Lock()
        self._until = 0.0
        self._pulse: Pulse | None = None

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def judged(self, campaign_id: int, verdict: str) -> None:
        if campaign_id not in self._questions:
            with reading(self.engine) as session:
                self._questions[campaign_id] = campaigns.campaign(session, campaign_id).question
        self._judgments.labels(self._questions[campaign_id], verdict).inc()

    def undone(self) -> None:
        self._undone.inc()

    def claimed(self, tasks: int) -> None:
        self._claims.inc(tasks)

    def pictured(self, source: str) -> None:
        """`source`: memory, store, or failed where the store did not have it whole."""
        self._pictures.labels(source).inc()

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What is not counted but looked at, when it is asked for."""
        yield _gauge("hfi_info", "The version that runs.", "version", {__version__: 1})
        yield GaugeMetricFamily("hfi_threads", "Threads of the server.", threading.active_count())
        yield _gauge("hfi_database_connections", "Connections to the database.", "state", pool(self.engine))
        now = self._look()
        yield GaugeMetricFamily("hfi_database_up", "Whether the database answered when it was last read.", int(now is not None))
        if now is None:
            return
        for name, words in (
            ("tasks", "Tasks of an open campaign, without those of known answer."),
            ("left", "Those that want more answers."),
            ("free", "Those that can be given out now."),
        ):
            yield _gauge(
                f"hfi_campaign_{name}", words, "campaign", {str(n): getattr(one, name) for n, one in now.campaigns.items()}
            )
        yield GaugeMetricFamily("hfi_leases_open", "Tasks in people's hands.", now.leases)
        yield GaugeMetricFamily("hfi_people_active", "People who judged within the last five minutes.", now.active)
        yield _gauge("hfi_jobs", "Background jobs, by how they ended.", "state", now.jobs)

    def _look(self) -> Pulse | None:
        with self._lock:
            began = time.monotonic()
            if began >= self._until:
                try:
                    with reading(self.engine) as session:
                        self._pulse = pulse(session, now_utc())
                except Exception:  # a database that is away is a number, too; whoever judges will say how it fails
                    self._pulse = None
                ended = time.monotonic()
                self._until = ended + max(_KEPT, _PART * (ended - began))
            return self._pulse


def _gauge(name: str, words: str, label: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    found = GaugeMetricFamily(name, words, labels=[label])
    for value, number in values.items():
        found.add_metric([value], number)
    return found


def add_route(app: FastAPI, meter: Meter, token: str) -> None:
    """/metrics, for whoever sends `Authorization: Bearer` and the token."""
    right = f"Bearer {token}".encode()

    @app.get("/metrics")
    def metrics(request: Request) -> Response:
        if not hmac.compare_digest(request.headers.get("authorization", "").encode(), right):
            return Response("not without the token", 401, {"WWW-Authenticate": "Bearer"})
        return Response(meter.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

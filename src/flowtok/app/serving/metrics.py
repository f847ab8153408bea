"""What the server counts, in Prometheus' format.

Knows no route: gate.py tells it of requests, service.py of batches and of the queue.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The figures of one server, with a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "flowtok_requests", "Requests that were answered.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "flowtok_request_seconds", "From the head of a request to the end of its answer.", ["route"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.in_flight = Gauge("flowtok_requests_in_flight", "Requests being read or answered.", registry=registry)
        self.bytes = Gauge("flowtok_bytes_in_flight", "Bodies of requests being read or answered.", registry=registry)
        self.results = Counter("flowtok_results", "Pictures drawn and captions read.", ["kind"], registry=registry)
        self.batch_sizes = Histogram(
            "flowtok_batch_size", "Results computed together.", buckets=_SIZES, registry=registry
        )
        self.batch_seconds = Histogram("flowtok_batch_seconds", "Time of a batch.", buckets=_SECONDS, registry=registry)
        self.refused = Counter(
            "flowtok_refused", "Requests for which there was no room or no time.", ["why"], registry=registry
        )
        self._waiting = Gauge("flowtok_queue", "Results that wait for the model.", registry=registry)

    def watch_queue(self, waiting: Callable[[], float]) -> None:
        """Asks for the length of the queue whenever the figures are read."""
        self._waiting.set_function(waiting)

    def batch(self, kind: str, size: int, seconds: float) -> None:
        """Counts a batch that was computed."""
        self.results.labels(kind).inc(size)
        self.batch_sizes.observe(size)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self.registry)

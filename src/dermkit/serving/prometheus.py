"""What /metrics says of the server, in Prometheus' text format; each server has a registry of its own."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dermkit.serving.problems import ProblemCode

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class ServerMetrics:
    """Counters of one server. Labels come from closed sets alone: no client can make the server remember more."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        registry = self.registry
        self._requests = Counter(
            "dermkit_requests_total", "Requests answered.", ("route", "status"), registry=registry
        )
        self._seconds = Histogram(
            "dermkit_request_seconds", "Time to answer.", ("route",), buckets=_SECONDS, registry=registry
        )
        self._problems = Counter("dermkit_problems_total", "Requests refused.", ("code",), registry=registry)
        self._images = Counter(
            "dermkit_images_total", "Images by outcome: scored, or why refused.", ("outcome",), registry=registry
        )
        self._predicted = Counter(
            "dermkit_predictions_total", "Images by predicted class.", ("class_name",), registry=registry
        )
        self._outside = Counter(
            "dermkit_outside_training_distribution_total",
            "Scored images outside the training distribution.",
            registry=registry,
        )
        self._batches = Histogram(
            "dermkit_batch_images", "Images scored together.", buckets=_BATCH_SIZES, registry=registry
        )
        self._restarts = Counter(
            "dermkit_worker_restarts_total", "Times that the worker was started again.", registry=registry
        )

    def watch(
        self, *, waiting: Callable[[], float], ready: Callable[[], float], connections: Callable[[], float]
    ) -> None:
        """Let gauges read the server's state whenever it is asked for."""
        for name, text, value in (
            ("dermkit_waiting_images", "Images that wait or are being scored.", waiting),
            ("dermkit_ready", "1 where a request would be accepted.", ready),
            ("dermkit_connections", "Open connections.", connections),
        ):
            Gauge(name, text, registry=self.registry).set_function(value)

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_problem(self, code: ProblemCode) -> None:
        """Count a request that was refused."""
        self._problems.labels(code.value).inc()

    def count_image(self, outcome: str, predicted: str | None, *, is_outside: bool) -> None:
        """Count an image. outcome: "scored" or the reason of its refusal. predicted: its class, None = refused."""
        self._images.labels(outcome).inc()
        if predicted is not None:
            self._predicted.labels(predicted).inc()
        if is_outside:
            self._outside.inc()

    def observe_batch(self, n_images: int) -> None:
        """Count a batch that went to the model."""
        self._batches.observe(n_images)

    def count_restart(self) -> None:
        """Count a start of the worker after it was lost."""
        self._restarts.inc()

    def text(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self.registry)

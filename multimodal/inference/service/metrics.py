"""What a service has done, in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters and histograms of requests and batches.

    Args:
        waiting: gives the number of inputs that wait now.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._waiting = waiting
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: Counter[float] = Counter()
        self._total_seconds = 0.0
        self._inputs: Counter[str] = Counter()
        self._sizes: Counter[float] = Counter()

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Notes an answered request."""
        with self._lock:
            self._requests[endpoint, status] += 1
            self._seconds[_bucket(seconds, BUCKETS)] += 1
            self._total_seconds += seconds

    def batch(self, modality: str, size: int) -> None:
        """Notes a batch that went through the model."""
        with self._lock:
            self._inputs[modality] += size
            self._sizes[_bucket(size, SIZES)] += 1

    def text(self) -> str:
        """All of them."""
        with self._lock:
            lines = [
                "# HELP multimodal_requests_total Answered requests.",
                "# TYPE multimodal_requests_total counter",
                *(
                    f'multimodal_requests_total{{endpoint="{name}",status="{status}"}} {count}'
                    for (name, status), count in sorted(self._requests.items())
                ),
                "# HELP multimodal_inputs_total Inputs that went through the model.",
                "# TYPE multimodal_inputs_total counter",
                *(
                    f'multimodal_inputs_total{{modality="{name}"}} {count}'
                    for name, count in sorted(self._inputs.items())
                ),
                "# HELP multimodal_waiting Inputs that wait for the model.",
                "# TYPE multimodal_waiting gauge",
                f"multimodal_waiting {self._waiting()}",
                "# HELP multimodal_request_seconds Time until a request was answered.",
                *_histogram(
                    "multimodal_request_seconds", self._seconds, BUCKETS, self._total_seconds
                ),
                "# HELP multimodal_batch_size Inputs of a batch.",
                *_histogram(
                    "multimodal_batch_size", self._sizes, SIZES, sum(self._inputs.values())
                ),
            ]
        return "\n".join(lines) + "\n"


def _bucket(value: float, bounds: tuple[float, ...]) -> float:
    return next((bound for bound in bounds if value <= bound), float("inf"))


def _histogram(
    name: str, counts: Counter[float], bounds: tuple[float, ...], total: float
) -> list[str]:
    lines, below = [f"# TYPE {name} histogram"], 0
    for bound in bounds:
        below += counts[bound]
        lines.append(f'{name}_bucket{{le="{bound:g}"}} {below}')
    count = sum(counts.values())
    return [
        *lines, f'{name}_bucket{{le="+Inf"}} {count}', f"{name}_sum {total:g}",
        f"{name}_count {count}",
    ]  # fmt: skip

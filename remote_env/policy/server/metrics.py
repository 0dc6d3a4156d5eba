"""What a policy server can be measured by, as Prometheus' text. Names no model, user or path."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from remote_env.policy.server.histogram import Histogram
from remote_env.policy.server.service import PolicyService
from remote_env.protocol.monitoring import GPU_FIELDS, Gpu, Metric, gpu_metrics, histogram, many, one, parse_gpus

GPU_FRESH_S = 5.0
GPU_TIMEOUT_S = 3.0


class Readiness:
    """Whether a client can begin now, and why not.

    Attributes:
        reason: what the server waits for; "" when it is ready.
    """

    def __init__(self) -> None:
        self.reason = "starting"
        self._since = time.monotonic()

    def change(self, reason: str) -> None:
        """The server waits for something else now; for nothing when "": it is ready."""
        self.reason, self._since = reason, time.monotonic()

    def health(self) -> tuple[bool, str]:
        """As `answer_http` takes it."""
        if not self.reason:
            return True, "ready"
        return False, f"not ready: {self.reason} for {time.monotonic() - self._since:.0f} s"


class GpuReader:
    """Asks nvidia-smi, where it is; one asks at a time, the others take what is known."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._asked = float("-inf")
        self._known: list[Gpu] = []

    def read(self) -> list[Gpu]:
        """The machine's GPUs, not older than some seconds unless another thread is asking now."""
        if time.monotonic() - self._asked > GPU_FRESH_S and self._mutex.acquire(blocking=False):
            try:
                self._known = _ask_gpus()
                self._asked = time.monotonic()
            finally:
                self._mutex.release()
        return self._known


def _ask_gpus() -> list[Gpu]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={GPU_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(  # noqa: S603  the system's own
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=GPU_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_gpus(answer.stdout.decode(errors="replace"))


def read_metrics(
    service: PolicyService | None, readiness: Readiness, gpus: GpuReader, started: float
) -> Iterator[Metric]:
    """All of it.

    Args:
        service: None while the model loads.
        readiness: whether it does.
        gpus: of the machine.
        started: when the server did [s, monotonic].
    """
    yield one("ready", "gauge", "Whether a client can begin now.", int(readiness.health()[0]))
    yield one("uptime_seconds", "gauge", "How long the server has run.", time.monotonic() - started)
    if service is not None:
        yield from _service(service)
    yield from _process()
    yield from gpu_metrics(gpus.read())


def _service(service: PolicyService) -> Iterator[Metric]:
    requests, errors = service.requests_by_dialect()
    clients = Counter(client.dialect for client in service.living)
    waiting = {str(number): worker.waiting for number, worker in enumerate(service.workers)}
    yield many("policy_clients", "gauge", "Clients that are connected.", "dialect", clients)
    yield many("policy_requests_total", "counter", "Requests answered with actions.", "dialect", requests)
    yield many("policy_errors_total", "counter", "Requests answered with an error.", "dialect", errors)
    yield many("policy_queue_length", "gauge", "Requests that wait for their turn.", "worker", waiting)
    meaning = "Time of a request, from its observation received to its actions ready."
    yield _histogram("policy_request_seconds", meaning, service.latencies())
    yield _histogram("policy_batch_rows", "Observations in one inference.", service.batches())


def _histogram(name: str, meaning: str, values: Histogram) -> Metric:
    samples = histogram(values.bounds, values.counts, values.total)
    return Metric(f"remote_env_{name}", "histogram", meaning, samples)


def _process() -> Iterator[Metric]:
    spent = os.times()
    yield one("cpu_seconds_total", "counter", "CPU time of the server's process.", spent.user + spent.system)
    if (size := _resident_bytes()) is not None:
        yield one("resident_bytes", "gauge", "Resident memory of the server's process.", size)


def _resident_bytes() -> int | None:
    """None where there is no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None

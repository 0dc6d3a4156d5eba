"""GET /healthz and /metrics on the protocol's own port. Names no task, user or path. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from remote_env.protocol import monitoring


def answer_http(request: bytes, statuses: Iterable[dict[str, Any]], write_metrics: Callable[[bool], str]) -> bytes:
    """The whole response to an HTTP request: health on / and /healthz, Prometheus text on /metrics.

    Args:
        request: line and headers.
        statuses: of the simulators.
        write_metrics: the metrics, given whether the server is ready.
    """
    found = list(statuses)
    health = read_health(found)
    return monitoring.answer_http(request, health, lambda: write_metrics(health[0]))


def read_health(statuses: Iterable[dict[str, Any]]) -> tuple[bool, str]:
    """Whether a client can begin now, and why not."""
    found = list(statuses)
    if any(status["state"] in ("ready", "busy") for status in found):
        return True, "ready"
    if not found:
        return False, "not ready: no simulator runs; the next session starts one"
    status = found[0]
    if status["state"] == "starting":
        return False, f"not ready: {status['phase']} for {status['since_s']:.0f} s"
    if status["state"] == "failed":
        return False, f"not ready: the task could not be made ({status['kind']} in {status['phase']})"
    return False, f"not ready: {status['why']}"

"""GET /healthz and /metrics on the protocol's own port. Names no task, user or path. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def answer_http(request: bytes, statuses: Iterable[dict[str, Any]], write_metrics: Callable[[bool], str]) -> bytes:
    """The whole response to an HTTP request: health on / and /healthz, Prometheus text on /metrics.

    Args:
        request: line and headers.
        statuses: of the simulators.
        write_metrics: the metrics, given whether the server is ready.
    """
    words = request.split(b"\r\n", 1)[0].split()
    method, path = (words[0], words[1].partition(b"?")[0]) if len(words) >= 2 else (b"", b"")
    kind = "text/plain; charset=utf-8"
    if method not in (b"GET", b"HEAD"):
        status, body = "405 Method Not Allowed", "only GET and HEAD\n"
    elif path in (b"/", b"/healthz"):
        ready, reason = read_health(statuses)
        status, body = ("200 OK" if ready else "503 Service Unavailable"), reason + "\n"
    elif path == b"/metrics":
        kind = "text/plain; version=0.0.4; charset=utf-8"
        status, body = "200 OK", write_metrics(read_health(statuses)[0])
    else:
        status, body = "404 Not Found", "there are /healthz and /metrics\n"
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return (head + ("" if method == b"HEAD" else body)).encode()


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

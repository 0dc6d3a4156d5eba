"""GET /healthz and /metrics on the protocol's own port. Names no task, user or path. Standard library only."""

from __future__ import annotations

from typing import Any


def answer_http(supervisor: Any, request: bytes) -> bytes:
    """The whole response to an HTTP request: health on / and /healthz, Prometheus text on /metrics."""
    words = request.split(b"\r\n", 1)[0].split()
    method, path = (words[0], words[1]) if len(words) >= 2 else (b"", b"")
    if method not in (b"GET", b"HEAD"):
        status, body = "405 Method Not Allowed", "only GET and HEAD\n"
    elif path in (b"/", b"/healthz"):
        ready, reason = _health(supervisor)
        status, body = ("200 OK" if ready else "503 Service Unavailable"), reason + "\n"
    elif path == b"/metrics":
        status, body = "200 OK", _metrics(supervisor)
    else:
        status, body = "404 Not Found", "there are /healthz and /metrics\n"
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return (head + ("" if method == b"HEAD" else body)).encode()


def _health(supervisor: Any) -> tuple[bool, str]:
    states = [simulator.status()["state"] for simulator in supervisor.simulators]
    if "ready" in states or "busy" in states:
        return True, "ready"
    return False, f"not ready: {states[0] if states else 'no simulator runs'}"


def _metrics(supervisor: Any) -> str:
    readings = [simulator.status() for simulator in supervisor.simulators]
    values = {
        "remote_env_sessions": ("gauge", len(supervisor.sessions)),
        "remote_env_simulators": ("gauge", len(readings)),
        "remote_env_ready": ("gauge", int(_health(supervisor)[0])),
        "remote_env_steps_total": ("counter", sum(reading["steps"] for reading in readings)),
        "remote_env_resets_total": ("counter", sum(reading["resets"] for reading in readings)),
    }
    return "".join(f"# TYPE {name} {kind}\n{name} {value}\n" for name, (kind, value) in values.items())

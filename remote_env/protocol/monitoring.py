"""What servers tell whoever watches them: HTTP answers on /healthz and /metrics, Prometheus' text, nvidia-smi's lines.

Pure, and the standard library only: the supervisor uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

GPU_FIELDS = "index,utilization.gpu,memory.used,memory.total"
MIB = 1 << 20
Labels = Mapping[str, str]
Sample = tuple[str, Labels, float]


class Metric(NamedTuple):
    """One family: its name, kind and meaning, and the samples: a suffix to the name, labels, and the value."""

    name: str
    kind: str
    meaning: str
    samples: Iterable[Sample]


def write_metrics(metrics: Iterable[Metric]) -> str:
    """Prometheus' text format, version 0.0.4."""
    lines = []
    for metric in metrics:
        lines += [f"# HELP {metric.name} {metric.meaning}", f"# TYPE {metric.name} {metric.kind}"]
        lines += [f"{metric.name}{suffix}{_labels(labels)} {value!r}" for suffix, labels, value in metric.samples]
    return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}" if labels else ""


def one(name: str, kind: str, meaning: str, value: float) -> Metric:
    """A family of one sample."""
    return Metric(f"remote_env_{name}", kind, meaning, [("", {}, value)])


def many(name: str, kind: str, meaning: str, label: str, values: Mapping[str, float]) -> Metric:
    """A family with one sample for each value of a label."""
    return Metric(f"remote_env_{name}", kind, meaning, [("", {label: key}, value) for key, value in values.items()])


def histogram(bounds: Iterable[float], counts: Iterable[int], total: float) -> Iterator[Sample]:
    """A histogram's samples.

    Args:
        bounds: upper ones, ascending.
        counts: values in each range, with those above the last bound behind them.
        total: the sum of all values.
    """
    running = 0
    for bound, count in zip([*(f"{bound:g}" for bound in bounds), "+Inf"], counts, strict=True):
        running += count
        yield "_bucket", {"le": bound}, running
    yield "_sum", {}, total
    yield "_count", {}, running


def answer_http(request: bytes, health: tuple[bool, str], metrics: Callable[[], str]) -> bytes:
    """The whole response to an HTTP request: health on / and /healthz, Prometheus text on /metrics.

    Args:
        request: line and headers.
        health: whether a client can begin now, and why not.
        metrics: writes the metrics.
    """
    words = request.split(b"\r\n", 1)[0].split()
    method, path = (words[0], words[1].partition(b"?")[0]) if len(words) >= 2 else (b"", b"")
    kind = "text/plain; charset=utf-8"
    if method not in (b"GET", b"HEAD"):
        status, body = "405 Method Not Allowed", "only GET and HEAD\n"
    elif path in (b"/", b"/healthz"):
        ready, reason = health
        status, body = ("200 OK" if ready else "503 Service Unavailable"), reason + "\n"
    elif path == b"/metrics":
        kind = "text/plain; version=0.0.4; charset=utf-8"
        status, body = "200 OK", metrics()
    else:
        status, body = "404 Not Found", "there are /healthz and /metrics\n"
    size = len(body.encode())
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
    return (head + ("" if method == b"HEAD" else body)).encode()


class Gpu(NamedTuple):
    """One GPU.

    Attributes:
        number: as nvidia-smi counts them.
        used: which part of the last moments it worked [0 to 1]; None when it does not tell.
        memory_used: bytes; None when it does not tell.
        memory_total: bytes; None when it does not tell.
    """

    number: str
    used: float | None
    memory_used: float | None
    memory_total: float | None


def parse_gpus(output: str) -> list[Gpu]:
    """What nvidia-smi answers when asked for `GPU_FIELDS` as CSV; what is "[N/A]" there is None."""
    rows = [[word.strip() for word in line.split(",")] for line in output.splitlines()]
    return [
        Gpu(row[0], _scaled(row[1], 0.01), _scaled(row[2], MIB), _scaled(row[3], MIB))
        for row in rows
        if len(row) == 4 and row[0].isdigit()
    ]


def _scaled(text: str, factor: float) -> float | None:
    try:
        return float(text) * factor
    except ValueError:
        return None


def gpu_metrics(gpus: list[Gpu]) -> Iterator[Metric]:
    """The families of GPUs; one that no GPU tells is left out."""
    for name, meaning, values in (
        ("gpu_utilization_ratio", "How much each GPU of the machine works.", {gpu.number: gpu.used for gpu in gpus}),
        ("gpu_memory_used_bytes", "Memory in use on each GPU.", {gpu.number: gpu.memory_used for gpu in gpus}),
        ("gpu_memory_total_bytes", "Memory of each GPU.", {gpu.number: gpu.memory_total for gpu in gpus}),
    ):
        known = {index: value for index, value in values.items() if value is not None}
        if known:
            yield many(name, "gauge", meaning, "gpu", known)

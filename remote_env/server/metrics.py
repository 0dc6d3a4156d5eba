"""The server's numbers in Prometheus' text format. They name no task, user or path. Standard library only."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from remote_env.protocol.log_text import KINDS
from remote_env.server.board import STEP_BOUNDS_S
from remote_env.server.gpu import Gpu
from remote_env.server.log import Log
from remote_env.server.sessions import Sessions
from remote_env.server.simulators import Simulators

STATES = ("starting", "ready", "busy", "failed")
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
Labels = Mapping[str, str]


class Metric(NamedTuple):
    """One family: its name, kind and meaning, and the samples: a suffix to the name, labels, and the value."""

    name: str
    kind: str
    meaning: str
    samples: Iterable[tuple[str, Labels, float]]


def write_metrics(metrics: Iterable[Metric]) -> str:
    """The text format, version 0.0.4."""
    lines = []
    for metric in metrics:
        lines += [f"# HELP {metric.name} {metric.meaning}", f"# TYPE {metric.name} {metric.kind}"]
        lines += [f"{metric.name}{suffix}{_labels(labels)} {value!r}" for suffix, labels, value in metric.samples]
    return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}" if labels else ""


def read_metrics(
    simulators: Simulators, sessions: Sessions, log: Log, gpus: Iterable[Gpu], *, ready: bool, uptime_s: float
) -> Iterator[Metric]:
    """All that a server can be measured by."""
    totals, states = simulators.totals(), [simulator.status()["state"] for simulator in simulators.living]
    running = [simulator.read_board() for simulator in simulators.living if simulator.ready]
    yield _one("ready", "gauge", "Whether a client can begin now.", int(ready))
    yield _one("uptime_seconds", "gauge", "How long the server has run.", uptime_s)
    yield _one("sessions", "gauge", "Sessions that are open.", len(sessions))
    yield _one("sessions_opened_total", "counter", "Sessions that were ever opened.", sessions.opened)
    yield _many("simulators", "gauge", "Simulators in each state.", "state", {s: states.count(s) for s in STATES})
    yield _one("simulator_deaths_total", "counter", "Simulators that have ended.", simulators.deaths)
    longest = max((reading.since_s for reading in running if reading.call != "nothing"), default=0.0)
    yield _one("call_seconds", "gauge", "How long the longest call that runs now has run.", longest)
    yield _one("steps_total", "counter", "Steps that were begun.", totals.steps)
    yield _one("resets_total", "counter", "Resets that were begun.", totals.resets)
    yield _one("received_bytes_total", "counter", "Bytes of requests to simulators.", totals.received)
    yield _one("sent_bytes_total", "counter", "Bytes of replies of simulators.", totals.sent)
    meaning = "Time of a step, from its request read to its reply packed."
    samples = _histogram(totals.step_counts, totals.step_seconds)
    yield Metric("remote_env_step_seconds", "histogram", meaning, samples)
    yield from _processes([simulator.pid for simulator in simulators.living])
    yield from _gpus(list(gpus))
    kinds = {kind: log.problems.by_kind[kind] for kind in KINDS}
    yield _many("log_problems_total", "counter", "Problems found in the log.", "kind", kinds)
    yield _one("log_bytes", "gauge", "Size of the log.", log.held_bytes)


def _one(name: str, kind: str, meaning: str, value: float) -> Metric:
    return Metric(f"remote_env_{name}", kind, meaning, [("", {}, value)])


def _many(name: str, kind: str, meaning: str, label: str, values: Mapping[str, float]) -> Metric:
    return Metric(f"remote_env_{name}", kind, meaning, [("", {label: key}, value) for key, value in values.items()])


def _histogram(counts: Iterable[int], seconds: float) -> Iterator[tuple[str, Labels, float]]:
    total = 0
    for bound, count in zip([*(f"{bound:g}" for bound in STEP_BOUNDS_S), "+Inf"], counts, strict=True):
        total += count
        yield "_bucket", {"le": bound}, total
    yield "_sum", {}, seconds
    yield "_count", {}, total


def _processes(simulators: Iterable[int]) -> Iterator[Metric]:
    ours = resource.getrusage(resource.RUSAGE_SELF)
    past = resource.getrusage(resource.RUSAGE_CHILDREN)
    living = [_read_process(pid) for pid in simulators]
    cpu = {
        "supervisor": ours.ru_utime + ours.ru_stime,
        "simulator": past.ru_utime + past.ru_stime + sum(cpu_s for cpu_s, _ in living),
    }
    memory = {"supervisor": _read_process(os.getpid())[1], "simulator": sum(size for _, size in living)}
    yield _many("cpu_seconds_total", "counter", "CPU time of the server's own processes.", "process", cpu)
    yield _many("resident_bytes", "gauge", "Resident memory of the server's own processes.", "process", memory)


def _read_process(pid: int) -> tuple[float, int]:
    """CPU time [s] and resident memory [bytes] of a process; zeros when it is gone, or there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[21]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0.0, 0


def _gpus(gpus: list[Gpu]) -> Iterator[Metric]:
    for name, meaning, values in (
        ("gpu_utilization_ratio", "How much each GPU of the machine works.", {gpu.number: gpu.used for gpu in gpus}),
        ("gpu_memory_used_bytes", "Memory in use on each GPU.", {gpu.number: gpu.memory_used for gpu in gpus}),
        ("gpu_memory_total_bytes", "Memory of each GPU.", {gpu.number: gpu.memory_total for gpu in gpus}),
    ):
        known = {index: value for index, value in values.items() if value is not None}
        if known:
            yield _many(name, "gauge", meaning, "gpu", known)

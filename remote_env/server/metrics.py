"""The server's numbers. They name no task, user or path. Standard library only."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Iterator
from pathlib import Path

from remote_env.protocol.log_text import KINDS
from remote_env.protocol.monitoring import Gpu, Metric, gpu_metrics, histogram, many, one
from remote_env.server.board import STEP_BOUNDS_S
from remote_env.server.log import Log
from remote_env.server.sessions import Sessions
from remote_env.server.simulators import Simulators

STATES = ("starting", "ready", "busy", "failed")
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def read_metrics(
    simulators: Simulators, sessions: Sessions, log: Log, gpus: Iterable[Gpu], *, ready: bool, uptime_s: float
) -> Iterator[Metric]:
    """All that a server can be measured by."""
    totals, states = simulators.totals(), [simulator.status()["state"] for simulator in simulators.living]
    running = [simulator.read_board() for simulator in simulators.living if simulator.ready]
    yield one("ready", "gauge", "Whether a client can begin now.", int(ready))
    yield one("uptime_seconds", "gauge", "How long the server has run.", uptime_s)
    yield one("sessions", "gauge", "Sessions that are open.", len(sessions))
    yield one("sessions_opened_total", "counter", "Sessions that were ever opened.", sessions.opened)
    yield one("sessions_cut_off", "gauge", "Sessions whose link is cut, and which are kept.", sessions.cut_off)
    yield one("sessions_resumed_total", "counter", "Times that a client has taken its session back.", sessions.resumed)
    yield many("simulators", "gauge", "Simulators in each state.", "state", {s: states.count(s) for s in STATES})
    yield one("simulator_deaths_total", "counter", "Simulators that have ended.", simulators.deaths)
    longest = max((reading.since_s for reading in running if reading.call != "nothing"), default=0.0)
    yield one("call_seconds", "gauge", "How long the longest call that runs now has run.", longest)
    yield one("steps_total", "counter", "Steps that were begun.", totals.steps)
    yield one("resets_total", "counter", "Resets that were begun.", totals.resets)
    yield one("received_bytes_total", "counter", "Bytes of requests to simulators.", totals.received)
    yield one("sent_bytes_total", "counter", "Bytes of replies of simulators.", totals.sent)
    meaning = "Time of a step, from its request read to its reply packed."
    samples = histogram(STEP_BOUNDS_S, totals.step_counts, totals.step_seconds)
    yield Metric("remote_env_step_seconds", "histogram", meaning, samples)
    yield from _processes([simulator.pid for simulator in simulators.living])
    yield from gpu_metrics(list(gpus))
    kinds = {kind: log.problems.by_kind[kind] for kind in KINDS}
    yield many("log_problems_total", "counter", "Problems found in the log.", "kind", kinds)
    yield one("log_bytes", "gauge", "Size of the log.", log.held_bytes)


def _processes(simulators: Iterable[int]) -> Iterator[Metric]:
    ours = resource.getrusage(resource.RUSAGE_SELF)
    past = resource.getrusage(resource.RUSAGE_CHILDREN)
    living = [_read_process(pid) for pid in simulators]
    cpu = {
        "supervisor": ours.ru_utime + ours.ru_stime,
        "simulator": past.ru_utime + past.ru_stime + sum(cpu_s for cpu_s, _ in living),
    }
    memory = {"supervisor": _read_process(os.getpid())[1], "simulator": sum(size for _, size in living)}
    yield many("cpu_seconds_total", "counter", "CPU time of the server's own processes.", "process", cpu)
    yield many("resident_bytes", "gauge", "Resident memory of the server's own processes.", "process", memory)


def _read_process(pid: int) -> tuple[float, int]:
    """CPU time [s] and resident memory [bytes] of a process; zeros when it is gone, or there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[21]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0.0, 0

"""/metrics by a strict reader of the text format, and GPUs by a stand-in for nvidia-smi."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import stat
import time
from pathlib import Path

import numpy as np
import pytest
from leak_check import wait_until
from server_process import ServerProcess, serving

from remote_env.protocol.monitoring import Gpu, parse_gpus
from remote_env.server.board import CALL_NUMBERS, STEP_BOUNDS_S, Board
from remote_env.server.gpu import GpuWatch
from remote_env.session import Session
from remote_env.transport import connect_tcp

TASK = "tasks_for_tests.slow:Slow"
NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
SAMPLE = re.compile(rf"({NAME})(?:\{{([^{{}}]*)\}})? (\S+)")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="([^"\\\n]*)"')
GPU_LINES = "0, 37, 1024, 81920\n1, [N/A], 2, 16384\n"


def read_format(text: str) -> dict[str, float]:
    """The samples of a page in Prometheus' text format 0.0.4, checked line by line: "name{label}" to value."""
    assert text.endswith("\n")
    assert "\n\n" not in text
    samples: dict[str, float] = {}
    families: dict[str, str] = {}
    family = helped = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            helped = line.split(" ", 3)[2]
            assert helped not in families
            assert line.split(" ", 3)[3]
        elif line.startswith("# TYPE "):
            _, _, family, kind = line.split(" ")
            assert family == helped
            assert kind in ("counter", "gauge", "histogram")
            assert kind != "counter" or family.endswith("_total")
            families[family] = kind
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            name, labels, value = match.groups()
            pairs = LABEL.findall(labels or "")
            assert ",".join(f'{key}="{text}"' for key, text in pairs) == (labels or "")
            suffixes = ("_bucket", "_sum", "_count") if families[family] == "histogram" else ("",)
            assert name in [family + suffix for suffix in suffixes]
            key = line.rpartition(" ")[0]
            assert key not in samples
            samples[key] = float(value)
    check_histogram(samples, "remote_env_step_seconds")
    return samples


def check_histogram(samples: dict[str, float], name: str) -> None:
    buckets = [value for key, value in samples.items() if key.startswith(f"{name}_bucket")]
    bounds = [float(key.split('"')[1]) for key in samples if key.startswith(f"{name}_bucket")]
    assert bounds == sorted(bounds)
    assert bounds[-1] == float("inf")
    assert buckets == sorted(buckets)
    assert buckets[-1] == samples[f"{name}_count"]


def metrics(server: ServerProcess) -> dict[str, float]:
    head, _, body = server.http("/metrics").partition("\r\n\r\n")
    assert "Content-Type: text/plain; version=0.0.4" in head
    return {key.removeprefix("remote_env_"): value for key, value in read_format(body).items()}


def test_everything_that_is_counted() -> None:
    with serving(TASK) as server:
        idle = metrics(server)
        assert idle['simulators{state="ready"}'] == idle["ready"] == 1
        assert idle["steps_total"] == idle["step_seconds_count"] == 0
        session = Session(
            lambda until: connect_tcp("127.0.0.1", server.port, until), server.token, time.monotonic() + 20, client=""
        )
        with contextlib.closing(session):
            session.reset(1, None, 10.0)
            for _ in range(10):
                session.step(np.int64(0), 10.0)
            session.call("plan", ("wait:0.03",), {}, 10.0)
            session.step(np.int64(0), 10.0)
            seen = metrics(server)
        assert seen["steps_total"] == seen["step_seconds_count"] == 11
        assert seen["resets_total"] == 1
        assert seen["sessions"] == seen["sessions_opened_total"] == 1
        assert seen["step_seconds_sum"] >= 0.03
        assert seen['step_seconds_bucket{le="0.025"}'] <= 10
        assert seen["received_bytes_total"] > 12 * 40
        assert seen["sent_bytes_total"] > 12 * 40
        assert seen['cpu_seconds_total{process="simulator"}'] > 0.05
        assert seen['resident_bytes{process="simulator"}'] > 10 << 20
        assert 5 << 20 < seen['resident_bytes{process="supervisor"}'] < 100 << 20
        assert seen["log_bytes"] > 0
        assert seen["uptime_seconds"] > idle["uptime_seconds"]


def test_totals_outlast_a_simulator() -> None:
    with serving(TASK) as server:
        session = Session(
            lambda until: connect_tcp("127.0.0.1", server.port, until), server.token, time.monotonic() + 20, client=""
        )
        with contextlib.closing(session):
            session.reset(1, None, 10.0)
            session.step(np.int64(0), 10.0)
            before = metrics(server)
            os.kill(session.control.status()["pid"], 9)
            wait_until(lambda: metrics(server)["simulator_deaths_total"] == 1, "it is counted")
        after = metrics(server)
        for name in ("steps_total", "resets_total", "received_bytes_total", "step_seconds_count"):
            assert after[name] == before[name] > 0
        assert after['cpu_seconds_total{process="simulator"}'] >= before['cpu_seconds_total{process="simulator"}']
        assert after["ready"] == after['simulators{state="ready"}'] == 0


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a stand-in for nvidia-smi is found first: a shell script that is no GPU's, and prints what one would."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "nvidia-smi"


def write_script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_gpus_are_told_by_a_stand_in_for_nvidia_smi(on_path: Path) -> None:
    """The stand-in is a script; it checks the question, and answers with the lines of two GPUs."""
    lines = GPU_LINES.replace("\n", "\\n")
    question = "--query-gpu=index,utilization.gpu,memory.used,memory.total --format=csv,noheader,nounits"
    write_script(on_path, f'[ "$*" = "{question}" ] && printf "{lines}"')
    with serving("CartPole-v1") as server:
        assert not any("gpu" in name for name in metrics(server))  # asked in the background: nothing is known yet
        wait_until(lambda: any("gpu" in name for name in metrics(server)), "nvidia-smi has answered")
        seen = metrics(server)
        assert seen['gpu_utilization_ratio{gpu="0"}'] == pytest.approx(0.37)
        assert 'gpu_utilization_ratio{gpu="1"}' not in seen
        assert seen['gpu_memory_used_bytes{gpu="0"}'] == 1 << 30
        assert seen['gpu_memory_total_bytes{gpu="1"}'] == 16 << 30


def test_an_nvidia_smi_that_hangs_blocks_nothing_and_is_ended_with_the_server(on_path: Path) -> None:
    """The stand-in is a script that never answers, as the real one does when its driver hangs."""
    write_script(on_path, "exec sleep 300")
    with serving("CartPole-v1") as server:
        for _ in range(20):
            assert not any("gpu" in name for name in metrics(server))


def test_one_that_never_answers_is_given_up(on_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same stand-in, without a server around it."""
    write_script(on_path, "exec sleep 300")
    with selectors.DefaultSelector() as selector:
        watch = GpuWatch(selector)
        assert watch.read() == []
        assert len(watch.pids) == 1
        watch.turn(time.monotonic() + 60)
        wait_until(lambda: (watch.turn(time.monotonic()), watch.pids == ())[1], "it is ended and reaped")
        assert selector.get_map() == {}
        monkeypatch.setenv("PATH", "")
        assert GpuWatch(selector).read() == []


def test_lines_of_nvidia_smi() -> None:
    assert parse_gpus(GPU_LINES) == [
        Gpu("0", pytest.approx(0.37), 1 << 30, 80 << 30),
        Gpu("1", None, 2 << 20, 16 << 30),
    ]
    assert parse_gpus("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n") == []
    assert parse_gpus("") == []


def test_the_board_sorts_steps_by_their_time() -> None:
    board = Board.create()
    for bound in STEP_BOUNDS_S[:2]:
        board.begin(CALL_NUMBERS["step"])
        until = time.monotonic() + bound
        while time.monotonic() < until:
            pass
        board.steps += 1
        board.end()
    board.begin(CALL_NUMBERS["reset"])
    board.end()
    reading = board.read()
    assert sum(reading.step_counts) == 2
    assert reading.step_counts[0] == 0
    assert reading.step_seconds >= sum(STEP_BOUNDS_S[:2])
    assert reading.call == "nothing"
    board.close()


def test_a_reader_never_sees_a_board_half_written() -> None:
    board = Board.create()
    board.steps = board.resets = board.received = 7
    board.begin(CALL_NUMBERS["step"])
    reader = os.getpid()
    if not (writer := os.fork()):
        with contextlib.suppress(BaseException):
            while os.getppid() == reader:
                board.begin(CALL_NUMBERS["step"])
                board.end()
    try:
        for _ in range(50_000):
            reading = board.read()
            assert (reading.steps, reading.resets, reading.received) == (7, 7, 7)
            assert reading.since > 0
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        board.close()

"""What a policy server can be measured by: a strict reader of the text, and a stand-in for nvidia-smi."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from policies_for_tests import EchoPolicy, FailingPolicy, observe

from remote_env.errors import PolicyError
from remote_env.policy.server import metrics
from remote_env.policy.server.histogram import BATCH_BOUNDS, Histogram
from remote_env.policy.server.metrics import GpuReader, Readiness, read_metrics
from remote_env.policy.server.service import PolicyService
from remote_env.protocol.monitoring import write_metrics


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a stand-in for nvidia-smi is found first: a shell script that is no GPU's, and prints what one would."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "nvidia-smi"


def install(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def read(service: PolicyService | None, readiness: Readiness, gpus: GpuReader | None = None) -> dict[str, float]:
    """The page's samples, and a check of its form."""
    page = write_metrics(read_metrics(service, readiness, gpus or GpuReader(), time.monotonic() - 5))
    samples, families = {}, set()
    for line in page.splitlines():
        if line.startswith("# TYPE "):
            families.add(line.split()[2])
        elif not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            assert any(name.startswith(family) for family in families)
            assert name not in samples
            samples[name.removeprefix("remote_env_")] = float(value)
    return samples


def test_everything_that_is_counted() -> None:
    service = PolicyService([FailingPolicy()], log=lambda line: None)
    readiness = Readiness()
    readiness.change("")
    one, two = service.open_client("a:1", "renv"), service.open_client("b:2", "openpi")
    for _ in range(3):
        one.infer(observe())
    two.infer(observe(rows=3), ["a", "b", "c"])
    with pytest.raises(PolicyError):
        two.infer(observe(-1))
    one.close()
    seen = read(service, readiness)
    assert seen["ready"] == 1
    assert seen["uptime_seconds"] >= 5
    assert seen['policy_requests_total{dialect="renv"}'] == 3  # of one that has gone
    assert seen['policy_requests_total{dialect="openpi"}'] == 1
    assert seen['policy_errors_total{dialect="openpi"}'] == 1
    assert seen['policy_clients{dialect="openpi"}'] == 1
    assert 'policy_clients{dialect="renv"}' not in seen
    assert seen["policy_request_seconds_count"] == seen['policy_request_seconds_bucket{le="+Inf"}'] == 5
    assert 0 < seen["policy_request_seconds_sum"] < 5
    assert (seen["policy_batch_rows_count"], seen["policy_batch_rows_sum"]) == (5, 7)
    assert seen['policy_batch_rows_bucket{le="2"}'] == 4
    assert seen['policy_queue_length{worker="0"}'] == 0
    assert seen["cpu_seconds_total"] > 0
    assert seen["resident_bytes"] > 10 << 20


def test_before_the_model_is_there() -> None:
    readiness = Readiness()
    readiness.change("loading the model")
    assert read(None, readiness)["ready"] == 0
    assert readiness.health() == (False, "not ready: loading the model for 0 s")


def test_no_gpu_and_one_gpu(on_path: Path) -> None:
    install(on_path, "exit 9")
    service = PolicyService([EchoPolicy()], log=lambda line: None)
    assert not any("gpu" in name for name in read(service, Readiness()))
    install(on_path, 'echo "0, 37, 1024, 81920"')
    seen = read(service, Readiness())
    assert seen['gpu_memory_used_bytes{gpu="0"}'] == 1 << 30
    assert seen['gpu_utilization_ratio{gpu="0"}'] == pytest.approx(0.37)


def test_a_driver_that_hangs_holds_one_reader_for_a_while(on_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(on_path, "exec sleep 60")
    monkeypatch.setattr(metrics, "GPU_TIMEOUT_S", 0.2)
    gpus = GpuReader()
    thread = threading.Thread(target=gpus.read)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert gpus.read() == []


def test_histograms_add_up() -> None:
    one, two = Histogram(BATCH_BOUNDS), Histogram(BATCH_BOUNDS)
    for value in (1, 2, 3, 500):
        one.add(value)
    two.add(1)
    whole = Histogram.sum(BATCH_BOUNDS, [one, two])
    assert whole.total == 507
    assert whole.counts == [2, 1, 1, 0, 0, 0, 0, 0, 1]

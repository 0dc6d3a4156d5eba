"""How a simulator ended: what the kernel's files tell, and that nothing that it started is left."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from pathlib import Path

import pytest
from leak_check import is_alive, marked_processes, wait_until
from memory_limit import small_group
from server_process import BareClient, ServerProcess, read_to_end, serving

from remote_env.protocol import frames
from remote_env.server.endings import MemoryWatch, describe_exit
from remote_env.server.folder import record_path
from remote_env.session import Session
from remote_env.transport import connect_tcp

TASK = "tasks_for_tests.slow:Slow"


def test_exit_statuses_and_signals_in_words() -> None:
    assert describe_exit(3) == "it exited with status 3"
    assert describe_exit(-11) == "it was killed by SIGSEGV"
    assert describe_exit(-63) == "it was killed by signal 63"


class Kernel:
    """The files of a kernel, written as Linux writes them: this machine's own cannot be made to run out of memory."""

    def __init__(self, folder: Path, groups: str = "0::/user.slice/job\n") -> None:
        self.proc, self.groups = folder / "proc", folder / "cgroup"
        self.write("proc/self/cgroup", groups)
        self.write("proc/vmstat", "pgfault 12\noom_kill 5\n")
        self.write("proc/meminfo", "MemTotal:       1000 kB\nMemFree: 10 kB\nMemAvailable:    500 kB\n")

    def write(self, name: str, text: str) -> None:
        path = self.proc.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def watch(self) -> MemoryWatch:
        return MemoryWatch(self.proc, self.groups)


@pytest.mark.parametrize(
    ("groups", "file", "limit_file"),
    [
        ("0::/user.slice/job\n", "cgroup/user.slice/job/memory.events", "cgroup/user.slice/job/memory.max"),
        (
            "5:cpu:/x\n9:memory:/slurm/job_7\n0::/\n",
            "cgroup/memory/slurm/job_7/memory.oom_control",
            "cgroup/memory/slurm/job_7/memory.limit_in_bytes",
        ),
        ("0::/\n", "cgroup/memory.events", "cgroup/memory.max"),
        ("0::/../elsewhere\n", "cgroup/memory.events", "cgroup/memory.max"),
    ],
)
def test_the_count_of_our_control_group_is_believed(tmp_path: Path, groups: str, file: str, limit_file: str) -> None:
    kernel = Kernel(tmp_path, groups)
    kernel.write(file, "low 0\nmax 20\noom 1\noom_kill 1\n")
    kernel.write(limit_file, f"{3 << 30}\n")
    watch = kernel.watch()
    assert watch.explain_kill().startswith("not by this server")
    kernel.write(file, "low 0\nmax 25\noom 2\noom_kill 2\n")
    why = watch.explain_kill()
    assert why.startswith("by the out-of-memory killer: give the task less")
    assert "may use 3.0 GiB" in why
    assert watch.explain_kill().startswith("not by this server")  # each kill explains one end


def test_the_count_of_the_machine_and_little_memory_make_it_probable(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    watch = kernel.watch()
    kernel.write("proc/vmstat", "oom_kill 6\n")
    assert watch.explain_kill().startswith("probably by the out-of-memory killer")
    assert watch.explain_kill().startswith("not by this server")
    kernel.write("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 20 kB\n")
    assert watch.explain_kill().startswith("probably by the out-of-memory killer")


def test_a_kernel_that_tells_nothing(tmp_path: Path) -> None:
    assert MemoryWatch(tmp_path, tmp_path).explain_kill().startswith("not by this server")
    assert "by " in MemoryWatch().explain_kill()  # the real files


def test_the_real_out_of_memory_killer_is_named(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with small_group(300 << 20) as wrapper:
        server = ServerProcess(TASK, {"build": f"until:{gate};eat:2000"}, wrapper=wrapper)
        try:
            with BareClient(server.wait_listening()) as client:
                client.shake_hands(session="new")
                gate.touch()
                dead = client.wait_event("dead")
                assert dead["why"].startswith(
                    "it was killed by SIGKILL while building: by the out-of-memory killer: give"
                )
                assert "may use 0.3 GiB" in dead["why"]
                assert client.ask(frames.PING)["problems"][0]["kind"] == "out-of-memory"
        finally:
            server.stop()


# What a simulator has started


def perform(server: ServerProcess, plan: str) -> Session:
    session = Session(
        lambda until: connect_tcp("127.0.0.1", server.port, until), server.token, time.monotonic() + 20, client=""
    )
    session.reset(None, {"plan": plan}, 20.0)
    return session


@pytest.mark.parametrize("deed", ["session", "daemon"])
def test_a_process_that_left_the_group_ends_with_its_server(tmp_path: Path, deed: str) -> None:
    path = tmp_path / "pid"
    with serving(TASK) as server:
        perform(server, f"{deed}:{path}").close()
        pid = int(path.read_text())
        assert os.getsid(pid) != os.getsid(0)
        assert is_alive(pid)
    assert not is_alive(pid)


def test_a_process_that_left_the_group_ends_with_its_simulator_and_no_other(tmp_path: Path) -> None:
    path, other = tmp_path / "pid", tmp_path / "other"
    with serving(TASK, max_sessions=2) as server, BareClient(server) as monitor:
        monitor.shake_hands()
        one, two = perform(server, f"session:{path}"), perform(server, f"session:{other}")
        pid, others = int(path.read_text()), int(other.read_text())
        monitor.ask(frames.KILL, session=one.control.welcome["session"])
        wait_until(lambda: not is_alive(pid), "what it started ends")
        assert is_alive(others)
        one.close()
        two.close()
    assert not is_alive(others)


def test_many_short_lived_daemons_leave_no_zombies(tmp_path: Path) -> None:
    with serving(TASK) as server, BareClient(server) as client:
        client.shake_hands()
        perform(server, f"daemons:60;touch:{tmp_path / 'done'}").close()
        assert (tmp_path / "done").exists()
        simulator = client.ask(frames.STATUS)["pid"]
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        wait_until(lambda: children.read_text().split() == [str(simulator)], "the adopted ones are reaped")


@pytest.mark.fault
def test_a_record_that_cannot_be_removed_keeps_nothing_else_from_ending(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with serving(TASK) as server:
        perform(server, f"session:{path}").close()
        record = record_path(server.port)
        record.unlink()
        record.mkdir()  # as good as a disk that has become read-only: it cannot be unlinked
        assert server.stop() == 0
        record.rmdir()
    assert not server.folder.exists()
    assert not is_alive(int(path.read_text()))


@pytest.mark.fault
def test_a_server_whose_descriptors_run_out_goes_on() -> None:
    with serving(TASK) as server:
        used = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
        limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (used + 1, limits[1]))
        with BareClient(server) as client, contextlib.ExitStack() as opened:
            client.shake_hands(session="new")
            stranger, *_ = [opened.enter_context(server.open_socket()) for _ in range(4)]
            wait_until(lambda: "could not be accepted" in server.read_log(), "the last descriptor is taken")
            assert "pid" in client.ask(frames.KILL)
            assert client.wait_event("dead")["why"].startswith("it was killed by SIGKILL")
            resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert read_to_end(stranger).startswith(b"HTTP/1.1 503")
        with BareClient(server) as client:
            client.shake_hands(session="new")
            client.wait_event("ready")


def test_a_dead_server_of_a_wrapper_takes_a_simulator_that_holds_the_interpreter(tmp_path: Path) -> None:
    reached = tmp_path / "reached"
    shell = ["sh", "-c", '"$@"; exit 0', "wrapper"]  # stays, as isaaclab.sh does
    server = ServerProcess(TASK, {"build": f"touch:{reached};hold-gil"}, wrapper=shell).wait_listening()
    try:
        wait_until(reached.exists, "the simulator holds its interpreter")
        with BareClient(server) as client:
            supervisor = client.shake_hands()["pid"]
            simulator = client.ask(frames.STATUS)["pid"]
        assert supervisor != server.process.pid
        os.kill(supervisor, signal.SIGKILL)
        wait_until(lambda: not is_alive(simulator), "the kernel ends the simulator")
        assert server.process.wait(10) == 0
        assert not any(pid in (supervisor, simulator) for pid in marked_processes())
    finally:
        server.stop()
        for path in [*server.folder.iterdir(), *Path(os.environ["XDG_CACHE_HOME"]).rglob(f"{server.port}.json")]:
            path.unlink()
        server.folder.rmdir()


def test_what_was_there_before_the_server_is_left_alone() -> None:
    # A wrapper that starts something and then becomes the server: its child is the server's own.
    server = ServerProcess("CartPole-v1", wrapper=["sh", "-c", 'sleep 300 & echo $!; exec "$@"', "wrapper"])
    try:
        server.wait_listening().wait_ready()
        sleeper = int(server.read_log().split()[0])
        os.kill(server.process.pid, signal.SIGHUP)
        assert server.process.wait(10) == 0
        assert is_alive(sleeper)
    finally:
        server.stop()
        os.kill(sleeper, signal.SIGKILL)

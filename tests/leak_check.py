"""Fixtures and waits for tests that start servers: an isolated home, and proof that nothing is left behind.

Every process started by such a test carries `MARK` in its environment, so that one that was orphaned is found too.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import TypeVar

import pytest

MARK = "REMOTE_ENV_TEST_MARK"
PATIENCE_S = 20.0  # of a slow machine; what is well takes no longer for it
T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str, timeout_s: float = PATIENCE_S) -> T:
    """What `condition` returns once that is true; fails at the deadline."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not in {timeout_s} s: {what}")
        time.sleep(0.003)
    return value


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def marked_processes() -> dict[int, str]:
    """The living processes, but for our own, that were started by tests of this run: pid to command line."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        if pid == os.getpid():
            continue
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if is_alive(pid):
                    found[pid] = command
        except OSError:
            continue  # it ended meanwhile, or is not ours
    return found


def start_fork_server() -> None:
    """Start multiprocessing's fork server; before it runs its own program it does not look like a test's process."""
    forkserver.set_forkserver_preload(["remote_env.evaluate.worker"])
    forkserver.ensure_running()
    wait_until(lambda: forkserver._forkserver._forkserver_pid in marked_processes(), "the fork server runs")


def children() -> set[int]:
    """Our own direct children, zombies too."""
    pids: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
            pids |= set(map(int, (task / "children").read_text().split()))
    return pids


def descriptors() -> dict[str, str]:
    """Our open descriptors and what they are."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        try:
            if not (target := str(link.readlink())).startswith("/dev/shm/pym-"):  # of multiprocessing, kept for reuse
                found[link.name] = target
        except FileNotFoundError:
            continue  # the one that lists them
    return found


def files() -> set[str]:
    """What lies in the temporary folder and the cache of this module's tests."""
    homes = (Path(tempfile.gettempdir()).glob("remote-env-*"), Path(os.environ["XDG_CACHE_HOME"]).rglob("*.*"))
    return {str(path) for home in homes for path in home}


def leftovers(before: dict[str, set[object]]) -> dict[str, set[object]]:
    """What is there now and was not `before`."""
    found = {kind: now - before[kind] for kind, now in inventory().items()}
    known = {pid for pid, _ in before["processes"]}  # type: ignore[misc]
    # By their numbers alone: one that had just been forked then had our own command line yet.
    found["processes"] = {each for each in found["processes"] if each[0] not in known}  # type: ignore[index]
    return {kind: left for kind, left in found.items() if left}


def inventory() -> dict[str, set[object]]:
    """Everything that a test could leave behind."""
    return {
        "processes": set(marked_processes().items()),
        "children": set(children()),
        "threads": {thread.name for thread in threading.enumerate()},
        "descriptors": set(descriptors().items()),
        "files": set(files()),
    }


@pytest.fixture(scope="module", autouse=True)
def isolated_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A temporary folder and a cache of this module's own; short, since Unix socket paths must be."""
    tmp_path_factory.getbasetemp()  # pytest's own stays where it would be
    gc.collect()
    gc.freeze()  # so that collecting before and after each test costs little
    resource_tracker.ensure_running()  # multiprocessing's own, which lives as long as the interpreter
    home = Path(tempfile.mkdtemp(prefix="re-", dir="/tmp"))
    (home / "tmp").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(home / "tmp"))
        patch.setenv("TMPDIR", str(home / "tmp"))
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patch.setenv(MARK, home.name)
        patch.delenv("REMOTE_ENV_TOKEN", raising=False)
        patch.delenv("REMOTE_ENV_TASK", raising=False)
        yield home
    gc.unfreeze()
    shutil.rmtree(home)


@pytest.fixture(autouse=True)
def no_leaks(isolated_home: Path) -> Iterator[None]:
    """After the test no process, thread, descriptor or file is there that was not before."""
    gc.collect()
    before = inventory()
    yield
    gc.collect()
    deadline = time.monotonic() + PATIENCE_S
    while (left := leftovers(before)) and time.monotonic() < deadline:
        time.sleep(0.01)
    for pid, _ in left.get("processes", ()):  # type: ignore[misc]
        os.kill(pid, 9)
    assert not left, f"left behind: {left}"

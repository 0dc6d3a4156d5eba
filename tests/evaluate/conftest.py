"""Every test of this folder runs in a home of its own and must leave nothing behind."""

from __future__ import annotations

import io
from collections.abc import Iterator
from multiprocessing import forkserver, util
from pathlib import Path

import pytest
from leak_check import isolated_home, no_leaks, start_fork_server
from matplotlib.figure import Figure

__all__ = ["fork_server", "isolated_home", "no_leaks"]

util.get_temp_dir()  # multiprocessing's own, which is removed when the interpreter ends


@pytest.fixture(scope="module")
def fork_server(isolated_home: Path) -> Iterator[None]:
    """What lives as long as the interpreter: multiprocessing's fork server, one for each home, and fonts."""
    patch = pytest.MonkeyPatch()
    patch.setenv("MPLCONFIGDIR", str(isolated_home / "matplotlib"))
    start_fork_server()
    figure = Figure()
    figure.suptitle("fonts are found, and stay open")
    figure.savefig(io.BytesIO())
    yield
    forkserver._forkserver._stop()
    patch.undo()

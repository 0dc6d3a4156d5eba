"""The simulators of a server: start, hear, and see them end; count what they have done. Standard library only."""

from __future__ import annotations

import contextlib
import selectors
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from remote_env.server.board import STEP_BOUNDS_S, BoardReading
from remote_env.server.endings import MemoryWatch
from remote_env.server.orphans import Orphans, adopt_orphans
from remote_env.server.process import SimulatorProcess, process_start_time

RELEASE_TIMEOUT_S = 30.0  # how long a simulator may go on with a call whose session has ended


class Totals(NamedTuple):
    """What all simulators of a server have done, those that have ended too; see `BoardReading`."""

    steps: int
    resets: int
    received: int
    sent: int
    step_seconds: float
    step_counts: tuple[int, ...]

    def add(self, reading: BoardReading) -> Totals:
        """With one more."""
        counts = tuple(map(sum, zip(self.step_counts, reading.step_counts, strict=True)))
        return Totals(
            self.steps + reading.steps,
            self.resets + reading.resets,
            self.received + reading.received,
            self.sent + reading.sent,
            self.step_seconds + reading.step_seconds,
            counts,
        )


class Simulators:
    """All that live, and what is left of those that do not.

    Args:
        folder: the session folder.
        settings: what stands there.
        selector: what the supervisor waits on.
        on_change: told of each simulator that has said something or has ended, with what it said.
        say: writes a line to the log.

    Attributes:
        living: those whose process has not been reaped.
        deaths: how many have ended.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        selector: selectors.BaseSelector,
        on_change: Callable[[SimulatorProcess, dict[str, Any]], None],
        say: Callable[[str], None],
    ) -> None:
        self._folder, self._settings, self._selector = folder, settings, selector
        self._on_change, self._say = on_change, say
        self._release_timeout_s = float(settings.get("release_timeout_s", RELEASE_TIMEOUT_S))
        self._memory = MemoryWatch()
        self._orphans = Orphans()
        self._past = Totals(0, 0, 0, 0, 0.0, (0,) * (len(STEP_BOUNDS_S) + 1))
        self._last: list[dict[str, Any]] = []
        self._sweep_is_due = True
        self.living: list[SimulatorProcess] = []
        self.deaths = 0
        if not adopt_orphans():
            say("this system cannot adopt orphans: what a task starts in a session of its own may outlive it")

    def spawn(self) -> SimulatorProcess:
        """A new one, which begins to make its task."""
        simulator = SimulatorProcess(self._folder, self._settings, self._memory)
        self.living.append(simulator)
        # The notes by which a killed server's simulators are found; a full disk costs these, not the simulator.
        with contextlib.suppress(OSError), (self._folder / "simulators").open("a") as file:
            file.write(f"{simulator.pid} {process_start_time(simulator.pid)}\n")
        self._selector.register(simulator.channel, selectors.EVENT_READ, lambda: self._hear(simulator))
        return simulator

    def take(self, taken: Collection[SimulatorProcess]) -> SimulatorProcess:
        """One for a new session: a free one, else the end of a killed one is waited for, else a new one."""
        free = [simulator for simulator in self.living if simulator not in taken]
        usable = sorted((simulator for simulator in free if simulator.usable), key=_how_far_from_ready)
        condemned = [simulator for simulator in free if simulator.condemned and not simulator.ending]
        return next(iter([*usable, *condemned]), None) or self.spawn()

    def _hear(self, simulator: SimulatorProcess) -> None:
        if simulator not in self.living:
            return  # its end and its last words were one turn's events, and its end came first
        for message in simulator.hear():
            self._on_change(simulator, message)
        if simulator.channel_closed:
            self._stop_hearing(simulator)

    def _stop_hearing(self, simulator: SimulatorProcess) -> None:
        if simulator.channel in self._selector.get_map():
            self._selector.unregister(simulator.channel)

    def reap(self) -> None:
        """Notice those that have ended; what they leave behind ends with the next `turn`."""
        self._sweep_is_due = True
        for simulator in list(self.living):
            if simulator.reap():
                self._hear(simulator)  # its last words
                by = f": {simulator.killed_by}" if simulator.killed_by else ""
                self._say(f"simulator {simulator.pid} ended: {simulator.ending}{by}")
                self.living.remove(simulator)
                self.deaths += 1
                self._stop_hearing(simulator)
                simulator.hang_up()
                simulator.free()
                self._past = self._past.add(simulator.read_board())
                self._last = [simulator.status()]
                self._on_change(simulator, {"event": "ended"})

    def turn(self, ours: Collection[int]) -> None:
        """Kill those that are busy for nobody for too long, and end orphans.

        Args:
            ours: other processes that the supervisor has started.
        """
        for simulator in self.living:
            if simulator.abandoned_for_s > self._release_timeout_s and not simulator.condemned:
                simulator.kill("still busy for a session that is gone")
                self._say(f"simulator {simulator.pid} is still busy for a session that is gone; killed")
        # A task may have thousands of daemons: they are only looked through when a process has ended.
        if self._sweep_is_due or self._orphans:
            self._sweep_is_due = False
            living = {simulator.pid for simulator in self.living}
            self._orphans.sweep(living | set(ours), {simulator.mark for simulator in self.living})

    @property
    def is_waiting(self) -> bool:
        """Whether `turn` is due soon."""
        return bool(self._orphans) or any(simulator.abandoned_for_s for simulator in self.living)

    @property
    def is_busy(self) -> bool:
        """Whether any starts or runs something, so that its log may grow."""
        return any(not simulator.ready or simulator.read_board().call != "nothing" for simulator in self.living)

    def totals(self) -> Totals:
        """What all have done."""
        totals = self._past
        for simulator in self.living:
            totals = totals.add(simulator.read_board())
        return totals

    def statuses(self) -> list[dict[str, Any]]:
        """Of each that lives; of the last one that did, when none does."""
        return [simulator.status() for simulator in self.living] or self._last

    def end(self) -> None:
        """End all, and all that they have left behind."""
        for simulator in self.living:
            simulator.ask_to_end()
        begun = time.monotonic()
        for simulator in self.living:
            if not simulator.end(begun):
                self._say(f"simulator {simulator.pid} does not end: the kernel holds it, in a driver or a file system")
        self._orphans.end()


def _how_far_from_ready(simulator: SimulatorProcess) -> int:
    """0 when a session could have it at once, 1 when it is being made, 2 when it works for a session that is gone."""
    return 2 if simulator.abandoned_for_s else int(not simulator.ready)

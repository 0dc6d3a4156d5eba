"""What a start is doing, for whoever waits: a status line on a terminal, log lines, and a callback."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from remote_env.env.rollouts import Pace, Plan, Rollout, Rollouts, RolloutStatus
from remote_env.errors import DeadlineExceeded, StartError
from remote_env.protocol.log_text import clean, last_line
from remote_env.session import Session

log = logging.getLogger("remote_env")

REDRAWS_PER_S = 4
_line = threading.Lock()  # who draws holds it
PHASES = ("connecting", "uploading", "starting", "checking", "importing", "building", "ready")


def _is_watched() -> bool:
    return sys.stderr is not None and sys.stderr.isatty() and multiprocessing.parent_process() is None


class StartProgress:
    """Follows one start from its first phase to its end; a context manager that removes the line it shows.

    Args:
        what: is started, to show.
        timeout_s: for all of it [s].
        show: draw a status line on standard error; None: when that is a terminal, and this no worker process.
        on_progress: told in words of everything new.

    Attributes:
        phase: one of `PHASES`.
        detail: the last log line, or what is done just now.
        deadline: monotonic [s].
    """

    def __init__(
        self,
        what: str,
        timeout_s: float,
        *,
        show: bool | None = None,
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        self.phase, self.detail = PHASES[0], ""
        self._what = what
        self._show = _is_watched() if show is None else show
        self._on_progress = on_progress
        self._told = ""
        self._began = time.monotonic()
        self.deadline = self._began + timeout_s
        self._live: Any = None

    @property
    def elapsed_s(self) -> float:
        """Since the start began [s]."""
        return time.monotonic() - self._began

    def report(self, phase: str, detail: str = "") -> None:
        """Say what the start does now; what was said already is not said again."""
        self.phase, self.detail = phase, detail
        text = f"{phase}: {detail}" if detail else phase
        if text == self._told:
            return
        self._told = text
        log.info("%s", text)
        if self._on_progress is not None:
            self._on_progress(text)

    def report_status(self, status: dict[str, Any]) -> None:
        """Say what a starting simulator's status tells."""
        phase = "ready" if status["state"] in ("ready", "busy") else str(status.get("phase") or status["state"])
        line = status.get("last_line") or last_line(status.get("log_tail", ""))
        self.report(phase, line if phase != "ready" else "")

    def explain(self, error: DeadlineExceeded | StartError) -> DeadlineExceeded | StartError:
        """The error with what is known of the start: its phase, and its log without noise."""
        if isinstance(error, StartError):
            error.phase = error.phase or self.phase
            error.log_tail = clean(error.log_tail)
            return error
        if error.phase:
            return error
        return DeadlineExceeded(
            f"{error} (after {self.elapsed_s:.0f} s, in the phase {self.phase!r}; last log line: "
            f"{self.detail or '(none)'}); give it longer with start_timeout_s=",
            phase=self.phase,
            last_line=self.detail,
        )

    def __enter__(self) -> StartProgress:
        # One line at a time: those of several starts would overwrite each other.
        if self._show and _line.acquire(blocking=False):
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                self,
                console=Console(stderr=True, force_terminal=True),
                transient=True,
                refresh_per_second=REDRAWS_PER_S,
                # What is printed meanwhile goes above the line; but into a file when that is where it goes.
                redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
            )
            self._live.start()
        return self

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Without the line, as long as something else is on the terminal."""
        live = self._live
        if live is None:
            yield
            return
        live.stop()
        try:
            yield
        finally:
            live.start()

    def __exit__(self, *_: object) -> None:
        live, self._live = self._live, None
        if live is not None:
            _line.release()
            live.stop()

    def __rich__(self) -> Any:
        from rich.text import Text

        line = f"{self._what}: {self.phase}, {self.elapsed_s:.0f} s"
        detail = f" · {self.detail}" if self.detail else ""
        return Text(line + detail, no_wrap=True, overflow="ellipsis")


def show_rollouts(
    plan: Plan,
    begin: Callable[[int | None], Session],
    timeouts_s: tuple[float, float],
    pace: Pace,
    what: str,
    on_progress: Callable[[RolloutStatus], None] | None,
    *,
    show: bool | None,
) -> Iterator[Rollout]:
    """Run a plan's episodes under a progress bar, as `Rollouts` and `RemoteEnv.rollout`."""
    with _bar(plan, what, show=_is_watched() if show is None else show) as draw:

        def tell(status: RolloutStatus) -> None:
            draw(status)
            if on_progress is not None:
                on_progress(status)

        yield from Rollouts(plan, begin, timeouts_s, tell, pace).run()


@contextlib.contextmanager
def _bar(plan: Plan, what: str, *, show: bool) -> Iterator[Callable[[RolloutStatus], None]]:
    """A bar of episodes, or of steps where only these are counted; what draws it."""
    if not show or not _line.acquire(blocking=False):
        yield lambda _status: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[now]}"))
    console = Console(stderr=True, force_terminal=True)
    try:
        with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
            counts = "episodes" if plan.n_episodes is not None else "steps"
            task = bar.add_task(f"{what}: {counts}", total=getattr(plan, f"n_{counts}"), now="")
            yield lambda status: bar.update(task, completed=getattr(status, counts), now=_in_words(status))
    finally:
        _line.release()


def _in_words(status: RolloutStatus) -> str:
    running = f"step {status.episode_steps}, " if status.episode_steps else ""
    return f"{running}{status.successes} of {status.episodes} succeeded"

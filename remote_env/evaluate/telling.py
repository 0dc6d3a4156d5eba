"""What a person sees of an evaluation: progress with the running success rate, and a table at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from remote_env.evaluate.episodes import EpisodeResult
from remote_env.evaluate.results import Results, summarize

MIB = 1 << 20


class Teller(Protocol):
    """Whom an evaluation tells what happens."""

    def say(self, text: str) -> None:
        """A line."""

    def warn(self, text: str) -> None:
        """A line that somebody should see."""

    def progress(self, total: int, done: list[EpisodeResult]) -> contextlib.AbstractContextManager[Any]:
        """Show progress while the context lasts; `done` episodes were run before."""

    def advance(self, result: EpisodeResult) -> None:
        """An episode is done."""


class Silent:
    """Tells nobody."""

    def say(self, text: str) -> None:
        """See `Teller.say`."""

    def warn(self, text: str) -> None:
        """See `Teller.warn`."""

    def progress(self, total: int, done: list[EpisodeResult]) -> contextlib.AbstractContextManager[Any]:  # noqa: ARG002
        """See `Teller.progress`."""
        return contextlib.nullcontext()

    def advance(self, result: EpisodeResult) -> None:
        """See `Teller.advance`."""


class TerminalTeller:
    """Tells a terminal, or a pipe, where a line for each tenth of the episodes stands for the bar.

    Args:
        console: where to.
        verbose: also a line for each episode.
    """

    def __init__(self, console: Console, *, verbose: bool = False) -> None:
        self._console, self._verbose = console, verbose
        self._bar: Progress | None = None
        self._task: Any = None
        self._results: list[EpisodeResult] = []
        self._total = 0

    def say(self, text: str) -> None:
        """See `Teller.say`."""
        self._console.print(escape(text), highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """See `Teller.warn`."""
        self._console.print(f"[yellow]warning:[/] {escape(text)}", highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def progress(self, total: int, done: list[EpisodeResult]) -> Iterator[None]:
        """See `Teller.progress`."""
        self._results, self._total = list(done), total
        if not self._console.is_terminal:
            yield
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._console) as bar:
            self._bar, self._task = bar, bar.add_task(self._rate(), total=total, completed=len(done))
            try:
                yield
            finally:
                self._bar = None

    def advance(self, result: EpisodeResult) -> None:
        """See `Teller.advance`."""
        self._results.append(result)
        if self._verbose:
            self.say(describe_episode(result))
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=self._rate())
        elif not self._verbose and self._is_due():
            self.say(f"{len(self._results)} of {self._total} episodes, {self._rate()}")

    def _is_due(self) -> bool:
        count = len(self._results)
        return count == self._total or count % max(self._total // 10, 1) == 0

    def _rate(self) -> str:
        return describe_rate(self._results)


def _episodes(count: int) -> str:
    return f"{count} episode" if count == 1 else f"{count} episodes"


def describe_rate(episodes: list[EpisodeResult]) -> str:
    """The success rate so far: "success 7/10 (70 %)"."""
    known = [episode.success for episode in episodes if episode.success is not None]
    if not known:
        return "episodes" if not episodes else "success not told"
    return f"success {sum(known)}/{len(known)} ({100 * sum(known) / len(known):.0f} %)"


def describe_episode(result: EpisodeResult) -> str:
    """One episode in a line."""
    outcome = {True: "success", False: "failure", None: "done"}[result.success]
    return (
        f"{result.env} episode {result.index} (seed {result.seed}): {outcome}, return {result.episode_return:g}, "
        f"{result.length} steps, {result.end}, {result.wall_s:.1f} s"
    )


SUMMARY_COLUMNS = ("ENVIRONMENT", "SUCCESS", "95 % INTERVAL", "RETURN", "STEPS", "MS P50 · P99")


def summary_rows(results: Results) -> list[tuple[str, ...]]:
    """The results of each environment, and of all when there are several, under `SUMMARY_COLUMNS`."""
    groups = results.by_environment()
    rows = [_cells(name, summarize(episodes)) for name, episodes in groups.items()]
    return [*rows, _cells("all", summarize(results.episodes))] if len(groups) > 1 else rows


def _cells(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    rate, interval, latency = row["success_rate"], row["success_interval_95"], row["latency_ms"]
    return (
        name,
        f"not told of {row['episodes']}"
        if rate is None
        else f"{row['successes']}/{row['judged']} = {100 * rate:.1f} %",
        "" if interval is None else f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f} %",
        f"{row['return']['mean']:.1f} ± {row['return']['std']:.1f}",
        f"{row['length']['mean']:.0f}",
        f"{latency['p50']:.1f} · {latency['p99']:.1f}" if latency["count"] else "",
    )


def closing_lines(results: Results, folder: Any) -> list[str]:
    """What to read below the table."""
    came = {"local": "policy loaded in", "remote": "policy server answered in"}.get(str(results.model.get("kind")))
    return [
        f"{f'{came} {results.load_s:.2f} s; ' if came else ''}{_episodes(results.run_now)} in {results.wall_s:.1f} s; "
        f"memory of a worker {results.client_peak_bytes / MIB:.0f} MiB, of this process "
        f"{results.parent_peak_bytes / MIB:.0f} MiB",
        *results.notes,
        f"results are in {folder}",
    ]

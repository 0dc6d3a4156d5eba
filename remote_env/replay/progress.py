"""A bar with the rate and the time left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

Item = TypeVar("Item")


def shown(items: Iterable[Item], total: int, name: str, *, is_shown: bool) -> Iterator[Item]:
    """Pass `items` on, under a progress bar if wanted."""
    with contextlib.ExitStack() as stack:
        advance: Callable[[], None] = _bar(stack, total, name) if is_shown else _nothing
        for item in items:
            yield item
            advance()


def _bar(stack: contextlib.ExitStack, total: int, name: str) -> Callable[[], None]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    bar = stack.enter_context(Progress(*columns))
    task = bar.add_task(f"replay {name}", total=total)
    return lambda: bar.advance(task)


class _Rate(ProgressColumn):
    """Frames per second."""

    def render(self, task: Task) -> Text:
        """The present rate, or nothing before it is known."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.0f}/s" if speed else "")


def _nothing() -> None:
    """No bar to move."""

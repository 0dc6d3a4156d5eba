"""A state of a task that it can go back to."""

from __future__ import annotations

import abc


class Snapshot(abc.ABC):
    """A state of a task that it can go back to.

    Attributes:
        size_bytes: of the memory that it holds, about.
    """

    size_bytes: int

    @abc.abstractmethod
    def restore(self) -> None:
        """Put the task back; as often as wanted, and in any order with other snapshots."""

"""Going back in an episode, and trying what would come: snapshots, branches, chunks of actions tried at the far end."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from remote_env.env.client import Client
from remote_env.errors import InputError, RemoteEnvError, SessionLost
from remote_env.protocol import stacking
from remote_env.protocol.branching import MAX_KEPT, Tried
from remote_env.session import Session

if TYPE_CHECKING:
    from typing_extensions import Self

Want = Literal["rewards", "last", "all"]


class Branches:
    """n further episodes of the same simulator, which began where one was forked; the episode itself is untouched.

    The simulator has one environment, which has their states in turn: n branches take as long as n steps, and no more
    memory than n states. They end with the session. Made by `RemoteEnv.fork`.

    Attributes:
        ids: of each, as the server names it.
    """

    def __init__(self, session: Session, ids: Sequence[str], timeout_s: float) -> None:
        self._session, self._timeout_s = session, timeout_s
        self.ids = tuple(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, list[dict[str, Any]]]:
        """Run one step of each branch, in one round trip.

        Args:
            actions: (n, …), one for each: stacked as arrays, or a list.

        Returns:
            observations (n, …), rewards (n,) float64, terminated (n,) bool, truncated (n,) bool, n infos. A branch
            whose episode has ended steps no more: its reward is 0, and the rest is as it ended.

        Raises:
            InputError: the actions are not the task's, or not n; nothing was sent. Or the branches are closed.
            TaskError: the task raised; the message names the branch as the chunk; none has moved.
            And as `RemoteEnv.step`.
        """
        tried = self.step_many(_each_alone(actions))
        return tried.observations, tried.rewards[:, 0], tried.terminated, tried.truncated, tried.infos

    def step_many(self, actions: Any, *, want: Want = "last", stop: bool = True) -> Tried:
        """Run a chunk of actions in each branch, in one round trip.

        Args:
            actions: (n, K, …), a chunk for each: stacked as arrays, or a list of n lists.
            want: which observations and infos to bring, see `Tried`.
            stop: end each chunk with its branch's episode.

        Raises:
            As `step`.
        """
        if not self.ids:
            raise InputError("these branches are closed: fork() makes others")
        return self._session.step_branches(self.ids, actions, self._timeout_s, want=want, stop=stop)

    def close(self) -> None:
        """Free them; may be called again, and after the session's end."""
        if self.ids and self._session.is_lost is None:
            with contextlib.suppress(SessionLost):  # they have ended with it
                self._session.end_branches(self.ids, self._timeout_s)
        self.ids = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        # Of two errors the first is told; branches that could not be freed end with the session.
        with contextlib.suppress(*([] if kind is None else [RemoteEnvError])):
            self.close()


class Branching(Client[Session]):
    """What `RemoteEnv` offers of snapshots and branches."""

    def snapshot(self) -> str:
        """Keep the present state at the server; the id by which `restore` goes back to it.

        All of the task is kept: its physics to the last bit, counters of wrappers such as time limits, random numbers.
        What a task does outside of its own objects, such as writing files, is not undone. Snapshots end with the
        session. MuJoCo's and other tasks of Gymnasium have them; one whose state lies outside of Python offers
        `get_snapshot()` and `set_snapshot(snapshot)`.

        Raises:
            Unsupported: this task's state cannot be kept, or not in the memory that is left; the message says why.
            InputError: there is no episode yet, or as many snapshots are kept as may be (1024, 512 MiB).
            And as `step`.
        """
        return self._running().take_snapshot(self._step_timeout_s)

    def restore(self, snapshot: str) -> None:
        """Go back to a snapshot, exactly: the same actions then give the same transitions, to the last bit.

        Raises:
            InputError: this session has no such snapshot; the episode goes on where it is.
            TaskError: the task's own `set_snapshot` raised; the episode is gone, reset() starts another.
            And as `step`.
        """
        session = self._running()
        session.go_back(snapshot, self._step_timeout_s)
        if self._local is not None:
            self._local.show(session.get_state(self._step_timeout_s, native=False))

    def forget(self, snapshot: str) -> None:
        """Free the memory of a snapshot.

        Raises:
            InputError: this session has no such snapshot.
            And as `step`.
        """
        self._running().forget_snapshot(snapshot, self._step_timeout_s)

    def fork(self, n: int, *, snapshot: str | None = None) -> Branches:
        """Begin n further episodes at the present state.

        Args:
            n: how many, at most 1024 together with snapshots and other branches.
            snapshot: begin at this one instead.

        Raises:
            As `snapshot`.
        """
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_KEPT:
            raise InputError(f"fork({n!r}): a whole number from 1 to {MAX_KEPT}")
        session = self._running()
        return Branches(session, session.fork(n, snapshot, self._step_timeout_s), self._step_timeout_s)

    def try_chunks(
        self, actions: Any, *, snapshot: str | None = None, want: Want = "rewards", stop: bool = True
    ) -> Tried:
        """What each of M chunks of actions would bring from here, in one round trip; the episode itself is untouched.

        Args:
            actions: (M, K, …), stacked as arrays (of a Dict space a dict of such), or a list of M lists of K actions:
                at most 4096 chunks of 4096 actions, and 2**20 actions.
            snapshot: try them from this one instead of the present state.
            want: "rewards", also the observations and infos of each chunk's "last" step, or "all" of them.
            stop: end each chunk with its episode.

        Returns:
            `Tried`; its `returns` are the sums of rewards.

        Raises:
            InputError: the actions are not the task's, none or too many, or what they bring is too large; nothing was
                sent. Or there is no such snapshot.
            TaskError: the task raised in one of them, which the message names.
            DeadlineExceeded: not all ran within `step_timeout_s`.
            And as `snapshot`.
        """
        session = self._running()
        return session.try_chunks(actions, self._step_timeout_s, snapshot=snapshot, want=want, stop=stop)


def _each_alone(actions: Any) -> Any:
    """(n, …) actions as n chunks of one."""
    try:
        return [[action] for action in stacking.rows(actions, MAX_KEPT)]
    except (TypeError, ValueError) as error:
        raise InputError(f"actions are a (n, …) array, or a list of n actions: {error}") from error

"""Snapshots and branches of a session's episode: requests beside its steps (docs/protocol.md, "Snapshots")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from remote_env.errors import InputError, ProtocolError
from remote_env.protocol import frames
from remote_env.protocol.branching import Tried, check_want, read_tried, split_chunks
from remote_env.protocol.chunks import MAX_BYTES
from remote_env.session.exchange import MALFORMED
from remote_env.session.task_session import TaskSession
from remote_env.spaces import space_size


class BranchRequests(TaskSession):
    """What a session with one environment asks of its snapshots and branches. All raise as `TaskSession.call`."""

    def take_snapshot(self, timeout_s: float) -> str:
        """Keep the present state at the server; its id.

        Raises:
            Unsupported: the task's state cannot be kept, or not in the memory that is left; the message says why.
            InputError: as many as may be are kept.
        """
        self._looks += 1
        value = self._value(frames.SNAPSHOT, {"take": None}, timeout_s)
        return self._checked_id(value.get("id") if isinstance(value, dict) else None)

    def forget_snapshot(self, snapshot: str, timeout_s: float) -> None:
        """Free a snapshot; InputError when there is none of that id."""
        self._looks += 1
        self._value(frames.SNAPSHOT, {"forget": snapshot}, timeout_s)

    def go_back(self, snapshot: str, timeout_s: float) -> None:
        """Put the episode back to a snapshot; InputError when there is none of that id."""
        self.state = None
        self._value(frames.RESTORE, {"id": snapshot}, timeout_s)

    def fork(self, count: int, snapshot: str | None, timeout_s: float) -> list[str]:
        """Begin branches at the present state or a snapshot; their ids. Raises as `take_snapshot`."""
        self._looks += 1
        value = self._value(frames.BRANCH, {"fork": count, "snapshot": snapshot}, timeout_s)
        if not isinstance(value, list) or len(value) != count:
            raise self._break(ProtocolError("a reply to BRANCH that does not name the branches"))
        return [self._checked_id(name) for name in value]

    def end_branches(self, names: Sequence[str], timeout_s: float) -> None:
        """Free branches; InputError when there is one that is not there."""
        self._looks += 1
        self._value(frames.BRANCH, {"end": list(names)}, timeout_s)

    def try_chunks(self, actions: Any, timeout_s: float, *, snapshot: str | None, want: str, stop: bool) -> Tried:
        """Run chunks of actions beside the episode, each from the present state or a snapshot.

        Raises:
            InputError: the actions are not the task's, none or too many, or what they bring would be too large;
                nothing was sent. Or there is no such snapshot.
            TaskError: the task raised in one of them, which the message names; the episode stands where it did.
            Unsupported: as `take_snapshot`.
        """
        return self._run_chunks({"try": actions, "snapshot": snapshot}, actions, timeout_s, want=want, stop=stop)

    def step_branches(self, names: Sequence[str], actions: Any, timeout_s: float, *, want: str, stop: bool) -> Tried:
        """Run a chunk of actions in each of these branches; all of them go on, or, where one fails, none."""
        return self._run_chunks({"step": list(names), "actions": actions}, actions, timeout_s, want=want, stop=stop)

    def _run_chunks(self, request: dict[str, Any], actions: Any, timeout_s: float, *, want: str, stop: bool) -> Tried:
        self._check_usable()
        check_want(want)
        chunks = split_chunks(actions)
        self._check_chunks(actions, chunks)
        self._check_brought(len(chunks) * (len(chunks[0]) if want == "all" else 1), want)
        self._looks += 1
        value = self._value(frames.BRANCH, {**request, "want": want, "stop": bool(stop)}, timeout_s, where="actions")
        try:
            return read_tried(value, len(chunks), len(chunks[0]), want)
        except MALFORMED as error:
            raise self._malformed(error) from error

    def _check_chunks(self, actions: Any, chunks: list[list[Any]]) -> None:
        if not isinstance(actions, np.ndarray):
            for chunk in chunks:
                for action in chunk:
                    self._check_action(action)
            return
        # Rows of one array are all of one shape and kind.
        self._check_action(np.zeros_like(chunks[0][0]) if actions.dtype.kind == "f" else chunks[0][0])
        if actions.dtype.kind == "f" and not np.isfinite(actions).all():
            bad = np.argwhere(~np.isfinite(actions))[0].tolist()
            raise InputError(f"actions are not finite: {actions[tuple(bad)]} at index {bad}")

    def _check_brought(self, count: int, want: str) -> None:
        size = space_size(self.observation_space)
        if want != "rewards" and count * size > MAX_BYTES:
            raise InputError(
                f"{count} observations of {size} bytes are {count * size}; one call brings at most {MAX_BYTES}: send "
                'fewer actions at once, or ask for want="last" or want="rewards"'
            )

    def _checked_id(self, name: Any) -> str:
        if not isinstance(name, str):
            raise self._break(ProtocolError(f"a reply without an id: {str(name)[:60]}"))
        return name

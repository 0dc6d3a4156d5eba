"""Snapshots of an episode, and branches of it: what clients ask with SNAPSHOT, RESTORE and BRANCH.

Branches are further episodes of the simulator's one environment, which has their states in turn. The client's own
episode is put back before each reply, whatever happened.
"""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from remote_env.errors import InputError, TaskError, Unsupported
from remote_env.protocol.branching import MAX_KEPT, MAX_KEPT_BYTES, check_ids, check_want, split_chunks
from remote_env.protocol.chunks import MAX_BYTES
from remote_env.protocol.stacking import copied, size_of, stack
from remote_env.server.backend import Backend
from remote_env.server.board import Board
from remote_env.server.error_text import error_text
from remote_env.server.snapshot import Snapshot

Select = Callable[[Any], Any]
Transition = tuple[Any, Any, Any, Any, dict[str, Any]]


class _Branch(NamedTuple):
    """A further episode: where it stands, and the last transition once it has ended."""

    snapshot: Snapshot
    last: _Outcome | None = None


class _Outcome(NamedTuple):
    """What the last step of a chunk said; `observation` and `info` are copies."""

    terminated: bool
    truncated: bool
    observation: Any
    info: Any

    @classmethod
    def of(cls, transition: Transition, select: Select) -> _Outcome:
        observation, _, terminated, truncated, info = transition
        return cls(bool(terminated), bool(truncated), copied(select(observation)), copied(info))


class Branching:
    """What one session keeps of an episode, and runs beside it.

    Args:
        backend: whose environment it is.
        board: where steps are counted.
        on_broken: called when the client's own episode could not be put back: it is gone, as after a failed reset.
        on_restored: called when the client's episode goes back to a snapshot; None: nobody has to know.
        select: picks from an observation what the session brings of it.
        limit_bytes: of all that is kept together.
    """

    def __init__(
        self,
        backend: Backend,
        board: Board,
        on_broken: Callable[[], None],
        on_restored: Callable[[], None] | None = None,
        select: Select | None = None,
        *,
        limit_bytes: int = MAX_KEPT_BYTES,
    ) -> None:
        self._backend, self._board = backend, board
        self._on_broken, self._on_restored = on_broken, on_restored
        self._select = select or _as_it_is
        self._limit_bytes = limit_bytes
        self.forget_all()

    def forget_all(self) -> None:
        """Let go of everything: another session begins, whose ids nobody can mistake for an earlier one's."""
        self._name, self._last = os.urandom(4).hex(), 0
        self._snapshots: dict[str, Snapshot] = {}
        self._branches: dict[str, _Branch] = {}

    # Requests

    def snapshot(self, request: Any) -> Any:
        """SNAPSHOT: keep the present state under an id, or forget one."""
        fields = _fields(request, "take", "forget")
        if "forget" in fields:
            del self._snapshots[self._check(fields["forget"], self._snapshots, "snapshot")]
            return None
        self._check_room(1)
        name = self._new_id("snapshot")
        self._snapshots[name] = taken = self._take()
        return {"id": name, "size_bytes": taken.size_bytes}

    def restore(self, request: Any) -> None:
        """RESTORE: go back to a snapshot; where that fails the episode is gone."""
        fields = _fields(request, "id")
        snapshot = self._snapshots[self._check(fields["id"], self._snapshots, "snapshot")]
        if self._on_restored is not None:
            self._on_restored()
        self._put_back(snapshot)

    def branch(self, request: Any) -> Any:
        """BRANCH: try chunks of actions, begin branches, step them, or end some."""
        fields = _fields(request, "try", "fork", "step", "end")
        if "try" in fields:
            return self._try(fields["try"], fields)
        if "fork" in fields:
            return self._fork(fields["fork"], fields.get("snapshot"))
        if "step" in fields:
            return self._step(check_ids(fields["step"]), fields)
        for name in [self._check(name, self._branches, "branch") for name in check_ids(fields["end"])]:
            del self._branches[name]
        return None

    def _try(self, actions: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
        chunks = split_chunks(actions)
        name = fields.get("snapshot")
        asked = None if name is None else self._snapshots[self._check(name, self._snapshots, "snapshot")]
        runs = _Runs(len(chunks), len(chunks[0]), fields)
        with self._apart() as present:
            for number, chunk in enumerate(chunks):
                (asked or present).restore()
                self._run(runs, number, chunk)
        return runs.to_plain()

    def _fork(self, count: Any, name: Any) -> list[str]:
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise InputError(f"{count!r:.40} branches: a whole number from 1 on is due")
        self._check_room(count)
        start = self._take() if name is None else self._snapshots[self._check(name, self._snapshots, "snapshot")]
        names = [self._new_id("branch") for _ in range(count)]
        self._branches.update((name, _Branch(start)) for name in names)
        return names

    def _step(self, names: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
        branches = [self._branches[self._check(name, self._branches, "branch")] for name in names]
        chunks = split_chunks(fields.get("actions"))
        if len(chunks) != len(branches):
            raise InputError(f"actions for {len(chunks)} branches, and {len(branches)} are to step")
        runs = _Runs(len(chunks), len(chunks[0]), fields)
        stepped: list[_Branch] = []
        with self._apart() as present:
            for number, (branch, chunk) in enumerate(zip(branches, chunks, strict=True)):
                if branch.last is not None and runs.stop:
                    runs.stays(number, branch.last)
                    stepped.append(branch)
                    continue
                branch.snapshot.restore()
                last = _Outcome.of(self._run(runs, number, chunk), self._select)
                taken = self._take([present, *(branch.snapshot for branch in stepped)])
                stepped.append(_Branch(taken, last if last.terminated or last.truncated else None))
        # All or none: a step that failed has moved no branch.
        self._branches.update(zip(names, stepped, strict=True))
        return runs.to_plain()

    def _run(self, runs: _Runs, number: int, chunk: list[Any]) -> Transition:
        """Run one chunk from where the environment stands; its last transition."""
        for index, action in enumerate(chunk):
            began = time.monotonic()
            try:
                transition = self._backend.step(action)
            except Exception as error:
                raise _step_error(error, number, index) from error
            self._board.count_step(time.monotonic() - began)
            if runs.add(number, index, transition, self._select):
                break
        runs.finish(number, transition, self._select)
        return transition

    # What is kept

    @contextlib.contextmanager
    def _apart(self) -> Iterator[Snapshot]:
        """The present state, to which the environment is put back at the end."""
        present = self._take()
        try:
            yield present
        finally:
            self._put_back(present)

    def _put_back(self, snapshot: Snapshot) -> None:
        try:
            snapshot.restore()
        except BaseException:
            self._on_broken()
            raise

    def _take(self, also: list[Snapshot] | None = None) -> Snapshot:
        if self._backend.num_envs is not None:
            raise Unsupported(
                "a batch of environments has no snapshots and no branches; they are for one environment: RemoteEnv(…)"
            )
        kept = {id(snapshot): snapshot.size_bytes for snapshot in (*self._kept(), *(also or ()))}
        return self._backend.take_snapshot(self._limit_bytes - sum(kept.values()))

    def _kept(self) -> list[Snapshot]:
        return [*self._snapshots.values(), *(branch.snapshot for branch in self._branches.values())]

    def _check_room(self, count: int) -> None:
        kept = len(self._snapshots) + len(self._branches)
        if kept + count > MAX_KEPT:
            raise InputError(
                f"this session keeps {kept} snapshots and branches, and may keep {MAX_KEPT}; forget() some, or close() "
                "branches that are done with"
            )

    def _new_id(self, kind: str) -> str:
        self._last += 1
        return f"{kind}-{self._name}-{self._last}"

    def _check(self, name: Any, known: Mapping[str, Any], kind: str) -> str:
        if not isinstance(name, str) or name not in known:
            raise InputError(
                f"this session has no {kind} {str(name)[:60]!r}: it was forgotten, or it is another session's, with "
                f"which it ended; it has {len(known)} of them"
            )
        return name


class _Runs:
    """The outcomes of M chunks, as they come."""

    def __init__(self, count: int, steps: int, fields: Mapping[str, Any]) -> None:
        self.stop, self._want = fields.get("stop", True), fields.get("want", "rewards")
        check_want(self._want)
        if not isinstance(self.stop, bool):
            raise InputError(f"stop is True or False; got {self.stop!r:.40}")
        self._rewards = np.zeros((count, steps), np.float64)
        self._ran = np.zeros(count, np.int64)
        self._flags = np.zeros((2, count), np.bool_)
        self._observations: list[list[Any]] = [[] for _ in range(count)]
        self._infos: list[list[Any]] = [[] for _ in range(count)]
        self._size_bytes = 0

    def add(self, number: int, index: int, transition: Transition, select: Select) -> bool:
        """Note a step of a chunk; whether the chunk ends with it."""
        _, reward, terminated, truncated, _ = transition
        try:
            self._rewards[number, index] = float(reward)
            self._flags[:, number] = bool(terminated), bool(truncated)
        except (TypeError, ValueError) as error:
            raise TaskError(f"a step of chunk {number} ran, but its reward or a flag is no number: {error}") from error
        self._ran[number] += 1
        if self._want == "all":
            self._note(number, _Outcome.of(transition, select))
        return self.stop and bool(terminated or truncated)

    def finish(self, number: int, transition: Transition, select: Select) -> None:
        """Note the last step of a chunk."""
        if self._want == "last":
            self._note(number, _Outcome.of(transition, select))

    def _note(self, number: int, last: _Outcome) -> None:
        self._observations[number].append(last.observation)
        self._infos[number].append(last.info)
        self._size_bytes += size_of(last.observation) + size_of(last.info)
        if self._size_bytes > MAX_BYTES:
            raise InputError(
                f"what these chunks bring is more than {MAX_BYTES} bytes; send fewer at once, or ask for less with "
                'want="last" or want="rewards"'
            )

    def stays(self, number: int, last: _Outcome) -> None:
        """Note a branch whose episode has ended: it does not step."""
        self._flags[:, number] = last.terminated, last.truncated
        if self._want == "last":
            self._note(number, last)

    def to_plain(self) -> dict[str, Any]:
        """As the reply has it."""
        value = {
            "rewards": self._rewards,
            "ran": self._ran,
            "terminated": self._flags[0].copy(),
            "truncated": self._flags[1].copy(),
        }
        if self._want == "last":
            value["observations"] = stack([rows[-1] for rows in self._observations])
            value["infos"] = [rows[-1] for rows in self._infos]
        elif self._want == "all":
            value["observations"], value["infos"] = [stack(rows) for rows in self._observations], self._infos
        return value


def _as_it_is(observation: Any) -> Any:
    return observation


def _fields(request: Any, *one_of: str) -> Mapping[str, Any]:
    """The request, which does one thing of these."""
    if not isinstance(request, Mapping) or sum(name in request for name in one_of) != 1:
        raise InputError(f"a dict with one of {', '.join(one_of)} is due; got {str(request)[:100]}")
    return request


def _step_error(error: Exception, number: int, index: int) -> Exception:
    """What the client is told of a step that failed: of which chunk it was."""
    where = f"step {index} of chunk {number}"
    if type(error) is InputError:
        return InputError(f"{where}: {error}")
    kind, text = type(error).__name__, error_text(error)
    return TaskError(f"the task raised {kind} in {where}: {text}", remote_traceback=traceback.format_exc())

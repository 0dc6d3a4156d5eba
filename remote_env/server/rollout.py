"""A policy beside the simulator, and the slices of an episode in which it acts (docs/protocol.md, "Rollouts").

Imported only where a task comes with a policy.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from remote_env.errors import ConfigError, InputError, PolicyError
from remote_env.policy.address import open_policy
from remote_env.policy.observation import ActionMapping, ObservationMapping
from remote_env.policy.policy import Policy
from remote_env.policy.scripted import PREFIX, ScriptedPolicy
from remote_env.protocol.task import PolicySpec, TaskSpec
from remote_env.server.backend import Backend
from remote_env.server.board import Board
from remote_env.server.error_text import error_text
from remote_env.server.slices import Record, Slice
from remote_env.state import SceneState

EPISODE = "rollout"  # a policy has one episode at a time here: its name is always this, and each begins with a reset


def open_rollouts(task: TaskSpec, token: str | None, backend: Backend, board: Board) -> PolicyRunner:
    """The policy that comes with a task, opened and fitted to that.

    Args:
        task: with a policy.
        token: of the policy server, where it has one that is not found by itself.
        backend: whose task is made.
        board: where to count steps.

    Raises:
        PolicyError: it cannot be opened, or does not fit; the message says why.
    """
    spec = task.policy
    assert spec is not None  # noqa: S101  who calls us saw it
    try:
        policy = _open(spec, token, task)
    except Exception as error:
        text = f"the policy {spec.source!r} could not be opened: {_named(error)}{_hint(spec.source)}"
        raise PolicyError(text) from error
    try:
        return PolicyRunner(policy, spec, backend, board)
    except Exception as error:
        policy.close()
        where = 'policy_kwargs={"mapping": {"observation": {…}, "action": {…}}}, or a file for --policy-mapping'
        raise PolicyError(f"the policy {spec.source!r} does not fit the task: {_named(error)}\n({where})") from error


def _open(spec: PolicySpec, token: str | None, task: TaskSpec) -> Policy:
    if spec.source.startswith(PREFIX) and "model_dir" in task.kwargs:  # which came along where gym-aloha is not
        return ScriptedPolicy(spec.source, chunk_size=spec.chunk_size, model_dir=task.kwargs["model_dir"])
    return open_policy(
        spec.source,
        dataset_id=spec.dataset_id,
        device=spec.device,
        chunk_size=spec.chunk_size,
        token=token,
        timeout_s=spec.timeout_s,
        reconnect_timeout_s=spec.reconnect_timeout_s,
        task=spec.instruction,
        log=lambda text: print(f"policy: {text}", flush=True),
    )


def _hint(source: str) -> str:
    is_path = "/" in source and "://" not in source
    if not is_path or Path(source).expanduser().exists():
        return ""
    return f"\nA checkpoint that lies with the client is sent along by policy=LocalFolder({source!r})"


def _named(error: BaseException) -> str:
    text = error_text(error)
    return text if isinstance(error, ConfigError) else f"{type(error).__name__}: {text}"


class PolicyRunner:
    """Lets a policy act on a backend, and sees what else is done to that, so that they fit together.

    Args:
        policy: open; closed with this.
        spec: how its features are mapped, and its instruction.
        backend: whose task is made.
        board: where to count steps.

    Attributes:
        description: of the policy, for READY.

    Raises:
        ConfigError: observations or actions of the task are not the policy's; the message lists both.
    """

    def __init__(self, policy: Policy, spec: PolicySpec, backend: Backend, board: Board) -> None:
        self._policy, self._backend, self._board = policy, backend, board
        self._backend_step = backend.step
        metadata = policy.metadata
        given = spec.mapping
        self._observations = ObservationMapping.between(
            backend.observation_space,
            metadata,
            given=given.get("observation"),
            state_names=backend.state_names,
            instruction=spec.instruction,
        )
        self._actions = ActionMapping.between(backend.action_space, metadata, given=given.get("action"))
        self.description: dict[str, Any] = {
            **metadata.to_plain(),
            "source": spec.source,
            "mapping": self._observations.describe(),
        }
        self._queue: deque[Any] = deque()  # of a chunk, what is still to be applied
        self._used = 0  # how many of that chunk are
        self._is_new = True  # the policy has not been told of this episode
        self._observation: Any = None
        self._blind = "there is no episode yet: call reset()"  # why the policy cannot act; "" when it can
        # Such a policy counts what it has handed out: a chunk that is not applied to its end is lost to it.
        self._plays_whole_chunks = bool(metadata.extra.get("whole_chunks"))
        self._has_cut_chunk = False

    # What a session does by hand

    def reset(self, seed: int | None, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        """See `Backend.reset`."""
        self._forget("the last reset failed: call reset() again")
        observation, info = self._backend.reset(seed, options)
        self._observation, self._blind, self._is_new = observation, "", True
        self._has_cut_chunk = False
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """See `Backend.step`; what the policy had planned is dropped."""
        self._forget("the last step failed: step() by hand, or reset()")
        transition = self._backend_step(action)
        self._observation, _, terminated, truncated, _ = transition
        self._blind = "the episode has ended: call reset()" if terminated or truncated else ""
        return transition

    def restore(self, state: SceneState) -> None:
        """See `Backend.restore`."""
        self._forget("the state was set and nothing has been observed since: step() by hand, or reset()")
        self._backend.restore(state)

    def went_back(self) -> None:
        """Note that the task is in the state of a snapshot now."""
        self._forget("the task went back to a snapshot and nothing has been observed since: step() by hand, or reset()")

    def _forget(self, why: str) -> None:
        self._has_cut_chunk = self._has_cut_chunk or bool(self._queue)
        self._queue, self._blind, self._observation = deque(), why, None

    # What the policy does

    parse = staticmethod(Slice.of)

    def run(self, asked: Slice, first: tuple[Any, dict[str, Any]] | None, began: float) -> dict[str, Any]:
        """Let the policy act for one slice; what the reply holds, with states still as `SceneState`s.

        Args:
            asked: how far.
            first: what the reset before it brought, if one belongs to it.
            began: when the request came [s, monotonic].

        Raises:
            InputError: there is no episode to go on with.
            PolicyError: the policy raised, or gave what is no action; the episode stands where it did before that.
        """
        record = Record(asked.want, self._backend)
        if first is not None:
            record.add(*first)
        while True:
            action = self._next_action(asked.chunk_size, record)
            record.add_step(action, self._act(action))
            if self._blind or record.steps >= asked.steps or record.size >= asked.size_bytes:
                break
            if time.monotonic() - began >= asked.time_s:
                break
        return {**record.result(stacked=asked.stacked), "elapsed_s": time.monotonic() - began}

    def _act(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        planned, began = self._queue, time.monotonic()
        self._queue = deque()
        transition = self.step(action)
        self._queue = planned
        self._board.count_step(time.monotonic() - began)
        return transition

    def _next_action(self, chunk_size: int | None, record: Record) -> Any:
        if self._blind:
            raise InputError(f"the policy cannot act: {self._blind}")
        is_used_up = not self._queue or (chunk_size is not None and self._used >= chunk_size)
        if is_used_up and self._plays_whole_chunks and (self._queue or self._has_cut_chunk):
            raise InputError(self._needs_whole_chunks())
        try:
            if is_used_up:
                began = time.monotonic()
                self._queue, self._used = self._infer(), 0
                record.inferences += 1
                record.inference_s += time.monotonic() - began
            self._used += 1
            return self._actions.action(self._queue.popleft())
        except Exception as error:
            raise self._explain(error) from error

    def _needs_whole_chunks(self) -> str:
        metadata = self._policy.metadata
        return (
            f"the policy {metadata.name!r} goes on where its last chunk of {metadata.chunk_size} ended, and of that "
            "some was not applied; make it with policy_kwargs={'chunk_size': …}, as many as you apply (1 to mix with "
            "steps of your own)"
        )

    def _infer(self) -> deque[Any]:
        if self._is_new:
            self._policy.reset([EPISODE])
            self._is_new = False
        batch = self._observations.batch([self._observation])
        chunk = np.asarray(self._policy.infer(batch, episode_ids=[EPISODE]))
        if chunk.ndim != 3 or chunk.shape[0] != 1 or chunk.shape[1] < 1:
            raise ConfigError(f"it gave a chunk of shape {chunk.shape}; due is (1, K, D)")
        return deque(chunk[0])

    def _explain(self, error: Exception) -> PolicyError:
        told = str(getattr(error, "remote_traceback", ""))
        text = error_text(error) if isinstance(error, PolicyError) else _named(error)
        return PolicyError(
            f"the policy {self._policy.metadata.name!r} failed: {text}",
            remote_traceback=told or traceback.format_exc(),
        )

    def close(self) -> None:
        """Close the policy."""
        self._policy.close()

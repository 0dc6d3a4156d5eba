"""The simulator's loop where its backend serves a batch: the same requests, with a row for each environment."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from remote_env.errors import ConfigError, InputError, ProtocolError, Unsupported
from remote_env.protocol import frames
from remote_env.protocol.batch import AUTORESET_MODES, BatchTransition, check_env_ids, check_rows, split_objects
from remote_env.server.backend import Backend
from remote_env.server.loop import SimulatorLoop
from remote_env.spaces import space_to_plain
from remote_env.state import SceneLayout

SET_ATTRIBUTE = "set_attr"  # what every client may call: `Backend.set_attribute`, of names that are open


class BatchLoop(SimulatorLoop):
    """Serves one backend of a batch to one connection after another; arguments as `SimulatorLoop`."""

    def _describe(self) -> dict[str, Any]:
        backend = self.backend
        count = _check_batch(backend)
        self._num_envs, self._batch_transition = count, BatchTransition(count)
        self._allowed |= {SET_ATTRIBUTE}
        return {
            **super()._describe(),
            "num_envs": count,
            "single_observation_space": space_to_plain(backend.single_observation_space),
            "single_action_space": space_to_plain(backend.single_action_space),
            "autoreset_mode": backend.autoreset_mode,
        }

    def _make_vector_step(self) -> None:
        return None  # rewards and flags are no numbers

    def _ends_episode(self, transition: tuple[Any, Any, Any, Any, dict[str, Any]]) -> bool:
        # Where environments reset themselves, what follows an end is a step like any other.
        return self.backend.autoreset_mode == "DISABLED" and bool(np.any(transition[2]) or np.any(transition[3]))

    # Requests

    def _reset(self, flags: int, seed: Any, options: Any) -> None:
        mask = options.get("reset_mask") if isinstance(options, dict) else None
        if mask is not None:
            self._check_reset_mask(mask)
        super()._reset(flags, seed, options)

    def _check_reset_mask(self, mask: Any) -> None:
        if not self.backend.takes_reset_mask:
            raise Unsupported(
                f"{self.backend.spec.get('id')} resets all of its environments at once: leave reset_mask out"
            )
        is_mask = isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == (self._num_envs,)
        if not is_mask or not mask.any():
            raise InputError(f"reset_mask is {mask!r}; it is a bool array ({self._num_envs},), true at least once")
        if self._fresh and not mask.all():
            raise InputError("this session has no episodes yet; reset() all environments before some of them")

    def _send_transition(self, transition: tuple[Any, Any, Any, Any, dict[str, Any]], flags: int) -> None:
        observation, rewards, terminated, truncated, info = transition
        fixed, frame = self._observation_layout, bytearray(frames.HEADER_SIZE)
        packed = self._batch_transition.pack(rewards, terminated, truncated) if fixed is not None else None
        payload: list[memoryview] | None = None
        if fixed is not None and packed is not None:
            frame += packed[0]
            at = len(frame)
            frame += bytes(fixed.size)
            rows = fixed.write(observation, frame, at)
            payload = None if rows is None else [*packed[1], *rows]
        rest: dict[str, Any] = {}
        if payload is None:
            rest = {
                "observation": observation,
                "reward": rewards,
                "terminated": terminated,
                "truncated": truncated,
            }
        self._send_result(frame, payload, rest, info, flags, is_step=True)

    def _get_state(self, _flags: int, env_ids: Any) -> None:
        self._expect_episode("get_states")
        self._send_value(frames.RESULT, self._sequence, self._pack_states(self._check_ids(env_ids).tolist()))

    def _set_state(self, _flags: int, plain: Any, values: Any, env_ids: Any) -> None:
        self._expect_episode("set_states")
        ids, layout = self._check_ids(env_ids), SceneLayout.from_plain(plain)
        try:
            check_rows(layout, values, len(ids))
        except ValueError as error:
            raise InputError(str(error)) from error
        self.backend.restore_states(layout, values, ids.tolist())
        self._forget_images()
        self._send_value(frames.RESULT, self._sequence, None)

    def _check_ids(self, env_ids: Any) -> Any:
        try:
            return check_env_ids(env_ids, self._num_envs)
        except ValueError as error:
            raise InputError(str(error)) from error

    def _call(self, flags: int, name: Any, args: Any, kwargs: Any) -> None:
        if name != SET_ATTRIBUTE:
            super()._call(flags, name, args, kwargs)
            return
        if not isinstance(args, tuple) or len(args) != 2 or kwargs:
            raise ProtocolError("set_attr takes a name and values")
        self._check_open(args[0])
        self.backend.set_attribute(*args)
        self._send_value(frames.RESULT, self._sequence, None)

    # Replies

    def _add_state(self, _frame: bytearray, rest: dict[str, Any], *, is_step: bool) -> int:
        rest.update(self._pack_states(range(self._num_envs)))
        final = self.backend.final_states() if is_step else None
        if final is not None and len(final[0]):
            ids, values = check_env_ids(final[0], self._num_envs), final[1]
            check_rows(self._state_layout, values, len(ids))
            rest["final_states"] = (ids, values)
        return 0

    def _read_row_state(self) -> Any:
        packed = self._pack_states(range(self._num_envs))
        return {**packed, "states": packed["states"].copy()}

    def _pack_row_states(self, states: list[Any]) -> list[Any]:
        for before, row in itertools.pairwise(states):
            if before["state_layout"] == row["state_layout"]:
                row.pop("layout", None)  # one announcement will do
        return states

    def _pack_states(self, env_ids: Sequence[int]) -> dict[str, Any]:
        self._state_layout, values = self.backend.states(env_ids)
        check_rows(self._state_layout, values, len(env_ids))
        number = self._layouts.number(self._state_layout)
        announced = self._layouts.must_announce(number, self._sequence)
        layout = {"layout": self._state_layout.to_plain()} if announced else {}
        return {"states": values, "state_layout": number, **layout}

    def _add_info(self, rest: dict[str, Any], info: dict[str, Any]) -> None:
        rest["info"], objects = split_objects(info)
        if objects:
            rest["objects"] = objects


def _check_batch(backend: Backend) -> int:
    """How many environments it has; ConfigError when it has not set what a batch needs."""
    kind, count = type(backend).__name__, backend.num_envs
    if backend.single_observation_space is None or backend.single_action_space is None or count is None:
        raise ConfigError(
            f"{kind} serves no batches (it has set no single_observation_space and single_action_space): leave "
            "num_envs out and take it with RemoteEnv"
        )
    if backend.autoreset_mode not in AUTORESET_MODES:
        raise ConfigError(
            f"{kind}.autoreset_mode is {backend.autoreset_mode!r}; a batch has one of {', '.join(AUTORESET_MODES)}"
        )
    return count

"""Several steps of a batch that is spread over servers, sent ahead as far as may be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from remote_env.errors import InputError, TaskError
from remote_env.protocol import stacking
from remote_env.protocol.chunks import WANTS, Transitions, pack_outcomes, split_actions
from remote_env.protocol.vector_step import Transition

if TYPE_CHECKING:
    from remote_env.vector.spread import SpreadVectorEnv


def step_ahead(env: SpreadVectorEnv, actions: Any, *, stop: bool, want: str) -> Transitions:
    """Run K steps with as many under way as the window allows; see `SpreadVectorEnv.step_many`."""
    if want not in WANTS:
        raise InputError(f"want={want!r}: allowed are {', '.join(WANTS)}")
    rows = split_actions(actions)
    for row in rows:
        env.check_actions(row)
    stops = stop and not env.resets_itself
    done: list[Transition] = []
    sent = 0
    try:
        while len(done) < len(rows):
            for row in rows[sent : len(done) + env.step_window]:
                env.step_async(row)
                sent += 1
            done.append(env.step_wait())
            if stops and np.any(np.logical_or(done[-1][2], done[-1][3])):
                break  # where environments stay ended, nothing is sent ahead of that
    except TaskError as error:
        error.completed = _stack(done, want) if done else None
        raise
    return _stack(done, want)


def _stack(done: list[Transition], want: str) -> Transitions:
    wanted = done if want == "all" else done[-1:]
    outcomes = pack_outcomes([transition[1:4] for transition in done])
    observations = stacking.stack([transition[0] for transition in wanted])
    return Transitions(observations, *outcomes, [transition[4] for transition in wanted], len(done))

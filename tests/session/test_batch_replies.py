"""Replies of a batch that break the protocol end the session, with an error that says so."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remote_env.errors import ProtocolError, RemoteEnvError, SessionLost
from remote_env.server.batch_loop import BatchLoop
from remote_env.session import BatchSession


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The conversation of two threads that golden frames are made of."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "protocol")
    import golden_batch

    return golden_batch


class NoRows(BatchLoop):
    """Sends fewer states than it has environments."""

    def _pack_states(self, env_ids: Sequence[int]) -> dict[str, Any]:
        packed = super()._pack_states(env_ids)
        return {**packed, "states": packed["states"][:1]}


class NoLayout(BatchLoop):
    """Never announces the layout."""

    def _pack_states(self, env_ids: Sequence[int]) -> dict[str, Any]:
        return {**super()._pack_states(env_ids), "layout": None}


class NoObjects(BatchLoop):
    """Sends arrays of objects that belong nowhere."""

    def _add_info(self, rest: dict[str, Any], info: dict[str, Any]) -> None:
        rest.update(info={}, objects=[(("a", "b"), [1], [1])])


class NoInfo(BatchLoop):
    """Sends an info that is none."""

    def _add_info(self, rest: dict[str, Any], _info: dict[str, Any]) -> None:
        rest["info"] = [1]


class OtherEnvironments(BatchLoop):
    """Says that an environment ended that there is not."""

    def _add_state(self, frame: bytearray, rest: dict[str, Any], *, is_step: bool) -> int:
        flags = super()._add_state(frame, rest, is_step=is_step)
        if is_step:
            rest["final_states"] = (np.array([7]), rest["final_states"][1])
        return flags


@pytest.mark.parametrize(
    ("loop", "text"),
    [
        (NoRows, "states that are none"),
        (NoLayout, "never announced"),
        (NoObjects, "do not fit the info"),
        (NoInfo, "whose tail is no dict"),
        (OtherEnvironments, "names 7"),
    ],
)
def test_a_reply_that_is_none_ends_the_session(one: Any, loop: type[BatchLoop], text: str) -> None:
    caught: list[RemoteEnvError] = []

    def talk(peers: Any) -> None:
        session = BatchSession(peers.dial, one.one.TOKEN, time.monotonic() + 10.0)
        try:
            session.reset(None, None, 10.0)
            for _ in range(2):  # the second environment ends in the second
                session.step(np.array([0, 1]), 10.0, want_state=True)
        except ProtocolError as error:
            caught.append(error)
        with pytest.raises(SessionLost, match="the session ended"):
            session.step(np.array([0, 1]), 10.0)
        session.close()
        one.one.stop(peers)

    one.one.record_conversation(talk, one.ToyBatch, loop, {"num_envs": 2})
    assert text in str(caught[0])

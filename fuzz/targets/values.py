"""What is made of decoded values: spaces, layouts of scenes, slices of rollouts, arrays of objects, tasks."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

from remote_env.errors import ConfigError, InputError, ProtocolError, Unsupported
from remote_env.protocol import codec
from remote_env.protocol.batch import check_env_ids, check_rows, join_objects, split_objects
from remote_env.protocol.task import TaskSpec
from remote_env.server.slices import Slice
from remote_env.session.slices import check_reply, last_transition, read_runs
from remote_env.spaces import space_from_plain, space_to_plain
from remote_env.state import EntityLayout, SceneDescription, SceneLayout, SceneState

LIMITS = codec.Limits(max_payload_bytes=1 << 20, max_array_bytes=1 << 20, max_items=20_000)
SCENE = SceneLayout((EntityLayout("cube"),))
warnings.simplefilter("ignore")  # Gymnasium's, of odd bounds


def read_space(value: Any) -> None:
    """A space; written again it is a space once more."""
    with contextlib.suppress(ProtocolError, Unsupported):
        space = space_from_plain(value)
        assert space_from_plain(space_to_plain(space)) == space, "it does not cross as it is"


def read_scene(value: Any) -> None:
    """A scene's layout, and states of it."""
    with contextlib.suppress(InputError):
        layout = SceneLayout.from_plain(value)
        assert SceneLayout.from_plain(layout.to_plain()) == layout
        assert len(layout.digest) == 16
        assert layout.size > 0
    if isinstance(value, (list, tuple)) and len(value) >= 2:
        with contextlib.suppress(InputError):
            state = SceneState(SCENE, value[0], value[1])
            state.check()


def read_description(value: Any) -> None:
    """What a scene looks like."""
    with contextlib.suppress(InputError):
        SceneDescription.from_plain(value)


def read_rollout(value: Any) -> None:
    """A request for a slice, and the reply to one."""
    with contextlib.suppress(InputError):
        Slice.of(value)
    with contextlib.suppress(ProtocolError, KeyError, TypeError, ValueError, IndexError):  # as the session does
        reply = check_reply(value)
        last_transition(reply)
        read_runs(reply["rows"].get("state", ()), {})


def read_batch(value: Any) -> None:
    """An info with arrays of objects, indices of environments, and rows of states."""
    if not isinstance(value, (list, tuple)) or len(value) < 2:
        return
    with contextlib.suppress(ProtocolError):
        info = join_objects(value[0], value[1])
        split_objects(info)
    with contextlib.suppress(ValueError):
        check_rows(SCENE, value[1], len(check_env_ids(value[0], 8)))


def read_task(value: Any) -> None:
    """A task's settings."""
    if isinstance(value, dict):
        with contextlib.suppress(ConfigError):
            TaskSpec.from_plain(value)


READERS: tuple[Callable[[Any], None], ...] = (
    read_space,
    read_scene,
    read_description,
    read_rollout,
    read_batch,
    read_task,
)


def run(data: bytes) -> None:
    """The first byte says as what the value is read that the rest, a body, holds."""
    if len(data) < 2:
        return
    payload_size, body = data[1] * 4096, data[2:]
    try:
        value, views = codec.decode(body, payload_size, LIMITS)
    except ProtocolError:
        return
    for view in views:
        view[:] = bytes(len(view))
    READERS[data[0] % len(READERS)](value)

"""IL-Studio's messages: what its pickles hold, read without its classes and written under their names."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from remote_env.errors import InputError, PolicyError, ProtocolError
from remote_env.policy.dialects.restricted_pickle import PickleLimits, Record, restricted_loads
from remote_env.policy.images import layout_of, to_layout
from remote_env.policy.meta import CTRL_SPACES, CTRL_TYPES, STATES, MetaAction, MetaObs
from remote_env.policy.policy import Array, Chunk, ObservationBatch

MODULE = "benchmark.base"  # where IL-Studio has the two classes
MAX_REPLY_BYTES = 64 << 20
MAX_ROWS = 1 << 20
EMPTY_REPLY = pickle.dumps([], protocol=3)  # the inference failed
_ACTION_FIELDS = tuple(field.name for field in fields(MetaAction))
# One MetaObs, and nothing else: a few hundred instructions.
REQUEST_LIMITS = PickleLimits(max_opcodes=20_000, max_nodes=20_000)
# A list of K actions for each of B rows, with about forty instructions each.
REPLY_LIMITS = PickleLimits(max_bytes=MAX_REPLY_BYTES, max_opcodes=500_000, max_nodes=500_000)


@dataclass(frozen=True)
class PeerRecord:
    """An instance of the peer's, as it came.

    Attributes:
        module: where the peer has its class.
        fields: name -> value.
    """

    module: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """What a client asked.

    Attributes:
        observation: single or batched.
        module: where the client has its classes.
        beginning: the rows whose episodes begin with this observation.
    """

    observation: MetaObs
    module: str
    beginning: tuple[int, ...] = ()


def read_request(data: bytes | bytearray) -> Request:
    """The request in a pickle.

    Raises:
        ProtocolError: it is no pickle of a MetaObs.
        InputError: one of its fields is wrong; the message names it.
    """
    limits = replace(REQUEST_LIMITS, max_bytes=len(data))
    peer = restricted_loads(data, allowed={(None, "MetaObs"): Record(PeerRecord)}, limits=limits)
    if not isinstance(peer, PeerRecord):
        raise ProtocolError(f"a request is a pickled MetaObs; got a {type(peer).__name__}")
    values = {name: value for name, value in peer.fields.items() if value is not None}
    _check_lengths(values)
    timesteps = _timesteps(values.get("timestep", -1))
    if (timesteps < 0).any():
        values.pop("timestep", None)  # -1 is IL-Studio's default: unknown
    beginning = tuple(int(row) for row in np.flatnonzero(timesteps == 0))
    return Request(MetaObs.from_plain(values), peer.module, beginning)


def _check_lengths(values: Mapping[str, Any]) -> None:
    # A MetaObs makes a text and a timestep for every row, whatever a row holds.
    for name, value in values.items():
        if isinstance(value, np.ndarray) and value.ndim and len(value) > MAX_ROWS:
            raise InputError(f"MetaObs.{name} has {len(value)} rows; at most {MAX_ROWS} are allowed")


def _timesteps(value: Any) -> Array:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(f"MetaObs.timestep is no array of numbers: {error}") from error
    if array.dtype.kind not in "iu":
        raise InputError(f"MetaObs.timestep counts in whole numbers; got {value!r:.100}")
    return array.reshape(-1)


def write_request(observation: MetaObs, module: str = MODULE) -> bytes:
    """The exact opposite of `read_request`."""
    return _dump(observation, module)


def write_reply(chunk: Chunk, request: Request, extra: Mapping[str, Any]) -> bytes:
    """The reply to a request.

    Args:
        chunk: (B, K, D) actions.
        request: that they answer, which says how.
        extra: of the policy's metadata: may hold "ctrl_space", "ctrl_type" and "gripper_continuous".
    """
    known = {name: extra[name] for name in _ACTION_FIELDS if name in extra and name != "action"}
    steps = np.swapaxes(chunk, 0, 1)  # (K, B, D)
    if not request.observation.is_batched:
        return _dump([MetaAction(action=rows[0], **known) for rows in steps], request.module)
    return _dump([_row_of_objects([MetaAction(action=row, **known).to_plain() for row in rows]) for rows in steps])


def _row_of_objects(items: Sequence[Any]) -> Array:
    row = np.empty(len(items), dtype=object)
    row[:] = items
    return row


@dataclass(frozen=True)
class Reply:
    """What a server answered.

    Attributes:
        actions: (B, K, D).
        kind: what it said of them: "ctrl_space", "ctrl_type" and "gripper_continuous", those that it said.
    """

    actions: Array
    kind: Mapping[str, Any]


def read_reply(data: bytes | bytearray, rows: int) -> Reply:
    """The actions of `rows` rows out of a reply of either shape.

    Raises:
        PolicyError: the list is empty: the inference failed.
        ProtocolError: the reply is not of this protocol.
    """
    reply = restricted_loads(
        data, allowed={(None, "MetaAction"): Record(PeerRecord)}, limits=REPLY_LIMITS, object_arrays=True
    )
    if not isinstance(reply, list):
        raise ProtocolError(f"a reply is a list of actions; got a {type(reply).__name__}")
    if not reply:
        raise PolicyError(
            "the server answered with an empty list: its inference failed; this protocol carries no cause, look into "
            "the server's log"
        )
    steps = [_step(item, rows) for item in reply]
    if len({step.shape for step in steps}) > 1:
        raise ProtocolError("a reply's actions have different shapes")
    return Reply(np.stack(steps, axis=1), _kind(reply[0]))


def _kind(step: Any) -> dict[str, Any]:
    """What the first of a step's actions says beside its numbers."""
    known = _fields(step.reshape(-1)[0] if isinstance(step, np.ndarray) else step)
    return {name: known[name] for name in _ACTION_FIELDS if name in known and name != "action"}


def _step(item: Any, rows: int) -> Array:
    """(rows, D): one step's actions."""
    if isinstance(item, np.ndarray) and item.dtype == object:
        actions = [_action(each) for each in item.reshape(-1)]
        step = np.stack(actions) if len({action.shape for action in actions}) == 1 else np.empty(0)
    else:
        step = np.atleast_2d(_action(item))
    if step.ndim != 2 or len(step) != rows:
        raise ProtocolError(f"a step of a reply has actions of shape {step.shape}; ({rows}, D) was asked for")
    return step


def _action(item: Any) -> Array:
    known = _fields(item)
    space, kind = known.get("ctrl_space", "joint"), known.get("ctrl_type", "abs")
    if space not in CTRL_SPACES or kind not in CTRL_TYPES:
        raise ProtocolError(f"an action in the space {space!r:.40} of the type {kind!r:.40}")
    if not isinstance(known.get("gripper_continuous", True), (bool, np.bool_)):
        raise ProtocolError("an action whose 'gripper_continuous' is neither True nor False")
    action: Array = known["action"]
    if action.dtype.kind not in "fiu":
        raise ProtocolError(f"an action is an array of numbers; got dtype {action.dtype}")
    return action


def _fields(item: Any) -> Mapping[str, Any]:
    known = item.fields if isinstance(item, PeerRecord) else item
    if not isinstance(known, dict) or not isinstance(known.get("action"), np.ndarray):
        raise ProtocolError(f"an action is a MetaAction or a dict with 'action', an array; got {type(item).__name__}")
    return known


def _dump(value: Any, module: str = MODULE) -> bytes:
    """The pickle of `value`, with our classes and numpy's functions under names that the peer has.

    In protocol 3 a name stands once, as a line, before all data of what it makes; so the first one is the name.
    """
    data = pickle.dumps(value, protocol=3)
    for kind in (MetaObs, MetaAction):
        data = data.replace(_line(kind.__module__, kind.__name__), _line(module, kind.__name__), 1)
    # numpy 1 and 2 both have the older name.
    return data.replace(
        _line("numpy._core.multiarray", "_reconstruct"), _line("numpy.core.multiarray", "_reconstruct"), 1
    )


def _line(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def to_meta(observation: ObservationBatch, timesteps: Sequence[int], *, batched: bool = True) -> MetaObs:
    """A batch of features as a MetaObs: the opposite of `from_meta`.

    Args:
        observation: feature name -> (B, D) state, (B, H, W, C) or (B, C, H, W) image, or list of B texts. A state named
            as one of MetaObs' goes there, any other into `state`; images become cameras in their order.
        timesteps: of the B rows.
        batched: whether the MetaObs has B in front; a B of 1 may go without.

    Raises:
        InputError: two features have the same place, or images differ in size.
    """
    values: dict[str, Any] = {"timestep": np.array([[step] for step in timesteps], np.int64)}
    images = []
    for name, value in observation.items():
        place = _place(name, value)
        if place == "image":
            images.append(to_layout(value, layout_of(value.shape[1:]), "CHW"))
        elif place in values and place != "timestep":
            raise InputError(f"{name!r} and another feature would both be MetaObs.{place}")
        else:
            values[place] = value
    if len({image.shape for image in images}) > 1:
        raise InputError(f"MetaObs.image holds cameras of one size; got {[image.shape for image in images]}")
    if images:
        values["image"] = np.stack(images, axis=1)
    if not batched:
        values = {name: value[0] for name, value in values.items()} | {"timestep": int(timesteps[0])}
    return MetaObs(**values)


def _place(name: str, value: Any) -> str:
    """The field of a MetaObs that a feature goes into."""
    last = name.replace("/", ".").rpartition(".")[2]
    if isinstance(value, (list, tuple)):
        return "raw_lang"
    if value.ndim == 2:
        return last if last in (*STATES, "timestep") else "state"
    if value.ndim == 4 and value.dtype == np.uint8 and layout_of(value.shape[1:]):
        return "image"
    raise InputError(f"{name!r} of shape {value.shape} and dtype {value.dtype} has no place in a MetaObs")
